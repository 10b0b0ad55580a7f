"""The training stream: which image (and class) is seen at which position, independent of processes and workers.

Position ``p`` of the stream is entry ``p - start(e)`` of epoch ``e``. Iteration ``t`` of a run with total batch ``B``
reads positions ``[t * B, (t + 1) * B)``; process ``r`` of ``W`` takes the ``r``-th part of that range. A resumed run
continues at iteration ``t`` with exactly the entries it would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from mmengine.dist import get_dist_info
from torch.utils.data import Sampler

from ltpipe.errors import UserError
from ltpipe.registry import DATA_SAMPLERS


class EpochStream:
    """Maps stream positions to entries, one epoch in memory at a time.

    Args:
        epoch_entries: Callable from the epoch number to an int64 array ``(L_e,)`` or ``(L_e, 2)``; must depend on its
            argument only.
    """

    def __init__(self, epoch_entries: Any) -> None:
        self._epoch_entries = epoch_entries
        self._starts = [0]
        self._epoch = -1
        self._entries = np.empty(0, np.int64)

    def _load(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        self._entries = np.asarray(self._epoch_entries(epoch))
        if not len(self._entries):
            raise UserError(
                "an epoch of the training data is empty",
                got=f"epoch {epoch} without images",
                fix="check the split and the sampler",
            )
        self._epoch = epoch
        if epoch == len(self._starts) - 1:
            self._starts.append(self._starts[-1] + len(self._entries))

    def epoch_length(self) -> int:
        """Number of entries of epoch 0, the length that ``epochs`` in a schedule refers to."""
        self._load(0)
        return self._starts[1]

    def any_entry(self) -> np.ndarray:
        """Draw an entry of the epoch that was looked at last, by numpy's generator."""
        self._load(max(self._epoch, 0))
        found: np.ndarray = self._entries[np.random.randint(len(self._entries))]
        return found

    def __getitem__(self, position: int) -> np.ndarray:
        """Return the entry at a stream position: shape ``()`` or ``(2,)``, int64."""
        while position >= self._starts[-1]:
            self._load(len(self._starts) - 1)
        epoch = int(np.searchsorted(self._starts, position, side="right")) - 1
        self._load(epoch)
        return self._entries[position - self._starts[epoch]]


@DATA_SAMPLERS.register_module()
class StreamSampler(Sampler[int]):
    """Yields the stream positions of this process in training order.

    Args:
        dataset: Ignored; mmengine passes it to every sampler.
        batch_size: Total images per iteration over all processes.
        iterations: Iterations of the run.
        seed: Ignored; mmengine passes it to every sampler.

    Raises:
        UserError: The batch cannot be divided over the processes.
    """

    def __init__(self, dataset: Any, batch_size: int, iterations: int, seed: int | None = None) -> None:
        self.rank, world = get_dist_info()
        if batch_size % world:
            raise UserError(
                "the total batch size cannot be divided over the processes",
                where="schedule.batch_size",
                got=f"{batch_size} images, {world} processes",
                fix="choose a batch size that is a multiple of the number of processes",
            )
        self.batch_size, self.per_process, self.iterations = batch_size, batch_size // world, iterations
        self._skipped = 0

    def skip(self, num_samples: int) -> None:
        """Leave out the first ``num_samples`` positions of this process (called by mmengine on resume)."""
        self._skipped = num_samples // self.per_process

    def __iter__(self) -> Iterator[int]:
        for iteration in range(self._skipped, self.iterations):
            start = iteration * self.batch_size + self.rank * self.per_process
            yield from range(start, start + self.per_process)

    def __len__(self) -> int:
        return self.iterations * self.per_process

    def set_epoch(self, epoch: int) -> None:
        """Nothing to do: the stream has no process-wide epochs."""
