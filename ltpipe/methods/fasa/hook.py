"""FASA's adaptation pass: once per epoch, forward only, over held-out images with the current detector.

``L_c = (sum of classification losses of RoIs with label c) / (number of RoIs)``, summed over processes; the change
since the previous pass moves the sampling probabilities (:meth:`ltpipe.methods.fasa.part.FASA.adapt`). Needs a finite
dataloader over annotated images with the training pipeline.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn

from ltpipe.data.arrays import save_arrays
from ltpipe.errors import UserError
from ltpipe.methods.fasa.counters import PerClassLossMeter
from ltpipe.methods.fasa.part import FASA, Adaptation
from ltpipe.methods.reductions import bare_model
from ltpipe.methods.untouched import untouched
from ltpipe.registry import HOOKS

logger = logging.getLogger(__name__)


@contextmanager
def measured(model: nn.Module, parts: Sequence[FASA]) -> Iterator[list[PerClassLossMeter]]:
    """Let meters take the place of FASA parts in the heads of a model; other parts do not act meanwhile.

    Args:
        model: Its heads keep the parts they call in a list ``parts``.
        parts: FASA parts.

    Yields:
        One meter per part.
    """
    meters = [PerClassLossMeter(part.num_classes, part.prob.device) for part in parts]
    heads: list[Any] = [module for module in model.modules() if isinstance(getattr(module, "parts", None), list)]
    called = [head.parts for head in heads]
    for head in heads:
        head.parts = [meters[parts.index(part)] for part in head.parts if part in parts]
    try:
        yield meters
    finally:
        for head, before in zip(heads, called, strict=True):
            head.parts = before


@HOOKS.register_module()
class FASAAdaptationHook(Hook):
    """Tells every FASA part the epoch and adapts it after each epoch, before the checkpoint is written.

    Writes ``history/fasa/epoch_<e>.npz`` (``prob``, ``loss``, ``groups`` and the logged numbers) to the work folder and
    logs the drawn features, the mean probability of rare, common and frequent classes, and how many groups moved.

    Args:
        dataloader: Config of the adaptation images: a finite dataset with annotations and the training pipeline, the
            same number of batches on every process. With one image per batch every image counts exactly once.
        iterations_per_epoch: Length of an epoch in iteration-based loops; None for epoch-based ones.
        seed: Seed of the pass (augmentation and RoI sampling); it also depends on the epoch and the process.

    Raises:
        UserError: The detector has no FASA part, or the loop has no epochs and no length is given.
    """

    priority = "NORMAL"

    def __init__(self, dataloader: Mapping[str, Any], iterations_per_epoch: int | None = None, seed: int = 0) -> None:
        self.dataloader, self.iterations_per_epoch, self.seed = dataloader, iterations_per_epoch, seed
        self.parts: list[FASA] = []
        self._loader: Any = None

    def before_train(self, runner: Runner) -> None:
        """Find the FASA parts of the detector."""
        self.parts = [module for module in runner.model.modules() if isinstance(module, FASA)]
        if not self.parts:
            raise UserError(
                "FASAAdaptationHook without a FASA part",
                where="custom_hooks",
                fix="add dict(type='ltpipe.FASA', ...) to roi_head.parts, or remove the hook",
            )
        if self.iterations_per_epoch is None and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise UserError(
                "FASA does not know how long an epoch is",
                where="custom_hooks: FASAAdaptationHook.iterations_per_epoch",
                got="an iteration-based training loop and no length",
                fix="give the number of iterations that see each training image once",
            )
        for part in self.parts:
            part.hooked = True
            if part.adapt_split == "val":
                logger.warning("FASA adapts its sampling on the evaluation images: results on them are optimistic")

    def before_train_epoch(self, runner: Runner) -> None:
        """Set the epoch in epoch-based loops."""
        if self.iterations_per_epoch is None:
            self._start_epoch(runner.epoch, first=True)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Set the epoch in iteration-based loops."""
        if self.iterations_per_epoch is not None:
            epoch, inside = divmod(runner.iter, self.iterations_per_epoch)
            self._start_epoch(epoch, first=inside == 0)

    def after_train_epoch(self, runner: Runner) -> None:
        """Adapt in epoch-based loops."""
        if self.iterations_per_epoch is None:
            self._end_epoch(runner, runner.epoch)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Adapt in iteration-based loops, after the last iteration of an epoch."""
        if self.iterations_per_epoch is not None:
            done, inside = divmod(runner.iter + 1, self.iterations_per_epoch)
            if inside == 0:
                self._end_epoch(runner, done - 1)

    def adapt(self, runner: Runner, epoch: int) -> list[Adaptation]:
        """Run the pass and update every part.

        Args:
            runner: The runner.
            epoch: Epoch that has just ended, from 0.

        Returns:
            One result per part.
        """
        model = bare_model(runner)
        if self._loader is None:
            self._loader = runner.build_dataloader(self.dataloader, seed=self.seed)
        own = -(-(len(self._loader.dataset) - get_rank()) // get_world_size())
        seed = int(np.random.SeedSequence([self.seed, epoch, get_rank()]).generate_state(1)[0])
        with measured(model, self.parts) as meters, untouched(model, seed), runner.optim_wrapper.optim_context(model):
            for index, batch in enumerate(self._loader):
                # Samplers repeat images to give every process as many batches; those must not count twice.
                if index * self._loader.batch_size >= own:
                    for meter in meters:
                        meter.paused = True
                model(**model.data_preprocessor(batch, True), mode="loss")
        return [part.adapt(*meter.reduced()) for part, meter in zip(self.parts, meters, strict=True)]

    def _start_epoch(self, epoch: int, first: bool) -> None:
        for part in self.parts:
            part.epoch = epoch
            if first:
                part.drawn.zero_()

    def _end_epoch(self, runner: Runner, epoch: int) -> None:
        due = (epoch + 1) % self.parts[0].interval == 0  # the stages of a cascade share their options
        results = self.adapt(runner, epoch) if due else [None] * len(self.parts)
        for index, (part, result) in enumerate(zip(self.parts, results, strict=True)):
            self._report(runner, epoch, part, result, suffix=f"_{index}" if len(self.parts) > 1 else "")

    def _report(self, runner: Runner, epoch: int, part: FASA, result: Adaptation | None, suffix: str) -> None:
        values = part.summary()
        if result is not None:
            values |= {
                "fasa/groups": float(result.num_groups),
                "fasa/groups_up": float(result.raised),
                "fasa/groups_down": float(result.lowered),
            }
        values = {f"{name}{suffix}": value for name, value in values.items()}
        runner.visualizer.add_scalars(values, step=runner.iter + 1)
        runner.logger.info(f"epoch {epoch}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
        if is_main_process() and result is not None:
            file = Path(runner.work_dir) / "history" / "fasa" / f"epoch_{epoch}{suffix}.npz"
            state = {"prob": part.prob, "loss": part.prev_loss, "groups": result.groups}
            arrays = {name: tensor.cpu().numpy() for name, tensor in state.items()}
            save_arrays(file, arrays | {name: np.asarray(value) for name, value in values.items()})
