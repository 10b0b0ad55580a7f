"""Moving average of the weights."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import EMAHook
from mmengine.runner import Runner

from ltpipe.engine.hooks import step_taken
from ltpipe.registry import HOOKS


@HOOKS.register_module()
class WeightAverageHook(EMAHook):
    """mmengine's average, once per optimiser step; it begins with the weights after the first one and is the result.

    Buffers (running statistics, those of methods included) are not averaged: the newest count.

    Args:
        momentum: Share of the newest weights.
        gamma: Steps over which the share falls to ``momentum``; None: constant.
    """

    def __init__(self, momentum: float, gamma: int | None = None) -> None:
        kind = {} if gamma is None else {"ema_type": "ExpMomentumEMA", "gamma": gamma}
        super().__init__(strict_load=True, momentum=momentum, **kind)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: object = None
    ) -> None:
        """Take the weights into the average if they have changed."""
        if step_taken(runner):
            super().after_train_iter(runner, batch_idx)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Continue with the average of a killed run; other weights to start from are none."""
        if runner._resume:
            super().after_load_checkpoint(runner, checkpoint)

    def after_train(self, runner: Runner) -> None:
        """Leave the average in the detector."""
        self._swap_ema_parameters()
