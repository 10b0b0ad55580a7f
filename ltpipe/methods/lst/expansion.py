"""Growing a detector's checkpoint by the classes of the next phase.

Paper: Learning to Segment the Tail (CVPR 2020, arXiv 2004.00900); ``get_finetune_pth`` of JoyHuYY1412/LST_LVIS.

    classifier rows   [old, background]  ->  [old, new ~ N(0, 0.01), background]
    box regressor     [old]              ->  [old, new ~ N(0, 0.001)],   new biases 0

Everything of the old classes is copied bit by bit. A mask head with one filter per class grows likewise; a transferred
one has nothing to grow. In a cascade the heads of every stage grow. Keys are those of mmdet's detectors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from ltpipe.errors import UserError
from ltpipe.methods.class_rows import class_tensors, grown, is_below, restarting
from ltpipe.methods.reductions import bare_model
from ltpipe.registry import HOOKS

# Heads of the stages of a cascade carry their number, ``roi_head.bbox_head.0.fc_cls``.
CLASSIFIER = re.compile(r"roi_head\.bbox_head\.(\d+\.)?fc_cls(?=\.)")
REGRESSOR = re.compile(r"roi_head\.bbox_head\.(\d+\.)?fc_reg(?=\.)")
MASK = re.compile(r"roi_head\.mask_head\.(\d+\.)?conv_logits(?=\.)")
# Running statistics per class of losses and parts start anew with the new class list.
PER_PHASE_STATE = re.compile(r"roi_head\.(bbox_head\.(\d+\.)?loss_cls|parts|calibrator)\.")


def insert_rows(old: Tensor, position: int, new: Tensor) -> Tensor:
    """Return ``old`` ``(C, ...)`` with the rows ``new`` ``(n, ...)`` before row ``position``."""
    return torch.cat([old[:position], new.to(old), old[position:]])


def expand_checkpoint(
    state_dict: Mapping[str, Tensor], num_old: int, num_new: int, *, seed: int, model: nn.Module | None = None
) -> dict[str, Tensor]:
    """Return the state from which a phase with ``num_new`` more classes starts.

    Args:
        state_dict: Model state of the previous phase.
        num_old: Classes it knows, ``K_{n-1}``.
        num_new: Classes to add, so that ``K_n = num_old + num_new``.
        seed: Seed of the new rows.
        model: Fresh model of the next phase, which states what restarts and which other tensors have a row per class;
            their new rows are its own. None: losses, parts and calibrators restart, and only mmdet's layers grow.

    Returns:
        A new dict without the state that restarts; tensors that do not grow are shared.

    Raises:
        UserError: The checkpoint knows another number of classes.
    """
    state = without_restarting(state_dict, model)
    generator = torch.Generator().manual_seed(seed)

    def grow(key: str, rows: int, position: int, std: float) -> None:
        old = state[key]
        if len(old) < position:
            raise UserError(
                "the checkpoint knows another number of classes",
                where=key,
                got=f"{len(old)} rows",
                allowed=f"{position}",
            )
        new = torch.randn(rows, *old.shape[1:], generator=generator) * std
        state[key] = insert_rows(old, position, new)

    for layer in _layers(state, CLASSIFIER):
        grow(f"{layer}.weight", num_new, num_old, 0.01)
        if f"{layer}.bias" in state:
            grow(f"{layer}.bias", num_new, num_old, 0.0)
    for layer in _layers(state, REGRESSOR):
        if _per_class(state, layer, num_old, 4):
            grow(f"{layer}.weight", 4 * num_new, 4 * num_old, 0.001)
            grow(f"{layer}.bias", 4 * num_new, 4 * num_old, 0.0)
    for layer in _layers(state, MASK):
        if _per_class(state, layer, num_old, 1):
            # mmdet initialises this layer Kaiming-normal over its outputs.
            grow(f"{layer}.weight", num_new, num_old, math.sqrt(2 / (num_old + num_new)))
            if f"{layer}.bias" in state:
                grow(f"{layer}.bias", num_new, num_old, 0.0)
    if model is not None:
        fresh = model.state_dict()
        for key, rows in class_tensors({"": model}, num_old + num_new).items():
            if key in state and key in fresh and state[key].shape != fresh[key].shape:  # not grown above
                state[key] = grown(state[key], fresh[key], rows, num_old, num_new)
    return state


def without_restarting(state: Mapping[str, Tensor], model: nn.Module | None = None) -> dict[str, Tensor]:
    """Return a state without what starts anew in a phase: what the components of a model state, or the default."""
    if model is None:
        return {key: value for key, value in state.items() if not PER_PHASE_STATE.match(key)}
    prefixes = tuple(restarting({"": model}))
    return {key: value for key, value in state.items() if not is_below(key, prefixes)}


def _layers(state: Mapping[str, Tensor], kind: re.Pattern[str]) -> list[str]:
    """Return the layers of a kind that have weights, one per stage, in order."""
    found = {match[0] for key in state if (match := kind.match(key))}
    return sorted(layer for layer in found if f"{layer}.weight" in state)


def _per_class(state: Mapping[str, Tensor], layer: str, num_old: int, size: int) -> bool:
    """Whether a layer has ``size`` outputs per class; False if it is class-agnostic."""
    rows = len(state[f"{layer}.weight"])
    if rows not in (size, size * num_old):
        raise UserError(
            "the checkpoint knows another number of classes",
            where=f"{layer}.weight",
            got=f"{rows} rows",
            allowed=f"{size * num_old} rows for {num_old} classes",
        )
    return rows == size * num_old


def check_grown(state: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> None:
    """Refuse a grown state that the model would take in part only: mmengine loads without complaint what fits.

    Args:
        state: From :func:`expand_checkpoint`.
        model: Fresh model state of the next phase, without what restarts.

    Raises:
        UserError: Tensors other than per-phase statistics are missing, left over, or of another shape.
    """
    wanted = {key: value.shape for key, value in model.items()}
    missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    other = [
        f"{key} {tuple(state[key].shape)} for {tuple(shape)}"
        for key, shape in wanted.items()
        if key in state and state[key].shape != shape
    ]
    if missing or extra or other:
        raise UserError(
            "the previous phase's weights do not fit this phase's detector",
            where="lst",
            got=f"missing {missing[:4]}, left over {extra[:4]}, other shapes {other[:4]}",
            fix="train all phases of an experiment with the same detector, classifier, loss and mask head",
        )


@HOOKS.register_module()
class ExpansionHook(Hook):
    """Grows the checkpoint that a training starts from (``load_from``), not one that it resumes.

    Args:
        num_old: Classes it knows.
        num_new: Classes to add.
        seed: Seed of the new rows.
    """

    def __init__(self, num_old: int, num_new: int, seed: int) -> None:
        self.num_old, self.num_new, self.seed = num_old, num_new, seed

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Replace the state before the runner copies it into the model.

        Raises:
            UserError: The grown state is not that of the model, apart from statistics that start anew.
        """
        if not runner._resume:
            model = bare_model(runner)
            old = checkpoint["state_dict"]
            state = expand_checkpoint(old, self.num_old, self.num_new, seed=self.seed, model=model)
            check_grown(state, without_restarting(model.state_dict(), model))
            checkpoint["state_dict"] = state


def trim_heads(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state without the layers that depend on the class list, to start from another data set's detector.

    Args:
        state_dict: Model state, e.g. of a COCO detector of mmdet.
    """
    heads = (CLASSIFIER, REGRESSOR, MASK, PER_PHASE_STATE)
    return {key: value for key, value in state_dict.items() if not any(kind.match(key) for kind in heads)}
