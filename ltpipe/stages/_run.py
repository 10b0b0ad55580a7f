"""What every stage does around its work: lock, resume state, and the record that says it is complete."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ltpipe.errors import UserError
from ltpipe.files import sha256_file, write_json

RECORD = "stage.json"
PACKAGES = ("ltpipe", "torch", "onedl-mmcv", "onedl-mmdetection", "onedl-mmengine", "numpy", "hotcoco")


@dataclass
class StageRun:
    """A running stage.

    Attributes:
        folder: Folder of the stage's results.
        work: Folder of its resume state; it survives a kill and vanishes when the stage completes.
        outputs: Result files; set by the stage before it ends.
        notes: Facts to add to the record, e.g. the number of iterations.
    """

    folder: Path
    work: Path
    outputs: list[Path] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)


@contextmanager
def stage_run(
    stage: str, folder: Path, *, experiment: str, digest: str, seed: int, inputs: Mapping[str, Path]
) -> Iterator[StageRun]:
    """Run a stage: check its inputs, keep its resume state, write ``stage.json`` last.

    The resume state is kept under a key made of the digest and the inputs' checksums; it is removed when the key
    changes and when the stage completes, so a repeated run starts afresh while a killed one continues.

    Args:
        stage: Name of the stage.
        folder: Folder of the stage's results.
        experiment: Name of the experiment (or of the data set).
        digest: Digest of the part of the experiment that the stage reads.
        seed: Seed of the run.
        inputs: Input files by the stage that makes them (a repeated stage may carry a suffix after ``:``).

    Raises:
        UserError: An input is missing, or another process runs the same stage.
    """
    for maker, path in inputs.items():
        if not path.is_file():
            name = maker.split(":")[0]
            raise UserError(
                f"missing input of stage {stage}",
                where=path,
                got="no such file",
                fix=f"run `ltpipe {name} --experiment {experiment}` first, or let snakemake do it",
            )
    work = folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    checksums = {str(path): sha256_file(path) for path in inputs.values()}
    started, clock = datetime.now(UTC), time.monotonic()
    with _exclusive(folder, stage):
        (folder / RECORD).unlink(missing_ok=True)
        _fresh_unless_same_key(work, {"stage": stage, "digest": digest, "seed": seed, "inputs": checksums})
        run = StageRun(folder, work)
        yield run
        record = {
            "stage": stage,
            "label": stage if folder.name == stage else f"{stage} {folder.name}",
            "experiment": experiment,
            "digest": digest,
            "seed": seed,
            "inputs": checksums,
            "outputs": {str(path.relative_to(folder)): sha256_file(path) for path in run.outputs},
            "versions": {"python": platform.python_version(), **installed_versions()},
            "device": _device(),
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - clock, 2),
            "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            **run.notes,
        }
        write_json(folder / RECORD, record)
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _exclusive(folder: Path, stage: str) -> Iterator[None]:
    """Hold a lock on the stage's folder, so that two jobs cannot write the same results."""
    with open(folder / ".lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"stage {stage} is already running",
                where=folder,
                got="its lock is held by another process",
                fix="wait for that process or stop it",
            ) from error
        yield


def _fresh_unless_same_key(work: Path, key: dict[str, Any]) -> None:
    """Empty the work folder unless it belongs to the same run."""
    key_file = work / "run_key.json"
    if key_file.is_file() and json.loads(key_file.read_text()) == key:
        return
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    write_json(key_file, key)


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that decide a result."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _device() -> str:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return f"cpu ({os.cpu_count()} cores)"
