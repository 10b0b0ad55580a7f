"""Random numbers of components that go on exactly where a checkpoint stopped."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ltpipe.methods.reductions import world_size


class SeededDraws(nn.Module):
    """A component whose random numbers depend on its seed, the training step and the process only.

    Steps are counted in the buffer ``draws``, as long as it :attr:`acts`. Call :meth:`start_draws` in the constructor.
    """

    draws: Tensor

    @property
    def acts(self) -> bool:
        """Whether this forward pass is a step."""
        return self.training

    def start_draws(self, seed: int) -> None:
        """Begin at step 0.

        Args:
            seed: Seed of all draws.
        """
        self.seed = seed
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))
        self._draws = 0  # the same number, read without waiting for the device

    def generator(self, device: torch.device | str) -> torch.Generator:
        """Return the generator of the next step."""
        if self.acts:
            self._draws += 1
            self.draws.fill_(self._draws)
        rank = torch.distributed.get_rank() if world_size() > 1 else 0
        entropy = np.random.SeedSequence([self.seed, self._draws, rank]).generate_state(1, np.uint64)
        return torch.Generator(device).manual_seed(int(entropy[0] >> np.uint64(1)))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._draws = int(self.draws)
