"""Training hooks every stage uses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from mmengine.dist import get_rank, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ltpipe.files import atomic_path
from ltpipe.registry import HOOKS

STATE = "iter_{}.pth"


def saved_states(folder: Path) -> list[Path]:
    """Return the states that :class:`ResumeHook` left in a folder, newest first."""
    return sorted(folder.glob(STATE.format("*")), key=lambda file: int(file.stem.rpartition("_")[2]), reverse=True)


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
class ResumeHook(Hook):
    """Saves the state a killed run continues from, atomically; mmengine's ``CheckpointHook`` writes in place.

    Args:
        interval: Iterations between two states.
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
            folder = Path(runner.work_dir)
            with atomic_path(folder / STATE.format(runner.iter + 1)) as temporary:
                runner.save_checkpoint(str(folder), temporary.name, by_epoch=False)
            for old in saved_states(folder)[self.keep :]:
                old.unlink()
