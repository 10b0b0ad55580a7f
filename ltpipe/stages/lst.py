"""``lst``: incremental phase k: the previous model, grown by the phase's classes, trained on balanced replay."""

from __future__ import annotations

from typing import Any

from mmengine.config import ConfigDict

from ltpipe.data.split import Split
from ltpipe.engine.config import assemble_model, training_config
from ltpipe.engine.inputs import class_counts, stream_config
from ltpipe.engine.predict import build_dataset
from ltpipe.engine.train import read_checkpoint, train, write_checkpoint
from ltpipe.methods.lst_expand import expand_checkpoint
from ltpipe.methods.lst_freeze import freezing_options
from ltpipe.spec.digest import stage_digest
from ltpipe.spec.models import Experiment
from ltpipe.spec.paths import Paths
from ltpipe.spec.training import Lst
from ltpipe.stages._run import stage_run


def run(exp: Experiment, paths: Paths, phase: int) -> None:
    """Train one phase."""
    lst = exp.lst
    assert lst is not None, "validate refuses phases without an lst block"
    name, previous = f"phase{phase}", "base" if phase == 1 else f"phase{phase - 1}"
    maker, _ = paths.producer(previous)
    inputs = {
        "index": paths.store("train") / "info.json",
        "split": paths.split,
        "split:replay": paths.replay(phase),
        maker: paths.model(previous),
    }
    if lst.distill.teacher == "cached":
        inputs["distill"] = paths.teacher(phase)
    seed = exp.seed + phase
    with stage_run(
        "lst",
        paths.folder("lst", phase),
        experiment=exp.name,
        digest=stage_digest(exp, "lst", phase),
        seed=seed,
        inputs=inputs,
    ) as stage:
        split = Split.load(paths.split)
        num_old, num_classes = split.classes_known(phase - 1), split.classes_known(phase)
        fragment, model = assemble_model(exp, class_counts(paths, split, num_classes))
        restrict(model, lst)
        if lst.distill.teacher != "none":
            model.roi_head.parts = [*model.roi_head.get("parts", []), distillation(lst, paths, phase, previous, num_old)]
        start = stage.work / "start.pth"
        if not start.is_file():
            content = read_checkpoint(paths.model(previous))
            grown = expand_checkpoint(content["state_dict"], num_old, num_classes - num_old, seed=seed)
            write_checkpoint(start, grown, content["meta"])
        order = {"replay": str(paths.replay(phase))}
        dataset = stream_config(exp, paths, fragment, phase=phase, num_classes=num_classes, seed=seed, order=order)
        iterations = lst.phase_iterations(phase, build_dataset(dataset).stream.epoch_length())
        config = training_config(
            model,
            dataset,
            lst.schedule,
            iterations=iterations,
            seed=seed,
            work_dir=stage.work,
            test_pipeline=fragment.test_pipeline,
            load_from=str(start),
            hooks=[dict(type="ltpipe.OnlineTeacherHook")] if lst.distill.teacher == "online" else [],
        )
        meta = {"experiment": exp.name, "stage": name, "category_ids": split.order[:num_classes].tolist()}
        train(config, paths.model(name), paths.config(name), meta=meta)
        stage.outputs += [paths.model(name), paths.config(name)]
        stage.notes["iterations"] = iterations


def restrict(model: ConfigDict, lst: Lst) -> None:
    """Freeze what the phase keeps, and sample RoIs of the paired class only."""
    model.backbone.update(freezing_options(lst.freeze))
    sampler = model.train_cfg.rcnn.sampler
    sampler.update(type="ltpipe.ClassRestrictedSampler", num=lst.rois.num, pos_fraction=lst.rois.positive_fraction)


def distillation(lst: Lst, paths: Paths, phase: int, previous: str, num_old: int) -> dict[str, Any]:
    """Return the config of the distillation part."""
    if lst.distill.teacher == "cached":
        teacher = dict(type="ltpipe.CachedTeacher", path=str(paths.teacher(phase)))
    else:
        teacher = dict(
            type="ltpipe.OnlineTeacher", config=str(paths.config(previous)), checkpoint=str(paths.model(previous))
        )
    return dict(
        type="ltpipe.LSTDistillation",
        num_old=num_old,
        teacher=teacher,
        weight=lst.distill.weight,
        reduction=lst.distill.reduction,
    )
