"""Finished checkpoints in place of a training, with their classes brought into the experiment's order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmengine.config import ConfigDict
from torch import Tensor, nn

from ltpipe.checkpoints.tensor_checks import check_kinds
from ltpipe.config.experiment import Experiment
from ltpipe.data.categories import Categories, labels_in, stored_names
from ltpipe.engine.training import fitting_weights, read_checkpoint
from ltpipe.errors import UserError
from ltpipe.methods.class_rows import reorder_classes
from ltpipe.methods.lst.expansion import trim_heads
from ltpipe.registry import MODELS

PARTS = "roi_head.parts."
CALIBRATOR = "roi_head.calibrator."


def in_order(path: Path, classes: Categories, where: str, modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return the state of a checkpoint with the labels of the experiment.

    Args:
        path: File of ``ltpipe convert`` or of a stage.
        classes: Those of the experiment's stage, in label order.
        where: Key of the experiment that names the file.
        modules: Modules that its tensors are for, by their prefix in the state dict.

    Raises:
        UserError: It does not say which classes it knows, or knows others.
    """
    content, here = read_checkpoint(path), f"{where}: {path}"
    known = _stated_classes(content["meta"], here)
    fix = "take a checkpoint of these classes, or give the annotations its category ids and names"
    places = labels_in(replace(known, source="the checkpoint"), classes, where=here, fix=fix)
    return reorder_classes(content["state_dict"], modules, len(known.ids), places)


def _stated_classes(meta: Mapping[str, Any], here: str) -> Categories:
    known = Categories.of_checkpoint(meta, here)
    if known is None:
        raise UserError(
            "the checkpoint does not say which classes its rows belong to", where=here,
            fix="convert it with `ltpipe convert --classes`, or use it as detector.load_from to start a training",
        )  # fmt: skip
    return known


def check_checkpoints(exp: Experiment, detector: nn.Module, num_classes: int) -> None:
    """Refuse checkpoints to start from, or to use as they are, that cannot be read or do not fit the detector.

    Which classes they know is compared when the data are there.

    Args:
        exp: The experiment.
        detector: Its detector, which may be on the meta device.
        num_classes: Classes it knows.

    Raises:
        UserError: One does not fit.
    """
    start, finished = exp.detector.start, exp.base.checkpoint
    if start is not None and start.is_file():
        fitting_weights(read_checkpoint(start)["state_dict"], detector, start)
    if finished is None or not finished.is_file():
        return
    content, here = read_checkpoint(finished), f"base.checkpoint: {finished}"
    known = _stated_classes(content["meta"], here)
    _same_choices(exp, content["meta"].get("converted", {}))
    if len(known.ids) != num_classes:
        return
    state, own = content["state_dict"], detector.state_dict()
    wrong = [
        key for key in own if not key.startswith(PARTS) and (key not in state or state[key].shape != own[key].shape)
    ]
    if wrong:
        found = tuple(state[wrong[0]].shape) if wrong[0] in state else "nothing of that name"
        raise UserError(
            "the checkpoint does not fit the detector", where=here,
            got=f"{len(wrong)} tensors missing or of another shape, {wrong[0]} the first: {found}",
            allowed=f"{tuple(own[wrong[0]].shape)}",
            fix="choose the detector file, the heads and the classes it was trained with",
        )  # fmt: skip


def start_state(path: Path, classes: Categories, detector: nn.Module) -> tuple[dict[str, Tensor], Categories | None]:
    """Return what a training can start from: with the class layers if the file knows the same classes, else without.

    Args:
        path: ``detector.load_from``.
        classes: Those of the experiment's stage, in label order.
        detector: The detector that starts from it.

    Returns:
        The state, and the classes of its class layers; None if it has none.

    Raises:
        UserError: It has the experiment's category ids with other names, or its names with other ids.
    """
    content, here = read_checkpoint(path), f"detector.load_from: {path}"
    known = Categories.of_checkpoint(content["meta"], here)
    if known is not None and (set(known.ids) == set(classes.ids) or set(known.names) == set(classes.names)):
        known = replace(known, source="the checkpoint")
        fix = (
            "give the annotations its category ids and names, or start without its class layers: "
            f"`ltpipe convert {path} --init`"
        )
        places = labels_in(known, classes, where=here, fix=fix)
        return reorder_classes(content["state_dict"], {"": detector}, len(known.ids), places), classes
    names = stored_names(content["meta"])
    if known is None and names is not None and set(names) == set(classes.names):
        print(f"{path}: no category ids, so its class layers start anew; `ltpipe convert --classes` would add them")
    return trim_heads(content["state_dict"]), None


def head_of_stage(state: Mapping[str, Tensor], stage: int) -> dict[str, Tensor]:
    """Return a state whose calibrated head is that of one stage of a cascade, under the names of a single one.

    Args:
        state: Heads under ``roi_head.calibrator.<stage>``.
        stage: Which one.
    """
    prefix = f"{CALIBRATOR}{stage}."
    return {CALIBRATOR + key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def finished_state(exp: Experiment, model: ConfigDict, classes: Categories) -> dict[str, Tensor]:
    """Return the complete state of ``base.checkpoint`` for this experiment's detector.

    Statistics of training parts that the experiment does not have are left out; those that the file lacks start anew.
    Neither matters for what the detector predicts.

    Raises:
        UserError: The checkpoint knows other classes, was built with other choices, or does not fit the detector.
    """
    path = exp.base.checkpoint
    assert path is not None
    _same_choices(exp, read_checkpoint(path)["meta"].get("converted", {}))
    detector = MODELS.build(model)
    state = in_order(path, classes, "base.checkpoint", {"": detector})
    check_kinds(state, detector.state_dict(), f"base.checkpoint: {path}")
    own = {key: value for key, value in detector.state_dict().items() if key.startswith(PARTS)}
    kept = {key: value for key, value in state.items() if not key.startswith(PARTS) or key in own}
    try:
        detector.load_state_dict({**own, **kept})
    except RuntimeError as error:
        raise UserError(
            "the checkpoint does not fit the detector", where=f"base.checkpoint: {path}",
            got=" ".join(str(error).split())[:400], fix="choose the detector file and the heads it was trained with",
        ) from error  # fmt: skip
    left = sorted(state.keys() - kept.keys())
    print(f"{path}: used as it is, {len(kept)} tensors" + (f"; left out: {', '.join(left[:4])}" if left else ""))
    return dict(detector.state_dict())


def _same_choices(exp: Experiment, converted: Mapping[str, Any]) -> None:
    """Refuse a loss, classifier or mask head other than the converted detector's; its weights would fit them too."""
    for slot in ("classifier", "loss", "mask"):
        wanted = converted.get("model", {}).get(slot)
        if wanted is None:
            continue
        choice = getattr(exp.model, slot)
        given = {"type": choice.type, **choice.options}
        if any(_plain(key, given.get(key)) != value for key, value in wanted.items()):
            raise UserError(
                f"the checkpoint was trained with another {slot}", where=f"model.{slot}",
                got=", ".join(f"{key}: {given.get(key)}" for key in wanted),
                allowed=", ".join(f"{key}: {value}" for key, value in wanted.items()),
            )  # fmt: skip
    geometry = converted.get("geometry", exp.detector.geometry)
    if geometry != exp.detector.geometry:
        print(f"detector.geometry is {exp.detector.geometry}; the checkpoint was trained with {geometry}")


def _plain(key: str, value: Any) -> Any:
    return "image" if key == "count" and value is None else value
