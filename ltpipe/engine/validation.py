"""Validation while training: a curve of numbers and, on request, the weights with the best of them.

The training does not notice: it ends with the same bits with and without validation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from mmengine.dist import get_dist_info, is_main_process
from mmengine.hooks import EMAHook
from mmengine.runner import Runner
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Dataset, Subset

from ltpipe.engine.curve_hook import HISTORY, KeptRows, Watcher
from ltpipe.engine.inference import detections
from ltpipe.engine.shards import share_of
from ltpipe.errors import UserError
from ltpipe.methods.reductions import bare_model
from ltpipe.run.files import atomic_path

VALIDATION = "validation.csv"
BEST = "best_{}.pth"
Numbers = Callable[[Sequence[Path]], dict[str, float | None]]


class ValidationHook(Watcher):
    """Measures the detector (its average, if there is one) every so many optimiser steps and at the end.

    Args:
        dataset: Test dataset.
        rows: ``(N,)`` int64 positions in it that are looked at.
        every: Iterations between two validations.
        write: Writes the detections of images into a file.
        measure: Turns such files, in the order of the images, into numbers by name.
        best: The number whose best value decides which weights are kept; None: the last ones are.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        rows: NDArray[np.int64],
        every: int,
        write: Callable[[Path, Iterable[dict[str, Any]]], None],
        measure: Numbers,
        best: str | None = None,
    ) -> None:
        self.dataset, self.rows, self.every = dataset, rows, every
        self.write, self.measure, self.best = write, measure, best

    def before_train(self, runner: Runner) -> None:
        """Continue the table of a killed run."""
        self.work = Path(runner.work_dir)
        self.kept = KeptRows(self.work / HISTORY / VALIDATION)
        self.kept.restore(runner.iter)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: object = None
    ) -> None:
        """Measure when it is time."""
        if not (self.every_n_train_iters(runner, self.every) or self.is_last_train_iter(runner)):
            return
        iteration = runner.iter + 1
        rank, processes = get_dist_info()
        share = self.rows[share_of(len(self.rows), rank, processes)]
        files = [self.work / "validation" / f"{number}.arrow" for number in range(processes)]
        files[rank].parent.mkdir(exist_ok=True)
        with as_measured(runner) as model:
            self.write(files[rank], detections(model, Subset(self.dataset, share.tolist())))
            if processes > 1:
                dist.barrier()
            if is_main_process():
                numbers = {name: value for name, value in self.measure(files).items() if value is not None}
                self._keep(iteration, numbers, model)
                runner.visualizer.add_scalars({f"val/{name}": value for name, value in numbers.items()}, step=iteration)
                print(f"iteration {iteration}: " + ", ".join(f"{n} {v:.4f}" for n, v in numbers.items()), flush=True)

    def _keep(self, iteration: int, numbers: dict[str, float], model: nn.Module) -> None:
        so_far = self.best_row()
        self.kept.add(iteration, numbers)
        if self.best in numbers and (so_far is None or numbers[self.best] > so_far[1]):
            with atomic_path(self.work / BEST.format(iteration)) as temporary:
                torch.save({name: value.cpu() for name, value in model.state_dict().items()}, temporary)

    def best_row(self) -> tuple[int, float] | None:
        """Return the iteration with the best number, the earliest of equals, and the number; None without any."""
        values = [(int(r["iteration"]), float(r[self.best])) for r in self.kept.rows if self.best and r.get(self.best)]
        return max(values, key=lambda row: row[1], default=None)

    def best_weights(self) -> tuple[int, Path] | None:
        """Return the iteration with the best number and the file of its weights; None if the last weights stay.

        Raises:
            UserError: The file is lost.
        """
        row = self.best_row()
        if row is None:
            return None
        file = self.work / BEST.format(row[0])
        if not file.is_file():
            raise UserError("the best weights are lost", where=file, fix="train again, with --fresh")
        return row[0], file

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Write the table beside the state that is saved, and let go of weights that were best before."""
        self.kept.write()
        row = self.best_row()
        for file in self.work.glob(BEST.format("*")):
            if row is None or file.name != BEST.format(row[0]):
                file.unlink()


@contextmanager
def as_measured(runner: Runner) -> Iterator[nn.Module]:
    """Give the detector in evaluation mode, with averaged weights where there are any; afterwards all is as before."""
    model = bare_model(runner)
    averages = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
    modes = {module: module.training for module in model.modules()}
    for hook in averages:
        hook._swap_ema_parameters()
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes.items():
            module.training = training
        for hook in averages:
            hook._swap_ema_parameters()
