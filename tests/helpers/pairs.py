"""Runs a function in two processes of one gloo group."""

from __future__ import annotations

import multiprocessing as mp
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT_SECONDS = 120


def run_pair(folder: Path, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Return ``[function(0, *args), function(1, *args)]``, each computed by one of two joined processes.

    Args:
        folder: Empty folder for the rendezvous and the results.
        function: Module-level function of the rank; returns tensors or containers of them.
        *args: Further arguments, picklable.
    """
    # One server imports torch and mmdet once; its children start at once and have never run autograd.
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["ltpipe.methods"])
    workers = [context.Process(target=_work, args=(rank, folder, function, args)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(TIMEOUT_SECONDS)
        if worker.is_alive():
            worker.kill()
    assert [worker.exitcode for worker in workers] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def _work(rank: int, folder: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    try:
        torch.save(function(rank, *args), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
