"""What is done, stale or waiting, from the stages' records."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ltpipe.spec.digest import stage_digest
from ltpipe.spec.models import Experiment
from ltpipe.spec.paths import Paths


@dataclass(frozen=True)
class StageStatus:
    """State of one stage.

    Attributes:
        label: Stage and key, e.g. ``lst phase2``.
        state: ``done``, ``stale``, ``stopped`` (resume state is left) or ``waiting``.
        reason: Why it is not done; the time it took when it is.
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
    for stage, key in stage_keys(exp):
        suffix = "" if key is None else f" phase{key}" if isinstance(key, int) else f" {key}"
        record = paths.record(stage, key)
        if not record.is_file():
            stopped = paths.work(stage, key).is_dir() and any(paths.work(stage, key).iterdir())
            reason = "continues from its last checkpoint" if stopped else f"no {record}"
            found.append(StageStatus(stage + suffix, "stopped" if stopped else "waiting", reason))
            changed.add(str(record.parent))
            continue
        reason = _stale(exp, stage, key, json.loads(record.read_text(encoding="utf-8")), changed)
        if reason.startswith("took"):
            found.append(StageStatus(stage + suffix, "done", reason))
        else:
            found.append(StageStatus(stage + suffix, "stale", reason))
            changed.add(str(record.parent))
    return found


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
    """Print one line per stage."""
    rows = status(exp, paths)
    width = max(len(row.label) for row in rows)
    for row in rows:
        print(f"{row.label:{width}s}  {row.state:8s}  {row.reason}")
