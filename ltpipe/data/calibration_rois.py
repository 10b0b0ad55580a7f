"""SimCal's bi-level sampling, second level: from the proposals of an image to rows of the calibration mini-batch.

Paper: Wang et al., "The Devil is in Classification", arXiv 2007.11978; repository twangnh/SimCal.

A *slot* is an image drawn for one class ``c``. Its RoIs are the ground truths followed by the proposals:

* a RoI is positive of ground truth ``g`` if ``IoU >= pos_iou`` with its best one, or if it is the best RoI of ``g`` and
  reaches ``pos_iou``; of all positives at most ``rois * positive_fraction`` are kept, ``F`` are those of class ``c``;
* ``G`` are at most ``rois - kept positives`` of the others with best overlap in ``[neg_iou_min, pos_iou)``.

In a cascade the proposals of a stage are the RoIs of all classes that the stage before sampled, refined by it.

A step takes ``min(bg_ratio * sum|F|, sum|G|)`` of the negatives of all slots, then every ``F``. It needs the boxes and
labels of all annotated classes of the image. A slot without a class keeps the positives of all classes; with every
negative these are the ordinary mini-batches of a detector's training. All draws come from generators seeded with (seed,
step, slot), so a plan is the same for any number of processes. Plain numpy: no detector, no GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float32]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class RoiSampling:
    """How RoIs are drawn from one image.

    Attributes:
        rois: RoIs per image, 512 in the repository.
        positive_fraction: Largest share of positives.
        pos_iou: Smallest overlap of a positive; 0.5, 0.6, 0.7 for the stages of a cascade.
        neg_iou_min: Smallest overlap of a negative with its best ground truth; the repository's modified sampler.
        cap_before_filter: Cap the positives of all classes before those of other classes are discarded, as the
            repository does. False never loses an instance of the slot's class to crowded images.
        box_offset: Added to widths and heights when overlaps are computed; 1 is the convention of mmdetection 1.x.
    """

    rois: int = 512
    positive_fraction: float = 0.25
    pos_iou: float = 0.5
    neg_iou_min: float = 0.1
    cap_before_filter: bool = True
    box_offset: float = 0.0


@dataclass(frozen=True)
class SlotRois:
    """RoIs of one slot.

    Attributes:
        boxes: ``(n, 4) float32`` ground truths then proposals, xyxy, absolute pixels.
        positives: ``(P,) int64`` ascending rows of ``boxes``.
        labels: ``(P,) int64`` foreground labels of the positives.
        matched: ``(P,) int64`` row of the ground truth that each positive belongs to.
        negatives: ``(Q,) int64`` ascending rows of ``boxes``.
        sampled: ``(S,) int64`` ascending rows of ``boxes``: the negatives and the kept positives of all classes.
    """

    boxes: Boxes
    positives: Indices
    labels: Indices
    matched: Indices
    negatives: Indices
    sampled: Indices = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass(frozen=True)
class StepRows:
    """Rows of one calibration mini-batch, background first, then the foreground slot by slot.

    Attributes:
        slot: ``(R,) int64`` slot within the step.
        index: ``(R,) int64`` row of that slot's ``boxes``.
        labels: ``(R,) int64``, background K.
        matched: ``(R,) int64`` row of the ground truth in that slot's ``boxes``; of background the row itself.
    """

    slot: Indices
    index: Indices
    labels: Indices
    matched: Indices

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.labels)


def slot_generator(seed: int, step: int, slot: int, stage: int = 0) -> np.random.Generator:
    """Return the generator of one slot of one step, for a stage of the detector."""
    return np.random.default_rng([seed, step, slot + 1, *([stage] if stage else [])])


def step_generator(seed: int, step: int, stage: int = 0) -> np.random.Generator:
    """Return the generator that composes one step, for a stage of the detector."""
    return np.random.default_rng([seed, step, 0, *([stage] if stage else [])])


def box_iou(first: Boxes, second: Boxes, offset: float = 0.0) -> NDArray[np.float32]:
    """Return overlaps ``(m, n) float32`` of boxes xyxy, absolute pixels.

    Args:
        first: ``(m, 4) float32``.
        second: ``(n, 4) float32``.
        offset: Added to widths and heights; 1 is the convention of mmdetection 1.x.
    """
    extra = np.float32(offset)
    m, n = (np.ascontiguousarray(b.T) for b in (first, second))
    width, height = (
        np.maximum(np.minimum(m[high][:, None], n[high]) - np.maximum(m[low][:, None], n[low]) + extra, 0)
        for low, high in ((0, 2), (1, 3))
    )
    inter = width * height
    areas = [(b[2] - b[0] + extra) * (b[3] - b[1] + extra) for b in (m, n)]
    overlaps: NDArray[np.float32] = inter / np.maximum(areas[0][:, None] + areas[1] - inter, np.float32(1e-6))
    return overlaps


def assign_boxes(
    gt_boxes: Boxes, proposals: Boxes, pos_iou: float = 0.5, offset: float = 0.0
) -> tuple[Indices, NDArray[np.float32]]:
    """Assign proposals to ground truths by overlap.

    A ground truth also claims its best proposals (all that tie) if they reach ``pos_iou``; of several that claim the
    same one the last wins, as in mmdet's ``MaxIoUAssigner`` with ``match_low_quality``.

    Args:
        gt_boxes: ``(m, 4) float32`` xyxy, absolute pixels.
        proposals: ``(n, 4) float32`` xyxy, absolute pixels.
        pos_iou: Smallest overlap of a positive.
        offset: See :func:`box_iou`.

    Returns:
        ``(n,) int64`` row of the ground truth, -1 for background; ``(n,) float32`` best overlap.
    """
    if not len(gt_boxes) or not len(proposals):
        return np.full(len(proposals), -1), np.zeros(len(proposals), np.float32)
    overlaps = box_iou(gt_boxes, proposals, offset)
    best = overlaps.max(axis=0)
    assigned = np.where(best >= np.float32(pos_iou), overlaps.argmax(axis=0), -1)
    of_gt = overlaps.max(axis=1, keepdims=True)
    claims = (overlaps == of_gt) & (of_gt >= np.float32(pos_iou))
    claimant = np.where(claims, np.arange(len(gt_boxes))[:, None], -1).max(axis=0)
    return np.where(claimant >= 0, claimant, assigned), best


def sample_up_to(candidates: Indices, number: int, generator: np.random.Generator) -> Indices:
    """Return at most ``number`` of the candidates, drawn without replacement, in ascending order."""
    if len(candidates) <= number:
        return candidates
    return np.sort(generator.choice(candidates, number, replace=False))


def select_slot(
    gt_boxes: Boxes,
    gt_labels: Indices,
    proposals: Boxes,
    slot_label: int | None,
    generator: np.random.Generator,
    sampling: RoiSampling = RoiSampling(),  # noqa: B008 (immutable)
    among: Indices | None = None,
) -> SlotRois:
    """Select the positives of the slot's class and the negatives of one image.

    Args:
        gt_boxes: ``(m, 4) float32`` boxes of all classes, without crowds, xyxy, absolute pixels of the network input.
        gt_labels: ``(m,) int64`` foreground labels.
        proposals: ``(n, 4) float32`` proposals of the frozen detector, same pixels.
        slot_label: Class the image was drawn for; None keeps the positives of all classes (ordinary RoI sampling).
        generator: From :func:`slot_generator`.
        sampling: How RoIs are drawn.
        among: ``(k,) int64`` proposals that may be drawn; None: all.
    """
    gt_boxes = np.asarray(gt_boxes, np.float32).reshape(-1, 4)
    proposals = np.asarray(proposals, np.float32).reshape(-1, 4)
    gt_labels = np.asarray(gt_labels, np.int64)
    assigned, best = assign_boxes(gt_boxes, proposals, sampling.pos_iou, sampling.box_offset)
    assigned = np.concatenate([np.arange(len(gt_boxes)), assigned])
    best = np.concatenate([np.ones(len(gt_boxes), np.float32), best])

    labels = np.full(len(assigned), -1)
    labels[assigned >= 0] = gt_labels[assigned[assigned >= 0]]
    wanted = assigned >= 0 if slot_label is None else labels == slot_label
    usable = np.ones(len(assigned), bool)
    if among is not None:
        usable[len(gt_boxes) :] = False
        usable[len(gt_boxes) + among] = True
    candidates = np.flatnonzero((assigned >= 0 if sampling.cap_before_filter else wanted) & usable)
    kept = sample_up_to(candidates, int(sampling.rois * sampling.positive_fraction), generator)
    low = np.flatnonzero((assigned < 0) & (best >= np.float32(sampling.neg_iou_min)) & usable)
    negatives = sample_up_to(low, sampling.rois - len(kept), generator)
    positives = kept[wanted[kept]]
    boxes = np.concatenate([gt_boxes, proposals])
    sampled = np.sort(np.concatenate([kept, negatives]))
    return SlotRois(boxes, positives, labels[positives], assigned[positives], negatives, sampled)


def select_stages(
    gt_boxes: Boxes,
    gt_labels: Indices,
    proposals: NDArray[np.float32],
    slot_label: int | None,
    generators: Sequence[np.random.Generator],
    samplings: Sequence[RoiSampling],
) -> list[SlotRois]:
    """Select the RoIs of one image for every stage of a detector.

    Args:
        gt_boxes: As :func:`select_slot`.
        gt_labels: As :func:`select_slot`.
        proposals: ``(S, n, 4) float32``; ``proposals[k]`` are the proposals after ``k`` refinements.
        slot_label: As :func:`select_slot`.
        generators: From :func:`slot_generator`, one per stage.
        samplings: One per stage; cascades ask for more overlap from stage to stage.

    Returns:
        One selection per stage, with the ground truths and all proposals of that stage as ``boxes``.
    """
    found: list[SlotRois] = []
    among: Indices | None = None
    for boxes, generator, sampling in zip(proposals, generators, samplings, strict=True):
        slot = select_slot(gt_boxes, gt_labels, boxes, slot_label, generator, sampling, among)
        found.append(slot)
        among = slot.sampled[slot.sampled >= len(gt_boxes)] - len(gt_boxes)
    return found


def draw_background(
    num_positives: int, num_negatives: Sequence[int], generator: np.random.Generator, bg_ratio: float | None = 1.0
) -> list[Indices]:
    """Draw the background rows of a step from the pool of all slots, given only the sizes.

    Args:
        num_positives: Foreground rows of all slots.
        num_negatives: Kept negatives of every slot.
        generator: From :func:`step_generator`; equal on all processes gives equal draws.
        bg_ratio: Background rows per foreground row; None takes all.

    Returns:
        Per slot the ascending positions of the drawn negatives among that slot's kept ones.
    """
    sizes = np.asarray(num_negatives, np.int64)
    ends = np.cumsum(sizes)
    pool = int(sizes.sum())
    if bg_ratio is None:
        return [np.arange(size) for size in sizes]
    drawn = np.sort(generator.choice(pool, min(int(bg_ratio * num_positives), pool), replace=False))
    return [drawn[(drawn >= start) & (drawn < end)] - start for start, end in zip(ends - sizes, ends, strict=True)]


def compose_step(
    slots: Sequence[SlotRois], generator: np.random.Generator, num_classes: int, bg_ratio: float | None = 1.0
) -> StepRows:
    """Compose the mini-batch of one step.

    Args:
        slots: Selections of all slots of the step.
        generator: From :func:`step_generator`.
        num_classes: Foreground classes K; background is K.
        bg_ratio: See :func:`draw_background`.
    """
    foreground = sum(len(s.positives) for s in slots)
    drawn = draw_background(foreground, [len(s.negatives) for s in slots], generator, bg_ratio)
    empty = np.zeros(0, np.int64)
    background = [s.negatives[d] for s, d in zip(slots, drawn, strict=True)]
    index = np.concatenate([empty, *background, *(s.positives for s in slots)])
    sizes = [*map(len, background), *(len(s.positives) for s in slots)]
    slot = np.repeat(np.tile(np.arange(len(slots)), 2), sizes)
    labels = np.concatenate([np.full(len(index) - foreground, num_classes), *(s.labels for s in slots)])
    matched = np.concatenate([empty, *background, *(s.matched for s in slots)])
    return StepRows(slot, index, labels, matched)
