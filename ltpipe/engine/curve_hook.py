"""What a training says of itself, iteration by iteration, kept beside its weights.

Rows travel with the saved states: a run that was killed and continued ends with the file of one that was not.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ltpipe.run.files import atomic_path

HISTORY = "history"
TRAINING = "training.csv"


class KeptRows:
    """A table that grows during a training and is written with each state, number for number.

    Args:
        path: Its CSV file, which has a column ``iteration``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []

    def add(self, iteration: int, values: Mapping[str, float]) -> None:
        """Add a row."""
        self.rows.append({"iteration": str(iteration), **{name: repr(float(v)) for name, v in values.items()}})

    def restore(self, iteration: int) -> None:
        """Take back what a killed run has written, up to the iteration it continues from."""
        if iteration and self.path.is_file():
            with open(self.path, newline="", encoding="utf-8") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["iteration"]) <= iteration]

    def write(self) -> None:
        """Write all rows, atomically."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in self.rows for name in row)), restval="")
            writer.writeheader()
            writer.writerows(self.rows)


class Watcher(Hook):
    """A hook that looks at a training and changes nothing of it; no part of the config that repeats the training."""

    priority = "LOW"

    def best_weights(self) -> tuple[int, Path] | None:
        """Return an iteration and the file of its weights that shall be the result; None: the last ones."""
        return None


class CurveHook(Watcher):
    """Keeps losses, learning rate, gradient norm and memory of every iteration in ``history/training.csv``.

    Losses are means over the processes. The norm is that of all gradients before clipping, 0 where gradients are only
    added up; memory is the largest use of the first GPU so far in MiB, and only there.
    """

    def __init__(self) -> None:
        self._norm: torch.Tensor | None = None
        self._rate = 0.0

    def before_train(self, runner: Runner) -> None:
        """Continue the table of a killed run."""
        self.kept = KeptRows(Path(runner.work_dir) / HISTORY / TRAINING)
        self.kept.restore(runner.iter)
        runner.optim_wrapper.optimizer.register_step_pre_hook(self._measure)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        """Note the learning rate of this iteration."""
        rates = runner.optim_wrapper.get_lr()
        self._rate = rates.get("base_lr", rates["lr"])[0]

    def _measure(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self._norm = torch.nn.utils.get_total_norm(gradients) if gradients else None

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Add a row."""
        logged = {name: float(torch.as_tensor(value).detach()) for name, value in (outputs or {}).items()}
        if get_world_size() > 1:
            values = torch.tensor(list(logged.values()), dtype=torch.float64, device=runner.model.device)
            dist.all_reduce(values)
            logged = dict(zip(logged, (values / get_world_size()).tolist(), strict=True))
        if not is_main_process():
            return
        norm, self._norm = self._norm, None
        clipped = runner.message_hub.log_scalars.get("train/grad_norm")
        if norm is not None and clipped is not None:
            norm = clipped.current()
        row = {"lr": self._rate, **logged, "grad_norm": 0.0 if norm is None else float(norm)}
        if torch.cuda.is_available():
            row["memory"] = torch.cuda.max_memory_allocated() // 2**20
        self.kept.add(runner.iter + 1, row)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Write the table beside the state that is saved."""
        self.kept.write()

    def after_train(self, runner: Runner) -> None:
        """Write the whole table."""
        if is_main_process():
            self.kept.write()
