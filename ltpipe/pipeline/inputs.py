"""Which files each stage reads. Stages, rules, status and the keys of resume state all ask here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ltpipe.config.choices import extra_images
from ltpipe.config.experiment import Experiment
from ltpipe.config.loading import load_beside
from ltpipe.pipeline.paths import Part, Paths
from ltpipe.pipeline.stage_keys import is_trained_on_features
from ltpipe.run.records import recorded_outputs

Inputs = dict[str, Path]
"""Files by what names them: a key of the experiment, or the stage that makes them, perhaps with a suffix after ``:``.
Names say nothing about folders: results that were moved keep them."""

STORE = ("info.json", "images.arrow", "categories.arrow", "annotations.arrow", "segments.arrow")
_SOMETIMES = ("features", "plan_stage", "sweep.csv", "affinity.")


def stage_inputs(exp: Experiment, paths: Paths, stage: str, key: str | int | None = None) -> Inputs:
    """Return the files that a stage reads, whether they are there or not.

    Images are not among them: the store knows which there are, and each is checked when it is read.

    Args:
        exp: The experiment.
        paths: Its paths.
        stage: One of :data:`~ltpipe.pipeline.stages.TABLE`.
        key: Its phase, calibrator or checkpoint.
    """
    return dict(_STAGES[stage](exp, paths, key))


def is_made_always(path: Path) -> bool:
    """Whether the stage that may make a file always makes it: only then it can be an input of a rule."""
    return not path.name.startswith(_SOMETIMES)


def of_parts(inputs: Mapping[str, Path]) -> list[Part]:
    """Parts of the data set whose store is among a stage's inputs."""
    parts: tuple[Part, ...] = ("train", "val")
    return [part for part in parts if f"index:{part}/info.json" in inputs]


Pairs = Iterator[tuple[str, Path]]
Key = str | int | None


def _store(paths: Paths, part: Part) -> Pairs:
    yield from ((f"index:{part}/{name}", paths.store(part) / name) for name in STORE)


def _statistics(paths: Paths) -> Pairs:
    yield "index:train/statistics.csv", paths.statistics("train")


def _extra(exp: Experiment, paths: Paths) -> Pairs:
    """Yield what parts read between the epochs."""
    images = extra_images(exp)
    if images == "holdout":
        yield "split:holdout", paths.holdout
    elif images == "val":
        yield from _store(paths, "val")


def _checkpoint(paths: Paths, checkpoint: str) -> Pairs:
    maker, _ = paths.producer(checkpoint)
    yield maker, paths.model(checkpoint)
    yield f"{maker}:config", paths.config(checkpoint)


def _before(phase: Key) -> str:
    assert isinstance(phase, int)
    return "base" if phase == 1 else f"phase{phase - 1}"


def _validate(exp: Experiment, paths: Paths, key: Key) -> Pairs:
    yield from ()


def _index(exp: Experiment, paths: Paths, key: Key) -> Pairs:
    data = exp.dataset
    makers = ("toy-data", "toy-data:val") if data.generate is not None else ("dataset.train", "dataset.val")
    yield from zip(makers, (data.train.annotations, data.val.annotations), strict=True)
    if data.class_list is not None:
        yield "dataset.class_list", data.class_list


def _split(exp: Experiment, paths: Paths, key: Key) -> Pairs:
    yield from _store(paths, "train")
    if key is None:
        yield from _statistics(paths)
    else:
        yield "split", paths.split
        if extra_images(exp) == "holdout":
            yield "split:holdout", paths.holdout


def _base(exp: Experiment, paths: Paths, key: Key) -> Pairs:
    yield from _store(paths, "train")
    yield from _statistics(paths)
    yield "split", paths.split
    yield from _extra(exp, paths)
    if exp.detector.load_from is not None:
        yield "detector.load_from", exp.detector.load_from
    if exp.base.checkpoint is not None:
        yield "base.checkpoint", exp.base.checkpoint


def _distill(exp: Experiment, paths: Paths, key: Key) -> Pairs:
    yield from _store(paths, "train")
    yield "split", paths.split
    yield from _checkpoint(paths, _before(key))


def _lst(exp: Experiment, paths: Paths, key: Key) -> Pairs:
    assert exp.lst is not None and isinstance(key, int)
    yield from _store(paths, "train")
    yield from _statistics(paths)
    yield from (("split", paths.split), ("split:replay", paths.replay(key)))
    yield from _extra(exp, paths)
    # Its config is read by the online teacher only; a phase always follows both.
    yield from _checkpoint(paths, _before(key))
    if exp.lst.distill.teacher == "cached":
        yield "distill", paths.teacher(key)


def _features(exp: Experiment, paths: Paths, key: Key) -> Pairs:
    yield from _store(paths, "train")
    yield "split", paths.split
    yield from _checkpoint(paths, exp.final_checkpoint())


def _calibrate(exp: Experiment, paths: Paths, key: Key) -> Pairs:
    calibrator = exp.calibrate[str(key)]
    yield from _store(paths, "train")
    yield from _statistics(paths)
    yield "split", paths.split
    yield from _checkpoint(paths, exp.final_checkpoint())
    if is_trained_on_features(calibrator.type, calibrator.checkpoint):
        yield "features", paths.plan
        # A cascade has more plans, and stored features are a choice.
        for name in recorded_outputs(paths.record("features")):
            if name != paths.plan.name:
                yield f"features:{name}", paths.folder("features") / name
    if calibrator.checkpoint is not None:
        yield f"calibrate.{key}.checkpoint", calibrator.checkpoint


def _evaluate(exp: Experiment, paths: Paths, key: Key) -> Pairs:
    yield from _store(paths, "train")
    yield from _store(paths, "val")
    yield from _statistics(paths)
    yield "split", paths.split
    yield from _checkpoint(paths, str(key))


def _report(exp: Experiment, paths: Paths, key: Key) -> Pairs:
    shown = [(other, Paths(paths.results, other)) for other in (load_beside(exp, name) for name in exp.report.compare)]
    for one, place in (*shown, (exp, paths)):
        yield f"split:{one.name}", place.split
        for checkpoint in one.evaluated_checkpoints():
            label = f"evaluate:{one.name}/{checkpoint}"
            yield label, place.metrics(checkpoint)
            yield f"{label}/per_class", place.per_class(checkpoint)
            for name in recorded_outputs(place.record("evaluate", checkpoint)):
                if name.startswith(("sweep.", "affinity.")):
                    yield f"{label}/{name}", place.folder("evaluate", checkpoint) / name


_STAGES: Mapping[str, Callable[[Experiment, Paths, Key], Pairs]] = {
    "validate": _validate,
    "index": _index,
    "split": _split,
    "base": _base,
    "distill": _distill,
    "lst": _lst,
    "features": _features,
    "calibrate": _calibrate,
    "evaluate": _evaluate,
    "report": _report,
}
