"""Training hooks every stage uses."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import barrier, get_rank, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner

from ltpipe.errors import UserError
from ltpipe.registry import HOOKS
from ltpipe.run.files import atomic_path
from ltpipe.run.time_limit import Stopped, seconds_left

STATE = "iter_{}.pth"


def saved_states(folder: Path) -> list[Path]:
    """Return the states that :class:`ResumeHook` left in a folder, newest first."""
    return sorted(folder.glob(STATE.format("*")), key=lambda file: int(file.stem.rpartition("_")[2]), reverse=True)


def step_taken(runner: Runner) -> bool:
    """Whether the optimiser has just taken a step: with accumulated gradients not after every iteration."""
    return bool(runner.optim_wrapper.should_update())


@HOOKS.register_module()
class StepSeedHook(Hook):
    """Makes the random choices of every iteration a function of (seed, iteration, process).

    Random parts and losses then need no stored generator state: a run that was killed and resumed draws what an
    uninterrupted one would have drawn. RoI sampling is seeded by image, see :mod:`ltpipe.engine.roi_sampling`.

    Args:
        seed: Seed of the experiment.
    """

    priority = "VERY_HIGH"

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        """Seed torch's generators of this process."""
        state = np.random.SeedSequence([self.seed, runner.iter, get_rank()]).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0] >> 1))


@HOOKS.register_module()
class DivergenceHook(Hook):
    """Ends a run whose loss is no longer a number, before that state is saved."""

    priority = "VERY_HIGH"

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Check the losses of this iteration.

        Raises:
            UserError: One of them is infinite or not a number.
        """
        wrong = [name for name, value in (outputs or {}).items() if not torch.as_tensor(value).isfinite().all()]
        if wrong:
            raise UserError(
                "the training diverged",
                where=f"iteration {runner.iter + 1}",
                got=f"{', '.join(wrong)} not finite",
                fix="use a lower schedule.lr, a longer schedule.warmup_iterations or a schedule.clip_norm",
            )


@HOOKS.register_module()
class ResumeHook(Hook):
    """Saves the state a killed run continues from, atomically; mmengine's ``CheckpointHook`` writes in place.

    A state holds tensors, numbers, text and containers only, so that it is read without running anything in it.

    Args:
        interval: Iterations between two states; a multiple of those of an optimiser step.
        keep: States kept; more than one, should the disk damage the newest.
    """

    priority = "VERY_LOW"

    def __init__(self, interval: int, keep: int = 2) -> None:
        self.interval, self.keep = interval, keep

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: object = None
    ) -> None:
        """Save every ``interval`` iterations and after the last one."""
        if not is_main_process():
            return
        if self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner):
            save_state(runner)
            for old in saved_states(Path(runner.work_dir))[self.keep :]:
                old.unlink()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Replace mmengine's history of logged values by tensors."""
        scalars = checkpoint["message_hub"]["log_scalars"]
        for name, history in scalars.items():
            log, count = (torch.from_numpy(array) for array in history.data)
            scalars[name] = {"log": log, "count": count, "max_length": history.max_length}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Bring the history back, and drop what mmengine would run: the text of a config that came with the state."""
        checkpoint.get("meta", {}).pop("config", None)
        scalars = checkpoint.get("message_hub", {}).get("log_scalars", {})
        for name, kept in scalars.items():
            log, count = (kept[key].cpu().numpy() for key in ("log", "count"))
            scalars[name] = HistoryBuffer(log, count, kept["max_length"])


def save_state(runner: Runner) -> None:
    """Save what a run continues from after this iteration, atomically."""
    folder = Path(runner.work_dir)
    with atomic_path(folder / STATE.format(runner.iter + 1)) as temporary:
        runner.save_checkpoint(str(temporary.parent), temporary.name, by_epoch=False)


@HOOKS.register_module()
class StopBeforeLimitHook(Hook):
    """Saves the state and stops when the time is nearly up or SIGTERM comes; the next attempt continues.

    The limit is that of :mod:`ltpipe.run.time_limit`. With several processes the first one decides; the launcher
    stops the others.

    Args:
        margin: Seconds that shall be left after the last state is saved; at most a tenth of the time at the start.
    """

    priority = "LOWEST"

    def __init__(self, margin: float = 120.0) -> None:
        self.margin = margin
        self._terminated = False
        self._slowest = self._started = 0.0
        self._previous: object = None

    def before_train(self, runner: Runner) -> None:
        """Listen to SIGTERM."""
        left = seconds_left()
        if left is not None:
            self.margin = min(self.margin, left / 10)
        if threading.current_thread() is threading.main_thread():
            action = self._note if is_main_process() else signal.SIG_IGN
            self._previous = signal.signal(signal.SIGTERM, action)
        # No process begins before all of them listen: SIGTERM goes to all, and would end one that does not.
        barrier()

    def _note(self, *_: object) -> None:
        self._terminated = True

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        """Start the clock of an iteration."""
        self._started = time.monotonic()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: object = None
    ) -> None:
        """Stop when another iteration might not fit.

        Raises:
            Stopped: The state is saved.
        """
        self._slowest = max(self._slowest, time.monotonic() - self._started)
        if not is_main_process() or self.is_last_train_iter(runner) or not step_taken(runner):
            return
        left = seconds_left()
        passes = runner.optim_wrapper._accumulative_counts
        up = left is not None and left < self.margin + 3 * self._slowest * passes
        if up or self._terminated:
            save_state(runner)
            self.after_train(runner)
            why = "time is up" if up else "asked to stop"
            raise Stopped(f"{why} after iteration {runner.iter + 1} of {runner.max_iters}; the next attempt continues")

    def after_train(self, runner: Runner) -> None:
        """Leave SIGTERM as it was."""
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)  # type: ignore[arg-type]
