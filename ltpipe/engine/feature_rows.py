"""Mini-batches of RoI features: read from the stored ones, or computed anew in every step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltpipe.checkpoints.torch_files import BROKEN_FILE
from ltpipe.engine.frozen_detector import FrozenDetector
from ltpipe.errors import UserError


class StoredRows:
    """Mini-batches read from stored features.

    Args:
        path: The ``.npy`` file of :func:`ltpipe.engine.features.write_features`.
        step_ptr: ``(steps + 1,) int64``.
        rows: ``(R,) int64`` row of the feature array, step after step.
        labels: ``(R,) int64``, background last.

    Raises:
        UserError: The file is damaged, or belongs to another plan.
    """

    def __init__(
        self, path: Path, step_ptr: NDArray[np.int64], rows: NDArray[np.int64], labels: NDArray[np.int64]
    ) -> None:
        self._ptr, self._rows, self._labels = step_ptr, rows, labels
        try:
            self._features = np.load(path, mmap_mode="r", allow_pickle=False)
        except BROKEN_FILE as error:
            raise UserError("unreadable features", where=path, got=error, fix="run the features stage again") from error
        if len(self._features) != rows.max(initial=-1) + 1:
            raise UserError(
                "the features belong to another plan",
                where=path,
                got=f"{len(self._features)} rows",
                allowed=f"{rows.max(initial=-1) + 1} rows",
                fix="run the features stage again",
            )

    def __len__(self) -> int:
        """Number of steps."""
        return len(self._ptr) - 1

    def step(self, index: int) -> tuple[Tensor, Tensor]:
        """Return features ``(R, c, h, w)`` or ``(R, d)`` in the stored precision, and labels ``(R,)`` of a step."""
        part = slice(self._ptr[index], self._ptr[index + 1])
        return torch.from_numpy(np.asarray(self._features[self._rows[part]])), torch.from_numpy(self._labels[part])


class LiveRows:
    """The same mini-batches with features computed anew in every step.

    Args:
        detector: The frozen detector.
        samples: (store row, flip).
        boxes: ``(n, 4)`` per sample.
        step_ptr: As :class:`StoredRows`.
        rows: As :class:`StoredRows`.
        labels: As :class:`StoredRows`.
        stage: Stage of a cascade.
    """

    def __init__(
        self,
        detector: FrozenDetector,
        samples: Sequence[tuple[int, bool]],
        boxes: Sequence[NDArray[np.float32]],
        step_ptr: NDArray[np.int64],
        rows: NDArray[np.int64],
        labels: NDArray[np.int64],
        stage: int = 0,
    ) -> None:
        self._detector, self._samples, self._boxes, self._stage = detector, samples, boxes, stage
        self._starts = np.concatenate([[0], np.cumsum([len(b) for b in boxes])])
        self._ptr, self._rows, self._labels = step_ptr, rows, labels

    def __len__(self) -> int:
        """Number of steps."""
        return len(self._ptr) - 1

    def _pooled(self, rows: NDArray[np.int64]) -> Iterator[Tensor]:
        sample_of = np.searchsorted(self._starts, rows, side="right") - 1
        for sample in np.unique(sample_of):
            local = rows[sample_of == sample] - self._starts[sample]
            boxes = {self._stage: self._boxes[sample][local]}
            row, flip = self._samples[sample]
            yield self._detector.pool(row, flip, boxes)[self._stage]

    def step(self, index: int) -> tuple[Tensor, Tensor]:
        """Return features ``(R, c, h, w)`` float32 and labels ``(R,)`` of a step."""
        part = slice(self._ptr[index], self._ptr[index + 1])
        wanted, inverse = np.unique(self._rows[part], return_inverse=True)
        pooled = torch.cat(list(self._pooled(wanted))) if len(wanted) else torch.zeros(0)
        return pooled.cpu().float()[torch.from_numpy(inverse)], torch.from_numpy(self._labels[part])
