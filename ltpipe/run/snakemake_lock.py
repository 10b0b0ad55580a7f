"""Locks that a killed Snakemake leaves behind.

Snakemake notes the files of a run in ``.snakemake/locks`` and refuses to start while a note names them; a Snakemake
that is killed leaves its notes for ever. Every Snakemake of ltpipe therefore also holds a lock of the kernel, which
ends with its process: when nobody holds it, the notes belong to nobody.
"""

from __future__ import annotations

import fcntl
import os
import platform
import sys
from datetime import datetime
from getpass import getuser
from pathlib import Path
from typing import IO

from ltpipe.errors import UserError

FOLDER = Path(".snakemake")
LOCK = "ltpipe.lock"


def check_owner(folder: Path = FOLDER) -> None:
    """Refuse to work in the results of somebody else, without changing anything.

    Args:
        folder: Snakemake's folder.

    Raises:
        UserError: There is no permission to write there.
    """
    file = folder / LOCK
    places = [file, folder] if file.exists() else [folder] if folder.exists() else [folder.parent]
    if not all(os.access(path, os.W_OK) for path in places):
        raise _of_another(folder)


def hold_run_lock(folder: Path = FOLDER) -> IO[str] | None:
    """Remove the notes of dead Snakemakes, and show others that this one lives.

    Args:
        folder: Snakemake's folder.

    Returns:
        The open lock file, which the process must keep; None where the file system has no locks.

    Raises:
        UserError: The folder is another user's.
    """
    file = folder / LOCK
    try:
        folder.mkdir(exist_ok=True)
        handle = open(file, "a+", encoding="utf-8")
    except PermissionError:
        raise _of_another(folder) from None
    try:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            # Snakemake's own notes say whether both can run.
            handle.seek(0)
            print(f"Another Snakemake works in this folder: {handle.read().strip()}", file=sys.stderr)
        else:
            for note in (folder / "locks").glob("*.lock"):
                note.unlink()
        fcntl.lockf(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        handle.truncate(0)
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        handle.write(f"{getuser()} on {platform.node()}, pid {os.getpid()}, since {since}")
        handle.flush()
    except OSError:
        handle.close()
        return None
    return handle


def _of_another(folder: Path) -> UserError:
    file = folder / LOCK
    return UserError(
        "these results belong to another user",
        where=folder.absolute(),
        got=f"no permission to write; the owner is {_owner(file if file.exists() else folder.parent)}",
        fix="work in a clone of your own, or let the owner give your group write access to the whole folder",
    )


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except KeyError:
        return f"user {path.stat().st_uid}"
