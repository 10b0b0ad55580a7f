"""Fractal dimension of where the objects of a class lie, by counting boxes (FRACAL, arXiv 2410.11774).

For every ``n = 1 .. 64`` the image is split into ``n x n`` equal cells, ``N(n)`` of which hold the centre of an object
of the class. ``D`` is the slope of the least-squares line of ``ln N`` over ``ln n``, at least 1; only ``n`` with
``n^2`` not above the number of objects count, and classes of fewer than four objects have ``D = 1``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ltpipe.data.store import AnnotationStore

GRID = 64
FEWEST = 4


def fractal_dimensions(
    x: NDArray[np.float64], y: NDArray[np.float64], label: NDArray[np.integer], num_classes: int, grid: int = GRID
) -> NDArray[np.float64]:
    """Return the fractal dimension of every class, ``(K,)`` float64 in [1, 2].

    Args:
        x: ``(M,)`` box centres over the width of their image. Cells are closed on the left and open on the right: a
            centre at 1, or outside the image, lies in no cell.
        y: ``(M,)`` the same over the height.
        label: ``(M,)`` classes in ``0 .. K - 1``.
        num_classes: ``K``.
        grid: Most cells per side.
    """
    objects = np.bincount(label, minlength=num_classes)
    logs = np.zeros((num_classes, grid))
    for n in range(1, grid + 1):
        # Only classes with enough objects for this grid count, and there are fewer of them the finer it is.
        classes = np.flatnonzero(objects >= max(n * n, FEWEST))
        if not len(classes):
            break
        place = np.full(num_classes, -1)
        place[classes] = np.arange(len(classes))
        kept = place[label] >= 0
        x, y, label = x[kept], y[kept], label[kept]
        edges = np.arange(n + 1) * (1 / n)
        column, row = (np.searchsorted(edges, values, side="right") - 1 for values in (x, y))
        inside = (column >= 0) & (column < n) & (row >= 0) & (row < n)
        cells = np.zeros((len(classes), n, n), dtype=np.bool_)
        cells[place[label[inside]], row[inside], column[inside]] = True
        # A class whose centres all lie outside fills nothing: it has the smallest dimension.
        logs[classes, n - 1] = np.log(np.maximum(cells.sum(axis=(1, 2)), 1))
    return np.maximum(_slopes(logs, objects, grid), 1.0)


def _slopes(logs: NDArray[np.float64], objects: NDArray[np.int64], grid: int) -> NDArray[np.float64]:
    """Return the slope of each row of ``ln N(n)`` over ``ln n``, up to the last ``n`` that counts; 1 without any."""
    sizes = np.arange(1, grid + 1)
    used = (sizes**2 <= objects[:, None]) & (objects[:, None] >= FEWEST)
    across = np.log(sizes)
    count = np.maximum(used.sum(axis=1, keepdims=True), 1)
    from_mean = np.where(used, across - (across * used).sum(axis=1, keepdims=True) / count, 0.0)
    spread = (from_mean**2).sum(axis=1)
    return np.where(spread > 0, (from_mean * logs).sum(axis=1) / np.where(spread > 0, spread, 1.0), 1.0)


def class_dimensions(store: AnnotationStore, category_ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the fractal dimension of classes of a data set, ``(K,)`` float64.

    Crowd regions and ignored annotations do not count.

    Args:
        store: Its annotations.
        category_ids: ``(K,)`` ids of the classes, in label order.
    """
    label_of = {int(category): label for label, category in enumerate(category_ids)}
    of_row = np.array([label_of.get(int(category), -1) for category in store.category_ids])
    label = of_row[store.ann_category]
    used = ~(store.ann_iscrowd | store.ann_ignore) & (label >= 0)
    box, image = store.ann_bbox[used], store.ann_image[used]
    height, width = store.image_sizes[image].T
    return fractal_dimensions(
        (box[:, 0] + box[:, 2] / 2) / width, (box[:, 1] + box[:, 3] / 2) / height, label[used], len(category_ids)
    )
