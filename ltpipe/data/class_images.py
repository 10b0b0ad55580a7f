"""Which images hold which classes: flat arrays by class (:class:`ClassImages`) and by image (:class:`ImageLabels`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class ClassImages:
    """The images of every class and how many annotations it has.

    Attributes:
        ptr: ``(K + 1,) int64``; the images of label ``c`` are ``image_id[ptr[c]:ptr[c + 1]]``.
        image_id: ``(P,) int64`` image ids, ascending within a class, each once per class.
        annotation_counts: ``(K,) int64`` annotations of each class on these images.
    """

    ptr: NDArray[np.int64]
    image_id: NDArray[np.int64]
    annotation_counts: NDArray[np.int64]

    @property
    def num_classes(self) -> int:
        """Number of labels ``K``, with or without images."""
        return len(self.ptr) - 1

    @property
    def image_counts(self) -> NDArray[np.int64]:
        """``(K,) int64`` images of each class."""
        return np.diff(self.ptr)

    def images_of(self, label: int) -> NDArray[np.int64]:
        """Return the image ids of one label."""
        return self.image_id[self.ptr[label] : self.ptr[label + 1]]


@dataclass(frozen=True, eq=False)
class ImageLabels:
    """The distinct labels of every image of a data set, in data set order.

    Attributes:
        ptr: ``(N + 1,) int64``; the labels of image ``i`` are ``label[ptr[i]:ptr[i + 1]]``.
        label: ``(P,) int64`` labels, each once per image; ``0 .. num_classes - 1``.
        num_classes: Number of labels ``K``, with or without images.
        group: ``(N,) int64`` aspect-ratio group of each image (1 if wider than high, else 0); one group when None.
        instance_counts: ``(K,) int64`` objects of each label; None where no sampler asks for them.
    """

    ptr: NDArray[np.int64]
    label: NDArray[np.int64]
    num_classes: int
    group: NDArray[np.int64] | None = None
    instance_counts: NDArray[np.int64] | None = None

    @property
    def num_images(self) -> int:
        """Number of images ``N``, with or without labels."""
        return len(self.ptr) - 1

    @cached_property
    def image_of_pair(self) -> NDArray[np.int64]:
        """``(P,) int64``: the image of each entry of ``label``."""
        return np.repeat(np.arange(self.num_images), np.diff(self.ptr))

    @cached_property
    def image_counts(self) -> NDArray[np.int64]:
        """``(K,) int64`` images that hold each label."""
        return np.bincount(self.label, minlength=self.num_classes)

    @cached_property
    def by_class(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """``(ptr, image)``: the images of label ``c``, ascending, are ``image[ptr[c]:ptr[c + 1]]``."""
        order = np.argsort(self.label, kind="stable")
        return np.concatenate([[0], np.cumsum(self.image_counts)]), self.image_of_pair[order]
