"""Training hooks every stage uses."""

from __future__ import annotations

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ltpipe.registry import HOOKS


@HOOKS.register_module()
class StepSeedHook(Hook):
    """Makes the random choices of every iteration a function of (seed, iteration, process).

    RoI sampling and random parts then need no stored generator state: a run that was killed and resumed draws what an
    uninterrupted one would have drawn.

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
