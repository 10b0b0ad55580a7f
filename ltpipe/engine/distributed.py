"""One stage in several processes, started by torchrun: who they are, how they meet and part."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from mmengine.dist import broadcast_object_list

Value = TypeVar("Value")


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes of a torchrun launch: NCCL between GPUs, gloo between CPUs. Alone: does nothing.

    All processes enter together and leave together. After an error nobody waits for the others: torchrun stops them.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if not torch.cuda.is_available():
        # The first one knows the threads of the run that is continued.
        threads = [torch.get_num_threads()]
        dist.broadcast_object_list(threads)
        torch.set_num_threads(threads[0])
    yield
    dist.barrier()
    dist.destroy_process_group()


def of_first(value: Value) -> Value:
    """Return the value of the first process on every process."""
    values = [value]
    broadcast_object_list(values)
    return values[0]


def wait_for_all() -> None:
    """Wait until every process is here. Alone: does nothing."""
    if dist.is_initialized():
        dist.barrier()


def is_first() -> bool:
    """Whether this is the first process of a launch, which writes results; also before and after they meet."""
    return os.environ.get("RANK", "0") == "0"


def processes_here() -> int:
    """Number of these processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
