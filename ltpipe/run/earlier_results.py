"""Finished results that Snakemake removes before a stage runs again, kept aside until that stage has ended well.

Snakemake removes the declared outputs of a job before it starts and after it has failed. The same files therefore get
second names (hard links) in an undeclared folder beside them. What was finished is put back when the stage fails, and
when it turns out that nothing would be different.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ltpipe.config.experiment import Experiment
from ltpipe.pipeline.paths import Paths
from ltpipe.run.changes import changed_since
from ltpipe.run.checksums import checksum
from ltpipe.run.files import discard, write_json
from ltpipe.run.records import EARLIER, RECORD, read_json, read_record

_LIST = "files.json"


def keep(folder: Path, outputs: Iterable[Path], *, asked: bool) -> bool:
    """Give the files of a finished stage second names; return whether anything is kept aside now.

    What an earlier run kept of a stage that has not ended since stays kept.

    Args:
        folder: The stage's results.
        outputs: Files that Snakemake will remove, in addition to those in the record.
        asked: The user asked for another run, so that these results will not do.
    """
    record, (kept, _) = read_record(folder / RECORD), _kept(folder)
    if record is None:
        if kept and asked:
            write_json(folder / EARLIER / _LIST, {**kept, "asked": True})
        return bool(kept)
    names = [*record["outputs"], *(os.path.relpath(path, folder) for path in outputs)]
    found = [name for name in dict.fromkeys(names) if (folder / name).is_file() and name != RECORD]
    part = folder / f"{EARLIER}.{uuid.uuid4().hex[:8]}.part"
    part.mkdir()
    # The record last: the order in which they are put back.
    files = {str(number): name for number, name in enumerate((*found, RECORD))}
    for number, name in files.items():
        try:
            os.link(folder / name, part / number)
        except OSError:  # not every file system has them
            shutil.copy2(folder / name, part / number)
    write_json(part / _LIST, {"asked": asked, "files": files})
    discard(folder / EARLIER)
    part.rename(folder / EARLIER)
    return True


def would_do(exp: Experiment, paths: Paths, stage: str, key: str | int | None) -> bool:
    """Whether what is kept aside is all that a run of the stage would leave today.

    Args:
        exp: The experiment.
        paths: Its paths.
        stage: A stage.
        key: Its phase, calibrator or checkpoint.
    """
    folder = paths.folder(stage, key)
    kept, files = _kept(folder)
    if (folder / RECORD).exists() or kept.get("asked", True):
        return False
    record = read_record(files[RECORD])
    if record is None or changed_since(record, exp, paths, stage, key):
        return False
    return all(name in files and checksum(files[name]) == before for name, before in record["outputs"].items())


def is_asked(folder: Path) -> bool:
    """Whether the user has asked for another run of a stage, which has not ended well yet."""
    return bool(_kept(folder)[0].get("asked"))


def record_of(folder: Path) -> Path | None:
    """Return the record of the finished stage, in its place or kept aside; None without any."""
    record = folder / RECORD
    return record if record.is_file() else _kept(folder)[1].get(RECORD)


def put_back(folder: Path) -> bool:
    """Put what is kept aside in its place again if the stage has left no record of its own; return whether it was."""
    _, files = _kept(folder)
    if not files or (folder / RECORD).exists():
        return False
    for name, file in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, folder / name)
    discard(folder / EARLIER)
    return True


def _kept(folder: Path) -> tuple[Mapping[str, Any], dict[str, Path]]:
    """Return the list of what is kept aside, and its files by name."""
    kept = read_json(folder / EARLIER / _LIST) or {}
    files = {name: folder / EARLIER / number for number, name in kept.get("files", {}).items()}
    return kept, {name: file for name, file in files.items() if file.is_file()}
