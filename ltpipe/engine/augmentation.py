"""Running the transforms of a training: those that need several images get them, and a drop is not the end.

Everything random comes from the generators of numpy and Python, which the dataset seeds by position: the same position
gives the same sample in any process, worker and resumed run.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.datasets.transforms import LoadAnnotations

from ltpipe.config.detector import DROPPING
from ltpipe.data.store import AnnotationStore
from ltpipe.errors import UserError

Results = dict[str, Any]
PARTNER_ATTEMPTS = 10


class Images(Protocol):
    """What a dataset offers to transforms of several images."""

    @property
    def store(self) -> AnnotationStore:
        """The annotations."""

    @property
    def objects(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``ptr (I + 1,)``, annotation rows ``(A',)`` and labels ``(A',)`` of what is trained on."""

    def random_row(self) -> int:
        """Draw a store row of the images that are trained on."""

    def annotated_info(self, row: int) -> Results:
        """Return an image with its objects, before any transform."""


class Mixing(BaseTransform):
    """A transform of several images.

    Attributes:
        chained: Further images have gone through all steps before this one, as in mmdet's transforms with a cache;
            else through those before the first transform of several images, as in mmdet's ``MultiImageMixDataset``.
    """

    chained = False

    def draw(self, source: Source) -> Any:
        """Return what the transform finds under ``partners``; None: it could not be had, and the sample is dropped."""
        raise NotImplementedError


class Source:
    """Further images and objects, from the generators that the sample has seeded.

    Args:
        dataset: Where they come from.
        steps: What an image goes through.
    """

    def __init__(self, dataset: Images, steps: Sequence[Any]) -> None:
        self.dataset, self.steps = dataset, steps

    def images(self, count: int) -> list[Results] | None:
        """Draw images that the steps do not drop; None: there are hardly any."""
        found: list[Results] = []
        for _ in range(PARTNER_ATTEMPTS * count):
            results = run_steps(self.dataset, self.steps, self.dataset.annotated_info(self.dataset.random_row()))
            found += [results] if results is not None else []
            if len(found) == count:
                return found
        return None

    def pixels(self, row: int) -> np.ndarray:
        """Return the image in a store row as the pipeline's first step reads it."""
        image: np.ndarray = self.steps[0](self.dataset.annotated_info(row))["img"]
        return image

    @property
    def bank(self) -> ObjectBank:
        """All objects with a mask, by class."""
        found: ObjectBank | None = getattr(self.dataset, "_object_bank", None)
        if found is None:
            found = ObjectBank(self.dataset)
            self.dataset._object_bank = found  # type: ignore[attr-defined]
        return found


class ObjectBank:
    """The objects that count and have a mask, by class: row numbers only, no image is read.

    Args:
        dataset: Whose annotations.
    """

    def __init__(self, dataset: Images) -> None:
        self.store = dataset.store
        _, rows, labels = dataset.objects
        usable = (
            self.store.ann_has_mask[rows] & (self.store.ann_iscrowd[rows] == 0) & (self.store.ann_ignore[rows] == 0)
        )
        rows, labels = rows[usable], labels[usable]
        order = np.argsort(labels, kind="stable")
        self.rows, self.labels = rows[order], labels[order]
        self.classes, start = np.unique(self.labels, return_index=True)
        self.ptr = np.append(start, len(self.rows))

    @cached_property
    def image_counts(self) -> np.ndarray:
        """``(K,)`` int64: images with each class that has objects."""
        images = self.store.ann_image[self.rows]
        return np.array([len(np.unique(images[a:b])) for a, b in zip(self.ptr, self.ptr[1:], strict=False)])

    def draw(self, count: int, rarity: float) -> list[tuple[int, int]]:
        """Draw objects: a class with a chance in proportion to ``images ** -rarity``, then one of its objects.

        Returns:
            Annotation row and label of each; none where no object has a mask.
        """
        if not len(self.rows):
            return []
        chances = self.image_counts.astype(np.float64) ** -rarity
        places = np.random.choice(len(self.classes), size=count, p=chances / chances.sum())
        return [(int(self.rows[np.random.randint(*self.ptr[p : p + 2])]), int(self.classes[p])) for p in places]


def run_steps(dataset: Images, steps: Sequence[Any], info: Results) -> Results | None:
    """Return what transforms make of an image; None: one of them drops it.

    Args:
        dataset: Where transforms of several images get the others.
        steps: The transforms.
        info: The image with its objects.

    Raises:
        UserError: A step that reads annotations loses objects that count.
    """
    first = next((place for place, step in enumerate(steps) if isinstance(step, Mixing)), 0)
    results: Results | None = info
    for place, step in enumerate(steps):
        if isinstance(step, Mixing):
            assert results is not None
            results["partners"] = step.draw(Source(dataset, steps[: place if step.chained else first]))
            if results["partners"] is None:
                return None
        results = step(results)
        if results is None:
            return None
        results.pop("partners", None)
        if isinstance(step, LoadAnnotations):
            _check_loaded(results, type(step).__name__)
    return results


def _check_loaded(results: Results, step: str) -> None:
    wanted, found = results.get("counting"), results.get("gt_ignore_flags")
    if wanted is None or found is None or (reached := int(np.count_nonzero(np.asarray(found) == 0))) == wanted:
        return
    raise UserError(
        "fewer objects reach the losses than the annotations hold",
        where=f"{results['img_path']}, image id {results['img_id']}",
        got=f"{reached} of {wanted} after {step}",
        fix="leave out the step of the pipeline that drops or ignores objects",
    )


def may_drop(steps: Sequence[Any]) -> bool:
    """Whether transforms may drop objects or add those of other images: by name, or by coming from elsewhere."""
    own = ("mmdet.", "mmcv.", "ltpipe.")
    names = {kind.__name__ for step in steps for kind in type(step).__mro__}
    return bool(names & DROPPING) or not all(type(step).__module__.startswith(own) for step in steps)


def cannot_handle(info: dict[str, Any], error: Exception) -> UserError:
    """Return the error about an image that a transform fails on."""
    return UserError(
        "a step of the pipeline cannot handle an image",
        where=f"{info['img_path']}, image id {info['img_id']}",
        got=f"height {info['height']}, width {info['width']}: {' '.join(str(error).split()) or type(error).__name__}",
        fix="leave the image out of the annotations, or choose another size in the detector's pipeline",
    )
