"""Oracle checks of the index samplers: repeat factors, class-aware, instance-balanced, repeat and drop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.testing import assert_allclose, assert_array_equal

from ltpipe.data.class_images import ImageLabels
from ltpipe.data.samplers import (
    ClassAwareSampler,
    InstanceBalancedSampler,
    RepeatDropSampler,
    RepeatFactorSampler,
    repeat_factors,
)

METHOD = "lt_losses"

Arrays = dict[str, Any]


def load(path: Path) -> Arrays:
    """Return all arrays of a file; 0-d ones as Python scalars."""
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key].item() if file[key].ndim == 0 else file[key] for key in file.files}


def image_labels(data: Arrays) -> ImageLabels:
    """Return the labels of the images: stored, or laid out from class counts as the README says."""
    if "cat_ptr" in data:
        classes = data.get("num_classes", int(data["cat_flat"].max(initial=0)) + 1)
        group = data["in_flag"].astype(np.int64) if "in_flag" in data else None
        return ImageLabels(data["cat_ptr"], data["cat_flat"].astype(np.int64), classes, group)
    counts, images = data["image_count"], data["num_images"]
    label = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(len(label)) - np.repeat(np.cumsum(counts) - counts, counts)
    image = (label * data["stride"] % images + place) % images
    order = np.lexsort((label, image))
    ptr = np.concatenate([[0], np.cumsum(np.bincount(image, minlength=images))])
    return ImageLabels(ptr, label[order], len(counts))


def check_rfs(path: Path) -> None:
    """Repeat factors, copies per image, and an epoch that holds just these copies."""
    data = load(path)
    labels, threshold = image_labels(data), data["oversample_thr"]
    per_class, per_image = repeat_factors(labels, threshold)
    if "out_factor_values" in data:
        expected = data["out_factor_values"][data["out_factor_index"]]
        used = labels.image_counts > 0
        assert_allclose(per_class[used], data["out_category_repeat_from_formula"][used], rtol=1e-12)
    else:
        expected = data["out_repeat_factor"]
    assert_allclose(per_image, expected, rtol=1e-12)
    for rounding in ("ceil", "round", "floor"):
        sampler = RepeatFactorSampler(threshold, rounding)
        rows = sampler.epoch(labels, 0, 0)
        assert_array_equal(np.bincount(rows, minlength=labels.num_images), data[f"out_count_{rounding}"])
        assert sampler.epoch_length(labels) == len(rows) == data.get(f"out_len_{rounding}", len(rows))


def check_class_aware(path: Path) -> None:
    """The fixed lists of eqlv2's class-aware and instance-balanced data sets."""
    data = load(path)
    labels, size = image_labels(data), data["max_iter"]
    rows = ClassAwareSampler(size).epoch(labels, 0, data["torch_seed"])
    assert_array_equal(rows, data["out_cas_indices"])
    assert_array_equal(np.bincount(rows, minlength=labels.num_images), data["out_cas_image_hist"])
    assert_array_equal(data["in_flag"][rows], data["out_cas_flag"])
    assert_array_equal(InstanceBalancedSampler(size).epoch(labels, 0, data["torch_seed"]), data["out_maxiter_indices"])


def check_repeat_drop(path: Path) -> None:
    """The lists of all processes; the single-process sampler shuffles with an unrecorded seed, so only its content."""
    data = load(path)
    labels, epoch, threshold = image_labels(data), data["epoch"], data["repeat_t"]
    assert_array_equal(np.ceil(repeat_factors(labels, threshold)[1]), data["out_ceil_factor"])
    chunk, processes = data["samples_per_gpu"], data["replicas"]
    shape = {"chunk": chunk, "pad_to": chunk * processes}
    drop = RepeatDropSampler(threshold, drop_per_group=data["drop_per_flag"].tolist(), **shape)
    repeat = RepeatDropSampler(threshold, drop_fraction=0.0, **shape)
    for sampler, name in ((drop, "repeat_drop"), (repeat, "repeat")):
        rows = sampler.epoch(labels, epoch, 0)
        assert_array_equal(rows.reshape(processes, -1), data[f"out_{name}_indices"])
        assert_array_equal(np.bincount(rows, minlength=labels.num_images), data[f"out_{name}_hist"])
    single = data["out_single_gpu_repeat_indices"]
    ours = RepeatDropSampler(threshold, drop_fraction=0.0, chunk=chunk, pad_to=chunk).epoch(labels, epoch, 0)
    assert len(ours) == len(single)
    padding = np.bincount(ours, minlength=labels.num_images) - np.bincount(single, minlength=labels.num_images)
    assert np.abs(padding).sum() <= 2 * (chunk - 1) * len(np.unique(labels.group))


CHECKS = {"rfs_": check_rfs, "class_aware": check_class_aware, "repeat_drop": check_repeat_drop}
