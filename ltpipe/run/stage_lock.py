"""Who may run a stage: one process at a time, and after the loss of a node the one that Slurm has started last."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from ltpipe.config.experiment import Experiment
from ltpipe.errors import UserError
from ltpipe.pipeline.paths import Paths
from ltpipe.run.changes import is_current
from ltpipe.run.earlier_results import put_back, would_do
from ltpipe.run.files import Changing, attempt
from ltpipe.run.log_progress import LOCK, describe, holder
from ltpipe.run.slurm import execution, is_over

# Seconds between two looks at a process that runs the same stage; each may ask Slurm.
LONGEST_PAUSE = 15.0


class AlreadyRunning(UserError):
    """Another process runs the stage."""


@contextmanager
def exclusive(folder: Path, stage: str, changing: Changing | None = None) -> Iterator[None]:
    """Be the only process that runs a stage.

    A lock refuses a second process while the first one runs. Where Slurm says that the job of the first one is over, it
    was lost together with its node, and the second one takes its place: :func:`~ltpipe.run.files.attempt` keeps the
    first one from the results, should it still run. The same holds on file systems whose locks do not reach other
    hosts.

    Args:
        folder: The stage's results.
        stage: Its name.
        changing: Called before each change of the results, see :func:`~ltpipe.run.files.attempt`.

    Raises:
        AlreadyRunning: Another process runs the stage.
        Overtaken: Another process has taken this one's place.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder, stage), attempt(folder, changing):
        yield


def wait_for_holder(folder: Path, stage: str) -> bool:
    """Wait while another process runs a stage; return whether one did.

    Args:
        folder: The stage's results.
        stage: Its name.
    """
    who, pause = holder(folder), 0.5
    if who is None:
        return False
    print(f"stage {stage} is already running ({describe(who)}): waiting for it to end", flush=True)
    while who is not None and not _lost(folder, who):
        time.sleep(pause)
        who, pause = holder(folder), min(1.5 * pause, LONGEST_PAUSE)
    return True


def is_done(exp: Experiment, paths: Paths, stage: str, keys: dict[str, Any], *, fresh: bool = False) -> bool:
    """Wait for a process that runs the same stage (its Snakemake was killed, say); whether nothing is left to do.

    Nothing is left, either, where the results are those of before: of inputs that were made again and are as they were.

    Args:
        exp: The experiment.
        paths: Its artefacts.
        stage: Name of the stage.
        keys: What the command line names, if anything: phase, calibrator or checkpoint.
        fresh: Results of before will not do.
    """
    # Without a phase `split` makes several results; phase 0 is that without a key.
    key = next(iter(keys.values()), None) or None
    waited = wait_for_holder(paths.folder(stage, key), stage)
    if None in keys.values():
        return False
    if waited and is_current(exp, paths, stage, key):
        print("it has ended well: nothing is left to do")
        return True
    return not fresh and _done_before(exp, paths, stage, key)


def _done_before(exp: Experiment, paths: Paths, stage: str, key: str | int | None) -> bool:
    """Put back results that Snakemake has removed although this run would only make them again; whether there are."""
    if not would_do(exp, paths, stage, key):
        return False
    folder = paths.folder(stage, key)
    with exclusive(folder, stage):
        done = put_back(folder)
    if done:
        print("settings and inputs are those of the earlier result, which stays: nothing is left to do")
    return done


def _lost(folder: Path, who: dict[str, object]) -> bool:
    """Whether Slurm says that the job which holds a lock of this user is over."""
    ours = (folder / LOCK).stat().st_uid == os.getuid()
    return ours and isinstance(who.get("slurm"), dict) and is_over(who["slurm"])  # type: ignore[arg-type]


def _locked(folder: Path, stage: str) -> TextIO:
    """Return the lock file, locked for as long as it is open."""
    while True:
        handle = open(folder / LOCK, "a+", encoding="utf-8")  # noqa: SIM115 - the caller closes it
        try:
            # Unlike flock's, this lock is not inherited by loader processes, which may outlive a killed stage.
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            handle.close()
            who = holder(folder) or {}
            if not _lost(folder, who):
                raise AlreadyRunning(
                    f"stage {stage} is already running",
                    where=folder,
                    got=f"its lock is held by {describe(who)}",
                    fix="wait for that process or stop it",
                ) from error
            print(f"taking the place of {describe(who)}, which Slurm has given up", flush=True)
            return _new_lock(folder)
        if os.path.exists(folder / LOCK) and os.path.samestat(os.fstat(handle.fileno()), os.stat(folder / LOCK)):
            _sign(handle)
            return handle
        handle.close()  # another process has put its own file in the place of this one


def _new_lock(folder: Path) -> TextIO:
    """Put a new file in the place of one whose lock a lost process holds."""
    fresh = folder / f"{LOCK}.{uuid.uuid4().hex[:8]}"
    handle = open(fresh, "x+", encoding="utf-8")  # noqa: SIM115 - the caller closes it
    fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    _sign(handle)
    os.replace(fresh, folder / LOCK)
    return handle


def _sign(handle: TextIO) -> None:
    """Write who holds the lock."""
    who: dict[str, Any] = {"host": platform.node(), "pid": os.getpid(), "slurm": execution()}
    handle.truncate(0)
    json.dump({**who, "since": datetime.now().isoformat(" ", "seconds")}, handle)
    handle.flush()
