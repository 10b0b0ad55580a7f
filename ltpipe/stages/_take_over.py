"""Finished checkpoints in place of a training, with their classes brought into the experiment's order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import ConfigDict
from torch import Tensor

from ltpipe.convert.class_order import reorder_classes
from ltpipe.engine.train import read_checkpoint
from ltpipe.errors import UserError
from ltpipe.registry import MODELS
from ltpipe.spec.models import Experiment
from ltpipe.weights import check_kinds

PARTS = "roi_head.parts."
CALIBRATOR = "roi_head.calibrator."


def in_order(path: Path, category_ids: Sequence[int], where: str) -> dict[str, Tensor]:
    """Return the state of a checkpoint with the labels of the experiment.

    Args:
        path: File of ``ltpipe convert`` or of a stage.
        category_ids: Category ids in the experiment's label order.
        where: Key of the experiment that names the file.

    Raises:
        UserError: It does not say which classes it knows, or knows others.
    """
    content = read_checkpoint(path)
    known = content["meta"].get("category_ids")
    if known is None:
        raise UserError(
            "the checkpoint does not say which classes its rows belong to", where=f"{where}: {path}",
            fix="convert it with `ltpipe convert --classes`, or use it as detector.load_from to start a training",
        )  # fmt: skip
    if set(known) != set(category_ids):
        raise UserError(
            "the checkpoint knows other classes than the experiment", where=f"{where}: {path}",
            got=f"{len(known)} classes, {len(set(known) & set(category_ids))} of them in common",
            allowed=f"the {len(category_ids)} of this stage",
        )  # fmt: skip
    places = {category: label for label, category in enumerate(known)}
    return reorder_classes(content["state_dict"], len(known), [places[c] for c in category_ids])


def head_of_stage(state: Mapping[str, Tensor], stage: int) -> dict[str, Tensor]:
    """Return a state whose calibrated head is that of one stage of a cascade, under the names of a single one.

    Args:
        state: Heads under ``roi_head.calibrator.<stage>``.
        stage: Which one.
    """
    prefix = f"{CALIBRATOR}{stage}."
    return {CALIBRATOR + key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def taken_over(exp: Experiment, model: ConfigDict, category_ids: Sequence[int]) -> dict[str, Tensor]:
    """Return the complete state of ``base.checkpoint`` for this experiment's detector.

    Statistics of training parts that the experiment does not have are left out; those that the file lacks start anew.
    Neither matters for what the detector predicts.

    Raises:
        UserError: The checkpoint knows other classes, was built with other choices, or does not fit the detector.
    """
    path = exp.base.checkpoint
    assert path is not None
    _same_choices(exp, read_checkpoint(path)["meta"].get("converted", {}))
    state = in_order(path, category_ids, "base.checkpoint")
    detector = MODELS.build(model)
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
    print(f"{path}: taken over, {len(kept)} tensors" + (f"; left out: {', '.join(left[:4])}" if left else ""))
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
