"""Which files each stage reads and leaves; the table of stages takes them from here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ltpipe.checkpoint_ids import checkpoint_of, measured_on
from ltpipe.config.choices import chooses_on, extra_images, holds_out, is_trained_on_features
from ltpipe.config.experiment import Experiment
from ltpipe.pipeline.paths import PARTS, Paths
from ltpipe.pipeline.stage import Key
from ltpipe.run.records import recorded_outputs

STORE = ("info.json", "images.arrow", "categories.arrow", "annotations.arrow", "segments.arrow")
_EVALUATED = ("sweep.", "affinity.", "confusions.", "resamples.")
_CURVES = ("history/training.csv", "history/validation.csv")

Pairs = Iterator[tuple[str, Path]]


def of_parts(inputs: Mapping[str, Path]) -> list[str]:
    """Parts of the data, further test sets included, whose store is among a stage's inputs."""
    found = (name.removeprefix("index:").partition("/") for name in inputs if name.startswith("index:"))
    return [part for part, _, file in found if file == "info.json"]


# ---- what stages read ------------------------------------------------------------------------------------------------


def _store(paths: Paths, part: str) -> Pairs:
    yield from ((f"index:{part}/{name}", paths.store(part) / name) for name in STORE)


def _statistics(paths: Paths) -> Pairs:
    yield "index:train/statistics.csv", paths.statistics("train")


def _extra(exp: Experiment, paths: Paths) -> Pairs:
    """Yield what parts read between the epochs."""
    if holds_out(exp):
        yield "split:holdout", paths.holdout
    if extra_images(exp) == "val":
        yield from _store(paths, "val")


def _checkpoint(paths: Paths, checkpoint: str) -> Pairs:
    maker, _ = paths.producer(checkpoint)
    yield maker, paths.model(checkpoint)


def _choice(exp: Experiment, paths: Paths, checkpoint: str, name: str) -> Pairs:
    """Yield what says which options a checkpoint has, where they were chosen: not all calibrators leave it."""
    if checkpoint in exp.calibrate:
        file = paths.choice(checkpoint)
        if file.name in recorded_outputs(paths.record("calibrate", checkpoint)):
            yield name, file


def _before(phase: Key) -> str:
    assert isinstance(phase, int)
    return checkpoint_of(phase - 1)


def no_inputs(exp: Experiment, paths: Paths, key: Key) -> Pairs:
    """No files."""
    yield from ()


def index_inputs(exp: Experiment, paths: Paths, key: Key) -> Pairs:
    """Annotations of both parts, and the class list."""
    data = exp.dataset
    makers = ("toy-data", "toy-data:val") if data.generate is not None else ("dataset.train", "dataset.val")
    yield from zip(makers, (data.train.annotations, data.val.annotations), strict=True)
    if data.class_list is not None:
        yield "dataset.class_list", data.class_list


def set_inputs(exp: Experiment, paths: Paths, key: Key) -> Pairs:
    """Annotations of a further test set, and the classes and groups of the training part."""
    yield f"evaluate.sets.{key}", exp.evaluate.sets[str(key)].annotations
    yield from _store(paths, "train")


def split_inputs(exp: Experiment, paths: Paths, key: Key) -> Pairs:
    """Store and statistics of the training part."""
    yield from _store(paths, "train")
    yield from _statistics(paths)


def replay_inputs(exp: Experiment, paths: Paths, key: Key) -> Pairs:
    """The store, and what must not be repeated."""
    yield from _store(paths, "train")
    yield "split", paths.split
    yield from (("split:holdout", file) for file in holdout(exp, paths, key))


def base_inputs(exp: Experiment, paths: Paths, key: Key) -> Pairs:
    """Training data and whatever the training starts from."""
    yield from _store(paths, "train")
    yield from _statistics(paths)
    yield "split", paths.split
    yield from _extra(exp, paths)
    if exp.base.schedule.validation is not None:
        yield from _store(paths, "val")
    if isinstance(exp.detector.load_from, Path):
        yield "detector.load_from", exp.detector.load_from
    if exp.base.checkpoint is not None:
        yield "base.checkpoint", exp.base.checkpoint


def distill_inputs(exp: Experiment, paths: Paths, key: Key) -> Pairs:
    """Training data and the checkpoint before the phase."""
    yield from _store(paths, "train")
    yield from _statistics(paths)
    yield "split", paths.split
    yield from _checkpoint(paths, _before(key))


def lst_inputs(exp: Experiment, paths: Paths, key: Key) -> Pairs:
    """Training data, the phase's list, the checkpoint before it, and a cached teacher."""
    assert exp.lst is not None and isinstance(key, int)
    yield from _store(paths, "train")
    yield from _statistics(paths)
    yield from (("split", paths.split), ("split:replay", paths.replay(key)))
    yield from _extra(exp, paths)
    if exp.lst.schedule.validation is not None:
        yield from _store(paths, "val")
    yield from _checkpoint(paths, _before(key))
    if exp.lst.distill.teacher == "cached":
        yield "distill", paths.teacher(key)


def features_inputs(exp: Experiment, paths: Paths, key: Key) -> Pairs:
    """Training data and the checkpoint that is calibrated."""
    yield from _store(paths, "train")
    yield from _statistics(paths)
    yield "split", paths.split
    if chooses_on(exp, "holdout"):
        yield "split:holdout", paths.holdout
    yield from _checkpoint(paths, exp.final_checkpoint())


def calibrate_inputs(exp: Experiment, paths: Paths, key: Key) -> Pairs:
    """The checkpoint that is calibrated, plan and features where the calibrator is trained, or its trained head."""
    calibrator = exp.calibrate[str(key)]
    yield from _store(paths, "train")
    yield from _statistics(paths)
    yield "split", paths.split
    yield from _checkpoint(paths, exp.calibrated_from(str(key)))
    yield from _choice(exp, paths, exp.calibrated_from(str(key)), "calibrate:choice")
    if calibrator.choose is not None and calibrator.choose.on == "val":
        yield from _store(paths, "val")
    elif calibrator.choose is not None:
        yield "split:holdout", paths.holdout
    if is_trained_on_features(calibrator.type, calibrator.checkpoint):
        yield "features", paths.plan
        # A cascade has more plans, and stored features are a choice.
        for name in recorded_outputs(paths.record("features")):
            if name != paths.plan.name:
                yield f"features:{name}", paths.folder("features") / name
    if calibrator.checkpoint is not None:
        yield f"calibrate.{key}.checkpoint", calibrator.checkpoint


def evaluate_inputs(exp: Experiment, paths: Paths, key: Key) -> Pairs:
    """The training part, the part that is measured on, and the checkpoint."""
    checkpoint, part = measured_on(str(key))
    yield from _store(paths, "train")
    yield from _store(paths, part)
    yield from _statistics(paths)
    yield "split", paths.split
    yield from _checkpoint(paths, checkpoint)
    yield from _choice(exp, paths, checkpoint, "calibrate:choice")


def report_inputs(exp: Experiment, paths: Paths, key: Key) -> Pairs:
    """Measurements of this experiment and of those it is compared with, and its pictures; with seeds, of all runs."""
    if exp.seeds:
        for one in (one for _, members in runs_shown(exp) for one in members):
            for measurement in one.measurements():
                yield f"evaluate:{one.name}/{measurement}", Paths(paths.results, one).metrics(measurement)
        return
    shown = [(other, Paths(paths.results, other)) for other in map(exp.beside, exp.report.compare)]
    for one, place in (*shown, (exp, paths)):
        yield f"split:{one.name}", place.split
        for measurement in one.measurements():
            label = f"evaluate:{one.name}/{measurement}"
            yield label, place.metrics(measurement)
            yield f"{label}/per_class", place.per_class(measurement)
            for name in recorded_outputs(place.record("evaluate", measurement)):
                if name.startswith(_EVALUATED):
                    yield f"{label}/{name}", place.folder("evaluate", measurement) / name
        for checkpoint in one.evaluated_checkpoints():
            yield from _choice(one, place, checkpoint, f"calibrate:{one.name}/{checkpoint}/choice")
        for stage, phase in one.trainings():
            for name in recorded_outputs(place.record(stage, phase)):
                if name in _CURVES:
                    yield f"{stage}:{one.name}/{phase or 0}/{name}", place.folder(stage, phase) / name
    if paths.highlights.name in recorded_outputs(paths.record("pictures")):
        yield "pictures", paths.highlights


def runs_shown(exp: Experiment) -> list[tuple[str, list[Experiment]]]:
    """Return what a report over seeds shows: by name the runs of the experiments it is compared with, its own last.

    An experiment without `seeds` is its own only run.
    """
    return [(one.name, one.runs() or [one]) for one in (*map(exp.beside, exp.report.compare), exp)]


def pictures_inputs(exp: Experiment, paths: Paths, key: Key) -> Pairs:
    """The data, what trainings draw from it, and what complete checkpoints detect."""
    yield from _store(paths, "train")
    yield from _store(paths, "val")
    yield from _statistics(paths)
    yield "split", paths.split
    yield from (("split:holdout", file) for file in holdout(exp, paths, key))
    yield from ((f"split:replay:{phase}", paths.replay(phase)) for phase in trained_phases(exp) if phase)
    for checkpoint in complete_checkpoints(exp):
        yield f"evaluate:{checkpoint}", paths.predictions(checkpoint)
        yield f"evaluate:{checkpoint}/per_class", paths.per_class(checkpoint)


def trained_phases(exp: Experiment) -> range:
    """Return the phases that this experiment trains on whole images; 0 is base training."""
    return range(0 if exp.base.checkpoint is None else 1, exp.num_phases() + 1)


def complete_checkpoints(exp: Experiment) -> list[str]:
    """Return the evaluated checkpoints that know all classes, in the order of training."""
    final = exp.final_checkpoint()
    return [name for name in exp.evaluated_checkpoints() if name == final or name in exp.calibrate]


# ---- what stages leave -----------------------------------------------------------------------------------------------


def index_outputs(paths: Paths, key: Key) -> list[Path]:
    """Stores and statistics of both parts, or of a further test set."""
    parts = PARTS if key is None else (str(key),)
    return [paths.store(part) / name for part in parts for name in (*STORE, paths.statistics(part).name)]


def holdout(exp: Experiment, paths: Paths, key: Key) -> list[Path]:
    """Images held out of training, where a part or a choice asks for them."""
    return [paths.holdout] if holds_out(exp) else []


def model_outputs(stage: str) -> Callable[[Paths, Key], list[Path]]:
    """Return the outputs of a stage that makes a checkpoint."""

    def outputs(paths: Paths, key: Key) -> list[Path]:
        return [paths.folder(stage, key) / name for name in ("model.pth", "config.py")]

    return outputs


def evaluate_outputs(paths: Paths, key: Key) -> list[Path]:
    """Detections and numbers."""
    return [file(str(key)) for file in (paths.predictions, paths.metrics, paths.per_class, paths.tensors)]
