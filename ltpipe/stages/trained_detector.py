"""Which detector ``ltpipe predict`` runs: a checkpoint of an experiment, or an exported detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import ConfigDict

from ltpipe.config.detector import read_mmengine_config
from ltpipe.config.loading import load_experiment
from ltpipe.data.categories import Categories
from ltpipe.data.split import Split
from ltpipe.engine.detector_facts import check_same_detector, facts_of
from ltpipe.engine.model_config import set_limits
from ltpipe.engine.stage_models import model_of
from ltpipe.engine.training import read_checkpoint
from ltpipe.errors import UserError, unknown_name
from ltpipe.pipeline.paths import Paths
from ltpipe.registry import import_plugins
from ltpipe.run.input_checks import checked_input
from ltpipe.run.records import RECORD
from ltpipe.stage_command import one_run


@dataclass(frozen=True)
class Detector:
    """What is needed to detect.

    Attributes:
        name: Of the default output folder.
        model: Its model config.
        test_pipeline: Transforms at test time.
        weights: Its checkpoint.
        classes: What it knows, in label order.
    """

    name: str
    model: ConfigDict
    test_pipeline: Sequence[dict[str, Any]]
    weights: Path
    classes: Categories


def find_detector(named: str, checkpoint: str | None, results: Path) -> Detector:
    """Return a checkpoint of an experiment, or the detector in a folder of ``ltpipe export``.

    Args:
        named: Experiment, or folder with ``config.py``, which is Python and runs, and ``model.pth``.
        checkpoint: Checkpoint of the experiment.
        results: Folder of results.

    Raises:
        UserError: There is no such detector, or its checkpoint does not say which classes it knows.
    """
    if Path(named).is_dir():
        if checkpoint is not None:
            raise UserError("an exported detector is one checkpoint", where="--checkpoint", got=checkpoint)
        return _exported(Path(named))
    exp = one_run(load_experiment(named))
    if checkpoint not in exp.checkpoints():
        raise unknown_name("checkpoint", str(checkpoint), exp.checkpoints(), where="--checkpoint")
    paths = Paths(results, exp)
    weights, maker = paths.model(checkpoint), paths.producer(checkpoint)[0]
    for label, file in ((maker, weights), ("split", paths.split), ("index", paths.statistics("train"))):
        if not file.is_file():
            fix = f"run the stages up to {checkpoint} of {exp.name} first"
            raise UserError("no checkpoint yet", where=file, got="no such file", fix=fix)
        checked_input(exp, paths, "predict", label, file)
    meta = read_checkpoint(weights)["meta"]
    fragment, model = model_of(exp, paths, Split.load(paths.split), checkpoint)
    check_same_detector(meta, facts_of(fragment, model), weights)
    set_limits(model, exp.evaluate)
    return Detector(f"{exp.name}.{checkpoint}", model, fragment.test_pipeline, weights, _classes(meta, weights))


def _exported(folder: Path) -> Detector:
    """Return the detector in a folder of ``ltpipe export``; like any detector file, its config is trusted and run."""
    file, weights = folder / "config.py", folder / "model.pth"
    if (folder / RECORD).is_file():
        raise UserError(
            "results of a stage, whose config.py is not read: it is Python",
            where=folder,
            fix="name the experiment and --checkpoint, or a folder that `ltpipe export` wrote",
        )
    for one in (file, weights):
        if not one.is_file():
            raise UserError("not the folder of an exported detector", where=one, got="no such file")
    config = ConfigDict(read_mmengine_config(file, "the exported detector"))
    import_plugins(config.get("custom_imports", {}).get("imports", ()))
    classes = _classes(read_checkpoint(weights)["meta"], weights)
    return Detector(folder.resolve().name, config.model, config.test_pipeline, weights, classes)


def _classes(meta: Mapping[str, Any], weights: Path) -> Categories:
    found = Categories.of_checkpoint(meta, "the checkpoint")
    if found is None:
        raise UserError(
            "the checkpoint does not say which classes it knows", where=weights, got="no category ids in meta",
            fix="bring it in by `ltpipe convert`, or export it again",
        )  # fmt: skip
    return found
