"""How another repository's checkpoint becomes ours: one record per source, one function that applies it.

A layout lists key patterns with their new names and says which rows hold the background. Converted tensors have
mmdet 3.x names, labels in the source's class order, and the background last. mmdetection's
``upgrade_model_version.py`` drops the wrong end of class-wise biases and rotates ``rpn_cls``: it is no way around this.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ltpipe.errors import UserError

State = dict[str, Tensor]
Rows = Literal["classifier", "regressor", "mask"]
# Rows of the background: one in the classifier, four in the box regressor, one in the mask predictor.
BLOCKS: Mapping[Rows, int] = {"classifier": 1, "regressor": 4, "mask": 1}
# Batch norm of maskrcnn-benchmark and Caffe2 adds nothing to the variance; mmdet's adds this.
NORM_EPS = 1e-5


@dataclass(frozen=True)
class Rule:
    """New name of the keys that begin with a pattern.

    Attributes:
        source: Regular expression for the start of a key. Numbers in a group ``minus1`` or ``minus2`` are lowered.
        target: Template for the matched part, with ``\\1`` or ``{minus1}``; None: dropped.
        rows: What the rows of the tensor are, if they belong to classes.
    """

    source: str
    target: str | None
    rows: Rows | None = None


@dataclass(frozen=True)
class Layout:
    """A repository's checkpoint format.

    Attributes:
        name: Value of ``ltpipe convert --source``.
        title: What it is, for people.
        marks: Regular expressions; a state has this layout if each matches the start of some key.
        rules: New names; the first rule that matches counts.
        background: Where the rows of the background are.
        labels: Order of the class rows: that of the annotation file, ascending category id, falling instance count
            (LST), or row k is category k.
        plain_heads: Whether all its detectors have a linear classifier, softmax and mmdet's mask head.
        norm_without_eps: Whether batch norm was computed without adding to the variance.
        geometry: ``detector.geometry`` of its detectors.
    """

    name: str
    title: str
    marks: tuple[str, ...]
    rules: tuple[Rule, ...]
    background: Literal["first", "last"] = "last"
    labels: Literal["file", "id", "count", "row"] = "file"
    plain_heads: bool = True
    norm_without_eps: bool = False
    geometry: Literal["modern", "mmdet1", "benchmark"] = "modern"

    def fits(self, keys: Mapping[str, object]) -> bool:
        """Whether the keys of a state are of this layout."""
        return all(any(re.match(mark, key) for key in keys) for mark in self.marks)

    def rename(self, key: str) -> tuple[str | None, Rows | None]:
        """Return the new name of a key, None if it is dropped, and what its rows are.

        Raises:
            UserError: Unknown key.
        """
        for rule in self.rules:
            if found := re.match(rule.source, key):
                if rule.target is None:
                    return None, None
                target = rule.target
                for name, value in found.groupdict().items():
                    target = target.replace(f"{{{name}}}", str(int(value) - int(name[-1])))
                return found.expand(target) + key[found.end() :], rule.rows
        raise UserError(
            "unknown checkpoint key", got=key, allowed=f"keys of {self.title}", fix="choose another --source"
        )


def background_last(rows: Tensor, dim: int = 0) -> Tensor:
    """Return ``rows`` with the first of the K + 1 entries along ``dim``, the background's, moved to the end."""
    return torch.roll(rows, -1, dims=dim)


def outputs_of(layout: Layout, state: Mapping[str, Tensor]) -> int | None:
    """Return K + 1 as the class-wise box regressor, or else the classifier, shows it; None without either."""
    found: dict[Rows, set[int]] = {"classifier": set(), "regressor": set(), "mask": set()}
    for key, value in state.items():
        rows = layout.rename(key)[1]
        if rows is not None:
            found[rows].add(len(value))
    extra = 0 if layout.background == "first" else 1
    regressor = {n // 4 + extra for n in found["regressor"] if n > 4}
    mask = {n + extra for n in found["mask"] if n > 1}
    for sizes in (regressor, mask, found["classifier"]):
        if len(sizes) == 1:
            return sizes.pop()
        if sizes:
            raise UserError("heads with different numbers of classes", got=sorted(sizes))
    return None


def apply_layout(
    layout: Layout,
    state: Mapping[str, Tensor],
    *,
    outputs: int | None = None,
    classifier: tuple[int, Callable[[Tensor], Tensor]] | None = None,
) -> State:
    """Return a state under our names, background last.

    Args:
        layout: Its layout.
        state: Names without ``module.``.
        outputs: K + 1; read from the heads unless given.
        classifier: Rows of a classifier whose outputs are not the classes, and what puts them into our order.

    Raises:
        UserError: Unknown key, or a class-wise layer of an impossible size.
    """
    outputs = outputs_of(layout, state) if outputs is None else outputs
    converted: State = {}
    for key, value in state.items():
        target, rows = layout.rename(key)
        if target is None:
            continue
        if layout.background == "first" and rows is not None:
            assert outputs is not None
            special = classifier if rows == "classifier" else None
            value = _background_moved(key, value, rows, outputs) if special is None else _special(key, value, *special)
        if layout.norm_without_eps and target.endswith(".running_var"):
            value = value - NORM_EPS
        converted[target] = value.clone()
    return converted


def _background_moved(key: str, value: Tensor, rows: Rows, outputs: int) -> Tensor:
    """Move the background's row to the end of a classifier, drop its block in the other layers."""
    block = BLOCKS[rows]
    if rows != "classifier" and len(value) == block:
        return value
    if len(value) != block * outputs:
        allowed = f"{block * outputs}" if rows == "classifier" else f"{block} or {block * outputs}"
        raise UserError("unexpected number of outputs", where=key, got=len(value), allowed=allowed)
    return background_last(value) if rows == "classifier" else value[block:]


def _special(key: str, value: Tensor, channels: int, reorder: Callable[[Tensor], Tensor]) -> Tensor:
    if len(value) != channels:
        raise UserError("unexpected number of outputs", where=key, got=len(value), allowed=f"{channels}")
    return reorder(value)
