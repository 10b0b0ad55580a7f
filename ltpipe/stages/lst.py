"""``lst``: incremental phase k: the previous model, grown by the phase's classes, trained on balanced replay."""

from __future__ import annotations

from typing import Any

from ltpipe.checkpoint_ids import checkpoint_of
from ltpipe.config.experiment import Experiment
from ltpipe.data.categories import check_labels
from ltpipe.data.split import Split
from ltpipe.engine.dataset_configs import known_classes
from ltpipe.engine.distributed import process_group
from ltpipe.engine.heads import as_list
from ltpipe.engine.stage_models import model_of
from ltpipe.engine.training import read_checkpoint
from ltpipe.pipeline.paths import Paths
from ltpipe.run.checksums import checksum
from ltpipe.run.stage_run import stage_run
from ltpipe.stages.detector_training import DetectorTraining


def run(exp: Experiment, paths: Paths, phase: int) -> None:
    """Train one phase."""
    lst = exp.lst
    assert lst is not None, "validate refuses phases without an lst block"
    previous = checkpoint_of(phase - 1)
    with stage_run("lst", exp, paths, phase) as stage, process_group():
        split = Split.load(paths.split)
        num_old, num_classes = split.classes_known(phase - 1), split.classes_known(phase)
        before = paths.model(previous)
        check_labels(read_checkpoint(before)["meta"], known_classes(paths, split, num_old), before)
        fragment, model = model_of(exp, paths, split, checkpoint_of(phase))
        training = DetectorTraining(exp, paths, split, phase, fragment, model)
        grow = dict(num_old=num_old, num_new=num_classes - num_old, seed=training.seed)
        hooks: list[dict[str, Any]] = [dict(type="ltpipe.ExpansionHook", **grow)]
        if lst.distill.teacher != "none":
            part = distillation(exp, paths, split, phase, stages=len(as_list(model.roi_head.bbox_head)))
            model.roi_head.parts = [*model.roi_head.get("parts", []), part]
        if lst.distill.teacher == "online":
            hooks.append(dict(type="ltpipe.OnlineTeacherHook"))
        iterations = lst.phase_iterations(phase, training.epoch_length)
        stage.notes["iterations"] = iterations
        stage.notes |= training.run(training.config(iterations, stage.work, before, hooks))


def distillation(exp: Experiment, paths: Paths, split: Split, phase: int, stages: int) -> dict[str, Any]:
    """Return the config of the distillation part for a detector of so many stages."""
    assert exp.lst is not None
    spec, previous = exp.lst.distill, checkpoint_of(phase - 1)
    before = paths.model(previous)
    if spec.teacher == "cached":
        expected = {"split": split.digest, "teacher_sha256": checksum(before)}
        teacher = dict(type="ltpipe.CachedTeacher", path=str(paths.teacher(phase)), expected=expected, stages=stages)
    else:
        model = model_of(exp, paths, split, previous)[1].to_dict()
        teacher = dict(type="ltpipe.OnlineTeacher", model=model, checkpoint=str(before))
    return dict(
        type="ltpipe.LSTDistillation",
        num_old=split.classes_known(phase - 1),
        teacher=teacher,
        weight=spec.weight,
        reduction=spec.reduction,
    )
