"""Balanced replay lists: which (image, class) pairs an incremental phase trains on.

In phase ``n`` with new classes ``N``, an epoch holds each pair of a new class once and, for each old class ``c``,
``k_c`` of its images, so that every class contributes about as many instances as the mean new class:

    m   = mean over c in N of a_c
    q_c = round_half_even(m / (a_c / i_c)),   k_c = max(1, q_c)

with ``a_c`` annotations and ``i_c`` images of the class. The old part is drawn in one of these ways:

* ``resample``: with replacement, anew in every epoch;
* ``cyclic``: the images of a class are shuffled once, a cursor moves on by ``k_c`` per epoch and wraps around;
* ``fixed``: drawn with replacement once, the same list in the same order in every epoch;
* ``none``: not at all, for comparison with plain fine-tuning on the new classes.

New pairs and then old pairs, by label, are permuted with the generator that drew them. Source: "Learning to Segment the
Tail" (arXiv 2004.00900) and its notebooks, whose lists are reproduced bit for bit when image lists are ascending. A
class without any image is left out (the notebooks divide zero by zero).
"""

from __future__ import annotations

import os
import random
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ltpipe.data.arrays import load_arrays, save_arrays
from ltpipe.data.class_images import ClassImages
from ltpipe.data.phase import PhaseView
from ltpipe.data.torch_random import TorchRandom
from ltpipe.errors import UserError, unknown_name

Variant = Literal["resample", "cyclic", "fixed", "none"]
Pairs = tuple[NDArray[np.int64], NDArray[np.int32]]


def replay_counts(classes: ClassImages, num_old: int) -> tuple[float, NDArray[np.int64], NDArray[np.int64]]:
    """Return how often each old class is replayed.

    Args:
        classes: All classes of the phase.
        num_old: How many of them, the first ones, are old.

    Returns:
        ``m``; ``q (num_old,) int64``; ``k (num_old,) int64``, 0 for classes without images.
    """
    target = float(np.mean(classes.annotation_counts[num_old:]))
    images = classes.image_counts[:num_old]
    present = images > 0
    per_image = classes.annotation_counts[:num_old][present] / images[present]
    nominal = np.zeros(num_old, dtype=np.int64)
    nominal[present] = np.round(target / per_image)
    return target, nominal, np.where(present, np.maximum(nominal, 1), 0)


class ReplaySource:
    """Draws the epochs of one phase; epoch ``e`` depends on its number and the seeds only.

    Args:
        classes: Images and annotation counts of all classes of the phase.
        num_old: How many of them, the first ones, are old.
        variant: ``resample``, ``cyclic``, ``fixed`` or ``none``.
        seed: Epoch ``e`` uses ``seed + e`` (``fixed``: ``seed``).
        shuffle_seed: Seed of the shuffle of ``cyclic``, default ``seed``.

    Attributes:
        target: ``m``, the mean number of instances of a new class.
        nominal: ``(num_old,) int64`` ``q_c``.
        counts: ``(num_old,) int64`` ``k_c``.
        num_new_pairs: Pairs of new classes per epoch.
    """

    def __init__(
        self,
        classes: ClassImages,
        num_old: int,
        variant: Variant = "resample",
        seed: int = 0,
        shuffle_seed: int | None = None,
    ) -> None:
        if variant not in get_args(Variant):
            raise unknown_name("replay variant", variant, get_args(Variant), where="lst.replay.variant")
        self.variant, self.seed = variant, seed
        self.target, self.nominal, self.counts = replay_counts(classes, num_old)
        if variant == "none":
            self.counts = np.zeros_like(self.counts)
        first = classes.ptr[num_old]
        self._new_image = classes.image_id[first:]
        self.num_new_pairs = len(self._new_image)
        labels = np.arange(classes.num_classes, dtype=np.int32)
        by_label = np.repeat(labels, np.concatenate([self.counts, classes.image_counts[num_old:]]))
        self._label = np.roll(by_label, self.num_new_pairs)  # new pairs first
        if not len(self._label):
            raise UserError("no class of the phase has an image", where="replay", fix="check the class split")
        # Per old pair: where its class starts in the image list, how many images it has, its place among the k_c.
        self._old_image = classes.image_id[:first]
        self._start = np.repeat(classes.ptr[:num_old], self.counts)
        self._size = np.repeat(classes.image_counts[:num_old], self.counts)
        self._place = np.arange(self.counts.sum()) - np.repeat(np.cumsum(self.counts) - self.counts, self.counts)
        self._step = np.repeat(self.counts, self.counts)
        if variant == "cyclic":
            self._old_image = _shuffled(classes, num_old, seed if shuffle_seed is None else shuffle_seed)

    def __len__(self) -> int:
        """Pairs per epoch."""
        return len(self._label)

    def epoch(self, epoch: int, *, permute: bool = True) -> Pairs:
        """Return the pairs of one epoch.

        Args:
            epoch: Its number, from 0.
            permute: False gives them unpermuted: new pairs, then old pairs, each by label.

        Returns:
            Image ids ``(L,) int64`` and labels ``(L,) int32``.
        """
        generator = TorchRandom(self.seed if self.variant == "fixed" else self.seed + epoch)
        if self.variant == "cyclic":
            pick = (epoch * self._step + self._place) % self._size
        else:
            pick = generator.randint(self._size)
        image = np.concatenate([self._new_image, self._old_image[self._start + pick]])
        if not permute:
            return image, self._label
        order = generator.randperm(len(self))
        return image[order], self._label[order]


def _shuffled(classes: ClassImages, num_old: int, seed: int) -> NDArray[np.int64]:
    """Return the images of the old classes, each class shuffled by Python's generator, in label order."""
    shuffle = random.Random(seed).shuffle
    flat: list[int] = []
    for label in range(num_old):
        images = classes.images_of(label).tolist()
        shuffle(images)
        flat += images
    return np.array(flat, dtype=np.int64)


@dataclass(frozen=True)
class ReplayInfo:
    """How a replay list was made.

    Attributes:
        phase: The phase it is for.
        variant: How the old part was drawn.
        seed: Its seed.
        m: Mean number of instances of a new class.
        k_c: Images per epoch of each old class, in label order; 0 for a class without images.
        split: Digest of the class split (:attr:`ltpipe.data.split.Split.digest`).
    """

    phase: int
    variant: str
    seed: int
    m: float
    k_c: list[int]
    split: str


@dataclass(frozen=True, eq=False)
class ReplayIndex:
    """The stored pairs of a phase, epoch after epoch.

    Attributes:
        image_id: ``(L,) int64``.
        label: ``(L,) int32``.
        epoch_ptr: ``(E + 1,) int64``.
        info: How it was made.
    """

    image_id: NDArray[np.int64]
    label: NDArray[np.int32]
    epoch_ptr: NDArray[np.int64]
    info: ReplayInfo

    @property
    def num_epochs(self) -> int:
        """Stored epochs ``E``."""
        return len(self.epoch_ptr) - 1

    def epoch(self, epoch: int) -> Pairs:
        """Return image ids ``(L_e,) int64`` and labels ``(L_e,) int32`` of one epoch, in training order.

        Raises:
            UserError: The epoch was not stored.
        """
        if not 0 <= epoch < self.num_epochs:
            raise UserError(
                "replay list ends too early",
                where=f"phase {self.info.phase}",
                got=f"epoch {epoch}",
                allowed=f"0 to {self.num_epochs - 1}",
                fix="run the split stage again after a change of the schedule",
            )
        part = slice(self.epoch_ptr[epoch], self.epoch_ptr[epoch + 1])
        return self.image_id[part], self.label[part]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``replay_phase<k>.npz`` atomically."""
        arrays: dict[str, NDArray[Any]] = {
            "image_id": self.image_id,
            "label": self.label,
            "epoch_ptr": self.epoch_ptr,
        }
        save_arrays(path, arrays, asdict(self.info))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ReplayIndex:
        """Read a replay list.

        Raises:
            UserError: It is missing or damaged.
        """
        fix = "run `ltpipe split --experiment EXP` again"
        arrays, metadata = load_arrays(path, ("image_id", "label", "epoch_ptr"), kind="replay list", fix=fix)
        return cls(**arrays, info=_info(metadata, path, fix))


def _info(metadata: dict[str, Any], path: str | os.PathLike[str], fix: str) -> ReplayInfo:
    try:
        return ReplayInfo(**metadata)
    except TypeError as error:
        raise UserError("damaged replay list", where=path, got=error, fix=fix) from error


def build_replay(view: PhaseView, *, variant: Variant = "resample", seed: int = 0, epochs: int) -> ReplayIndex:
    """Draw the replay list of an incremental phase.

    Args:
        view: The phase, 1 or later.
        variant: How the old part is drawn.
        seed: Epoch ``e`` uses ``seed + e``; 0 gives the lists of the source.
        epochs: How many epochs to store.

    Raises:
        UserError: ``epochs`` is below 1, the variant is unknown or the phase has no images.
    """
    if epochs < 1:
        raise UserError("a replay list needs an epoch", where="lst.schedule", got=epochs, allowed="1 or more")
    assert view.phase > 0, "the base phase has no old classes to replay"
    source = ReplaySource(view.class_images, view.num_old, variant, seed)
    image, label = zip(*(source.epoch(e) for e in range(epochs)), strict=True)
    ptr = np.arange(epochs + 1, dtype=np.int64) * len(source)
    info = ReplayInfo(view.phase, variant, seed, source.target, source.counts.tolist(), view.split.digest)
    return ReplayIndex(np.concatenate(image), np.concatenate(label), ptr, info)
