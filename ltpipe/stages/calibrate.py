"""``calibrate``: train a calibrator on the planned features, or derive it, and merge it into the detector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from ltpipe.config.choices import is_trained_on_features
from ltpipe.config.experiment import Experiment
from ltpipe.data.calibration_rows import FeaturePlan
from ltpipe.data.categories import Categories
from ltpipe.data.split import Split
from ltpipe.engine.calibrator_training import Batch, train_head
from ltpipe.engine.dataset_configs import class_counts, known_classes
from ltpipe.engine.detector_facts import facts_of
from ltpipe.engine.feature_rows import LiveRows, StoredRows
from ltpipe.engine.frozen_detector import FrozenDetector
from ltpipe.engine.model_config import ClassCounts, build_component, component_modules, of_stage, set_limits
from ltpipe.engine.stage_models import loaded, model_of, write_config
from ltpipe.engine.training import read_checkpoint, write_checkpoint
from ltpipe.interop.finished_checkpoints import head_of_stage, in_order
from ltpipe.methods.box_layers import read_features
from ltpipe.methods.calibration import Calibrator
from ltpipe.metrics.sweeps import write_sweep
from ltpipe.pipeline.digests import stage_seed
from ltpipe.pipeline.paths import Paths
from ltpipe.registry import MODELS
from ltpipe.run.files import discard
from ltpipe.run.stage_run import StageRun, stage_run
from ltpipe.stages.choosing import Options, choose_options
from ltpipe.stages.features import frozen_detector

Rows = StoredRows | LiveRows


def run(exp: Experiment, paths: Paths, name: str) -> None:
    """Make one calibrated checkpoint."""
    source, spec = exp.calibrated_from(name), exp.calibrate[name]
    with stage_run("calibrate", exp, paths, name) as stage:
        split = Split.load(paths.split)
        counts = class_counts(paths, split, split.num_classes)
        classes = known_classes(paths, split, split.num_classes)
        fragment, config = described = model_of(exp, paths, split, source)
        model = config.to_dict()
        if spec.choose is not None:
            set_limits(config, exp.evaluate)
        detector: Any = loaded(described, paths, split, source)
        checkpoint = read_checkpoint(paths.model(source))
        make = partial(_initialised, exp, name, detector, counts)
        calibrators = make({})
        learnt = _learn(exp, paths, name, stage, detector, calibrators, classes)
        if spec.choose is not None:

            def candidate(options: Options) -> list[Calibrator]:
                found = make(options)
                for one, taught in zip(found, calibrators if learnt else (), strict=learnt):
                    one.load_state_dict(taught.state_dict())
                return found

            choice = choose_options(exp, paths, name, detector, described, candidate, stage.work)
            calibrators = candidate(choice.options)
            write_sweep(paths.choice(name), choice.rows)
            stage.outputs.append(paths.choice(name))
            stage.notes.update(choice.notes)
        else:
            discard(paths.choice(name))
        state = checkpoint["state_dict"]
        cascade = isinstance(model["roi_head"]["bbox_head"], list)
        for k, calibrator in enumerate(calibrators):
            model, state = calibrator.merge(model, state, k if cascade else None)
        facts = {"experiment": exp.name, "stage": name, "detector": facts_of(fragment, model), **classes.meta()}
        write_checkpoint(paths.model(name), state, checkpoint["meta"] | facts)
        write_config(paths.config(name), model, fragment, component_modules(exp, fragment))


def _initialised(exp: Experiment, name: str, detector: Any, counts: ClassCounts, options: Options) -> list[Calibrator]:
    """Return a calibrator per stage of the detector, on its device; ``options`` replace those of the experiment."""
    spec, seed = exp.calibrate[name], stage_seed(exp, "calibrate", name)
    component = build_component("calibrator", spec.model_copy(update=options), counts)
    found: list[Calibrator] = []
    for k, head in enumerate(detector.roi_head.bbox_heads):
        torch.manual_seed(seed + k)
        calibrator: Calibrator = MODELS.build(of_stage(component, k))
        calibrator.initialise(head)
        found.append(calibrator.to(next(detector.parameters()).device).eval())
    return found


def _learn(
    exp: Experiment,
    paths: Paths,
    name: str,
    stage: StageRun,
    detector: Any,
    calibrators: Sequence[Calibrator],
    classes: Categories,
) -> bool:
    """Take over or train what the calibrators of all stages learn; return whether there is anything."""
    given, heads = exp.calibrate[name].checkpoint, detector.roi_head.bbox_heads
    trained = is_trained_on_features(exp.calibrate[name].type, given)
    cascade = len(heads) > 1
    for k, (calibrator, head) in enumerate(zip(calibrators, heads, strict=True)):
        if given is not None:
            prefix = f"roi_head.calibrator.{k}" if cascade else "roi_head.calibrator"
            found = in_order(given, classes, f"calibrate.{name}.checkpoint", {prefix: calibrator.get_submodule("head")})
            calibrator.take_over(head_of_stage(found, k) if cascade else found)
        if trained:
            if cascade:
                print(f"head {k + 1} of {len(heads)}", flush=True)
            train_calibrator(exp, paths, name, stage, calibrator, head, k)
    return trained or given is not None


def train_calibrator(
    exp: Experiment, paths: Paths, name: str, stage: StageRun, calibrator: Calibrator, head: Any, k: int
) -> None:
    """Train a calibrator on the rows planned for stage k of the detector, whose frozen box head is given."""
    plan = FeaturePlan.load(paths.of_stage(paths.plan, k))
    rows = open_rows(exp, paths, plan, k)
    assert exp.features is not None
    level = exp.features.level if exp.features.storage == "cached" else "roi"
    schedule = exp.calibrate[name].schedule.of_plan(len(rows))
    device = head.fc_cls.weight.device

    def batches(step: int) -> Iterator[Batch]:
        while True:
            features, labels = rows.step(step % len(rows))
            # The block ends before the yield: a suspended generator would keep gradients off for its caller.
            with torch.no_grad():
                features = features.to(device, non_blocking=True).float()
                read = read_features(head, features, calibrator.reads, level)
            boxes = plan.step_boxes(step % len(rows)) if calibrator.trains_boxes else ()
            yield read, labels, *map(torch.from_numpy, boxes)
            step += 1

    state = paths.of_stage(stage.work / "head.pth", k)
    skipped = train_head(calibrator, batches, schedule, state=state, report=print_progress)
    stage.notes["skipped_steps"] = stage.notes.get("skipped_steps", 0) + skipped
    stage.notes["iterations"] = schedule.iterations


def open_rows(exp: Experiment, paths: Paths, plan: FeaturePlan, k: int = 0) -> Rows:
    """Return the mini-batches planned for stage k, from stored features or from the frozen detector."""
    assert exp.features is not None
    if exp.features.storage == "cached":
        return StoredRows(paths.of_stage(paths.features, k), plan.step_ptr, plan.rows, plan.labels)
    detector: FrozenDetector = frozen_detector(exp, paths)
    return LiveRows(detector, plan.samples, plan.sample_boxes, plan.step_ptr, plan.rows, plan.labels, k)


def print_progress(step: int, facts: dict[str, float]) -> None:
    """Print one line of the head's training log."""
    print(f"step {step}  " + "  ".join(f"{key}: {value:.4g}" for key, value in facts.items()), flush=True)
