"""What a stage that is not done is doing: from its lock, its log, and the Slurm jobs that Snakemake has submitted."""

from __future__ import annotations

import fcntl
import json
import os
import re
import struct
from pathlib import Path

from ltpipe.run.slurm import ask

LOCK = ".lock"
# The executor `ltslurm` keeps a file per submitted job here.
SUBMITTED = Path(".snakemake/ltslurm")
_TRAINING = re.compile(
    r"Iter\(train\) \[\s*(\d+)/(\d+)\].*?eta: ((?:\d+ days?, )?\S+)\s+time: ([\d.]+)(?:.*?\bloss: (\S+))?"
)
_CONTINUES = "the next attempt continues"
# Python's warnings, whose second line is indented code; they are no progress.
_WARNING = re.compile(r"\b\w*Warning: ")
_ERROR = re.compile(r"^(ltpipe [\w-]+: |Traceback |\w*Error\b|\S*(Error|Exception): )")


def holder(folder: Path) -> dict[str, object] | None:
    """Who runs a stage: ``host``, ``pid``, ``since`` and ``slurm``, as far as known; None when nobody does.

    Args:
        folder: Folder of the stage's results.
    """
    file = folder / LOCK
    try:
        with open(file, encoding="utf-8") as handle:
            # Asks for the lock without taking it: a stage may be starting just now.
            question = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
            answer = fcntl.fcntl(handle, fcntl.F_GETLK, question)
            if struct.unpack("hhqqi4x", answer)[0] == fcntl.F_UNLCK:
                return None
            text = handle.read()
    except OSError:
        return None
    try:
        return dict(json.loads(text))
    except ValueError:
        return {}


def describe(who: dict[str, object]) -> str:
    """Host, process, Slurm job and start of a running stage as text."""
    parts = [f"{who.get('host', 'unknown host')}, pid {who.get('pid', '?')}"]
    slurm = who.get("slurm")
    if isinstance(slurm, dict):
        parts.append(f"Slurm job {slurm['job']}")
    if who.get("since"):
        parts.append(f"since {who['since']}")
    return ", ".join(parts)


def rate(log: Path) -> str | None:
    """Progress of a running stage: iterations, time per iteration, time left and loss, or the log's last line."""
    lines = _tail(log)
    for line in reversed(lines):
        found = _TRAINING.search(line)
        if found is not None:
            step, total, left, seconds, loss = found.groups()
            text = f"iteration {step} of {total}, {float(seconds):.2f} s each, {left} left"
            return text if loss is None else f"{text}, loss {loss}"
    told = [line for line in lines if not (_WARNING.search(line) or line.startswith("  "))]
    return told[-1][:100] if told else None


def failure(log: Path) -> str | None:
    """The error at the end of the log of a stage that is over; None if it shows none or stopped on purpose."""
    lines = _tail(log)
    starts = [number for number, line in enumerate(lines) if _ERROR.match(line)]
    if not starts or any(_CONTINUES in line for line in lines[-3:]):
        return None
    last = lines[starts[-1] :]
    return "\n".join([line.strip() for line in last[:4]] + [f"see {log}"])


def _tail(log: Path) -> list[str]:
    """Last lines of a log that are not empty; of a progress bar the last state."""
    try:
        with open(log, "rb") as handle:
            handle.seek(max(0, log.stat().st_size - 16384))
            text = handle.read().decode(errors="replace")
    except OSError:
        return []
    lines = [line.rstrip().rpartition("\r")[2].rstrip() for line in text.split("\n")]
    return [line for line in lines if line.strip()]


def submitted_jobs(folder: Path = SUBMITTED) -> dict[str, str]:
    """What Slurm says about the jobs Snakemake has submitted, by output file; empty without any.

    Args:
        folder: Where the executor keeps them.
    """
    numbers: dict[str, list[str]] = {}
    for file in folder.glob("*.json"):
        try:
            entry = json.loads(file.read_text(encoding="utf-8"))
            numbers[str(entry["number"])] = [str(output) for output in entry["outputs"]]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    if not numbers:
        return {}
    done = ask("squeue", "--noheader", f"--jobs={','.join(numbers)}", "--format=%A|%T, %R")
    states = dict(line.split("|", 1) for line in (done.stdout if done else "").splitlines() if "|" in line)
    return {
        output: f"Slurm job {number}: {states.get(number, 'unknown to squeue')}"
        for number, outputs in numbers.items()
        for output in outputs
    }
