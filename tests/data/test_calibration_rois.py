"""Selection of RoIs per slot and composition of the calibration mini-batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from mmdet.models.task_modules.assigners import MaxIoUAssigner
from mmengine.structures import InstanceData

from ltpipe.data.calibration_rois import (
    RoiSampling,
    SlotRois,
    StepRows,
    assign_boxes,
    box_iou,
    compose_step,
    draw_background,
    select_slot,
    select_stages,
    slot_generator,
    step_generator,
)

K = 6


def boxes(rng: np.random.Generator, number: int) -> np.ndarray:
    corner = rng.uniform(0, 60, (number, 2))
    return np.concatenate([corner, corner + rng.uniform(8, 40, (number, 2))], axis=1).astype(np.float32)


def image(seed: int, ground_truths: int = 5, proposals: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ground truths, labels, and proposals of which many lie around a ground truth."""
    rng = np.random.default_rng(seed)
    gt = boxes(rng, ground_truths)
    near = gt[rng.integers(0, ground_truths, proposals // 2)] + rng.normal(0, 4, (proposals // 2, 4))
    return gt, rng.integers(0, K, ground_truths), np.concatenate([near.astype(np.float32), boxes(rng, proposals // 2)])


def test_iou_by_hand() -> None:
    a = np.array([[0, 0, 10, 10], [5, 5, 5, 5]], np.float32)
    b = np.array([[5, 0, 15, 10], [20, 20, 30, 30]], np.float32)
    np.testing.assert_allclose(box_iou(a, b), [[50 / 150, 0], [0, 0]])
    np.testing.assert_allclose(box_iou(a[:1], b[:1], offset=1), [[66 / (121 + 121 - 66)]])


@pytest.mark.parametrize("pos_iou", [0.5, 0.7])
@pytest.mark.parametrize("seed", range(4))
def test_assignment_equals_mmdet(seed: int, pos_iou: float) -> None:
    gt, labels, proposals = image(seed)
    proposals[:3] = gt[:3]
    gt[4] = gt[3]  # two equal ground truths claim the same proposals
    assigner = MaxIoUAssigner(pos_iou, pos_iou, min_pos_iou=pos_iou, match_low_quality=True, ignore_iof_thr=-1)
    expected = assigner.assign(
        InstanceData(priors=torch.from_numpy(proposals)),
        InstanceData(bboxes=torch.from_numpy(gt), labels=torch.from_numpy(labels)),
    )
    assigned, best = assign_boxes(gt, proposals, pos_iou)
    np.testing.assert_array_equal(assigned + 1, expected.gt_inds.numpy())
    np.testing.assert_allclose(best, expected.max_overlaps.numpy(), atol=1e-6)


def test_order_labels_and_overlaps_of_the_kept_rois() -> None:
    gt, labels, proposals = image(0)
    slot = select_slot(gt, labels, proposals, int(labels[1]), slot_generator(3, 1, 0), RoiSampling(rois=100))
    np.testing.assert_array_equal(slot.boxes, np.concatenate([gt, proposals]))
    assert (np.diff(slot.positives) > 0).all() and (np.diff(slot.negatives) > 0).all()
    assert (slot.labels == labels[1]).all()
    overlaps = box_iou(gt, slot.boxes)
    of_class = overlaps[labels == labels[1]]
    assert (of_class.max(axis=0)[slot.positives] >= 0.5).all()
    assert ((overlaps.max(axis=0)[slot.negatives] >= 0.1) & (overlaps.max(axis=0)[slot.negatives] < 0.5)).all()
    assert len(slot.positives) <= 25 and len(slot.negatives) <= 100


def test_caps() -> None:
    gt, labels, proposals = image(1, proposals=2000)
    loose = select_slot(gt, labels, proposals, None, slot_generator(0, 0, 0), RoiSampling(rois=10**6))
    tight = select_slot(gt, labels, proposals, None, slot_generator(0, 0, 0), RoiSampling(rois=80))
    assert len(tight.positives) == 20 and len(tight.negatives) == 60
    assert set(tight.positives) <= set(loose.positives) and set(tight.negatives) <= set(loose.negatives)
    assert set(range(len(gt))) <= set(loose.positives), "every ground truth is a positive of itself"
    np.testing.assert_array_equal(loose.labels[: len(gt)], labels)


def test_cap_before_the_class_filter_may_lose_a_class_and_after_it_never_does() -> None:
    gt, _, proposals = image(2, ground_truths=1, proposals=200)
    labels = np.array([0, 1])
    gt = np.concatenate([gt, gt + np.float32(500)])  # the only RoI of class 1 is its ground truth
    sampling = RoiSampling(rois=16)
    kept = {flag: 0 for flag in (True, False)}
    for step in range(60):
        for flag in kept:
            chosen = replace(sampling, cap_before_filter=flag)
            kept[flag] += len(select_slot(gt, labels, proposals, 1, slot_generator(0, step, 0), chosen).positives)
    assert kept[False] == 60
    assert 0 < kept[True] < 30, "4 of about 80 positives are kept"


def test_negatives_without_the_low_limit_are_any_background() -> None:
    gt, labels, proposals = image(3)
    slot = select_slot(gt, labels, proposals, 0, slot_generator(0, 0, 0), RoiSampling(rois=10**6, neg_iou_min=0.0))
    assigned, _ = assign_boxes(gt, proposals)
    assert len(slot.negatives) == (assigned < 0).sum()


@pytest.mark.parametrize("ground_truths, proposals", [(0, 10), (3, 0), (0, 0)])
def test_empty_inputs(ground_truths: int, proposals: int) -> None:
    rng = np.random.default_rng(0)
    slot = select_slot(
        boxes(rng, ground_truths), np.zeros(ground_truths, int), boxes(rng, proposals), 0, slot_generator(0, 0, 0)
    )
    assert len(slot.positives) == len(slot.labels) == ground_truths
    assert not len(slot.negatives)
    rows = compose_step([slot, slot], step_generator(0, 0), K)
    assert len(rows) == 2 * ground_truths


def test_a_stage_draws_from_what_the_one_before_sampled() -> None:
    rng = np.random.default_rng(3)
    gt = np.array([[10, 10, 50, 50], [60, 60, 90, 95]], np.float32)
    first = np.concatenate([gt.repeat(40, 0), gt.repeat(10, 0) + 15]) + rng.normal(0, 5, (100, 4))
    proposals = np.stack([first, first * 0.5 + gt[[0] * 40 + [1] * 40 + [0] * 10 + [1] * 10] * 0.5]).astype(np.float32)
    samplings = [RoiSampling(rois=24, pos_iou=iou) for iou in (0.5, 0.6)]
    generators = [slot_generator(0, 1, 2, stage) for stage in range(2)]
    one, two = select_stages(gt, np.array([4, 7]), proposals, 4, generators, samplings)
    alone = select_slot(gt, np.array([4, 7]), proposals[0], 4, slot_generator(0, 1, 2), samplings[0])
    assert np.array_equal(one.positives, alone.positives) and np.array_equal(one.negatives, alone.negatives)
    kept = set(one.sampled.tolist())
    assert set(one.positives.tolist()) | set(one.negatives.tolist()) < kept, "positives of other classes go on, too"
    assert set(two.sampled.tolist()) <= kept | {0, 1} and len(two.positives)
    assert np.array_equal(two.boxes[2:], proposals[1]) and (two.labels == 4).all()
    assert (box_iou(gt, two.boxes[two.positives])[0] >= 0.6).all()


def make_slots(seed: int, step: int, slots: range, labels_of_slots: list[int]) -> list[SlotRois]:
    """The slots that one process owns."""
    return [
        select_slot(*image(10 + i), labels_of_slots[i], slot_generator(seed, step, i), RoiSampling(rois=64))
        for i in slots
    ]


def composed(slots: list[SlotRois], step: int) -> tuple[StepRows, np.ndarray]:
    rows = compose_step(slots, step_generator(0, step), K)
    return rows, np.stack([slots[s].boxes[i] for s, i in zip(rows.slot, rows.index, strict=True)])


def slot_labels(number: int) -> list[int]:
    return [int(image(10 + i)[1][0]) for i in range(number)]


@pytest.mark.parametrize("number", [1, 4, 9])
def test_composition(number: int) -> None:
    """Every foreground row has its slot's class; as many background rows, all drawn from the pool, once each."""
    wanted = slot_labels(number)
    slots = make_slots(0, 5, range(number), wanted)
    rows, _ = composed(slots, 5)
    foreground = sum(len(s.positives) for s in slots)
    pool = {(i, int(n)) for i, s in enumerate(slots) for n in s.negatives}
    background = [(int(s), int(i)) for s, i, y in zip(rows.slot, rows.index, rows.labels, strict=True) if y == K]
    assert len(background) == len(set(background)) == min(foreground, len(pool)) and set(background) <= pool
    tail = slice(len(background), None)
    assert (rows.labels[: len(background)] == K).all()
    np.testing.assert_array_equal(rows.labels[tail], np.repeat(wanted, [len(s.positives) for s in slots]))
    np.testing.assert_array_equal(rows.index[tail], np.concatenate([s.positives for s in slots]))
    assert {a.dtype for a in (rows.slot, rows.index, rows.labels)} == {np.dtype(np.int64)}


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_same_rows_for_any_number_of_processes(processes: int) -> None:
    """Each process selects its own slots; the composition then needs only sizes, which all processes know."""
    wanted = slot_labels(8)
    whole, whole_boxes = composed(make_slots(0, 2, range(8), wanted), 2)
    parts = [make_slots(0, 2, range(first, first + 8 // processes), wanted) for first in range(0, 8, 8 // processes)]
    slots = [slot for part in parts for slot in part]
    sizes = [len(s.negatives) for s in slots]
    drawn = draw_background(sum(len(s.positives) for s in slots), sizes, step_generator(0, 2))
    local = np.concatenate([s.negatives[d] for s, d in zip(slots, drawn, strict=True)])
    np.testing.assert_array_equal(local, whole.index[whole.labels == K])
    np.testing.assert_array_equal(composed(slots, 2)[1], whole_boxes)


def test_generators_differ_between_slots_steps_and_seeds() -> None:
    keys = [(s, t, i) for s in range(3) for t in range(3) for i in range(3)]
    first = [slot_generator(*key).random() for key in keys] + [step_generator(s, t).random() for s, t, _ in keys[::3]]
    assert len(set(first)) == len(first)


def test_background_ratio_and_no_foreground() -> None:
    generator = step_generator(0, 0)
    assert sum(map(len, draw_background(10, [30, 0, 30], generator, bg_ratio=2.5))) == 25
    assert sum(map(len, draw_background(10, [3, 4], generator))) == 7
    assert sum(map(len, draw_background(0, [30, 30], generator))) == 0
    gt, labels, proposals = image(0)
    absent = next(c for c in range(K) if c not in labels)
    assert len(compose_step([select_slot(gt, labels, proposals, absent, generator)], generator, K)) == 0


def test_matched_rows() -> None:
    """Every foreground row names a ground truth of its label that it overlaps; background names itself."""
    slots = [select_slot(*image(seed), label, slot_generator(0, 0, seed)) for seed, label in enumerate([0, 1, 2, None])]
    rows = compose_step(slots, step_generator(0, 0), K)
    assert (rows.labels < K).any() and (rows.labels == K).any()
    for slot, index, label, matched in zip(rows.slot, rows.index, rows.labels, rows.matched, strict=True):
        if label == K:
            assert matched == index
            continue
        gt, labels, _ = image(int(slot))
        assert labels[matched] == label
        overlap = box_iou(gt[matched : matched + 1], slots[slot].boxes[index : index + 1])[0, 0]
        assert overlap >= 0.5


def test_without_classes_a_step_holds_the_ordinary_samples() -> None:
    """As many RoIs per image as a detector samples, positives of all classes among them, background of any overlap."""
    sampling = RoiSampling(rois=64, neg_iou_min=0.0)
    slots = [select_slot(*image(seed), None, slot_generator(0, 0, seed), sampling) for seed in range(3)]
    rows = compose_step(slots, step_generator(0, 0), K, bg_ratio=None)
    assert np.bincount(rows.slot).tolist() == [64, 64, 64]
    for slot in range(3):
        labels = rows.labels[rows.slot == slot]
        assert (labels < K).sum() == 16 and len(set(labels.tolist())) > 2
