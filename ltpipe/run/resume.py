"""What resume state belongs to, and why it would be discarded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltpipe.config.experiment import Experiment
from ltpipe.pipeline.digests import slice_digest, stage_seed, stage_slice
from ltpipe.pipeline.paths import Paths
from ltpipe.pipeline.stages import TABLE, stage_inputs
from ltpipe.run.changes import changed_settings
from ltpipe.run.checksums import checksum
from ltpipe.run.earlier_results import record_of
from ltpipe.run.records import RUN_KEY, read_json

# In a work folder from the start: they are no state.
_NOTES = (RUN_KEY, "threads.json")
_ITERATION = re.compile(r"iter_(\d+)\.pth")


def run_key(exp: Experiment, stage: str, key: str | int | None, checksums: Mapping[str, str]) -> dict[str, Any]:
    """Return what a killed run must have in common with one that continues it.

    Args:
        exp: The experiment.
        stage: A stage.
        key: Its phase, calibrator or checkpoint.
        checksums: Checksums of its inputs by name. Where they lie does not matter, so that state that was moved
            together with its inputs still belongs to them.
    """
    settings, seed = stage_slice(exp, stage, key), stage_seed(exp, stage, key)
    digest = slice_digest(settings)
    return {"stage": stage, "digest": digest, "seed": seed, "inputs": dict(checksums), "settings": settings}


def replaced_record(folder: Path) -> str | None:
    """Return the checksum of the record that a run will replace, None if there is none."""
    record = record_of(folder)
    return None if record is None else checksum(record)


def why_discarded(folder: Path, work: Path, today: Mapping[str, Any], key: str | int | None = None) -> list[str] | None:
    """Return why the state in a work folder does not belong to today's run; empty if it does, None without any state.

    Args:
        folder: The stage's results.
        work: Its folder for resume state.
        today: What :func:`run_key` returns today.
        key: Phase, calibrator or checkpoint, for the names of settings.
    """
    if not work.is_dir() or all(file.name in _NOTES for file in work.iterdir()):
        return None
    then = read_json(work / RUN_KEY)
    if not isinstance(then, dict) or not isinstance(then.get("inputs"), dict):
        return ["it does not say what it belongs to"]
    found = []
    if then.get("digest") != today["digest"]:
        found += changed_settings(then["settings"], today["settings"], key) if "settings" in then else []
        found = found or ["its part of the experiment has changed"]
    if then.get("seed") != today["seed"]:
        found.append(f"the seed: {then.get('seed')} -> {today['seed']}")
    before, now = then["inputs"], today["inputs"]
    found += [f"its input {name} has changed" for name in now if name in before and now[name] != before[name]]
    found += [f"its input {name} is new" for name in now if name not in before]
    found += [f"its input {name} is not read any more" for name in before if name not in now]
    if replaced_record(folder) not in (None, then.get("replaces")):
        found.append("the stage has ended since")
    return found


def state_of(exp: Experiment, paths: Paths, stage: str, key: str | int | None) -> str | None:
    """Return what the next run will do with a stage's resume state, None without any."""
    work, folder = paths.work(stage, key), paths.folder(stage, key)
    if not work.is_dir() or not any(work.iterdir()):
        return None
    inputs = stage_inputs(exp, paths, stage, key)
    missing = next((path for path in inputs.values() if not path.is_file()), None)
    if missing is not None:
        return f"it cannot continue: {missing} is missing"
    sums = {name: checksum(path) for name, path in inputs.items()}
    reasons = why_discarded(folder, work, run_key(exp, stage, key, sums), key)
    if reasons is None:
        return None
    if not reasons:
        if _is_training(exp, stage) and not any(_ITERATION.fullmatch(file.name) for file in work.iterdir()):
            return "starts anew: it was stopped before it saved a state"
        return "continues from its last checkpoint"
    return f"{described(work)} would be discarded:\n" + "\n".join(reasons)


def _is_training(exp: Experiment, stage: str) -> bool:
    """Whether a stage saves its state by iterations."""
    batch_size = TABLE[stage].batch_size
    return batch_size is not None and batch_size(exp) is not None


def described(work: Path) -> str:
    """Name resume state, with the iteration of a training."""
    found = [int(match[1]) for file in work.iterdir() if (match := _ITERATION.fullmatch(file.name))]
    return f"the state of iteration {max(found)}" if found else "its resume state"
