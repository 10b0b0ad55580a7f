"""What is done, running, failed, stale or waiting, from the stages' records, locks and logs."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltpipe.config.experiment import Experiment
from ltpipe.config.loading import FOLDER, list_experiments, load_experiment
from ltpipe.config.seeds import parted
from ltpipe.errors import UserError
from ltpipe.pipeline.paths import Paths
from ltpipe.pipeline.stages import stage_keys
from ltpipe.run.changes import changed_since, damages
from ltpipe.run.log_progress import describe, failure, holder, rate, submitted_jobs
from ltpipe.run.records import located, read_record
from ltpipe.run.resume import state_of

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


def status(exp: Experiment, paths: Paths) -> list[StageStatus]:
    """State of every stage; a stage is stale when its part of the experiment or an input has changed."""
    found = []
    unfinished: set[str] = set()
    jobs = submitted_jobs()
    for stage, key in stage_keys(exp):
        suffix = "" if key is None else f" phase{key}" if isinstance(key, int) else f" {key}"
        record = paths.record(stage, key)
        state, reason = _unfinished(exp, paths, stage, key, jobs)
        content = read_record(record)
        if state != "running" and content is not None:
            reasons = _stale(exp, paths, stage, key, content, unfinished)
            if state == "failed" and reasons:
                reasons = [reason, *reasons]
            else:
                state = "stale" if reasons else "done"
            reason = "\n".join(reasons) or f"took {content['seconds']} s"
        owner = exp.owners.get((stage, key))
        if owner is not None:
            reason = f"of {owner}; {reason}"
        if state != "done":
            unfinished.add(str(record.parent))
        found.append(StageStatus(stage + suffix, state, reason))
    return found


def _unfinished(
    exp: Experiment, paths: Paths, stage: str, key: str | int | None, jobs: dict[str, str]
) -> tuple[str, str]:
    """State and reason of a stage without a record."""
    record, log = paths.record(stage, key), paths.log(stage, key)
    who = holder(record.parent)
    if who is not None:
        progress = rate(log)
        return "running", describe(who) + (f"; {progress}" if progress else "")
    if str(record) in jobs:
        return "waiting", jobs[str(record)]
    error, left = failure(log), state_of(exp, paths, stage, key)
    if error is not None:
        return "failed", error if left is None else f"{error}\n{left}"
    return ("waiting", f"no {record}") if left is None else ("stopped", left)


def _stale(
    exp: Experiment, paths: Paths, stage: str, key: str | int | None, record: dict[str, Any], unfinished: set[str]
) -> list[str]:
    """Why a finished stage is not what a run would leave today; empty when it is."""
    reasons = changed_since(record, exp, paths, stage, key) + damages(paths, stage, key)
    read = [located(name, record, paths) for name in record["inputs"]]
    reasons += sorted(
        {f"{maker} is not up to date" for maker in unfinished for path in read if path.is_relative_to(maker)}
    )
    left = state_of(exp, paths, stage, key)
    reasons += [f"a later run was stopped: {left}"] if reasons and left is not None else []
    return reasons if len(reasons) <= REASONS else [*reasons[: REASONS - 1], f"and {len(reasons) - REASONS + 1} more"]


def print_status(exp: Experiment, paths: Paths) -> None:
    """Print one line per stage, and more below it for an error or several changes; with several seeds by run."""
    for one in exp.runs():
        print(f"{one.name}:")
        print_status(one, Paths(paths.results, one))
        print()
    print(f"{exp.name}:\n" if exp.seeds else "", end="")
    rows = status(exp, paths)
    width = max(len(row.label) for row in rows)
    indent = "\n" + " " * (width + 12)
    for row in rows:
        print(f"{row.label:{width}s}  {row.state:8s}  {row.reason.replace(chr(10), indent)}")


def print_all(results: Path) -> None:
    """Print one line per experiment that has results: how far it is with all its seeds, what runs or has failed."""
    known = set(list_experiments())
    names = (file.name for file in results.glob("*") if file.is_dir() and file.name != "datasets")
    runs = ((name, parted(name)) for name in names)
    folders = sorted({run[0] if name not in known and run is not None else name for name, run in runs})
    width = max((len(name) for name in folders), default=0)
    for name in folders:
        if name not in known:
            print(f"{name:{width}s}  no experiment of this name in {FOLDER}")
            continue
        try:
            exp = load_experiment(name)
            rows = [row for one in (*exp.runs(), exp) for row in status(one, Paths(results, one))]
            print(f"{name:{width}s}  {_summary(rows)}")
        except UserError as error:
            print(f"{name:{width}s}  {error.what}; see ltpipe status {name}")
    others = len(known - set(folders))
    print(f"{'' if folders else f'no results in {results}; '}{others} experiments without results in {FOLDER}")


def _summary(rows: list[StageStatus]) -> str:
    """Return how many stages are in which state, and the names of those that somebody waits for."""
    parts = [f"{sum(row.state == 'done' for row in rows)} of {len(rows)} done"]
    for state in ("running", "failed", "stopped", "stale", "waiting"):
        found = [row.label for row in rows if row.state == state]
        named = state not in ("stale", "waiting")
        parts += [f"{len(found)} {state}{': ' + ', '.join(found) if named else ''}"] if found else []
    return "; ".join(parts)


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
