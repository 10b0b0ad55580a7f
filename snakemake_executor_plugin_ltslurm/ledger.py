"""Which Slurm jobs make which files, on disk: a run that died does not know its jobs, the next one finds them here."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Entry:
    """A submitted job.

    Attributes:
        number: Slurm's id.
        log: Its Slurm log.
        outputs: Files it makes.
        fingerprint: Digest of rule, inputs, outputs and parameters.
        request: What it asks of Slurm: account, partition, time, memory, CPUs, GPUs.
    """

    number: str
    log: str
    outputs: list[str]
    fingerprint: str
    request: str = ""


class Ledger:
    """The submitted jobs of a working directory, one small file each.

    Args:
        folder: Where the files lie. Those found at the start were left by runs that died.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._left = {entry.number: entry for entry in self._read()}

    def _read(self) -> Iterable[Entry]:
        for file in self.folder.glob("*.json"):
            try:
                yield Entry(**json.loads(file.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError):
                continue

    def add(self, job: Any, number: str, log: str, request: str = "") -> None:
        """Note a submitted job; ``request`` is what it asks of Slurm."""
        entry = Entry(number, log, _outputs(job), self.fingerprint(job), request)
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{number}.part"
        temporary.write_text(json.dumps(asdict(entry)), encoding="utf-8")
        os.replace(temporary, self.folder / f"{number}.json")

    def remove(self, number: str) -> None:
        """Forget a job that is over."""
        self._left.pop(number, None)
        (self.folder / f"{number}.json").unlink(missing_ok=True)

    def left(self) -> list[str]:
        """Ids of the jobs that earlier runs left."""
        return list(self._left)

    def overlapping(self, job: Any) -> list[Entry]:
        """Jobs of earlier runs that make a file of this job."""
        outputs = set(_outputs(job))
        return [entry for entry in self._left.values() if outputs & set(entry.outputs)]

    @staticmethod
    def fingerprint(job: Any) -> str:
        """Digest of what decides a job's result; not of resources, which grow with every attempt."""
        parts = [
            [one.rule.name, sorted(map(str, one.input)), sorted(map(str, one.output)), [str(p) for p in one.params]]
            for one in _members(job)
        ]
        return hashlib.sha256(json.dumps(sorted(parts)).encode()).hexdigest()


def _members(job: Any) -> list[Any]:
    return list(job.jobs) if job.is_group() else [job]


def _outputs(job: Any) -> list[str]:
    return sorted(str(file) for one in _members(job) for file in one.output)
