"""What one phase of a split sees of an annotation store: images, annotations and labels, as row numbers.

Filtering follows "Learning to Segment the Tail" (arXiv 2004.00900, preprocessing notebooks): a box counts if it is
wider and higher than one pixel; a class is present in an image if one of its boxes there counts; a phase keeps all
annotations of the present (image, class) pairs of its classes and the images that have any. Objects of classes that
come later are background. Crowd regions and ignored annotations never make a class present and are not counted (LVIS
has none). Unlike the notebooks, the base phase is filtered in the same way, and a class without any counting box keeps
its label but no annotation.
"""

from __future__ import annotations

import logging
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ltpipe.data.class_images import ClassImages, ImageLabels
from ltpipe.data.split import Split
from ltpipe.errors import UserError

logger = logging.getLogger(__name__)


class AnnotationColumns(Protocol):
    """The columns of :class:`ltpipe.data.store.AnnotationStore` that a phase is made from; annotations by image row."""

    image_ids: NDArray[np.int64]
    image_sizes: NDArray[np.int32]
    category_ids: NDArray[np.int64]
    ann_image: NDArray[np.int32]
    ann_category: NDArray[np.int32]
    ann_bbox: NDArray[np.float64]
    ann_iscrowd: NDArray[np.bool_]
    ann_ignore: NDArray[np.bool_]


class PhaseView:
    """The training data of phase ``n``: rows of a store, nothing copied.

    Args:
        store: The annotations; read once here, only image ids and sizes later.
        split: Class order and phases; ids are matched, so the store may list its categories in any order.
        phase: ``n``, 0 for the base.
        min_size: Boxes count if both sides are longer than this, in pixels; a negative value keeps every box.
        exclude: ``(E,)`` ids of images that are left out, see :mod:`ltpipe.data.holdout`.

    Attributes:
        images: ``(N,) int64`` image rows kept, by ascending image id. The position here is the data set index.
        annotations: ``(A,) int64`` annotation rows kept, ascending.
        labels: ``(A,) int32`` label of each kept annotation.
        num_classes: Classes known in this phase, ``K_n``.
        num_old: Classes known before, ``K_{n-1}``; 0 for the base.
    """

    def __init__(
        self,
        store: AnnotationColumns,
        split: Split,
        phase: int,
        *,
        min_size: float = 1.0,
        exclude: NDArray[np.int64] | None = None,
    ) -> None:
        self.store, self.split, self.phase = store, split, phase
        self.num_classes = split.classes_known(phase)
        self.num_old = split.new_labels(phase).start
        self._by_id = by_id = np.argsort(store.image_ids, kind="stable")
        image_rank = np.empty_like(by_id)
        image_rank[by_id] = np.arange(len(by_id))

        label_of_row = split.labels_of(store.category_ids)
        label = label_of_row[store.ann_category]
        wanted = (label >= 0) & (label < self.num_classes)
        if exclude is not None:
            wanted &= ~np.isin(store.image_ids, exclude)[store.ann_image]
        known = np.flatnonzero(wanted)
        label = label[known]
        pair = label * np.int64(len(by_id)) + image_rank[store.ann_image[known]]
        single = ~(store.ann_iscrowd | store.ann_ignore)[known]
        width, height = store.ann_bbox[known, 2], store.ann_bbox[known, 3]
        counts = single & (width > min_size) & (height > min_size)

        pairs = _unique(pair[counts])
        keep = counts.copy()
        rest = np.flatnonzero(~counts)
        keep[rest] = _contains(pairs, pair[rest])
        self.annotations: NDArray[np.int64] = known[keep]
        self.labels: NDArray[np.int32] = label[keep]
        self._annotation_counts = np.bincount(label[keep & single], minlength=self.num_classes)
        self._pair_label, self._pair_rank = np.divmod(pairs, max(len(by_id), 1))
        self._pair_ptr = np.searchsorted(self._pair_label, np.arange(self.num_classes + 1))
        self.images: NDArray[np.int64] = by_id[_unique(self._pair_rank)]
        if not len(self.images):
            raise UserError("a phase has no training image", where=f"phase {phase}", fix="check the annotation file")
        self._report_empty_classes()

    def _report_empty_classes(self) -> None:
        """Log the classes that have no usable box: their label slot stays, nothing will train it."""
        empty = np.flatnonzero(np.diff(self._pair_ptr) == 0)
        if len(empty):
            ids = self.split.order[empty]
            logger.warning(
                "phase %d: %d of %d classes have no usable box and are left out (category ids %s%s)",
                self.phase,
                len(empty),
                self.num_classes,
                ", ".join(map(str, ids[:10].tolist())),
                ", ..." if len(ids) > 10 else "",
            )

    @property
    def image_ids(self) -> NDArray[np.int64]:
        """``(N,) int64`` ids of the kept images, ascending."""
        return self.store.image_ids[self.images]

    def pairs(self, label: int) -> NDArray[np.int64]:
        """Return the image rows in which a label is present, by ascending image id."""
        return self._by_id[self._pair_rank[self._pair_ptr[label] : self._pair_ptr[label + 1]]]

    @property
    def new_images(self) -> NDArray[np.int64]:
        """Image rows in which a class new in this phase is present, by ascending image id."""
        return self._by_id[_unique(self._pair_rank[self._pair_ptr[self.num_old] :])]

    @cached_property
    def class_images(self) -> ClassImages:
        """Image ids and number of kept annotations (crowd regions not counted) per label."""
        image_id = self.store.image_ids[self._by_id[self._pair_rank]]
        return ClassImages(self._pair_ptr, image_id, self._annotation_counts)

    @cached_property
    def image_labels(self) -> ImageLabels:
        """Distinct labels and aspect-ratio group per kept image, in the order of :attr:`images`."""
        order = np.argsort(self._pair_rank, kind="stable")
        rank = self._pair_rank[order]
        ptr = np.append(np.flatnonzero(np.diff(rank, prepend=-1)), len(rank))
        height, width = self.store.image_sizes[self.images].T
        group = (width > height).astype(np.int64)
        return ImageLabels(ptr, self._pair_label[order], self.num_classes, group, self._annotation_counts)

    @cached_property
    def _annotation_range(self) -> NDArray[np.int64]:
        """``(N, 2) int64``: the kept annotations of each kept image are one run, as the store sorts them by image."""
        image = self.store.ann_image[self.annotations]
        return np.searchsorted(image, np.stack([self.images, self.images + 1], axis=1))

    def annotations_of(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Return annotation rows ``(n,)`` and labels ``(n,)`` of the image at a data set index, in file order."""
        start, stop = self._annotation_range[index]
        return self.annotations[start:stop], self.labels[start:stop]


def _unique(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the distinct values, ascending; a plain sort beats hashing on these nearly sorted keys."""
    values = np.sort(values)
    return values[np.append(True, values[1:] != values[:-1])] if len(values) else values


def _contains(sorted_values: NDArray[np.int64], queries: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return for each query whether it is one of the sorted values."""
    if not len(sorted_values):
        return np.zeros(len(queries), dtype=np.bool_)
    place = np.minimum(np.searchsorted(sorted_values, queries), len(sorted_values) - 1)
    found: NDArray[np.bool_] = sorted_values[place] == queries
    return found
