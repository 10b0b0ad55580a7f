"""How far a long job is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

SECONDS_PER_LINE = 5.0


class Progress:
    """Progress of one job on the error stream.

    Args:
        name: What is read or written.
        total: Steps.
        shown: Whether to show anything at all.
        unit: What a step is; a log then also gets the rate and the time that is left.
    """

    def __init__(self, name: str, total: int, *, shown: bool = True, unit: str | None = None) -> None:
        self._name, self._total, self._done, self._unit = name, total, 0, unit
        terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total, desc=name, unit=f" {unit or 'steps'}", disable=not (shown and terminal))
        self._lines = shown and not terminal
        self._start = self._last = time.monotonic()

    def advance(self, steps: int) -> None:
        """Count some steps."""
        self._done += steps
        self._bar.update(steps)
        if self._lines and time.monotonic() - self._last >= SECONDS_PER_LINE:
            self._last = time.monotonic()
            line = f"{self._name}: {self._done / max(self._total, 1):.0%}"
            if self._unit is not None:
                rate = self._done / (self._last - self._start)
                left = tqdm.format_interval(max(self._total - self._done, 0) / rate) if rate else "?"
                line += f", {self._done} of {self._total} {self._unit}, {rate:.1f}/s, {left} left"
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the bar."""
        self._bar.close()
