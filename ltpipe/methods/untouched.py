"""Passes over a model between training steps that leave no trace."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def untouched(model: nn.Module, seed: int, kept: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Run the block in evaluation mode, without gradients, from ``seed``; afterwards everything is as it was.

    Restored are the training flags and all buffers of the model, and the random generators of torch (all devices),
    numpy and Python. ``seed`` is below 2**32. Modules in ``kept`` keep what the block made of their buffers.
    """
    changed = {buffer for module in kept for buffer in module.buffers()}
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers() if buffer not in changed]
    numpy_state, python_state = np.random.get_state(), random.getstate()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            model.eval()
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        for buffer, value in buffers:
            buffer.copy_(value)
        for module, mode in modes:
            module.training = mode
