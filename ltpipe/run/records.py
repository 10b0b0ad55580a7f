"""Records of finished stages (``stage.json``): what a stage has read and left, and where that lies today."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltpipe.pipeline.paths import Paths

RECORD = "stage.json"
# Folder for what was finished before Snakemake started the stage again.
EARLIER = ".earlier"
# In the folder for resume state: what that belongs to.
RUN_KEY = "run_key.json"


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, None if there is no such file or it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def recorded_outputs(file: Path) -> dict[str, str]:
    """Return the outputs in a record with their checksums; empty if there is no record."""
    return dict((read_json(file) or {}).get("outputs", {}))


def maker_of(path: Path) -> Path | None:
    """Return the record that names a file among its outputs, None if no stage made it."""
    for folder in (path.parent, *path.parent.parents[:2]):
        if path.relative_to(folder).as_posix() in recorded_outputs(folder / RECORD):
            return folder / RECORD
    return None


def recorded_checksum(path: Path) -> str | None:
    """Return the checksum that the stage which made a file recorded, None if no stage did."""
    record = maker_of(path)
    return None if record is None else recorded_outputs(record)[path.relative_to(record.parent).as_posix()]


def is_cut_off(folder: Path) -> bool:
    """Whether a stage was to run and has not ended: what lies in its folder belongs to no record."""
    begun = (folder / "work" / RUN_KEY).is_file() or (folder / EARLIER).is_dir()
    return begun and not (folder / RECORD).is_file()


def location(paths: Paths) -> dict[str, str]:
    """Return what a record keeps to say where its inputs lay, which :func:`located` finds again."""
    return {"results": os.path.abspath(paths.results), "project": os.getcwd()}


def located(name: str, record: Mapping[str, Any], paths: Paths) -> Path:
    """Return where a recorded input lies today: results and project may have been moved since, or be called otherwise.

    Args:
        name: Its path when it was recorded.
        record: The record.
        paths: Paths of today.
    """
    then = record.get("place")
    if then is None:
        return Path(name)
    path = Path(then["project"], name)
    for root, today in ((then["results"], paths.results), (then["project"], Path())):
        if path.is_relative_to(root):
            return today / path.relative_to(root)
    return path
