"""``calibrate``: train a calibrator on the planned features, or derive it, and merge it into the detector."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from mmengine.config import ConfigDict

from ltpipe.data.feature_plan import FeaturePlan
from ltpipe.data.split import Split
from ltpipe.engine.config import build_component, read_config
from ltpipe.engine.features import FrozenDetector, LiveRows, StoredRows
from ltpipe.engine.head_training import Batch, HeadSchedule, train_head
from ltpipe.engine.inputs import class_counts
from ltpipe.engine.predict import load_model
from ltpipe.engine.train import read_checkpoint, write_checkpoint
from ltpipe.files import atomic_path
from ltpipe.methods.base import Calibrator, read_features
from ltpipe.registry import MODELS
from ltpipe.spec.digest import stage_slice
from ltpipe.spec.models import Experiment
from ltpipe.spec.paths import Paths
from ltpipe.stages._run import stage_run
from ltpipe.stages._take_over import in_order
from ltpipe.stages.features import frozen_detector

Rows = StoredRows | LiveRows


def run(exp: Experiment, paths: Paths, name: str) -> None:
    """Make one calibrated checkpoint."""
    source = exp.final_checkpoint()
    maker, _ = paths.producer(source)
    inputs = {"split": paths.split, maker: paths.model(source), f"{maker}:config": paths.config(source)}
    spec = exp.calibrate[name]
    split = Split.load(paths.split) if paths.split.is_file() else None
    counts = class_counts(paths, split, split.num_classes) if split else None
    component = build_component("calibrator", spec, counts) if counts else None
    given = spec.checkpoint
    trained = component is not None and MODELS.get(component["type"]).needs_features and given is None
    if trained:
        inputs["features"] = paths.plan
    if given is not None:
        inputs[f"calibrate.{name}.checkpoint"] = given
    seed = exp.seed if spec.seed is None else spec.seed
    with stage_run(
        "calibrate",
        paths.folder("calibrate", name),
        experiment=exp.name,
        settings=stage_slice(exp, "calibrate", name),
        seed=seed,
        inputs=inputs,
    ) as stage:
        torch.manual_seed(seed)
        config = read_config(paths.config(source))
        detector = load_model(config.model, paths.model(source))
        calibrator: Calibrator = MODELS.build(component)
        calibrator.initialise(detector.roi_head.bbox_head)
        calibrator.to(next(detector.parameters()).device)
        if given is not None:
            assert split is not None
            calibrator.take_over(in_order(given, split.order.tolist(), f"calibrate.{name}.checkpoint"))
        if trained:
            plan = FeaturePlan.load(paths.plan)
            rows = open_rows(exp, paths, plan)
            assert exp.features is not None
            level = exp.features.level if exp.features.storage == "cached" else "roi"
            schedule = HeadSchedule.of(spec.schedule, len(rows))

            device = next(detector.parameters()).device

            def batches(step: int) -> Iterator[Batch]:
                while True:
                    features, labels = rows.step(step % len(rows))
                    # The block ends before the yield: a suspended generator would keep gradients off for its caller.
                    with torch.no_grad():
                        features = features.to(device, non_blocking=True).float()
                        read = read_features(detector.roi_head.bbox_head, features, calibrator.reads, level)
                    boxes = plan.step_boxes(step % len(rows)) if calibrator.trains_boxes else ()
                    yield read, labels, *map(torch.from_numpy, boxes)
                    step += 1

            state = stage.work / "head.pth"
            stage.notes["skipped_steps"] = train_head(calibrator, batches, schedule, state=state, report=print_progress)
            stage.notes["iterations"] = schedule.iterations
        model, state_dict = calibrator.merge(config.model.to_dict(), read_checkpoint(paths.model(source))["state_dict"])
        config.model = ConfigDict(model)
        meta = read_checkpoint(paths.model(source))["meta"] | {"experiment": exp.name, "stage": name}
        write_checkpoint(paths.model(name), state_dict, meta)
        with atomic_path(paths.config(name)) as temporary:
            config.dump(str(temporary))
        stage.outputs += [paths.model(name), paths.config(name)]


def open_rows(exp: Experiment, paths: Paths, plan: FeaturePlan) -> Rows:
    """Return the mini-batches of the plan, from stored features or from the frozen detector."""
    assert exp.features is not None
    if exp.features.storage == "cached":
        return StoredRows(paths.features, plan.step_ptr, plan.rows, plan.labels)
    detector: FrozenDetector = frozen_detector(exp, paths)
    return LiveRows(detector, plan.units, plan.unit_boxes, plan.step_ptr, plan.rows, plan.labels)


def print_progress(step: int, facts: dict[str, float]) -> None:
    """Print one line of the head's training log."""
    print(f"step {step}  " + "  ".join(f"{key}: {value:.4g}" for key, value in facts.items()), flush=True)
