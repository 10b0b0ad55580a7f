"""Locks that a killed Snakemake leaves behind.

Snakemake notes the files of a run in ``.snakemake/locks`` and refuses to start while a note names them; a Snakemake
that is killed leaves its notes for ever. Every Snakemake of ltpipe therefore also holds a lock of the kernel, which
ends with its process: when nobody holds it, the notes belong to nobody.
"""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

FOLDER = Path(".snakemake")


def hold_run_lock(folder: Path = FOLDER) -> IO[str] | None:
    """Remove the notes of dead Snakemakes, and show others that this one lives.

    Args:
        folder: Snakemake's folder.

    Returns:
        The open lock file, which the process must keep; None where the file system has no locks.
    """
    folder.mkdir(exist_ok=True)
    handle = open(folder / "ltpipe.lock", "a+")
    try:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            # Another one runs; Snakemake's own notes say whether both can.
            pass
        else:
            for note in (folder / "locks").glob("*.lock"):
                note.unlink()
        fcntl.lockf(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        return None
    return handle
