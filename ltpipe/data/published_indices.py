"""Layouts of the index files published with "Learning to Segment the Tail" and SimCal, for exact comparison and import.

LST cuts one stream of pairs into a contiguous row per process; ltpipe stores the stream in training order, where a
global batch is a run of entries and every process takes its slice of it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ltpipe.data.phase import PhaseView
from ltpipe.data.replay import Pairs, ReplayIndex, ReplayInfo, ReplaySource, Variant
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
