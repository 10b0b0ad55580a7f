"""Masks of annotations as run ends, from the polygons of the ground truth.

Polygons become the pixels that ``rleFrPoly`` of pycocotools' ``maskApi.c`` gives, operation by operation where numbers
are rounded: their edges are drawn five times as large, and a column of pixels changes sides where an edge crosses its
middle.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from ltpipe.compiled import compiled
from ltpipe.data.store import AnnotationStore
from ltpipe.metrics.kernels import decode_ends

SCALE = 5
COLUMN = 32  # first bit of the column in a place, whose lower bits are the row
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Masks(NamedTuple):
    """Masks of ``n`` annotations.

    Attributes:
        pointer: ``(n + 1,)``; mask ``i`` has its room from ``ends[pointer[i]]`` to ``ends[pointer[i + 1]]``.
        ends: Ends of runs, pixels counted down the columns; background first.
        counts: ``(n,)`` runs of each mask.
        areas: ``(n,)`` foreground pixels.
    """

    pointer: Ints
    ends: Ints
    counts: Ints
    areas: Ints


def annotation_masks(gt: AnnotationStore, rows: Ints) -> Masks:
    """Return the masks of the given annotations."""
    sizes = gt.image_sizes[gt.ann_image[rows]].astype(np.int64)
    corners, xy = gt.outlines(rows)
    texts = {}
    for place in np.flatnonzero(np.diff(corners) == 0).tolist():
        texts[place] = np.frombuffer(_run_lengths(gt.segmentation(int(rows[place])), *sizes[place].tolist()), np.uint8)
    room = crossings(corners, xy) + 1
    for place, text in texts.items():
        room[place] = len(text)
    pointer: Ints = np.concatenate([[0], np.cumsum(room)])
    masks = Masks(pointer, np.zeros(int(pointer[-1]), np.int64), np.zeros(len(rows), np.int64), np.zeros_like(rows))
    fill(corners, xy, sizes, pointer, masks.ends, masks.counts)
    for place, text in texts.items():
        masks.counts[place] = decode_ends(text, 0, len(text), masks.ends[pointer[place] : pointer[place + 1]])
    measure(pointer, masks.ends, masks.counts, masks.areas)
    return masks


def _run_lengths(mask: Any, height: int, width: int) -> bytes:
    """Return the mask of an annotation as compressed run-length text."""
    if isinstance(mask, list):
        mask = coco_mask.merge(coco_mask.frPyObjects(mask, height, width))
    elif isinstance(mask["counts"], list):
        mask = coco_mask.frPyObjects(mask, height, width)
    counts: str | bytes = mask["counts"]
    return counts.encode() if isinstance(counts, str) else counts


@compiled
def crossings(corners: Ints, xy: Floats) -> Ints:
    """Return ``(n,)``: no fewer than the columns of pixels that each polygon's edges cross.

    Args:
        corners: ``(n + 1,)``; polygon ``i`` is ``xy[corners[i]:corners[i + 1]]``.
        xy: ``x, y, x, y, ...`` in pixels.
    """
    most = np.zeros(len(corners) - 1, np.int64)
    for i in range(len(most)):
        first, stop = corners[i], corners[i + 1]
        for j in range(first, stop, 2):
            following = j + 2 if j + 2 < stop else first
            most[i] += int(abs(xy[following] - xy[j])) + 3
    return most


@compiled
def fill(corners: Ints, xy: Floats, sizes: Ints, pointer: Ints, ends: Ints, counts: Ints) -> None:
    """Write the run ends of polygons into ``ends`` and their number into ``counts``; those without corners stay.

    Args:
        corners: ``(n + 1,)``; polygon ``i`` is ``xy[corners[i]:corners[i + 1]]``.
        xy: ``x, y, x, y, ...`` in pixels.
        sizes: ``(n, 2)`` height and width of the images.
        pointer: ``(n + 1,)`` where each result goes.
        ends: Result.
        counts: ``(n,)`` result.
    """
    spare = np.empty(int(np.max(np.diff(pointer))), np.int64)
    columns = np.zeros(int(np.max(sizes[:, 1])) + 1, np.int64)
    for i in range(len(counts)):
        if corners[i + 1] > corners[i]:
            height, width = sizes[i]
            own = ends[pointer[i] : pointer[i + 1]]
            count = draw(xy[corners[i] : corners[i + 1]], height, width, own)
            sort_places(own, count, height, columns[: width + 1], spare)
            own[count] = height * width
            counts[i] = join_runs(own, count + 1)


@compiled
def draw(xy: Floats, height: int, width: int, places: Ints) -> int:
    """Write the places at which a column changes sides, column in the upper bits, in no order; return how many."""
    count, last_u, last_v = 0, 0, 0
    for j in range(0, len(xy), 2):
        following = j + 2 if j + 2 < len(xy) else 0
        xs, ys = int(SCALE * xy[j] + 0.5), int(SCALE * xy[j + 1] + 0.5)
        xe, ye = int(SCALE * xy[following] + 0.5), int(SCALE * xy[following + 1] + 0.5)
        dx, dy = abs(xe - xs), abs(ys - ye)
        wide = dx >= dy
        steps = dx if wide else dy
        flip = xs > xe if wide else ys > ye
        if flip:
            xs, xe, ys, ye = xe, xs, ye, ys
        slope = 0.0
        if steps:
            slope = (ye - ys) / dx if wide else (xe - xs) / dy
        first, last = (steps, 0) if flip else (0, steps)
        u, v = point(xs, ys, slope, wide, first)
        if j:
            count = change(u, v, last_u, last_v, height, width, places, count)
        if wide:  # u grows by one from point to point: only those beside the middle of a column matter
            for left in range(xs + (SCALE // 2 - xs) % SCALE, xe, SCALE):
                u, v = point(xs, ys, slope, wide, left - xs)
                last_u, last_v = point(xs, ys, slope, wide, left + 1 - xs)
                count = change(u, v, last_u, last_v, height, width, places, count)
        elif dx:  # u grows or falls by one now and then: guess where, and look beside it
            low, high = min(xs, xe), max(xs, xe)
            for left in range(low - 1 + (SCALE // 2 - low + 1) % SCALE, high + 1, SCALE):
                t = int((left + 0.5 - xs) / slope) - 1
                while t > 0 and (point(xs, ys, slope, wide, t)[0] <= left) == (slope < 0):
                    t -= 1
                t = max(t, 0)
                while t < steps and (point(xs, ys, slope, wide, t + 1)[0] <= left) != (slope < 0):
                    t += 1
                if t < steps:
                    u, v = point(xs, ys, slope, wide, t)
                    last_u, last_v = point(xs, ys, slope, wide, t + 1)
                    count = change(u, v, last_u, last_v, height, width, places, count)
        last_u, last_v = point(xs, ys, slope, wide, last)
    return count


@compiled
def point(x: int, y: int, slope: float, wide: bool, t: int) -> tuple[int, int]:
    """Return point ``t`` of an edge that starts at ``(x, y)``."""
    return (x + t, int(y + slope * t + 0.5)) if wide else (int(x + slope * t + 0.5), y + t)


@compiled
def change(u: int, v: int, last_u: int, last_v: int, height: int, width: int, places: Ints, count: int) -> int:
    """Append the place where the way between two points crosses the middle of a column, if it does."""
    middle = min(u, last_u) - SCALE // 2  # the middle of column c lies between 5 c + 2 and 5 c + 3
    if u != last_u and middle >= 0 and middle % SCALE == 0 and middle // SCALE < width:
        row = np.ceil(min(max((min(v, last_v) + 0.5) / SCALE - 0.5, 0.0), float(height)))
        places[count] = (middle // SCALE << COLUMN) + int(row)
        count += 1
    return count


@compiled
def sort_places(places: Ints, count: int, height: int, first: Ints, spare: Ints) -> None:
    """Sort places and turn them into pixels ``column * height + row``; a column has but a few.

    Args:
        places: What :func:`draw` wrote, and the result.
        count: How many.
        height: Of the image.
        first: Zeros, one for each column and one more; zeros again afterwards.
        spare: As long as ``places``.
    """
    for i in range(count):
        first[(places[i] >> COLUMN) + 1] += 1
    for column in range(1, len(first)):
        first[column] += first[column - 1]
    for i in range(count):
        column = places[i] >> COLUMN
        spare[first[column]] = places[i]
        first[column] += 1
    first[:] = 0
    for i in range(count):
        place = spare[i]
        pixel, j = (place >> COLUMN) * height + (place & ((1 << COLUMN) - 1)), i
        while j and places[j - 1] > pixel:
            places[j] = places[j - 1]
            j -= 1
        places[j] = pixel


@compiled
def join_runs(places: Ints, count: int) -> int:
    """Turn ascending places of change into run ends, in place; return how many: a run of no pixels joins its sides."""
    kept, j = 1, 1
    while j < count:
        if places[j] > places[j - 1]:
            places[kept] = places[j]
            kept, j = kept + 1, j + 1
        else:
            if j + 1 < count:
                places[kept - 1] = places[j + 1]
            j += 2
    return kept


@compiled
def measure(pointer: Ints, ends: Ints, counts: Ints, areas: Ints) -> None:
    """Write the foreground pixels of masks into ``areas``."""
    for i in range(len(counts)):
        areas[i] = 0
        for run in range(pointer[i] + 1, pointer[i] + counts[i], 2):
            areas[i] += ends[run] - ends[run - 1]
