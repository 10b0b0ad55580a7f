"""What of that which a finished stage has read, and of its results, is different now."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ltpipe.config.experiment import Experiment
from ltpipe.pipeline.digests import slice_digest, stage_slice
from ltpipe.pipeline.paths import Paths
from ltpipe.run.checksums import checksum
from ltpipe.run.records import RECORD, located, read_record, recorded_checksum, recorded_outputs

_SHOWN = 60
_ABSENT = object()
# Keys of a slice that are spelled otherwise in an experiment.
_NAMES = {"calibrator": "calibrate.{key}", "iterations": "lst.iterations_per_phase.{key}"}


def changes(exp: Experiment, paths: Paths, stage: str, key: str | int | None, *, gone: bool = True) -> list[str]:
    """Return what a finished stage would read differently today, one text per setting or input.

    Contents are compared, with the record of the stage that has read them and with that of the stage that made them.

    Args:
        exp: The experiment.
        paths: Its paths.
        stage: A stage with a record.
        key: Its phase, calibrator or checkpoint.
        gone: Tell of inputs that are not there any more, too.
    """
    file = paths.record(stage, key)
    record = read_record(file)
    return [f"{file} cannot be read"] if record is None else changed_since(record, exp, paths, stage, key, gone=gone)


def changed_since(
    record: Mapping[str, Any], exp: Experiment, paths: Paths, stage: str, key: str | int | None, *, gone: bool = True
) -> list[str]:
    """As :func:`changes`, for a record that was read already."""
    today = stage_slice(exp, stage, key)
    found = []
    if record["digest"] != slice_digest(today):
        known = isinstance(record.get("settings"), dict)
        found += changed_settings(record["settings"], today, key) if known else []
        found = found or ["its part of the experiment has changed"]
    for name, before in record["inputs"].items():
        path = located(name, record, paths)
        if path.exists():
            made, now = recorded_checksum(path), checksum(path)
            if made is not None and now != made:
                found.append(f"its input {path} is not as its stage wrote it")
            elif now != before:
                found.append(f"its input {path} has changed")
        elif gone:
            found.append(f"its input {path} is gone")
    return found


def damages(paths: Paths, stage: str, key: str | int | None) -> list[str]:
    """Return what is no longer there of a finished stage's results as it wrote them, one text per file."""
    folder = paths.folder(stage, key)
    found = []
    for name, before in recorded_outputs(folder / RECORD).items():
        if not (folder / name).is_file():
            found.append(f"its result {folder / name} is gone")
        elif checksum(folder / name) != before:
            found.append(f"its result {folder / name} has been changed")
    return found


def is_current(exp: Experiment, paths: Paths, stage: str, key: str | int | None) -> bool:
    """Whether a stage is finished, with today's settings and inputs, and its results are as it wrote them."""
    return not changes(exp, paths, stage, key) and not damages(paths, stage, key)


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
