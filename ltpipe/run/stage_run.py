"""What every stage does around its work: lock, resume state, and the record that says it is complete."""

from __future__ import annotations

import errno
import filecmp
import os
import platform
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ltpipe.config.experiment import Experiment
from ltpipe.errors import PeerLost, UserError
from ltpipe.pipeline.paths import Paths
from ltpipe.pipeline.stages import stage_inputs, stage_of, stage_outputs
from ltpipe.run.checksums import checksum
from ltpipe.run.files import discard, move, write_json
from ltpipe.run.input_checks import check_outside, checked_inputs, outdated_makers
from ltpipe.run.loader_errors import from_loader
from ltpipe.run.machine import commit, device
from ltpipe.run.records import EARLIER, RECORD, RUN_KEY, location
from ltpipe.run.resume import described, replaced_record, run_key, why_discarded
from ltpipe.run.stage_lock import exclusive
from ltpipe.run.threads import same_threads

PACKAGES = ("ltpipe", "torch", "onedl-mmcv", "onedl-mmdetection", "onedl-mmengine", "numpy", "numba", "pycocotools")
DISK_ERRORS = {getattr(errno, name) for name in "ENOSPC EDQUOT EFBIG EROFS EACCES EPERM EIO ESTALE ENOLCK".split()}


@dataclass
class StageRun:
    """A running stage.

    Attributes:
        folder: Folder of the stage's results.
        work: Folder of its resume state; it survives a kill and vanishes when the stage completes, except for
            ``history``, which becomes a result.
        outputs: Result files beside those that the table of stages names; added by the stage before it ends.
        notes: Facts to add to the record, e.g. the number of iterations.
    """

    folder: Path
    work: Path
    outputs: list[Path] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)


@contextmanager
def stage_run(stage: str, exp: Experiment, paths: Paths, key: str | int | None = None) -> Iterator[StageRun]:
    """Run a stage: check its inputs, keep its resume state, write ``stage.json`` last.

    An earlier result stays complete, with its record, until the first file of it is replaced. The resume state is kept
    under a key made of the settings' digest and the inputs' checksums; it is removed when the key changes and when the
    stage completes, so a repeated run starts afresh while a killed one continues.

    Args:
        stage: Name of the stage.
        exp: The experiment.
        paths: Its paths.
        key: Phase, calibrator or checkpoint.

    Raises:
        UserError: An input is missing or damaged, another process runs the same stage, or the disk is full.
    """
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1 and not stage_of(stage, key).in_processes:
        raise UserError(f"stage {stage} runs in one process", got=f"{processes} processes", fix="no torchrun")
    folder = paths.folder(stage, key)
    with _clear_errors(folder):
        if rank > 0:
            yield StageRun(folder, folder / "work")
            return
        inputs = stage_inputs(exp, paths, stage, key)
        for name, path in inputs.items():
            check_outside(folder, stage, name, path)
        today = run_key(exp, stage, key, checked_inputs(exp, paths, stage, inputs))
        for remark in outdated_makers(exp, paths, inputs):
            print(remark, flush=True)
        started, clock = datetime.now(UTC), time.monotonic()
        with exclusive(folder, stage, partial(_drop_record, folder)):
            run = StageRun(folder, folder / "work")
            _prepare(run, today, key)
            with same_threads(run.work) as threads:
                yield run
            run.outputs = [*dict.fromkeys((*_declared(exp, paths, stage, key), *run.outputs)), *_keep_history(run)]
            record = {
                "stage": stage,
                "label": stage if folder.name == stage else f"{stage} {folder.name}",
                "experiment": exp.name,
                "digest": today["digest"],
                "settings": today["settings"],
                "seed": today["seed"],
                "inputs": {str(path): today["inputs"][name] for name, path in inputs.items()},
                "place": location(paths),
                "outputs": {path.relative_to(folder).as_posix(): checksum(path) for path in run.outputs},
                "versions": {"python": platform.python_version(), **installed_versions()},
                "commit": commit(),
                "device": device(),
                "processes": processes,
                "threads": threads,
                "started": started.isoformat(timespec="seconds"),
                "seconds": round(time.monotonic() - clock, 2),
                "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
                **run.notes,
            }
            write_json(folder / RECORD, record)
            discard(run.work)
            discard(folder / EARLIER)


def _declared(exp: Experiment, paths: Paths, stage: str, key: str | int | None) -> Iterator[Path]:
    """Yield the files that the table of stages names, as far as they lie in the stage's folder."""
    for path in stage_outputs(exp, paths, stage, key):
        if path.is_relative_to(paths.folder(stage, key)):
            yield from sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _drop_record(folder: Path, path: Path, new: Path | None) -> None:
    """Remove the record of an earlier run when one of its results is about to change.

    Args:
        folder: The stage's results.
        path: File or folder that is about to be replaced or removed.
        new: What comes in its place.
    """
    record, part = folder / RECORD, Path(os.path.abspath(path)).relative_to(os.path.abspath(folder)).parts[0]
    if part in (RECORD, EARLIER, "work") or not record.is_file():
        return
    same = new is not None and new.is_file() and path.is_file() and filecmp.cmp(new, path, shallow=False)
    if not same:
        discard(record)


def _keep_history(run: StageRun) -> list[Path]:
    """Move what hooks wrote to ``work/history`` beside the results, in place of an earlier run's; return its files."""
    kept, made = run.folder / "history", run.work / "history"
    if not made.is_dir():
        discard(kept)
        return []
    move(made, kept)
    return sorted(file for file in kept.rglob("*") if file.is_file())


def forget(stage: str, folder: Path) -> None:
    """Remove the resume state of a killed stage, so that the next run starts afresh.

    Args:
        stage: Name of the stage.
        folder: Folder of the stage's results.

    Raises:
        UserError: The stage is running.
    """
    with _clear_errors(folder), exclusive(folder, stage):
        discard(folder / "work")


@contextmanager
def _clear_errors(folder: Path) -> Iterator[None]:
    """Turn faults of the disk, and errors of loader processes, into errors that name what to do."""
    try:
        yield
    except (UserError, OSError, RuntimeError) as error:
        clear = from_loader(error)
        if clear is not None:
            raise clear from error
        if isinstance(error, UserError):
            raise
        if "Connection closed by peer" in str(error) or "Connection reset by peer" in str(error):
            raise PeerLost(
                "another process of this training has ended",
                where=folder,
                got=str(error).splitlines()[-1],
                fix="its own message says why, unless it was killed; run the stage again: it continues",
            ) from error
        full = "No space left on device" in str(error)  # torch has no error of its own for this
        if not full and getattr(error, "errno", None) not in DISK_ERRORS:
            raise
        raise UserError(
            "the disk is full" if full else "a file cannot be read or written",
            where=getattr(error, "filename", None) or folder,
            got=getattr(error, "strerror", None) or str(error).splitlines()[-1],
            fix="free disk space or check the permissions, then run the stage again: earlier results are kept",
        ) from error


def _prepare(run: StageRun, today: dict[str, Any], key: str | int | None) -> None:
    """Keep the resume state if it belongs to this run; otherwise say what is discarded, and why."""
    reasons = why_discarded(run.folder, run.work, today, key)
    if reasons:
        what = "\n  ".join((f"{described(run.work)} is discarded, this run starts afresh:", *reasons))
        print(f"stage {today['stage']}: {what}", flush=True)
    if reasons or reasons is None:
        discard(run.work)
        run.work.mkdir()
        write_json(run.work / RUN_KEY, {**today, "replaces": replaced_record(run.folder)})


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that decide a result."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
