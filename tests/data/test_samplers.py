"""Index samplers: naive re-implementations, expectations, determinism, refused options."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from ltpipe.data.basic_samplers import MEANS, ClassAwareSampler, RepeatFactorSampler, repeat_factors
from ltpipe.data.class_images import ImageLabels
from ltpipe.data.samplers import SAMPLERS, CombinedSampler, build_sampler
from ltpipe.data.torch_random import TorchRandom
from ltpipe.errors import UserError

OPTIONS: dict[str, dict[str, Any]] = {
    "random": {},
    "repeat_factor": {"threshold": 0.05},
    "class_aware": {"epoch_size": 77},
    "instance_balanced": {"epoch_size": 500},
    "repeat_drop": {"threshold": 0.05, "drop_fraction": 0.3},
    "combined": {
        "parts": [
            {"type": "repeat_factor", "weight": 2, "threshold": 0.05, "rounding": "stochastic"},
            {"type": "class_aware", "weight": 1},
        ]
    },
}


def image_lists(seed: int = 0, images: int = 200, classes: int = 12) -> list[list[int]]:
    """Return the labels of each image; some images have none, class 11 has no image, the others follow a long tail."""
    rng = np.random.default_rng(seed)
    share = 0.5 / np.arange(1, classes + 1) ** 1.5
    share[-1] = 0
    return [np.flatnonzero(rng.random(classes) < share).tolist() for _ in range(images)]


def from_lists(lists: list[list[int]], classes: int = 12) -> ImageLabels:
    """Return the arrays of such lists; every third image is tall."""
    ptr = np.concatenate([[0], np.cumsum([len(x) for x in lists])])
    group = np.array([int(i % 3 > 0) for i in range(len(lists))])
    return ImageLabels(ptr, np.array([c for x in lists for c in x], dtype=np.int64), classes, group)


@pytest.fixture(scope="module")
def labels() -> ImageLabels:
    return from_lists(image_lists())


def naive_factors(lists: list[list[int]], threshold: float) -> list[float]:
    """Return the repeat factor of each image."""
    counts = Counter(c for x in lists for c in x)
    of_class = {c: max(1.0, math.sqrt(threshold / (n / len(lists)))) for c, n in counts.items()}
    return [max((of_class[c] for c in x), default=1.0) for x in lists]


def test_all_samplers_are_covered() -> None:
    assert OPTIONS.keys() == SAMPLERS.keys()


@pytest.mark.parametrize("name", SAMPLERS)
def test_contract(name: str, labels: ImageLabels) -> None:
    """Rows are int64 indices of the data set and depend on seed and epoch only; the length is as announced."""
    sampler = build_sampler({"type": name, **OPTIONS[name]})
    rows = sampler.epoch(labels, 3, 7)
    assert rows.dtype == np.int64 and rows.ndim == 1
    assert rows.min() >= 0 and rows.max() < labels.num_images
    assert sampler.epoch_length(labels) in (None, len(rows))
    assert_array_equal(build_sampler({"type": name, **OPTIONS[name]}).epoch(labels, 3, 7), rows)
    assert not np.array_equal(sampler.epoch(labels, 4, 7), rows)
    assert not np.array_equal(sampler.epoch(labels, 3, 8), rows)


def test_random_is_the_order_of_mmengine(labels: ImageLabels) -> None:
    rows = build_sampler({"type": "random"}).epoch(labels, 2, 5)
    assert_array_equal(rows, torch.randperm(200, generator=torch.Generator().manual_seed(7)).numpy())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("threshold", (0.0, 1e-3, 0.05, 0.4))
def test_repeat_factors(seed: int, threshold: float) -> None:
    lists = image_lists(seed)
    labels = from_lists(lists)
    per_class, per_image = repeat_factors(labels, threshold)
    expected = np.array(naive_factors(lists, threshold))
    assert_allclose(per_image, expected, rtol=1e-15)
    assert per_class[11] == 1.0
    unlabelled = [i for i, x in enumerate(lists) if not x]
    assert unlabelled and (per_image[unlabelled] == 1.0).all()
    for rounding, function in (("ceil", math.ceil), ("round", round), ("floor", math.floor)):
        rows = RepeatFactorSampler(threshold, rounding).epoch(labels, 0, 0)  # type: ignore[arg-type]
        assert_array_equal(np.bincount(rows, minlength=200), [function(r) for r in expected])
    if threshold == 0:
        assert (per_image == 1).all()


def test_repeat_factors_by_images_and_objects() -> None:
    """Class 0 in two of four images with eight of ten objects, class 1 in one with two; class 2 has none."""
    labels = replace(from_lists([[0], [0, 1], [], []], 3), instance_counts=np.array([8, 2, 0]))
    means = {
        "image": (0.5, 0.25),
        "geometric": (math.sqrt(0.4), math.sqrt(0.05)),
        "harmonic": (8 / 13, 2 / 9),
        "arithmetic": (0.65, 0.225),
        "quadratic": (math.sqrt(0.445), math.sqrt(0.05125)),
        "instance": (0.8, 0.2),
    }
    assert means.keys() == MEANS.keys()
    for mean, shares in means.items():
        first, second = (max(1, math.sqrt(0.9 / share)) for share in shares)
        per_class, per_image = repeat_factors(labels, 0.9, mean)  # type: ignore[arg-type]
        assert_allclose(per_class, [first, second, 1])
        assert_allclose(per_image, [first, second, 1, 1])
        sampler = build_sampler({"type": "repeat_factor", "threshold": 0.9, "mean": mean})
        assert sampler.epoch_length(labels) == math.ceil(first) + math.ceil(second) + 2
    with pytest.raises(UserError, match="bad mean"):
        build_sampler({"type": "repeat_factor", "mean": "median"})


def test_round_is_half_to_even() -> None:
    """Two images hold a class of share 1/2: t = 12.5 makes r = 5 exactly, t = 3.125 makes 2.5."""
    labels = from_lists([[0], [0], [], []], 1)
    assert repeat_factors(labels, 3.125)[1].tolist() == [2.5, 2.5, 1, 1]
    assert RepeatFactorSampler(3.125, "round").copies(labels, TorchRandom(0)).tolist() == [2, 2, 1, 1]


def test_stochastic_rounding_has_the_right_mean(labels: ImageLabels) -> None:
    factor = repeat_factors(labels, 0.2)[1]
    sampler, epochs = RepeatFactorSampler(0.2, "stochastic"), 400
    counts = np.stack([np.bincount(sampler.epoch(labels, e, 0), minlength=200) for e in range(epochs)])
    fraction = factor % 1
    assert ((counts == np.floor(factor)) | (counts == np.ceil(factor))).all()
    sigma = np.sqrt(fraction * (1 - fraction) / epochs)
    # About one image in 10^4 leaves four sigma; three sigma hold for the total.
    assert (np.abs(counts.mean(0) - factor) <= 4.5 * sigma + 1e-12).all()
    assert abs(counts.sum(1).mean() - factor.sum()) <= 3 * np.sqrt((sigma**2).sum())
    assert sampler.epoch_length(labels) is None


def test_class_aware_is_even() -> None:
    """Over whole cycles every class with images comes equally often, its images too; the label fits the image."""
    lists = image_lists(2)
    labels, cycles = from_lists(lists), 30
    present = [c for c in range(12) if labels.image_counts[c]]
    rows, of_class = ClassAwareSampler(cycles * len(present)).epoch_pairs(labels, 1, 0)
    for start in range(0, len(rows), len(present)):
        assert sorted(of_class[start : start + len(present)].tolist()) == present
    drawn = defaultdict(list)
    for row, c in zip(rows.tolist(), of_class.tolist(), strict=True):
        assert c in lists[row]
        drawn[c].append(row)
    for c, images in drawn.items():
        seen = Counter(images)
        own = [i for i, x in enumerate(lists) if c in x]
        counts = [seen[i] for i in own]
        assert max(counts) - min(counts) <= 1
        for start in range(0, len(images) - len(own) + 1, len(own)):
            assert sorted(images[start : start + len(own)]) == own


def test_class_aware_needs_a_label() -> None:
    with pytest.raises(UserError, match="no image has a label"):
        ClassAwareSampler().epoch(from_lists([[], []]), 0, 0)


def test_instance_balanced_passes_evenly(labels: ImageLabels) -> None:
    rows = build_sampler({"type": "instance_balanced", "epoch_size": 500}).epoch(labels, 0, 1)
    assert sorted(rows[:200].tolist()) == sorted(rows[200:400].tolist()) == list(range(200))
    assert len(set(rows[400:].tolist())) == 100


@pytest.mark.parametrize(
    "drop", [{"drop_fraction": 0.0}, {"drop_fraction": 0.25}, {"drop_per_group": [5, 30]}, {"drop_per_group": [0, 9]}]
)
def test_repeat_drop(drop: dict[str, Any]) -> None:
    """Tail images come ``ceil(r) + 1`` times; the stated number of others is left out, others in other epochs."""
    lists = image_lists(3)
    labels = from_lists(lists)
    copies = np.ceil(naive_factors(lists, 0.05)).astype(int)
    sampler = build_sampler({"type": "repeat_drop", "threshold": 0.05, "chunk": 2, "pad_to": 12, **drop})
    rows = sampler.epoch(labels, 0, 0)
    wanted = np.where(copies > 1, copies + 1, 1)
    group_sizes = []
    for group in (0, 1):
        members = np.flatnonzero(labels.group == group)
        plain = members[copies[members] == 1]
        counts = drop.get("drop_per_group")
        left_out = counts[group] if counts else int(drop["drop_fraction"] * len(plain))
        seen = np.bincount(rows, minlength=200)
        size = wanted[members].sum() - left_out
        padded = -(-size // 12) * 12
        group_sizes.append(padded)
        assert seen[members].sum() == padded
        missing = np.maximum(wanted[members] - seen[members], 0)
        assert missing.sum() == left_out and (copies[members[missing > 0]] == 1).all()
    assert len(rows) == sum(group_sizes) == sampler.epoch_length(labels)
    groups = labels.group[rows].reshape(-1, 2)
    assert (groups[:, 0] == groups[:, 1]).all(), "entries of a chunk share the aspect-ratio group"


def test_repeat_drop_leaves_out_others_in_other_epochs(labels: ImageLabels) -> None:
    sampler = build_sampler({"type": "repeat_drop", "threshold": 0.05, "drop_fraction": 0.5})
    seen = [set(sampler.epoch(labels, e, 0).tolist()) for e in range(20)]
    assert set.union(*seen) == set(range(200))
    assert len({frozenset(s) for s in seen}) == 20


def test_repeat_drop_without_groups() -> None:
    labels = from_lists(image_lists(3))
    plain = ImageLabels(labels.ptr, labels.label, labels.num_classes)
    rows = build_sampler({"type": "repeat_drop", "drop_fraction": 0, "threshold": 0}).epoch(plain, 0, 0)
    assert len(rows) == 208 and set(rows.tolist()) == set(range(200))


def test_repeat_drop_refuses_more_than_there_is(labels: ImageLabels) -> None:
    with pytest.raises(UserError, match=r"drop_per_group\[1\] is too large"):
        build_sampler({"type": "repeat_drop", "drop_per_group": [0, 1000]}).epoch(labels, 0, 0)
    with pytest.raises(UserError, match="too short"):
        build_sampler({"type": "repeat_drop", "drop_per_group": [0]}).epoch(labels, 0, 0)


@pytest.mark.parametrize("weights", [(1, 1), (1, 3), (0.9, 0.1), (2, 3, 5), (1, 1, 1), (8, 1, 1)])
def test_combined_shares(weights: tuple[float, ...], labels: ImageLabels) -> None:
    """Every window holds the shares within one entry for two parts, two for three; every beginning within one."""
    parts = [{"type": "random", "weight": w} for w in weights]
    _, part = CombinedSampler(parts, 400).epoch_with_parts(labels, 0, 0)
    share = np.array(weights) / sum(weights)
    cumulative = np.concatenate([np.zeros((1, len(weights))), np.cumsum(part[:, None] == np.arange(len(weights)), 0)])
    excess = cumulative - np.arange(401)[:, None] * share
    assert np.abs(excess).max() <= 1 + 1e-9
    windows = np.abs(excess[:, None] - excess[None])
    assert windows.max() <= len(weights) - 1 + 1e-9


def test_combined_parts_are_endless_streams(labels: ImageLabels) -> None:
    """A part goes on in the next epoch: over epochs its images come in whole passes."""
    sampler = CombinedSampler([{"type": "random", "weight": 3}, {"type": "class_aware", "weight": 1}], 120)
    first = []
    for epoch in range(20):
        rows, part = sampler.epoch_with_parts(labels, epoch, 0)
        assert len(rows) == 120
        first += rows[part == 0].tolist()
    for start in range(0, len(first) - 199, 200):
        assert sorted(first[start : start + 200]) == list(range(200))


def test_combined_with_changing_lengths(labels: ImageLabels) -> None:
    """A stochastic part has no fixed length; its stream is its epochs end to end all the same."""
    options = {"type": "repeat_factor", "threshold": 0.2, "rounding": "stochastic"}
    sampler = CombinedSampler([{**options, "weight": 1}], 150)
    stream = np.concatenate([sampler.epoch(labels, e, 4) for e in range(6)])
    part = build_sampler(options)
    assert_array_equal(stream, np.concatenate([part.epoch(labels, e, 4) for e in range(10)])[: len(stream)])


def test_equal_parts_draw_different_images(labels: ImageLabels) -> None:
    rows, part = CombinedSampler([{"type": "random"}, {"type": "random"}]).epoch_with_parts(labels, 0, 0)
    assert not np.array_equal(rows[part == 0], rows[part == 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "randm"}, "did you mean 'random'"),
        ({}, "unknown sampler"),
        ({"type": "repeat_factor", "treshold": 1}, "did you mean 'threshold'"),
        ({"type": "repeat_factor", "threshold": -1}, "bad threshold"),
        ({"type": "repeat_factor", "threshold": "low"}, "bad option"),
        ({"type": "repeat_factor", "rounding": "up"}, "bad rounding"),
        ({"type": "class_aware", "epoch_size": 0}, "bad epoch_size"),
        ({"type": "instance_balanced", "epoch_size": -3}, "bad epoch_size"),
        ({"type": "repeat_drop", "drop_fraction": 1.0}, "bad drop_fraction"),
        ({"type": "repeat_drop", "drop_per_group": [-1]}, "bad drop_per_group"),
        ({"type": "repeat_drop", "chunk": 2, "pad_to": 7}, "bad chunk"),
        ({"type": "combined"}, "no parts"),
        ({"type": "combined", "parts": [{"type": "random", "weight": 0}]}, "bad weight"),
        ({"type": "combined", "parts": [{"type": "nothing"}]}, "unknown sampler"),
        ({"type": "combined", "parts": [{"type": "random"}], "epoch_size": 0}, "bad epoch_size"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_sampler(options)
