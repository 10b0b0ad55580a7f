"""``lst``: incremental phase k: the previous model, grown by the phase's classes, trained on balanced replay."""

from __future__ import annotations

import math
from typing import Any

from ltpipe.checkpoint_ids import checkpoint_of
from ltpipe.config.experiment import Experiment
from ltpipe.data.categories import check_labels
from ltpipe.data.split import Split
from ltpipe.engine.dataset_configs import known_classes, stream_config, training_order
from ltpipe.engine.detector_facts import facts_of
from ltpipe.engine.distributed import process_group
from ltpipe.engine.extra_images import part_hooks
from ltpipe.engine.heads import as_list
from ltpipe.engine.inference import build_dataset
from ltpipe.engine.model_config import component_modules
from ltpipe.engine.stage_models import model_of
from ltpipe.engine.training import read_checkpoint, train
from ltpipe.engine.training_config import training_config
from ltpipe.pipeline.digests import stage_seed
from ltpipe.pipeline.paths import Paths
from ltpipe.run.checksums import checksum
from ltpipe.run.stage_run import stage_run
from ltpipe.stages.measuring import validation_hooks


def run(exp: Experiment, paths: Paths, phase: int) -> None:
    """Train one phase."""
    lst = exp.lst
    assert lst is not None, "validate refuses phases without an lst block"
    name, previous = checkpoint_of(phase), checkpoint_of(phase - 1)
    seed = stage_seed(exp, "lst", phase)
    with stage_run("lst", exp, paths, phase) as stage, process_group():
        split = Split.load(paths.split)
        num_old, num_classes = split.classes_known(phase - 1), split.classes_known(phase)
        before = paths.model(previous)
        check_labels(read_checkpoint(before)["meta"], known_classes(paths, split, num_old), before)
        fragment, model = model_of(exp, paths, split, name)
        facts = {"experiment": exp.name, "stage": name, "detector": facts_of(fragment, model)}
        if lst.distill.teacher != "none":
            part = distillation(exp, paths, split, phase, stages=len(as_list(model.roi_head.bbox_head)))
            model.roi_head.parts = [*model.roi_head.get("parts", []), part]
        order = training_order(exp, paths, phase)
        dataset = stream_config(exp, paths, fragment, phase=phase, num_classes=num_classes, **order)
        epoch_length = build_dataset(dataset).stream.epoch_length()
        iterations = lst.phase_iterations(phase, epoch_length)
        hooks = [dict(type="ltpipe.ExpansionHook", num_old=num_old, num_new=num_classes - num_old, seed=seed)]
        if lst.distill.teacher == "online":
            hooks.append(dict(type="ltpipe.OnlineTeacherHook"))
        hooks += part_hooks(
            exp,
            paths,
            fragment,
            phase=phase,
            num_classes=num_classes,
            seed=seed,
            iterations_per_epoch=math.ceil(epoch_length / lst.schedule.images_per_pass),
        )
        config = training_config(
            model,
            dataset,
            lst.schedule,
            iterations=iterations,
            seed=seed,
            work_dir=stage.work,
            detector=fragment,
            imports=component_modules(exp, fragment),
            load_from=str(paths.model(previous)),
            hooks=hooks,
        )
        meta = {**facts, **known_classes(paths, split, num_classes).meta()}
        watching = validation_hooks(
            exp, paths, lst.schedule, model, fragment, checkpoint=name, num_classes=num_classes, seed=seed
        )
        stage.notes["iterations"] = iterations
        stage.notes |= train(config, paths.model(name), paths.config(name), meta=meta, watching=watching)


def distillation(exp: Experiment, paths: Paths, split: Split, phase: int, stages: int) -> dict[str, Any]:
    """Return the config of the distillation part for a detector of so many stages."""
    assert exp.lst is not None
    spec, previous = exp.lst.distill, "base" if phase == 1 else f"phase{phase - 1}"
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
