"""mmengine's Runner with a log whose first screen says what the training will do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.runner import Runner


class StageRunner(Runner):
    """Logs a plan instead of the environment and the config: those are in ``stage.json`` and ``config.py``."""

    def _log_env(self, env_cfg: dict[str, Any]) -> None:
        lines = "".join(f"\n  {line}" for line in plan(self.cfg))
        self.logger.info(f"this training:{lines}")

    def get_hooks_info(self) -> str:
        """Return the names of the hooks, in one line."""
        return ", ".join(type(hook).__name__ for hook in self.hooks)


def plan(config: Config) -> Iterator[str]:
    """Yield what a training will do: data, length, device, start.

    Args:
        config: Config of these processes, of :func:`~ltpipe.engine.training.on_these_processes`.
    """
    loader, world = config.train_dataloader, get_world_size()
    data = loader.dataset
    info = Path(data.store) / "info.json"
    counts = json.loads(info.read_text(encoding="utf-8"))["counts"] if info.is_file() else {}
    yield f"data: {counts.get('images', '?')} images of {data.store}, {data.num_classes} classes, phase {data.phase}"
    yield f"length: {config.train_cfg.max_iters} iterations of {loader.batch_size * world} images"
    optimiser = config.optim_wrapper.optimizer
    yield f"optimiser: {optimiser.type}, learning rate {optimiser.get('lr')}"
    gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if gpu else f"cpu, {torch.get_num_threads()} threads"
    yield f"device: {device}; {world} processes, each with {loader.num_workers} loader processes"
    start = config.load_from or "random weights, or those that the detector file names"
    yield f"{'continues from' if config.resume else 'starts from'}: {start}"
