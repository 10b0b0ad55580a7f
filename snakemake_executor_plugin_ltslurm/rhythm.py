"""When Slurm is asked about jobs: soon after something has started or ended, then less and less often."""

from __future__ import annotations

from collections.abc import Collection
from math import inf

LONGEST_SECONDS = 60
RETRY_SECONDS = 10


class Rhythm:
    """The time of the next poll, for one ``squeue`` about all jobs.

    A job that was just submitted has not ended yet: the first poll comes so much later, and none that is due before is
    put off, however many are submitted meanwhile.

    Args:
        first: Seconds between two polls when something has just happened.
    """

    def __init__(self, first: float) -> None:
        self._first, self._watched = first, frozenset[str]()
        self.ask_at, self.changed = inf, 0.0

    def due(self, numbers: Collection[str], now: float) -> bool:
        """Whether Slurm is asked now about these jobs, all that are watched.

        Args:
            numbers: Their ids.
            now: Time in seconds, of any clock.
        """
        if not numbers:
            self.ask_at = inf
        elif not self._watched.issuperset(numbers):
            self.changed, self.ask_at = now, min(self.ask_at, now + self._first)
        self._watched = frozenset(numbers)
        return now >= self.ask_at

    def answered(self, now: float, *, ended: bool) -> None:
        """Wait for a quarter of the time since a job was submitted or ended, within limits.

        Args:
            now: As :meth:`due` takes it.
            ended: Whether the answer was that a job has ended.
        """
        if ended:
            self.changed = now
        self.ask_at = now + min(max(self._first, (now - self.changed) / 4), max(self._first, LONGEST_SECONDS))

    def unanswered(self, now: float) -> None:
        """Ask again soon."""
        self.ask_at = now + RETRY_SECONDS
