"""What a tensor of a checkpoint must be before anything is done with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ltpipe.errors import UserError

# Counters and tables may be whole numbers; these are not, whatever the module.
_REAL = re.compile(r"(^|\.)(weight|bias|running_mean|running_var|scale|weight_scaler)$")
_SHOWN = 4


def check_tensors(state: Mapping[str, Any], where: object, names: Mapping[str, str] | None = None) -> None:
    """Refuse what cannot be weights: NaN, infinity, complex numbers, and whole numbers as weights or biases.

    Args:
        state: Tensors by key; other values are not looked at.
        where: The checkpoint, for the error.
        names: mmdet's names of the keys; default: the keys.

    Raises:
        UserError: Names the first such tensors and says how many there are.
    """
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    names = names or {}
    _refuse(
        tensors, where, "weights that are no real numbers", "real floating-point numbers; counters may be integers",
        lambda key, t: str(t.dtype) if _wrong_kind(names.get(key, key), t) else None,
    )  # fmt: skip
    _refuse(
        tensors, where, "weights that are not finite", "finite numbers",
        lambda key, t: _not_finite(t), fix="the training that made them diverged: take an earlier checkpoint of it",
    )  # fmt: skip


def check_kinds(state: Mapping[str, Tensor], own: Mapping[str, Tensor], where: object) -> None:
    """Refuse whole or complex numbers where a detector has real ones: loading would cast them in silence.

    Args:
        state: Tensors of a checkpoint.
        own: The detector's state.
        where: The checkpoint, for the error.

    Raises:
        UserError: Names the first such tensors and says how many there are.
    """
    _refuse(
        {key: value for key, value in state.items() if key in own}, where,
        "tensors of another kind than the detector's", "real floating-point numbers",
        lambda key, t: str(t.dtype) if own[key].is_floating_point() and not t.is_floating_point() else None,
    )  # fmt: skip


def _refuse(
    tensors: Mapping[str, Tensor],
    where: object,
    what: str,
    allowed: str,
    fault: Callable[[str, Tensor], str | None],
    fix: str | None = None,
) -> None:
    faults = {key: found for key, value in tensors.items() if (found := fault(key, value)) is not None}
    if faults:
        shown = ", ".join(f"{key} ({found})" for key, found in list(faults.items())[:_SHOWN])
        count = f"{len(faults)} of {len(tensors)} tensors: {shown}" + (", ..." if len(faults) > _SHOWN else "")
        raise UserError(f"the checkpoint has {what}", where=where, got=count, allowed=allowed, fix=fix)


def _wrong_kind(name: str, value: Tensor) -> bool:
    return value.is_complex() or (not value.is_floating_point() and _REAL.search(name) is not None)


def _not_finite(value: Tensor) -> str | None:
    if not value.is_floating_point():
        return None
    wrong = ~torch.isfinite(value)
    return f"{int(wrong.sum())} of {value.numel()} values are NaN or infinite" if wrong.any() else None
