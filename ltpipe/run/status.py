"""What is done, running, failed, stale or waiting, from the stages' records, locks and logs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ltpipe.config.experiment import Experiment
from ltpipe.pipeline.paths import Paths
from ltpipe.run.log_progress import describe, failure, holder, rate, submitted_jobs
from ltpipe.run.records import changes, read_json

# Changes that are told of one stage.
REASONS = 6


@dataclass(frozen=True)
class StageStatus:
    """State of one stage.

    Attributes:
        label: Stage and key, e.g. ``lst phase2``.
        state: ``done``, ``running``, ``failed``, ``stopped`` (resume state is left), ``stale`` or ``waiting``.
        reason: Where it runs and how fast, the error, or which settings and inputs have changed; the time it took when
            it is done.
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
    """Whether any calibrator is trained here on RoI features."""
    from ltpipe.config.catalogue import find

    trained = [calibrator for calibrator in exp.calibrate.values() if calibrator.checkpoint is None]
    return any(find("calibrator", c.type).flags.get("needs_features", True) for c in trained)


def status(exp: Experiment, paths: Paths) -> list[StageStatus]:
    """State of every stage; a stage is stale when its part of the experiment or an input has changed."""
    found = []
    unfinished: set[str] = set()
    jobs = submitted_jobs()
    for stage, key in stage_keys(exp):
        suffix = "" if key is None else f" phase{key}" if isinstance(key, int) else f" {key}"
        record = paths.record(stage, key)
        state, reason = _unfinished(paths, stage, key, jobs)
        content = read_json(record)
        if state != "running" and content is not None:
            reasons = _stale(exp, paths, stage, key, content, unfinished)
            state = "stale" if reasons else "done"
            reason = "\n".join(reasons) or f"took {content['seconds']} s"
        owner = exp.owners.get((stage, key))
        if owner is not None:
            reason = f"of {owner}; {reason}"
        if state != "done":
            unfinished.add(str(record.parent))
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


def _stale(
    exp: Experiment, paths: Paths, stage: str, key: str | int | None, record: dict[str, object], unfinished: set[str]
) -> list[str]:
    """Why a finished stage would run again; empty when it would not."""
    reasons = changes(exp, paths, stage, key)
    inputs = record.get("inputs")
    assert isinstance(inputs, dict)
    reasons += sorted(
        {f"{maker} is not up to date" for maker in unfinished for name in inputs if Path(name).is_relative_to(maker)}
    )
    return reasons if len(reasons) <= REASONS else [*reasons[: REASONS - 1], f"and {len(reasons) - REASONS + 1} more"]


def print_status(exp: Experiment, paths: Paths) -> None:
    """Print one line per stage, and more below it for an error or several changes."""
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
