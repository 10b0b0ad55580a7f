"""Which boxes of which images every calibration step uses: the second level of SimCal's bi-level sampling.

The result does not depend on the number of processes, nor on whether features are stored: a step is a list of rows of
one array of distinct boxes. Source: arXiv 2007.11978; repository twangnh/SimCal.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ltpipe.data.arrays import load_arrays, save_arrays
from ltpipe.data.calibration_rois import (
    RoiSampling,
    StepRows,
    compose_step,
    select_stages,
    slot_generator,
    step_generator,
)

Array = NDArray[np.int64]


class Candidates(Protocol):
    """Boxes of every sample (image, flip)."""

    def of(self, sample: int) -> tuple[NDArray[np.float32], Array, NDArray[np.float32]]:
        """Return ground-truth boxes ``(G, 4)``, labels ``(G,)`` and proposals ``(S, P, 4)`` of a sample.

        A detector of one stage has ``S = 1``; in a cascade the proposals of stage k are refined k times.
        """
        ...


@dataclass(frozen=True, eq=False)
class FeaturePlan:
    """Rows of every step.

    Attributes:
        image_row: ``(U,) int64`` store row of each sample.
        flip: ``(U,) bool`` whether the sample is mirrored.
        box_ptr: ``(U + 1,) int64``; feature rows ``box_ptr[u]:box_ptr[u + 1]`` belong to sample ``u``.
        boxes: ``(F, 4) float32`` distinct boxes, xyxy in pixels of the network input.
        step_ptr: ``(S + 1,) int64``; step ``s`` uses ``rows[step_ptr[s]:step_ptr[s + 1]]``.
        rows: ``(R,) int64`` feature rows.
        labels: ``(R,) int64``, background last.
        matched: ``(F, 4) float32`` ground truth of each box, same pixels; of background the box itself.
        num_classes: Foreground classes K.
    """

    image_row: Array
    flip: NDArray[np.bool_]
    box_ptr: Array
    boxes: NDArray[np.float32]
    step_ptr: Array
    rows: Array
    labels: Array
    matched: NDArray[np.float32]
    num_classes: int

    @property
    def samples(self) -> list[tuple[int, bool]]:
        """(store row, flip) of every sample."""
        return list(zip(self.image_row.tolist(), self.flip.tolist(), strict=True))

    @property
    def sample_boxes(self) -> list[NDArray[np.float32]]:
        """Boxes ``(n, 4)`` of every sample."""
        return np.split(self.boxes, self.box_ptr[1:-1])

    def step_boxes(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the boxes ``(R, 4)`` of a step's rows and the ground truths ``(R, 4)`` they belong to."""
        rows = self.rows[self.step_ptr[index] : self.step_ptr[index + 1]]
        return self.boxes[rows], self.matched[rows]

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


def bound_rows(
    sample_of_slot: Array,
    slot_label: Array,
    slots_per_step: int,
    boxes_per_sample: Array,
    sampling: RoiSampling,
    bg_ratio: float | None,
) -> tuple[int, int]:
    """Return the fewest and the most distinct boxes that a plan can come to, before any proposal is known.

    Every distinct (sample, class) has a ground truth at least. A slot keeps at most ``sampling.rois`` boxes, and a
    sample has no more than its ground truths and proposals.

    Args:
        sample_of_slot: ``(S,)`` sample of every slot, step after step.
        slot_label: ``(S,)`` class every slot was drawn for; -1 for all.
        slots_per_step: Slots of one step.
        boxes_per_sample: ``(U,)`` ground truths plus proposals of each sample, at most.
        sampling: How RoIs are drawn from one image.
        bg_ratio: Background rows per foreground row; None takes all.
    """
    slots = len(sample_of_slot)
    fewest = len(np.unique(np.stack([sample_of_slot, slot_label]), axis=1).T)
    positives = slots_per_step * int(sampling.rois * sampling.positive_fraction)
    per_step = slots_per_step * sampling.rois
    if bg_ratio is not None:
        per_step = min(per_step, positives + int(bg_ratio * positives))
    per_sample = np.bincount(sample_of_slot, minlength=len(boxes_per_sample)) * sampling.rois
    most = min(-(-slots // slots_per_step) * per_step, int(np.minimum(per_sample, boxes_per_sample).sum()))
    return min(fewest, most), most


def plan_features(
    image_row: Array,
    flip: NDArray[np.bool_],
    sample_of_slot: Array,
    slot_label: Array,
    slots_per_step: int,
    candidates: Candidates,
    samplings: Sequence[RoiSampling],
    *,
    num_classes: int,
    bg_ratio: float | None,
    seed: int,
) -> list[FeaturePlan]:
    """Select the rows of every step, for every stage of the detector.

    Args:
        image_row: ``(U,)`` store row of every sample.
        flip: ``(U,)`` whether it is mirrored.
        sample_of_slot: ``(S,)`` sample of every slot, step after step.
        slot_label: ``(S,)`` class every slot was drawn for; -1 takes the objects of all classes.
        slots_per_step: Slots of one step.
        candidates: Boxes of every sample.
        samplings: How RoIs are drawn from one image, one per stage.
        num_classes: Foreground classes K; background is K.
        bg_ratio: Background rows per foreground row; None takes all.
        seed: Seed of all draws.

    Returns:
        One plan per stage.
    """
    stages = range(len(samplings))
    chosen: list[list[StepRows]] = [[] for _ in stages]
    for step, start in enumerate(range(0, len(sample_of_slot), slots_per_step)):
        slots = [
            select_stages(
                *candidates.of(int(sample_of_slot[s])),
                int(slot_label[s]) if slot_label[s] >= 0 else None,
                [slot_generator(seed, step, s - start, stage) for stage in stages],
                samplings,
            )
            for s in range(start, min(start + slots_per_step, len(sample_of_slot)))
        ]
        for stage in stages:
            generator = step_generator(seed, step, stage)
            rows = compose_step([slot[stage] for slot in slots], generator, num_classes, bg_ratio)
            chosen[stage].append(replace(rows, slot=sample_of_slot[start + rows.slot]))
    return [_merge(image_row, flip, chosen[stage], candidates, stage, num_classes) for stage in stages]


def _merge(
    image_row: Array,
    flip: NDArray[np.bool_],
    steps: Sequence[StepRows],
    candidates: Candidates,
    stage: int,
    num_classes: int,
) -> FeaturePlan:
    """Give every distinct (sample, box) one feature row; ``slot`` of the steps holds samples."""
    step_ptr = np.cumsum([0, *map(len, steps)], dtype=np.int64)
    sample, pick, labels, partner = (
        np.concatenate([getattr(rows, name) for rows in steps]).astype(np.int64)
        for name in ("slot", "index", "labels", "matched")
    )
    stride = int(pick.max(initial=0)) + 1
    keys, first, rows = np.unique(sample * stride + pick, return_index=True, return_inverse=True)
    owner, index = np.divmod(keys, stride)
    box_ptr = np.searchsorted(owner, np.arange(len(image_row) + 1))
    boxes, matched = np.empty((2, len(keys), 4), np.float32)
    for u in range(len(image_row)):
        part = slice(box_ptr[u], box_ptr[u + 1])
        gt_boxes, _, proposals = candidates.of(u)
        every = np.concatenate([gt_boxes, proposals[stage]])
        # A box has one ground truth whatever the slot: the assignment depends on the sample alone.
        boxes[part], matched[part] = every[index[part]], every[partner[first[part]]]
    return FeaturePlan(image_row, flip, box_ptr, boxes, step_ptr, rows.astype(np.int64), labels, matched, num_classes)
