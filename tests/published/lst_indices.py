"""Replay lists of JoyHuYY1412/LST_LVIS (``lvis_indices_*.json`` and ``lvis_classes_*.json``) to image ids and labels.

The two files hold ``[processes][entries]`` numbers: positions in the phase's images by ascending id, and labels that
start at 1. Source: "Learning to Segment the Tail" (arXiv 2004.00900), ``balanced_replay.ipynb``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ltpipe.errors import UserError


def read_legacy_replay(
    indices: str | os.PathLike[str], classes: str | os.PathLike[str], image_ids: ArrayLike, num_classes: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Read a replay list of the original layout.

    Args:
        indices: File of the positions.
        classes: File of the labels.
        image_ids: ``(N,)`` ids of the phase's images, ascending: :attr:`ltpipe.data.phase.PhaseView.image_ids`.
        num_classes: Classes known in the phase.

    Returns:
        Image ids ``(processes, entries) int64`` and 0-based labels ``(processes, entries) int32``.

    Raises:
        UserError: A file is damaged, the two do not belong together, or a number is out of range.
    """
    ids = np.asarray(image_ids, np.int64)
    rows, labels = _table(indices), _table(classes)
    if rows.shape != labels.shape:
        raise UserError(
            "index list and class list do not belong together",
            where=f"{indices}, {classes}",
            got=f"{rows.shape} and {labels.shape}",
            fix="give the two files of the same phase",
        )
    for path, table, low, high in ((indices, rows, 0, len(ids) - 1), (classes, labels, 1, num_classes)):
        if table.size and not (low <= table.min() and table.max() <= high):
            raise UserError(
                "the replay list belongs to another phase or data set",
                where=path,
                got=f"{table.min()} to {table.max()}",
                allowed=f"{low} to {high}",
            )
    return ids[rows], (labels - 1).astype(np.int32)


def _table(path: str | os.PathLike[str]) -> NDArray[np.int64]:
    """Read one file as a rectangular table of whole numbers."""
    try:
        table = np.array(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError("unreadable replay list", where=path, got=error) from error
    if table.ndim != 2 or table.dtype.kind != "i":
        raise UserError(
            "not a replay list", where=path, got=f"{table.ndim} levels of {table.dtype}", allowed="[processes][entries]"
        )
    return table.astype(np.int64)
