"""Run lengths against the reference decoder."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ltpipe.data.rle import check_rle, rle_runs
from tests.helpers.annotation_cases import COMPRESSED_RLE, PLAIN_RLE


def plain_runs(mask: np.ndarray) -> list[int]:
    """Count the runs of a mask in column order, one pixel after the other."""
    runs, current = [0], 0
    for pixel in mask.T.reshape(-1).tolist():
        if pixel != current:
            runs.append(0)
            current = pixel
        runs[-1] += 1
    return runs


@pytest.mark.parametrize("seed", range(20))
def test_compressed_runs_equal_a_pixel_count(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 300, 2)
    coarse = rng.random((height // 9 + 1, width // 7 + 1)) < rng.random()
    mask = np.kron(coarse, np.ones((9, 7), bool))[:height, :width]
    mask = mask & (rng.random(mask.shape) < 0.99)
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert rle_runs(rle["counts"]).tolist() == plain_runs(mask)
    check_rle({"size": rle["size"], "counts": rle["counts"].decode()}, int(height), int(width))


def test_both_spellings_agree() -> None:
    assert rle_runs(COMPRESSED_RLE["counts"]).tolist() == PLAIN_RLE["counts"]
    assert rle_runs(PLAIN_RLE["counts"]).tolist() == PLAIN_RLE["counts"]
    assert rle_runs("").tolist() == []


@pytest.mark.parametrize("text", ["o" * 3, "84b", "8\x004", "é", "oooooooo0"])
def test_malformed_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="RLE"):
        rle_runs(text)


def test_every_truncation_of_a_mask_is_noticed() -> None:
    mask = np.zeros((40, 50), np.uint8, order="F")
    mask[3:30, 5:45] = 1
    counts = coco_mask.encode(mask)["counts"].decode()
    check_rle({"size": [40, 50], "counts": counts}, 40, 50)
    for stop in range(len(counts)):
        with pytest.raises(ValueError, match="RLE"):
            check_rle({"size": [40, 50], "counts": counts[:stop]}, 40, 50)
