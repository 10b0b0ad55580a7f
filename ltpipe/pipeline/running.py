"""What the stages of a run are doing, told now and then while Snakemake waits for them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from threading import Event, Thread

from ltpipe.run.log_progress import holder, rate

SECONDS = 30.0
"""Between two looks."""


def running(logs: Mapping[Path, Path]) -> Iterator[tuple[str, str]]:
    """Yield the log of every stage that runs, and how far it is.

    Args:
        logs: Logs by the folder of the stage's results.
    """
    for folder, log in logs.items():
        progress = rate(log) if holder(folder) is not None else None
        if progress is not None:
            yield str(log), progress


class Teller:
    """Prints a line for every running stage whose progress has changed since the last look, on the error stream.

    Args:
        logs: As :func:`running` takes them.
        seconds: Between two looks.
    """

    def __init__(self, logs: Mapping[Path, Path], seconds: float = SECONDS) -> None:
        self._logs, self._seconds, self._told = logs, seconds, dict[str, str]()
        self._over = Event()

    def start(self) -> None:
        """Look from now on, until :meth:`stop` or the end of this process."""
        Thread(target=self._tell, name="ltpipe-progress", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._over.set()

    def lines(self) -> Iterable[str]:
        """Return what there is to say now."""
        now = dict(running(self._logs))
        new = {log: text for log, text in now.items() if self._told.get(log) != text}
        self._told = now
        return [f"{time.strftime('%H:%M:%S')}  {log}: {text}" for log, text in new.items()]

    def _tell(self) -> None:
        while not self._over.wait(self._seconds):
            for line in self.lines():
                print(line, file=sys.stderr, flush=True)
