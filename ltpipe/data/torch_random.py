"""PyTorch's CPU random numbers without PyTorch: the Mersenne twister behind ``torch.randint`` and ``torch.randperm``.

Published index lists were drawn with ``torch.Generator().manual_seed(seed)`` on the CPU. Its 32-bit words are those of
the reference MT19937 seeded with one integer, which numpy's frozen legacy generator also gives, so the same lists can
be drawn here, vectorised and without importing torch:

* ``randint(0, high)`` with ``high < 2**28`` is ``word % high``, one word per number;
* ``randperm(n)`` is a Fisher-Yates shuffle from the front: step ``i`` swaps entry ``i`` with ``i + word % (n - i)``,
  and the last entry takes no word.

Source: behaviour of PyTorch 2.x, compared with it bit for bit in the tests.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_RANGE = 1 << 28
"""Ranges from here on take two words per number in PyTorch; index lists never come near."""


class TorchRandom:
    """A stream of random numbers equal to that of a seeded PyTorch CPU generator.

    Args:
        seed: Any integer; the lowest 32 bits count, as in PyTorch.
    """

    def __init__(self, seed: int) -> None:
        self._state = np.random.RandomState(seed & 0xFFFFFFFF)

    def words(self, count: int) -> NDArray[np.int64]:
        """Return the next ``(count,) int64`` words, each in ``[0, 2**32)``."""
        return self._state.randint(0, 2**32, size=count, dtype=np.uint32).astype(np.int64)

    def randint(self, high: ArrayLike, count: int | None = None) -> NDArray[np.int64]:
        """Return integers in ``[0, high)``.

        Args:
            high: One bound for all numbers, or ``(n,)`` bounds: number ``i`` is below ``high[i]``. Drawing with an
                array of bounds equals one call per run of equal bounds.
            count: How many numbers; by default one per bound.

        Returns:
            ``(count,) int64``.
        """
        bounds = np.asarray(high, dtype=np.int64)
        assert bounds.size == 0 or (bounds.min() > 0 and bounds.max() < MAX_RANGE), "bounds must be in [1, 2**28)"
        return self.words(bounds.size if count is None else count) % bounds

    def randperm(self, length: int) -> NDArray[np.int64]:
        """Return a permutation of ``0 .. length - 1``, ``(length,) int64``."""
        assert 0 <= length < MAX_RANGE, "permutations are limited to 2**28 entries"
        front = np.arange(max(length - 1, 0))
        partners = (front + self.words(front.size) % (length - front)).tolist()
        order = list(range(length))
        for i, j in enumerate(partners):
            order[i], order[j] = order[j], order[i]
        return np.array(order, dtype=np.int64)

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Return ``(count,) float64`` numbers in ``[0, 1)`` with 32 random bits each (no counterpart in PyTorch)."""
        return self.words(count) / 2.0**32
