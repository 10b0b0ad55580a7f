"""Which boxes of which images every calibration step uses: the second level of SimCal's bi-level sampling.

The result does not depend on the number of processes, nor on whether features are stored: a step is a list of rows of
one array of distinct boxes. Source: arXiv 2007.11978; repository twangnh/SimCal.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ltpipe.data.arrays import load_arrays, save_arrays
from ltpipe.data.calibration_rois import RoiSampling, compose_step, select_slot, slot_generator, step_generator

Array = NDArray[np.int64]


class Candidates(Protocol):
    """Boxes of every unit (image, flip)."""

    def of(self, unit: int) -> tuple[NDArray[np.float32], Array, NDArray[np.float32]]:
        """Return ground-truth boxes ``(G, 4)``, labels ``(G,)`` and proposals ``(P, 4)`` of a unit."""
        ...


@dataclass(frozen=True, eq=False)
class FeaturePlan:
    """Rows of every step.

    Attributes:
        image_row: ``(U,) int64`` store row of each unit.
        flip: ``(U,) bool`` whether the unit is mirrored.
        box_ptr: ``(U + 1,) int64``; feature rows ``box_ptr[u]:box_ptr[u + 1]`` belong to unit ``u``.
        boxes: ``(F, 4) float32`` distinct boxes, xyxy in pixels of the network input.
        step_ptr: ``(S + 1,) int64``; step ``s`` uses ``rows[step_ptr[s]:step_ptr[s + 1]]``.
        rows: ``(R,) int64`` feature rows.
        labels: ``(R,) int64``, background last.
        num_classes: Foreground classes K.
    """

    image_row: Array
    flip: NDArray[np.bool_]
    box_ptr: Array
    boxes: NDArray[np.float32]
    step_ptr: Array
    rows: Array
    labels: Array
    num_classes: int

    @property
    def units(self) -> list[tuple[int, bool]]:
        """(store row, flip) of every unit."""
        return list(zip(self.image_row.tolist(), self.flip.tolist(), strict=True))

    @property
    def unit_boxes(self) -> list[NDArray[np.float32]]:
        """Boxes ``(n, 4)`` of every unit."""
        return np.split(self.boxes, self.box_ptr[1:-1])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an npz file, atomically."""
        arrays = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "num_classes"}
        save_arrays(path, arrays, {"num_classes": self.num_classes})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FeaturePlan:
        """Read what :meth:`save` wrote."""
        names = tuple(name for name in cls.__dataclass_fields__ if name != "num_classes")
        arrays, info = load_arrays(
            path, names, kind="calibration plan", fix="run `ltpipe features --experiment EXP` again"
        )
        return cls(**arrays, num_classes=info["num_classes"])


def plan_features(
    image_row: Array,
    flip: NDArray[np.bool_],
    unit_of_slot: Array,
    slot_label: Array,
    slots_per_step: int,
    candidates: Candidates,
    sampling: RoiSampling,
    *,
    num_classes: int,
    bg_ratio: float,
    seed: int,
) -> FeaturePlan:
    """Select the rows of every step.

    Args:
        image_row: ``(U,)`` store row of every unit.
        flip: ``(U,)`` whether it is mirrored.
        unit_of_slot: ``(S,)`` unit of every slot, step after step.
        slot_label: ``(S,)`` class every slot was drawn for.
        slots_per_step: Slots of one step.
        candidates: Boxes of every unit.
        sampling: How RoIs are drawn from one image.
        num_classes: Foreground classes K; background is K.
        bg_ratio: Background rows per foreground row.
        seed: Seed of all draws.
    """
    units: list[Array] = []
    picks: list[Array] = []
    labels: list[Array] = []
    for step, start in enumerate(range(0, len(unit_of_slot), slots_per_step)):
        members = range(start, min(start + slots_per_step, len(unit_of_slot)))
        slots = [
            select_slot(
                *candidates.of(int(unit_of_slot[s])),
                int(slot_label[s]),
                slot_generator(seed, step, s - start),
                sampling,
            )
            for s in members
        ]
        chosen = compose_step(slots, step_generator(seed, step), num_classes, bg_ratio)
        units.append(unit_of_slot[start + chosen.slot])
        picks.append(chosen.index)
        labels.append(chosen.labels)
    return _merge(image_row, flip, units, picks, labels, candidates, num_classes)


def _merge(
    image_row: Array,
    flip: NDArray[np.bool_],
    units: Sequence[Array],
    picks: Sequence[Array],
    labels: Sequence[Array],
    candidates: Candidates,
    num_classes: int,
) -> FeaturePlan:
    """Give every distinct (unit, box) one feature row."""
    step_ptr = np.cumsum([0, *map(len, units)], dtype=np.int64)
    unit, pick = np.concatenate(units).astype(np.int64), np.concatenate(picks).astype(np.int64)
    stride = int(pick.max(initial=0)) + 1
    keys, rows = np.unique(unit * stride + pick, return_inverse=True)
    owner, index = np.divmod(keys, stride)
    box_ptr = np.searchsorted(owner, np.arange(len(image_row) + 1))
    boxes = np.empty((len(keys), 4), np.float32)
    for u in range(len(image_row)):
        part = slice(box_ptr[u], box_ptr[u + 1])
        gt_boxes, _, proposals = candidates.of(u)
        boxes[part] = np.concatenate([gt_boxes, proposals])[index[part]]
    return FeaturePlan(
        image_row, flip, box_ptr, boxes, step_ptr, rows.astype(np.int64), np.concatenate(labels), num_classes
    )
