"""What every stage does around its work: lock, resume state, and the record that says it is complete."""

from __future__ import annotations

import errno
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ltpipe.errors import PeerLost, UserError
from ltpipe.files import discard, move, sha256_file, write_json
from ltpipe.loader_errors import from_loader
from ltpipe.spec.catalogue import extra_images
from ltpipe.spec.digest import slice_digest
from ltpipe.spec.models import Experiment
from ltpipe.spec.paths import STAGES, Paths
from ltpipe.spec.records import RECORD, read_json, recorded_checksum
from ltpipe.stages._lock import exclusive
from ltpipe.stages._threads import same_threads

PACKAGES = ("ltpipe", "torch", "onedl-mmcv", "onedl-mmdetection", "onedl-mmengine", "numpy", "numba", "pycocotools")
DISK_ERRORS = {getattr(errno, name) for name in "ENOSPC EDQUOT EFBIG EROFS EACCES EPERM EIO ESTALE ENOLCK".split()}


@dataclass
class StageRun:
    """A running stage.

    Attributes:
        folder: Folder of the stage's results.
        work: Folder of its resume state; it survives a kill and vanishes when the stage completes, except for
            ``history``, which becomes a result.
        outputs: Result files; set by the stage before it ends.
        notes: Facts to add to the record, e.g. the number of iterations.
    """

    folder: Path
    work: Path
    outputs: list[Path] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)


@contextmanager
def stage_run(
    stage: str,
    folder: Path,
    *,
    experiment: str,
    settings: Mapping[str, Any],
    seed: int,
    inputs: Mapping[str, Path],
    parallel: bool = False,
) -> Iterator[StageRun]:
    """Run a stage: check its inputs, keep its resume state, write ``stage.json`` last.

    The resume state is kept under a key made of the settings' digest and the inputs' checksums; it is removed when the
    key changes and when the stage completes, so a repeated run starts afresh while a killed one continues.

    Args:
        stage: Name of the stage.
        folder: Folder of the stage's results.
        experiment: Name of the experiment (or of the data set).
        settings: The part of the experiment that the stage reads.
        seed: Seed of the run.
        inputs: Input files by the stage that makes them, or by the experiment's key that names them (a repeated one may
            carry a suffix after ``:``).
        parallel: Whether several processes of a torchrun launch may run it. Only the first of them keeps the state and
            the record; the others must wait for it before they use ``work``.

    Raises:
        UserError: An input is missing or damaged, another process runs the same stage, or the disk is full.
    """
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1 and not parallel:
        raise UserError(f"stage {stage} runs in one process", got=f"{processes} processes", fix="no torchrun")
    with _clear_errors(folder):
        if rank > 0:
            yield StageRun(folder, folder / "work")
            return
        checksums, digest = _check_inputs(stage, experiment, inputs), slice_digest(settings)
        started, clock = datetime.now(UTC), time.monotonic()
        with exclusive(folder, stage):
            run = StageRun(folder, folder / "work")
            _prepare(run, {"stage": stage, "digest": digest, "seed": seed, "inputs": checksums})
            with same_threads(run.work) as threads:
                yield run
            run.outputs += _keep_history(run)
            record = {
                "stage": stage,
                "label": stage if folder.name == stage else f"{stage} {folder.name}",
                "experiment": experiment,
                "digest": digest,
                "settings": settings,
                "seed": seed,
                "inputs": checksums,
                "outputs": {str(path.relative_to(folder)): sha256_file(path) for path in run.outputs},
                "versions": {"python": platform.python_version(), **installed_versions()},
                "device": _device(),
                "processes": processes,
                "threads": threads,
                "started": started.isoformat(timespec="seconds"),
                "seconds": round(time.monotonic() - clock, 2),
                "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
                **run.notes,
            }
            write_json(folder / RECORD, record)
            discard(run.work)


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


def held_out_input(exp: Experiment, paths: Paths) -> dict[str, Path]:
    """Return the list of held-out images as an input of a stage, if the experiment has one."""
    return {"split:holdout": paths.holdout} if extra_images(exp) == "holdout" else {}


def _check_inputs(stage: str, experiment: str, inputs: Mapping[str, Path]) -> dict[str, str]:
    """Return the inputs' checksums; refuse missing inputs and those that are not as their stage wrote them."""
    checksums = {}
    for maker, path in inputs.items():
        name = maker.split(":")[0]
        made = name in (*STAGES, "toy-data")
        if not path.is_file():
            raise UserError(
                f"missing input of stage {stage}",
                where=path,
                got="no such file",
                fix=f"run `{_command(name, experiment, path)}` first, or let snakemake do it"
                if made
                else f"check {name} of the experiment",
            )
        checksums[str(path)] = found = sha256_file(path)
        if recorded_checksum(path) not in (None, found):
            raise UserError(
                f"damaged input of stage {stage}",
                where=path,
                got=f"{path.stat().st_size} bytes that differ from those its stage wrote",
                fix=f"run `{_command(name, experiment, path)}` again; if it is meant, remove {RECORD} there",
            )
    return checksums


def _command(stage: str, experiment: str, output: Path) -> str:
    """Return the command line that makes an output."""
    key = output.parent.name
    options = {"calibrate": f" --name {key}", "evaluate": f" --checkpoint {key}"}
    phase = f" --phase {key.removeprefix('phase')}" if key.startswith("phase") else ""
    return f"ltpipe {stage} --experiment {experiment}{options.get(stage, phase)}"


def _prepare(run: StageRun, key: dict[str, Any]) -> None:
    """Drop the record of an earlier run, and the resume state unless it belongs to the same run."""
    record, key_file = run.folder / RECORD, run.work / "run_key.json"
    if record.is_file() or read_json(key_file) != key:
        discard(run.work)
        run.work.mkdir()
        write_json(key_file, key)
    discard(record)


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
