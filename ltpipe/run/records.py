"""Records of finished stages (``stage.json``): what a stage has read, and what of it is different now."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ltpipe.config.experiment import Experiment
from ltpipe.pipeline.digests import slice_digest, stage_slice
from ltpipe.pipeline.paths import Paths
from ltpipe.run.files import sha256_file

RECORD = "stage.json"
_SHOWN = 60
_ABSENT = object()
# Keys of a slice that are spelled otherwise in an experiment.
_NAMES = {"calibrator": "calibrate.{key}", "iterations": "lst.iterations_per_phase.{key}"}


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, None if there is no such file or it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def recorded_checksum(path: Path) -> str | None:
    """Return the checksum that the stage which made a file recorded, None if no stage did."""
    for folder in (path.parent, path.parent.parent):
        outputs = (read_json(folder / RECORD) or {}).get("outputs", {})
        if str(path.relative_to(folder)) in outputs:
            return str(outputs[str(path.relative_to(folder))])
    return None


def changes(exp: Experiment, paths: Paths, stage: str, key: str | int | None) -> list[str]:
    """Return what a finished stage would read differently today, one text per setting or input.

    Files that a stage wrote are compared by the checksum in that stage's record. Others are read only when they are
    younger than the record.

    Args:
        exp: The experiment.
        paths: Its paths.
        stage: A stage with a record.
        key: Its phase, calibrator or checkpoint.
    """
    file = paths.record(stage, key)
    record = read_json(file)
    if record is None:
        return [f"{file} cannot be read"]
    today = stage_slice(exp, stage, key)
    found = []
    if record["digest"] != slice_digest(today):
        known = isinstance(record.get("settings"), dict)
        found += changed_settings(record["settings"], today, key) if known else []
        found = found or ["its part of the experiment has changed"]
    written = file.stat().st_mtime
    for name, checksum in record["inputs"].items():
        path = Path(name)
        if not path.exists():
            found.append(f"its input {path} is gone")
            continue
        made = recorded_checksum(path)
        if made is None and path.stat().st_mtime > written:
            made = sha256_file(path)
        if made not in (None, checksum):
            found.append(f"its input {path} has changed")
    return found


def is_current(exp: Experiment, paths: Paths, stage: str, key: str | int | None) -> bool:
    """Whether a stage is finished, with today's settings and inputs, and its results are as it wrote them."""
    folder = paths.folder(stage, key)
    record = read_json(folder / RECORD)
    if record is None or changes(exp, paths, stage, key):
        return False
    files = {folder / name: checksum for name, checksum in record["outputs"].items()}
    return all(file.is_file() and sha256_file(file) == checksum for file, checksum in files.items())


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any], key: str | int | None = None) -> list[str]:
    """Return every setting that differs between two slices of an experiment, as ``key: old -> new``.

    Args:
        old: Slice that a stage ran with, see :func:`~ltpipe.pipeline.digests.stage_slice`.
        new: Slice of today.
        key: Phase, calibrator or checkpoint of the stage.
    """
    before, after = dict(_leaves(old, key)), dict(_leaves(new, key))
    found = []
    for name in [*before, *(name for name in after if name not in before)]:
        one, other = before.get(name, _ABSENT), after.get(name, _ABSENT)
        if one is not other and one != other:
            found.append(f"{name}: {_shown(one)} -> {_shown(other)}")
    return found


def _leaves(part: Mapping[str, Any], key: str | int | None) -> Iterator[tuple[str, Any]]:
    for name, value in part.items():
        yield from _below(_NAMES.get(name, name).format(key=key), value)


def _below(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the values in nested blocks, and in lists of blocks, by dotted key."""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        value = {str(index): item for index, item in enumerate(value)}
    if isinstance(value, dict) and value:
        for inner, item in value.items():
            yield from _below(f"{name}.{inner}", item)
    else:
        yield name, value


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "(not there)"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 4] + " ..."
