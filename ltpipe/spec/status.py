"""What is done, running, failed, stale or waiting, from the stages' records, locks and logs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ltpipe.spec.digest import stage_digest
from ltpipe.spec.models import Experiment
from ltpipe.spec.paths import Paths
from ltpipe.spec.progress import describe, failure, holder, rate, submitted_jobs


@dataclass(frozen=True)
class StageStatus:
    """State of one stage.

    Attributes:
        label: Stage and key, e.g. ``lst phase2``.
        state: ``done``, ``running``, ``failed``, ``stopped`` (resume state is left), ``stale`` or ``waiting``.
        reason: Why it is not done, where it runs and how fast, or the error; the time it took when it is done.
    """

    label: str
    state: str
    reason: str


def stage_keys(exp: Experiment) -> Iterator[tuple[str, str | int | None]]:
    """All stages of an experiment with their keys, in the order they run."""
    yield from (("validate", None), ("index", None), ("split", None), ("base", None))
    for phase in range(1, exp.num_phases() + 1):
        yield "split", phase
        if exp.lst is not None and exp.lst.distill.teacher == "cached":
            yield "distill", phase
        yield "lst", phase
    if needs_features(exp):
        yield "features", None
    yield from (("calibrate", name) for name in exp.calibrate)
    yield from (("evaluate", checkpoint) for checkpoint in exp.evaluated_checkpoints())
    yield "report", None


def needs_features(exp: Experiment) -> bool:
    """Whether any calibrator is trained on RoI features."""
    from ltpipe.spec.catalogue import find

    return any(find("calibrator", c.type).flags.get("needs_features", True) for c in exp.calibrate.values())


def status(exp: Experiment, paths: Paths) -> list[StageStatus]:
    """State of every stage; a stage is stale when its part of the experiment or an input has changed."""
    found = []
    changed: set[str] = set()
    jobs = submitted_jobs()
    for stage, key in stage_keys(exp):
        suffix = "" if key is None else f" phase{key}" if isinstance(key, int) else f" {key}"
        record = paths.record(stage, key)
        state, reason = _unfinished(paths, stage, key, jobs)
        if state != "running" and record.is_file():
            reason = _stale(exp, stage, key, json.loads(record.read_text(encoding="utf-8")), changed)
            state = "done" if reason.startswith("took") else "stale"
        if state != "done":
            changed.add(str(record.parent))
        found.append(StageStatus(stage + suffix, state, reason))
    return found


def _unfinished(paths: Paths, stage: str, key: str | int | None, jobs: dict[str, str]) -> tuple[str, str]:
    """State and reason of a stage without a record."""
    record, log, work = paths.record(stage, key), paths.log(stage, key), paths.work(stage, key)
    who = holder(record.parent)
    if who is not None:
        progress = rate(log)
        return "running", describe(who) + (f"; {progress}" if progress else "")
    if str(record) in jobs:
        return "waiting", jobs[str(record)]
    error = failure(log)
    if error is not None:
        return "failed", error
    if work.is_dir() and any(work.iterdir()):
        return "stopped", "continues from its last checkpoint"
    return "waiting", f"no {record}"


def _stale(exp: Experiment, stage: str, key: str | int | None, record: dict[str, object], changed: set[str]) -> str:
    """Why a finished stage would run again; ``took ...`` when it would not."""
    if record["digest"] != stage_digest(exp, stage, key):
        return "its part of the experiment has changed"
    inputs = record["inputs"]
    assert isinstance(inputs, dict)
    for name in inputs:
        path = Path(name)
        if not path.exists():
            return f"its input {path} is gone"
        if _remade(path, inputs[name]):
            return f"its input {path} was made again"
        maker = next((folder for folder in changed if path.is_relative_to(folder)), None)
        if maker is not None:
            return f"{maker} is not up to date"
    return f"took {record['seconds']} s"


def _remade(path: Path, checksum: str) -> bool:
    """Whether the record beside an input has another checksum for it than the one it was read with."""
    record = path.parent / "stage.json"
    if not record.is_file():
        return False
    return bool(json.loads(record.read_text(encoding="utf-8"))["outputs"].get(path.name, checksum) != checksum)


def print_status(exp: Experiment, paths: Paths) -> None:
    """Print one line per stage, and more below it for an error."""
    rows = status(exp, paths)
    width = max(len(row.label) for row in rows)
    indent = "\n" + " " * (width + 12)
    for row in rows:
        print(f"{row.label:{width}s}  {row.state:8s}  {row.reason.replace(chr(10), indent)}")


def watch_status(exp: Experiment, paths: Paths, seconds: float = 5.0) -> None:
    """Print the status again and again on a cleared terminal, until Ctrl-C.

    Args:
        exp: The experiment.
        paths: Its paths.
        seconds: Time between two looks.
    """
    with suppress(KeyboardInterrupt):
        while True:
            print(f"\x1b[H\x1b[2J{exp.name}, {time.strftime('%H:%M:%S')} (Ctrl-C ends)\n", flush=True)
            print_status(exp, paths)
            time.sleep(seconds)
