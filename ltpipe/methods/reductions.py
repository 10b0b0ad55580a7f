"""Sums and means over the processes of a training."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.distributed as dist
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor

LossAverage = Literal["process", "batch"]


def world_size() -> int:
    """Number of processes of the default group; 1 outside distributed training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def averaged(losses: dict[str, Tensor], count: int | Tensor, over: LossAverage) -> dict[str, Tensor]:
    """Return losses that are means over this process's items as means over the items of what is to be averaged.

    Args:
        losses: Scalars by name; those without ``loss`` in their name stay as they are.
        count: Items of this process: RoIs, positives or boxes.
        over: ``process``, as in mmdet, or the whole ``batch``, which makes a training independent of the number of
            processes; all of them must call it.
    """
    if over == "process":
        return losses
    # With this share of the items, the average over processes, as distributed training takes it, is that of the batch.
    here = torch.as_tensor(count, dtype=torch.float32, device=next(iter(losses.values())).device)
    share = here * world_size() / all_reduce_sum(here).clamp(min=1)
    return {name: value * share if "loss" in name else value for name, value in losses.items()}


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Return ``tensor`` summed over all processes (a new tensor; the argument itself in a single process)."""
    if world_size() == 1:
        return tensor
    reduced = tensor.detach().clone()
    dist.all_reduce(reduced)
    return reduced


def gathered_rows(rows: Tensor) -> Tensor:
    """Return the rows ``(n, ...)`` of all processes one behind another; every process must call it."""
    if world_size() == 1:
        return rows
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.zeros_like(count) for _ in range(world_size())]
    dist.all_gather(counts, count)
    lengths = torch.cat(counts).tolist()
    padded = rows.detach().new_zeros(max(lengths), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    found = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(found, padded)
    return torch.cat([one[:length] for one, length in zip(found, lengths, strict=True)])


def touch(*tensors: Tensor) -> Tensor:
    """Return a zero that depends on every tensor, so that no parameter is left without a gradient."""
    return torch.stack([t.sum() * 0 for t in tensors]).sum()


def mean_over_processes(rows: Tensor) -> Tensor:
    """Return the mean of ``rows`` ``(n,)`` over the rows of all processes, for gradients that are then averaged.

    The local sum is scaled by the number of processes over the number of all rows, so that averaging the gradients over
    processes gives the gradient of the global mean however the rows are spread. No rows give a zero with a graph.
    """
    if world_size() == 1:
        return rows.sum() * (1 / max(len(rows), 1))
    total = all_reduce_sum(torch.tensor(float(len(rows)), device=rows.device)).clamp(min=1)
    return rows.sum() * (world_size() / total)


def bare_model(runner: Runner) -> Any:
    """Return the model of a training without what mmengine wraps around it in several processes."""
    model = runner.model
    return model.module if is_model_wrapper(model) else model
