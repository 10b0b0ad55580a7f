"""Loader processes: how many there are, when they end, and how an error in one of them reaches the training."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.queues import Queue
from types import TracebackType
from typing import Any

from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter as Loader

from ltpipe.engine.distributed import processes_here
from ltpipe.registry import FUNCTIONS
from ltpipe.run.cores import cores

# Seconds until a loader process notices that its training was killed.
LOOK_AGAIN = 1.0


def loader_workers() -> int:
    """Loader processes per training process: the cores of this process's share but two, at most 8."""
    return max(0, min(8, cores() // processes_here() - 2))


def loader_config(workers: int) -> dict[str, Any]:
    """Return what the configs of all data loaders of a training share.

    Args:
        workers: Loader processes.
    """
    return {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "worker_init_fn": {"type": "ltpipe.outlive_sigterm"},
    }


@FUNCTIONS.register_module()
def outlive_sigterm(worker: int) -> None:
    """Tie a loader process to the process that reads from it, and to nothing else.

    Slurm, torchrun and shells send SIGTERM to all processes of a job, and the training then wants to end its iteration:
    it needs its loader processes. They end when their parent itself sends them SIGTERM, as every Python process does at
    its exit, and when their parent is gone.

    A batch that cannot be sent (the shared memory is full) becomes an error of the training, which would otherwise wait
    for it for ever.

    Args:
        worker: Number of the loader process.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        # Threads inherit the mask: from now on only the one that waits for the signal gets it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with, args=(parent.pid,), name="end with parent", daemon=True).start()
        Queue._on_queue_feeder_error = _send_error  # type: ignore[attr-defined]
        sys.excepthook = _tell_of_own_errors


def _started_sheltered(self: Loader, loader: DataLoader[Any]) -> None:
    """Start loader processes with SIGTERM blocked: one that has not reached :func:`outlive_sigterm` would end of it."""
    init = getattr(loader.worker_init_fn, "func", loader.worker_init_fn)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM} if init is outlive_sigterm else ())
    try:
        _start(self, loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_start = Loader.__init__
Loader.__init__ = _started_sheltered  # type: ignore[method-assign]


def _end_with(parent: int) -> None:
    """End this process as soon as its parent says so or is gone."""
    while True:
        received = signal.sigtimedwait({signal.SIGTERM}, LOOK_AGAIN)
        if (received is not None and received.si_pid == parent) or os.getppid() != parent:
            os._exit(0)


def _tell_of_own_errors(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """Print a traceback as Python does, unless the parent has left in the middle of a batch: it says why itself."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, where)


def _send_error(queue: Any, error: Exception, batch: tuple[int, Any]) -> None:
    """Put the error that is being handled in the place of a batch that could not be sent."""
    queue.put((batch[0], ExceptionWrapper(where="in a loader process, which could not send a batch")))
