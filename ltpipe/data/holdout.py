"""Training images that are kept out of training, so that a method can measure a loss on them without the test images.

Rarest class first, one image is held out of every class that has none yet, as long as every class in that image keeps
another image for training; then, if more images per class are asked for, another one of every class that has fewer, as
long as it keeps at least as many for training. Held-out images usually hold frequent classes too, so there are fewer of
them than classes.
"""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from ltpipe.data.arrays import load_arrays, save_arrays
from ltpipe.data.phase import PhaseView
from ltpipe.errors import UserError

LARGEST_SHARE = 0.05


def choose_holdout(
    view: PhaseView, *, images_per_class: int = 1, largest_share: float = LARGEST_SHARE, seed: int = 0
) -> NDArray[np.int64]:
    """Return the ids of the images to hold out, ascending.

    Args:
        view: The last phase, which sees all classes.
        images_per_class: Images of every class, which are drawn in as many rounds over the classes. From the second
            on, a class keeps at least as many images as it gives.
        largest_share: Largest share of the images that may be held out; the most frequent classes go without first.
        seed: Seed of the choice among a class's images.

    Raises:
        UserError: No class can spare an image.
    """
    labels = view.image_labels
    ptr, image_of = labels.by_class
    left = labels.image_counts.copy()
    held = np.zeros(labels.num_images, dtype=np.bool_)
    given = np.zeros(labels.num_classes, dtype=np.int64)
    budget = max(1, int(largest_share * labels.num_images))
    random = np.random.default_rng(seed)
    rarest_first = np.argsort(left, kind="stable")
    for wanted, label in ((w, c) for w in range(1, images_per_class + 1) for c in rarest_first):
        if given[label] >= wanted or left[label] < 2:
            continue
        for image in random.permutation(image_of[ptr[label] : ptr[label + 1]]):
            inside = labels.label[labels.ptr[image] : labels.ptr[image + 1]]
            kept = left[inside] - 1
            if not held[image] and (kept >= (given[inside] + 1 if wanted > 1 else 1)).all():
                held[image] = True
                given[inside] += 1
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
