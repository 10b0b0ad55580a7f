"""Training of a calibrator on rows of stored features: no detector in memory, no data loader, resumable.

The rows of every step are fixed by the calibration plan, so the state of a run is its step, the calibrator's and the
optimiser's state; a run continued from there takes the same steps as one that was never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ltpipe.checkpoints.torch_files import AFRESH, Refused, load_plain
from ltpipe.config.schedules import CalibrationSchedule
from ltpipe.engine.training import save_atomically
from ltpipe.errors import UserError
from ltpipe.methods.calibration import Calibrator
from ltpipe.methods.reductions import all_reduce_sum, world_size

Batch = tuple[Tensor, ...]


def row_accuracies(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the shares of correct rows: ``acc`` of all, ``acc_bg`` and ``acc_fg``; 0 where there are no such rows.

    Args:
        scores: ``(n, K + 1)`` float, background last.
        labels: ``(n,)`` int64, background K.
    """
    correct = scores.argmax(dim=1) == labels
    background = labels == scores.shape[1] - 1
    parts = {"acc": correct, "acc_bg": correct[background], "acc_fg": correct[~background]}
    return {name: float(part.float().mean()) if len(part) else 0.0 for name, part in parts.items()}


def train_head(
    calibrator: Calibrator,
    batches: Callable[[int], Iterator[Batch]],
    schedule: CalibrationSchedule,
    *,
    state: Path | None = None,
    save_every: int = 1000,
    report: Callable[[int, dict[str, float]], None] | None = None,
    report_every: int = 50,
) -> int:
    """Train an initialised calibrator in place.

    A step without rows on any process (the plan draws no background where there is no foreground) is skipped; it still
    counts. With several processes each gets its part of the rows, and all hold equal weights.

    Args:
        calibrator: On its device, equal on all processes.
        batches: ``batches(step)`` yields rows and labels from that 0-based step on: ``x`` in the feature the calibrator
            reads, any float type, and ``labels`` ``(n,)`` int64 with background K; where the calibrator trains boxes
            also the rows' boxes and their ground truths ``(n, 4)``. Best on the CPU.
        schedule: With its length in iterations.
        state: File to resume from, written every ``save_every`` steps by the first process.
        save_every: Steps between two states.
        report: Called with the number of steps done and ``lr``, ``loss``, ``acc``, ``acc_bg``, ``acc_fg``.
        report_every: Steps between two reports.

    Returns:
        Steps skipped.
    """
    trained = [p for p in calibrator.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        trained or [torch.zeros(1)], schedule.lr, schedule.momentum, weight_decay=schedule.weight_decay
    )
    first, skipped = _load(state, calibrator, optimizer)
    rates = schedule.learning_rates()
    calibrator.train()
    rows, device = batches(first), _device(calibrator)
    for step in range(first, len(rates)):
        batch = (part.to(device, non_blocking=True) for part in next(rows))
        facts = _step(calibrator, optimizer, trained, rates[step], schedule.clip_norm, *batch)
        skipped += facts is None
        done = step + 1
        if facts is not None and report and (done % report_every == 0 or done == len(rates)):
            report(done, facts())
        if state is not None and (done % save_every == 0 or done == len(rates)):
            _save(state, done, skipped, calibrator, optimizer)
    calibrator.eval()
    return skipped


def _step(
    calibrator: Calibrator,
    optimizer: torch.optim.Optimizer,
    trained: Sequence[Tensor],
    lr: float,
    clip_norm: float | None,
    x: Tensor,
    labels: Tensor,
    *boxes: Tensor,
) -> Callable[[], dict[str, float]] | None:
    """Take one step and return how to describe it, or None if it is skipped."""
    if world_size() == 1:
        total = len(labels)
    else:
        total = int(all_reduce_sum(torch.tensor(len(labels), device=labels.device)))
    if total == 0:
        return None
    x = x.float()
    calibrator.observe(x, labels)
    cls_score, loss = calibrator.train_losses(x, labels, *boxes)
    if trained:
        for parameter in trained:
            parameter.grad = None  # what zero_grad does, at a fraction of its time
        torch.autograd.backward(loss)
        _average_gradients(trained)
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(trained, clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()

    def describe() -> dict[str, float]:
        scores = calibrator.scores(cls_score.detach())
        return {"lr": lr, "loss": float(loss.detach()), **row_accuracies(scores, labels)}

    return describe


def _device(calibrator: Calibrator) -> torch.device:
    first: Tensor = next(iter(calibrator.state_dict().values()))
    return first.device


def _average_gradients(parameters: Sequence[Tensor]) -> None:
    if world_size() == 1:
        return
    for parameter in parameters:
        assert parameter.grad is not None, "a process without rows must still touch every parameter"
        dist.all_reduce(parameter.grad)
        parameter.grad /= world_size()


def _load(state: Path | None, calibrator: Calibrator, optimizer: torch.optim.Optimizer) -> tuple[int, int]:
    """Restore a saved run; return the steps it has done and skipped. A damaged file counts as none.

    Raises:
        Refused: The file asks for more than data.
    """
    if state is None or not state.is_file():
        return 0, 0
    try:
        stored: dict[str, Any] = load_plain(state, fix=AFRESH)
    except Refused:
        raise
    except UserError:
        print(f"{state} is damaged: training starts anew", flush=True)
        return 0, 0
    calibrator.load_state_dict(stored["calibrator"])
    optimizer.load_state_dict(stored["optimizer"])
    return int(stored["step"]), int(stored["skipped"])


def _save(state: Path, step: int, skipped: int, calibrator: Calibrator, optimizer: torch.optim.Optimizer) -> None:
    if world_size() > 1 and dist.get_rank() != 0:
        return
    weights = {"calibrator": calibrator.state_dict(), "optimizer": optimizer.state_dict()}
    save_atomically({"step": step, "skipped": skipped, **weights}, state)
