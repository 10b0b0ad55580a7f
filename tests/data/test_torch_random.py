"""The torch-free generator draws PyTorch's numbers bit for bit."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from ltpipe.data.torch_random import MAX_RANGE, TorchRandom

SEEDS = (0, 1, 2**31 + 5, 2**40 + 3, -1)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("length", (0, 1, 2, 3, 623, 624, 625, 29_999, 30_001, 120_000))
def test_randperm(seed: int, length: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    assert_array_equal(TorchRandom(seed).randperm(length), torch.randperm(length, generator=generator).numpy())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("high", (1, 2, 7, 1024, 100_170, MAX_RANGE - 1))
def test_randint(seed: int, high: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    assert_array_equal(
        TorchRandom(seed).randint(high, 700), torch.randint(0, high, (700,), generator=generator).numpy()
    )


def test_one_stream_for_all_calls() -> None:
    """Bounds as an array equal one call per class, and a permutation goes on where the numbers stopped."""
    sizes, counts = [5, 1, 30_000, 17], [3, 2, 40, 1]
    generator = torch.Generator().manual_seed(11)
    calls = [torch.randint(0, n, (k, 1), generator=generator) for n, k in zip(sizes, counts, strict=True)]
    expected = [numbers.numpy().ravel() for numbers in calls]
    order = torch.randperm(1000, generator=generator).numpy()
    ours = TorchRandom(11)
    assert_array_equal(ours.randint(np.repeat(sizes, counts)), np.concatenate(expected))
    assert_array_equal(ours.randperm(1000), order)


def test_uniform() -> None:
    numbers = TorchRandom(3).uniform(100_000)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.005


@pytest.mark.parametrize("high", (0, MAX_RANGE))
def test_range_limits(high: int) -> None:
    with pytest.raises(AssertionError):
        TorchRandom(0).randint(high, 1)


def test_index_modules_do_not_import_torch() -> None:
    modules = "split, phase, replay, published_indices, samplers, calibration_plan"
    code = f"import sys; from ltpipe.data import {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
