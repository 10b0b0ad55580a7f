"""``report``: tables and figures of this experiment's checkpoints and of the experiments it is compared with."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ltpipe.checkpoint_ids import measured_on
from ltpipe.config.choices import chosen_on_val
from ltpipe.config.experiment import Experiment
from ltpipe.config.fields import Choice
from ltpipe.config.schedules import Schedule, Steps
from ltpipe.data.categories import Categories, labels_in
from ltpipe.data.split import Split
from ltpipe.data.summary import sentences
from ltpipe.data.tables import read_csv
from ltpipe.metrics.class_affinity import load_affinity
from ltpipe.metrics.resamples import load_resamples
from ltpipe.pipeline.paths import Paths
from ltpipe.pipeline.stages import stage_inputs, stage_keys
from ltpipe.report.build import Curve, Evaluation, Expectation, ExperimentCard, Sweep, build_report
from ltpipe.report.highlights import read_highlights
from ltpipe.run.records import read_json, recorded_outputs
from ltpipe.run.stage_run import stage_run
from ltpipe.stages.report_over_seeds import run as over_seeds


def run(exp: Experiment, paths: Paths) -> None:
    """Write the report page, the summary table and the figures; with several seeds, over the runs for them."""
    if exp.seeds:
        over_seeds(exp, paths)
        return
    others = [exp.beside(name) for name in exp.report.compare]
    shown = [*((other, Paths(paths.results, other)) for other in others), (exp, paths)]
    read = set(stage_inputs(exp, paths, "report").values())
    swept, chosen, alike = (
        [
            (one.name, checkpoint, table(place, checkpoint))
            for one, place in shown
            for checkpoint in one.evaluated_checkpoints()
            if table(place, checkpoint) in read
        ]
        for table in (Paths.sweep, Paths.choice, Paths.affinity)
    )
    trained = [
        (one.name, "base" if key is None else f"phase{key}", place.curve(stage, key, "training"))
        for one, place in shown
        for stage, key in one.trainings()
        if place.curve(stage, key, "training") in read
    ]
    beside = Path(os.path.relpath(paths.pictures.parent, paths.folder("report"))).as_posix()
    with stage_run("report", exp, paths) as stage:
        measured = [item for one, place in shown for item in evaluations(one, place)]
        same_classes(exp, measured)
        stage.outputs += build_report(
            paths.folder("report"),
            [item for item in measured if item.part == "val"],
            title=exp.name,
            subtitle=exp.description,
            cards=[_card(one, place) for one, place in shown],
            expectations=[Expectation(exp.name, **item.model_dump()) for item in exp.report.expected],
            sweeps=[Sweep(name, checkpoint, read_csv(file)) for name, checkpoint, file in [*chosen, *swept]],
            affinities=[load_affinity(file, name, checkpoint) for name, checkpoint, file in alike],
            curves=[curve(*one, read) for one in trained],
            highlights=read_highlights(paths.highlights, beside) if paths.highlights in read else (),
            further=[item for item in measured if item.part != "val"],
        )


def curve(name: str, checkpoint: str, training: Path, read: set[Path]) -> Curve:
    """Return the curves of a training from its tables."""
    validation = training.with_name("validation.csv")
    return Curve(name, checkpoint, read_csv(training), read_csv(validation) if validation in read else None)


def evaluations(exp: Experiment, paths: Paths) -> Iterator[Evaluation]:
    """Yield the evaluations of an experiment, checkpoints in the order of training, further test sets last."""
    for measurement in exp.measurements():
        checkpoint, part = measured_on(measurement)
        table = read_csv(paths.per_class(measurement))
        made = recorded_outputs(paths.record("evaluate", measurement))
        pairs, drawn = paths.confusions(measurement), paths.resamples(measurement)
        confused = read_csv(pairs) if pairs.name in made else pd.DataFrame(columns=["iou_type"])
        resamples = load_resamples(drawn) if drawn.name in made else {}
        for kind, metrics in json.loads(paths.metrics(measurement).read_text(encoding="utf-8")).items():
            per_class, own = (rows[rows["iou_type"] == kind].reset_index(drop=True) for rows in (table, confused))
            here = part == "val" and chosen_on_val(exp, checkpoint)
            yield Evaluation(exp.name, checkpoint, metrics, per_class, own, resamples.get(kind), here, part)


def same_classes(exp: Experiment, measured: Sequence[Evaluation]) -> None:
    """Refuse to compare numbers of different classes; a checkpoint of a phase knows some of them.

    Raises:
        UserError: A class of one evaluation has another name or id in another, or is not there.
    """
    known = sorted((_categories(item) for item in measured), key=lambda one: -len(one.ids))
    for largest, one in zip(known[:1] * len(known), known, strict=True):
        if one.pairs() != largest.pairs():
            fix = f"evaluate {one.source} again if its data have changed, or leave it out of report.compare"
            labels_in(largest, one, where=exp.where("report.compare"), fix=fix, part=True)


def _categories(item: Evaluation) -> Categories:
    rows = item.per_class[["category_id", "name"]].rename(columns={"category_id": "id"}).to_dict("records")
    return Categories.of_records(rows, f"{item.experiment}/{item.checkpoint}")


def _card(exp: Experiment, paths: Paths) -> ExperimentCard:
    """Collect what was done in an experiment."""
    model = exp.model
    methods = {
        "detector": str(exp.detector.config),
        "classifier": _words(model.classifier),
        "loss": _words(model.loss),
        "mask head": _words(model.mask),
        "parts": ", ".join(map(_words, model.parts)) or "none",
        "sampler": _words(exp.base.sampler),
    }
    schedules = [_schedule("base", exp.base.schedule)]
    if exp.lst is not None:
        distill = exp.lst.distill
        methods["replay"] = f"{exp.lst.replay.variant}, seed {exp.lst.replay.seed}"
        methods["distillation"] = f"{distill.teacher}, weight {distill.weight:g}, {distill.reduction}"
        methods["frozen in phases"] = exp.lst.freeze
        boundaries = Split.load(paths.split).boundaries
        methods["classes known"] = ", ".join(map(str, boundaries))
        schedules.append(_schedule("each phase", exp.lst.schedule))
    for name, calibrator in exp.calibrate.items():
        methods[f"calibrator {name}"] = _words(calibrator)
        schedules.append(_schedule(name, calibrator.schedule))
    records = [paths.record(stage, key) for stage, key in stage_keys(exp) if stage != "report"]
    stages = [json.loads(record.read_text(encoding="utf-8")) for record in records if record.is_file()]
    epochs, iterations = _base_length(exp, paths)
    return ExperimentCard(exp.name, exp.description, methods, schedules, stages, _data(paths), epochs, iterations)


def _base_length(exp: Experiment, paths: Paths) -> tuple[float | None, int | None]:
    """Return passes over all training images and iterations of the base training, if there was one."""
    info = read_json(paths.store("train") / "info.json")
    if exp.base.checkpoint is not None or not info:
        return None, None
    schedule, images = exp.base.schedule, info["counts"]["images"]
    iterations = schedule.total_iterations(images)
    return iterations * schedule.batch_size / images, iterations


def _data(paths: Paths) -> dict[str, list[str]]:
    """Return what `index` said of both parts of the data set."""
    found = {part: read_json(paths.store(part) / "info.json") for part in ("train", "val")}
    return {part: sentences(info) for part, info in found.items() if info and "rarest" in info}


def _words(choice: Choice) -> str:
    """Describe a method and its options."""
    options = {key: value for key, value in choice.options.items() if key != "schedule"}
    listed = ", ".join(f"{key} = {value}" for key, value in options.items())
    return f"{choice.type} ({listed})" if listed else choice.type


def _schedule(stage: str, schedule: Steps) -> dict[str, Any]:
    """Describe a schedule as one row of a table."""
    length = f"{schedule.iterations} iterations" if schedule.iterations else f"{schedule.epochs:g} epochs"
    row = {
        "stage": stage,
        "length": length,
        "batch size": schedule.batch_size,
        "optimiser": schedule.optimizer,
        "learning rate": schedule.lr,
        "drops": ", ".join(f"{drop:g}" for drop in schedule.drops) or "none",
    }
    if isinstance(schedule, Schedule):
        chosen = schedule.model_dump(mode="json")
        if schedule.decay != "steps":
            row["drops"] = f"{schedule.decay}, to {schedule.final_lr:g}"
        besides = {key: chosen[key] for key in sorted(schedule.later - {"decay", "final_lr"}) if key in chosen}
        row["optimiser"] = ", ".join([schedule.optimizer, *(f"{key}: {value}" for key, value in besides.items())])
    return row
