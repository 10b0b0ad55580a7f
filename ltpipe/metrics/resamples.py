"""How much of a number is chance: bootstrap over the images of the validation set.

A resample draws as many images as there are, with replacement; its AP weighs every image by how often it was drawn.
Nothing is matched again: what became of a detection in its image does not depend on other images. All checkpoints see
the same resamples, so that two of them are compared on equal images. Source: Efron and Tibshirani, An Introduction to
the Bootstrap (1993).

AP of resamples is higher than that of the images, for classes of few objects above all: an image that is drawn twice
has its hits twice, side by side, and a class whose images were not drawn does not count. An interval is therefore the
middle 95 % of the resamples moved to where their mean is the number itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltpipe.data.arrays import load_arrays, save_arrays

COUNT, SEED, LEVEL = 1000, 0, 0.95
RESAMPLED = ("AP", "AP50", "APr", "APc", "APf")
"""The numbers that have intervals."""
Floats = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Resamples:
    """Numbers of one checkpoint on every resample.

    Attributes:
        values: By name of :data:`RESAMPLED` ``(B,) float64`` fractions of 1; NaN where no class has an object.
        images: Names the images and the draws: only equal ones are paired.
    """

    values: Mapping[str, Floats]
    images: str

    def interval(self, key: str, value: float | None) -> Interval | None:
        """Return the interval of a number, which is ``value`` on all images; None where nothing is to be measured."""
        return None if value is None else _around(value, self.values[key])


@dataclass(frozen=True)
class Difference:
    """A number of one checkpoint minus that of another, on the same images.

    Attributes:
        value: On all images.
        low: Lower end of its interval.
        high: Upper end.
        in_favour: Share of the resamples in which it is positive; ties count half.
    """

    value: float
    low: float
    high: float
    in_favour: float

    @property
    def beyond_chance(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def compare(
    first: Resamples,
    second: Resamples,
    numbers: tuple[Mapping[str, float | None], Mapping[str, float | None]],
    key: str,
) -> Difference | None:
    """Return how much larger a number is in the second checkpoint; None where one of them lacks it.

    Args:
        first: Of one checkpoint.
        second: Of another, on the same images.
        numbers: The numbers of both on all images.
        key: Of :data:`RESAMPLED`.
    """
    before, after = (one.get(key) for one in numbers)
    if first.images != second.images or before is None or after is None:
        return None
    change = second.values[key] - first.values[key]
    change = change[np.isfinite(change)]
    interval = _around(after - before, change)
    if interval is None:
        return None
    return Difference(after - before, *interval, float((change > 0).mean() + 0.5 * (change == 0).mean()))


def _around(value: float, drawn: Floats) -> Interval | None:
    known = drawn[np.isfinite(drawn)]
    if not len(known):
        return None
    low, high = value + np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - known.mean()
    return float(low), float(high)


def save_resamples(path: Path, resamples: Mapping[str, Resamples]) -> None:
    """Write the resamples of one checkpoint by IoU type, atomically."""
    arrays: dict[str, Any] = {
        f"{kind}.{key}": values for kind, one in resamples.items() for key, values in one.values.items()
    }
    images = {kind: one.images for kind, one in resamples.items()}
    save_arrays(path, arrays, {"images": images}, compressed=True)


def load_resamples(path: Path) -> dict[str, Resamples]:
    """Read what :func:`save_resamples` wrote.

    Raises:
        UserError: The file is missing or damaged.
    """
    arrays, about = load_arrays(path, kind="file of resamples", fix="evaluate the checkpoint again")
    return {
        kind: Resamples({key: arrays[f"{kind}.{key}"] for key in RESAMPLED}, images)
        for kind, images in about.get("images", {}).items()
    }


def draw_images(image_ids: NDArray[np.int64], count: int = COUNT, seed: int = SEED) -> tuple[NDArray[np.uint8], str]:
    """Draw resamples.

    Args:
        image_ids: ``(I,)`` of all images, ascending.
        count: Number of resamples ``B``.
        seed: Equal seeds give equal draws for equal images.

    Returns:
        ``(I, B) uint8``: how often each image was drawn; and a name of images and draws.
    """
    rng, number = np.random.default_rng(seed), len(image_ids)
    drawn = [np.bincount(rng.integers(number, size=number), minlength=number) for _ in range(count)]
    weights = np.stack(drawn, axis=1)
    assert weights.max() <= np.iinfo(np.uint8).max, "an image that is drawn more than 255 times"
    name = hashlib.sha256(np.asarray(image_ids, np.int64).tobytes()).hexdigest()[:16]
    return np.ascontiguousarray(weights, np.uint8), f"{name}, {count} resamples, seed {seed}"
