"""Records of finished stages (``stage.json``): what a stage has read and left, and where that lies today."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from ltpipe.errors import UserError
from ltpipe.input_files import read_json_input
from ltpipe.pipeline.paths import Paths

RECORD = "stage.json"
# Folder for what was finished before Snakemake started the stage again.
EARLIER = ".earlier"
# In the folder for resume state: what that belongs to.
RUN_KEY = "run_key.json"


class _Record(TypedDict):
    """What is asked of every record; files by path with their SHA-256."""

    digest: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    seconds: NotRequired[float]
    settings: NotRequired[dict[str, Any]]
    place: NotRequired[dict[str, str]]


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file of ltpipe's own; None if there is no such file, or it holds something else.

    Raises:
        UserError: It is there and cannot be read.
    """
    return _read(path, dict[str, Any])


def read_record(path: Path) -> dict[str, Any] | None:
    """Return the record of a finished stage; None if there is no such file, or it is none, which counts as damaged.

    Raises:
        UserError: It is there and cannot be read.
    """
    return _read(path, _Record)


def _read(path: Path, shape: Any) -> dict[str, Any] | None:
    try:
        return cast("dict[str, Any]", read_json_input(path, "the file", shape, limit=None))
    except UserError as error:
        # A disk or folder that cannot be read for now says nothing about what is there.
        if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
            raise
        return None


def recorded_outputs(file: Path) -> dict[str, str]:
    """Return the outputs in a record with their checksums; empty if there is no record."""
    return dict((read_record(file) or {}).get("outputs", {}))


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
