"""Index streams of JoyHuYY1412/LST_LVIS and twangnh/SimCal."""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ltpipe.data.calibration_plan import class_probabilities
from ltpipe.data.class_images import ClassImages
from ltpipe.data.torch_random import TorchRandom
from ltpipe.errors import UserError


def process_batches(stream: NDArray[np.int64], rank: int, world_size: int, batch_size: int) -> NDArray[np.int64]:
    """Return what one process reads of a stream, ``(iterations, batch_size // world_size)``: whole batches only."""
    whole = len(stream) // batch_size
    return stream[: whole * batch_size].reshape(whole, world_size, -1)[:, rank]


def support_schedule(
    ptr: ArrayLike, image: ArrayLike, first_label: int, world_size: int, repeats: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the support/query schedule of the meta weight generator (an experiment of the LST authors).

    Class ``first_label + b * world_size + r`` is read in step ``b`` by process ``r``. All steps pass ``repeats`` times
    and each takes two entries: even columns are support, odd columns query. Every class reads its images in
    permutations seeded 0, 1, ...; the rest after the last whole permutation is the head of its list.

    Args:
        ptr: ``(S + 1,)`` bounds of the images of each new class; ``S`` is a multiple of ``world_size``.
        image: ``(P,)`` images of the classes.
        first_label: Label of the first class.
        world_size: Number of processes (rows).
        repeats: Passes over all steps.

    Returns:
        Images and labels, each ``(world_size, 2 * repeats * S / world_size) int64``.
    """
    bounds, images = np.asarray(ptr, dtype=np.int64), np.asarray(image, dtype=np.int64)
    classes = len(bounds) - 1
    if classes % world_size:
        raise UserError("classes do not fill the processes", got=classes, allowed=f"a multiple of {world_size}")
    length = 2 * repeats
    read = np.empty((classes, length), dtype=np.int64)
    for c in range(classes):
        own = images[bounds[c] : bounds[c + 1]]
        whole = [own[TorchRandom(seed).randperm(len(own))] for seed in range(length // len(own))]
        read[c] = np.concatenate([*whole, own])[:length]
    # (step, process, repeat, support or query) -> (process; repeat, step, support or query)
    steps = classes // world_size
    rows = read.reshape(steps, world_size, repeats, 2).transpose(1, 2, 0, 3).reshape(world_size, -1)
    labels = first_label + np.arange(classes).reshape(steps, world_size).T
    return rows, np.tile(np.repeat(labels, 2, axis=1), (1, repeats))


def legacy_bilevel(
    classes: ClassImages, *, steps: int, batch_size: int, classes_per_step: int, tau: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw SimCal's calibration slots with the generators of its code: numpy's legacy one and Python's, equal seeds.

    Args:
        classes: Images and instance counts by label.
        steps: Batches.
        batch_size: Slots per batch, a multiple of ``classes_per_step``.
        classes_per_step: Classes drawn per batch, with replacement.
        tau: Class probability is proportional to ``min(count, 100) ** tau``.
        seed: Seed of both generators.

    Returns:
        Image ids and labels per slot, each ``(steps * batch_size,) int64``, class-major inside a batch.
    """
    drawable = np.flatnonzero(classes.annotation_counts > 0)
    probability = class_probabilities(classes.annotation_counts, tau)[drawable]
    of_numpy, of_python = np.random.RandomState(seed), random.Random(seed)
    per_class, rest = divmod(batch_size, classes_per_step)
    if rest:
        raise UserError("slots do not fill the classes", got=batch_size, allowed=f"a multiple of {classes_per_step}")
    labels, images = [], []
    for _ in range(steps):
        for label in of_numpy.choice(drawable, size=classes_per_step, p=probability).tolist():
            images += of_python.choices(classes.images_of(label).tolist(), k=per_class)
            labels += [label] * per_class
    return np.array(images, dtype=np.int64), np.array(labels, dtype=np.int64)
