"""Layouts of the index files published with "Learning to Segment the Tail" and SimCal, for exact comparison and import.

LST cuts one stream of pairs into a contiguous row per process; ltpipe stores the stream in training order, where a
global batch is a run of entries and every process takes its slice of it.
"""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ltpipe.data.calibration_plan import class_probabilities
from ltpipe.data.class_images import ClassImages
from ltpipe.data.phase import PhaseView
from ltpipe.data.replay import Pairs, ReplayIndex, ReplayInfo, ReplaySource, Variant
from ltpipe.data.torch_random import TorchRandom
from ltpipe.errors import UserError


def legacy_rows(source: ReplaySource, world_size: int, entries: int) -> Pairs:
    """Return replay pairs as the notebooks lay them out.

    Whole epochs by *nominal* length (``q_c``, not ``k_c``), then the head of the last epoch's list before its
    permutation.

    Args:
        source: Draws the epochs.
        world_size: Number of processes (rows).
        entries: Entries per process.

    Returns:
        Image ids ``(world_size, entries) int64`` and labels ``(world_size, entries) int32``, 0-based.

    Raises:
        UserError: There is not room for one epoch, where the notebooks fail too.
    """
    total = world_size * entries
    nominal = source.num_new_pairs + int(source.nominal.sum())
    epochs = total // max(nominal, 1)
    if epochs == 0:
        raise UserError("less than one epoch of replay", got=total, allowed=f"{nominal} entries or more")
    parts = [source.epoch(e) for e in range(epochs)] + [source.epoch(epochs - 1, permute=False)]
    image, label = (np.concatenate(column)[:total] for column in zip(*parts, strict=True))
    if len(image) < total:
        raise UserError("the notebooks cannot fill these rows", got=total, allowed=f"up to {len(image)} entries")
    return image.reshape(world_size, entries), label.reshape(world_size, entries)


def rows_to_stream(rows: NDArray[np.int64], images_per_process: int) -> NDArray[np.int64]:
    """Return rows ``(world_size, n)``, one per process, as one stream of global batches ``(world_size * n,)``.

    Entry ``b * B + r * images_per_process + j`` is what process ``r`` reads as image ``j`` of iteration ``b``. Entries
    of an incomplete last iteration are dropped.
    """
    world_size, length = rows.shape
    whole = length // images_per_process
    batches = rows[:, : whole * images_per_process].reshape(world_size, whole, images_per_process)
    return batches.transpose(1, 0, 2).reshape(-1)


def legacy_replay(
    view: PhaseView, *, variant: Variant, seed: int, world_size: int, images_per_process: int, iterations: int
) -> ReplayIndex:
    """Draw the replay list of a phase in the order in which the notebooks' rows are trained on.

    Args:
        view: The phase, 1 or later.
        variant: How the old part is drawn.
        seed: Epoch ``e`` uses ``seed + e``.
        world_size: Number of rows.
        images_per_process: Entries that a step takes from each row.
        iterations: Steps of the phase.

    Returns:
        The stream, cut at epoch lengths.

    Raises:
        UserError: The notebooks cannot fill the rows, see :func:`legacy_rows`.
    """
    source = ReplaySource(view.class_images, view.num_old, variant, seed)
    rows = legacy_rows(source, world_size, iterations * images_per_process)
    image, label = (rows_to_stream(part.astype(np.int64), images_per_process) for part in rows)
    ptr = np.append(np.arange(0, len(image), len(source)), len(image))
    info = ReplayInfo(view.phase, variant, seed, source.target, source.counts.tolist(), view.split.digest)
    return ReplayIndex(image, label.astype(np.int32), ptr, info)


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
