"""IRFS: repeat factors of images from image and instance counts, and the copies they become."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.testing import assert_allclose, assert_array_equal

from ltpipe.data.basic_samplers import Mean, RepeatFactorSampler, repeat_factors
from ltpipe.data.class_images import ImageLabels

METHOD = "irfs"
FLOAT32: dict[str, Mean] = {
    "harmonic": "harmonic",
    "arithmetic": "arithmetic",
    "quadratic": "quadratic",
    "instance_only": "instance",
}


def labels_of(image: np.ndarray, label: np.ndarray, images: int, classes: int) -> ImageLabels:
    """Return the distinct labels of images from the image and label of every object."""
    pair = np.unique(image.astype(np.int64) * classes + label)
    ptr = np.concatenate([[0], np.cumsum(np.bincount(pair // classes, minlength=images))])
    return ImageLabels(ptr, pair % classes, classes, instance_counts=np.bincount(label, minlength=classes))


def check_copies(labels: ImageLabels, threshold: float, data: dict[str, np.ndarray]) -> None:
    """Copies of every image, or their number, with each rounding."""
    for rounding in ("ceil", "round", "floor"):
        rows = RepeatFactorSampler(threshold, rounding, mean="geometric").epoch(labels, 0, 0)
        if f"out_count_{rounding}" in data:
            assert_array_equal(np.bincount(rows, minlength=labels.num_images), data[f"out_count_{rounding}"])
        assert len(rows) == data.get(f"out_len_{rounding}", len(rows))


def check_irfs(path: Path) -> None:
    """Factors of all means, and copies."""
    with np.load(path, allow_pickle=False) as file:
        data = dict(file)
    images, classes = int(data["num_images"]), int(data["num_classes"])
    image = np.repeat(np.arange(images), np.diff(data["cat_ptr"]))
    labels, threshold = labels_of(image, data["cat_flat"], images, classes), float(data["oversample_thr"])
    assert_array_equal(labels.image_counts, data["image_count"])
    assert_array_equal(labels.instance_counts, data["instance_count"])
    assert_allclose(repeat_factors(labels, threshold, "geometric")[1], data["out_repeat_factor"], rtol=1e-12)
    for name, mean in FLOAT32.items():
        assert_allclose(repeat_factors(labels, threshold, mean)[1], data[f"out_repeat_factor_{name}"], rtol=3e-7)
    check_copies(labels, threshold, data)


def check_lvis(path: Path) -> None:
    """Factors of classes and images with the real counts of LVIS on images laid out by rule."""
    with np.load(path, allow_pickle=False) as file:
        data = dict(file)
    images, counts, stride = int(data["num_images"]), data["image_count"], int(data["stride"])
    label = np.repeat(np.arange(len(counts)), data["instance_count"])
    place = np.arange(len(label)) - np.repeat(
        np.cumsum(data["instance_count"]) - data["instance_count"], data["instance_count"]
    )
    image = ((label * stride) % images + place % counts[label]) % images
    labels, threshold = labels_of(image, label, images, len(counts)), float(data["oversample_thr"])
    per_class, per_image = repeat_factors(labels, threshold, "geometric")
    used = labels.image_counts > 0
    assert_array_equal(labels.image_counts, counts)
    assert_allclose(per_class[used], data["out_category_repeat_from_formula"][used], rtol=1e-12)
    assert_allclose(per_image, data["out_factor_values"][data["out_factor_index"]], rtol=1e-12)
    check_copies(labels, threshold, data)


CHECKS = {"irfs_": check_irfs, "irfs_lvis_": check_lvis}
