"""Run-length text: the vectorised decoder against pycocotools, a slow one, and broken input."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ltpipe.data.rle import PROBLEMS, decode_runs, measure
from ltpipe.metrics.predictions import join_text


def slow_runs(text: bytes) -> list[int] | None:
    """Decode one string character by character; None when it is malformed."""
    runs: list[int] = []
    place = 0
    while place < len(text):
        value = shift = 0
        more = True
        while more:
            if place == len(text) or shift == 35:
                return None
            digit = text[place] - 48
            if not 0 <= digit <= 63:
                return None
            value |= (digit & 31) << (5 * (shift // 5))
            more, place, shift = bool(digit & 32), place + 1, shift + 5
            if not more and digit & 16:
                value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    good = runs and all(0 <= run < 2**32 for run in runs)
    return runs if good else None


def random_masks(count: int) -> list[np.ndarray]:
    """Return noise, blobs, empty, full and one-pixel-wide masks of many sizes."""
    rng = np.random.default_rng(0)
    masks = []
    for index in range(count):
        height, width = rng.integers(1, 70, 2)
        mask = (rng.random((height, width)) < rng.random()).astype(np.uint8)
        if index % 4 == 1:
            mask = np.repeat(np.repeat(mask, 30, 0), 20, 1)
        if index % 4 == 2:
            mask[:] = index % 8 == 2
        masks.append(mask)
    return masks


def test_areas_and_runs_equal_pycocotools() -> None:
    """Also across many blocks of text."""
    masks = random_masks(400)
    texts = [coco_mask.encode(np.asfortranarray(mask))["counts"] for mask in masks]
    offsets, text = join_text(texts)
    assert len(text) > 1 << 17
    areas, problem = measure(text, offsets, np.array([mask.size for mask in masks]))
    np.testing.assert_array_equal(areas, [mask.sum() for mask in masks])
    assert not problem.any()
    runs = decode_runs(text, offsets)
    for index, string in enumerate(texts):
        assert runs.lengths[runs.pointer[index] : runs.pointer[index + 1]].tolist() == slow_runs(string)


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (b"", "is empty"),
        (b"52 3", "has an illegal character"),
        (b"52\xff3", "has an illegal character"),
        (b"5o", "stops in the middle of a number"),
        (b"o" * 9, "stops in the middle of a number"),
        (b"oooooooo0", "has an impossible run length"),
        (b"5N", "has an impossible run length"),  # N is -2
        (b"525", "does not cover the image: its runs do not sum to height * width"),
    ],
)
def test_broken_text_is_named_and_contained(broken: bytes, expected: str) -> None:
    """A broken mask is reported with its fault and the masks beside it are measured as ever."""
    mask = np.zeros((8, 9), np.uint8)
    mask[2:5, 3:7] = 1
    good = coco_mask.encode(np.asfortranarray(mask))["counts"]
    for texts in ([good, broken, good], [broken, good, broken], [broken]):
        offsets, text = join_text(texts)
        areas, problem = measure(text, offsets, np.full(len(texts), 72))
        for string, area, found in zip(texts, areas, problem, strict=True):
            assert PROBLEMS[found] == (expected if string is broken else "")
            assert string is broken or area == mask.sum()


def test_random_text_is_judged_as_by_the_slow_decoder() -> None:
    """Noise never crashes, and what is called well formed is decoded alike."""
    rng = np.random.default_rng(1)
    texts = [bytes(rng.integers(46, 113, rng.integers(0, 12)).astype(np.uint8)) for _ in range(4000)]
    texts += [bytes(rng.integers(48, 64, rng.integers(1, 9)).astype(np.uint8)) for _ in range(2000)]
    offsets, text = join_text(texts)
    runs = decode_runs(text, offsets)
    accepted = 0
    for index, string in enumerate(texts):
        expected = slow_runs(string)
        assert (runs.problem[index] == 0) == (expected is not None), string
        if expected is not None:
            accepted += 1
            assert runs.lengths[runs.pointer[index] : runs.pointer[index + 1]].tolist() == expected
    assert 300 < accepted < 5000


def test_nothing() -> None:
    """No masks at all."""
    areas, problem = measure(np.zeros(0, np.uint8), np.zeros(1, np.int64), np.zeros(0, np.int64))
    assert len(areas) == len(problem) == 0
