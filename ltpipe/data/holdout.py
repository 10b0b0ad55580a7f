"""Training images that are kept out of training, so that a method can measure a loss on them without the test images.

Rarest class first, one image is held out of every class that has none yet, as long as every class in that image keeps
another image for training. Held-out images usually hold frequent classes too, so there are fewer of them than classes.
"""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from ltpipe.data.arrays import load_arrays, save_arrays
from ltpipe.data.phase import PhaseView
from ltpipe.errors import UserError

LARGEST_SHARE = 0.05


def choose_holdout(view: PhaseView, *, largest_share: float = LARGEST_SHARE, seed: int = 0) -> NDArray[np.int64]:
    """Return the ids of the images to hold out, ascending.

    Args:
        view: The last phase, which sees all classes.
        largest_share: Largest share of the images that may be held out; the most frequent classes go without first.
        seed: Seed of the choice among a class's images.

    Raises:
        UserError: No class can spare an image.
    """
    labels = view.image_labels
    ptr, image_of = labels.by_class
    left = labels.image_counts.copy()
    held = np.zeros(labels.num_images, dtype=np.bool_)
    covered = np.zeros(labels.num_classes, dtype=np.bool_)
    budget = max(1, int(largest_share * labels.num_images))
    random = np.random.default_rng(seed)
    for label in np.argsort(left, kind="stable"):
        if covered[label] or left[label] < 2:
            continue
        for image in random.permutation(image_of[ptr[label] : ptr[label + 1]]):
            inside = labels.label[labels.ptr[image] : labels.ptr[image + 1]]
            if left[inside].min() >= 2:
                held[image] = covered[inside] = True
                left[inside] -= 1
                break
        if held.sum() == budget:
            break
    if not held.any():
        raise UserError(
            "no image can be held out of training",
            where="split",
            got="every image holds a class that has no other image",
            fix="adapt on the evaluation images (adapt_split: val), or use more training images",
        )
    return view.image_ids[held]


def save_holdout(path: str | os.PathLike[str], image_ids: NDArray[np.int64]) -> None:
    """Write ``holdout.npz`` (``image_id`` ``(N,)`` int64) atomically."""
    save_arrays(path, {"image_id": np.asarray(image_ids, dtype=np.int64)})


def load_holdout(path: str | os.PathLike[str]) -> NDArray[np.int64]:
    """Read ``holdout.npz``.

    Raises:
        UserError: The file is missing or damaged.
    """
    fix = "run `ltpipe split --experiment EXP` again"
    return load_arrays(path, ["image_id"], kind="list of held-out images", fix=fix)[0]["image_id"]
