"""Checksums of files, remembered while a file's size, times and inode stay as they were. Standard library only."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ltpipe.errors import UserError
from ltpipe.run.files import sha256_file, write_json

CACHE = Path(".ltpipe")
# Smaller files are read again each time, which costs less than the note about them.
SMALL = 1 << 16
# A second change within one tick of the file system's clock leaves no trace in the times. Those that count in
# nanoseconds tick at least a hundred times a second, the coarsest every two seconds.
_TICK_NS, _COARSE_TICK_NS = 20 * 10**6, 2 * 10**9


def checksum(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file; it is read only if it may have changed since the last time.

    The time of the last change of the inode counts as well: unlike that of the content no program can set it.

    Args:
        path: The file.
    """
    if os.stat(path).st_size < SMALL:
        return sha256_file(path)
    return str(remembered(Path(path), "checksums", sha256_file))


def remembered(path: Path, kind: str, compute: Callable[[Path], Any]) -> Any:
    """Return what follows from the content of a file, from a note in :data:`CACHE` or computed anew.

    Args:
        path: The file.
        kind: Name for what is computed.
        compute: Computes it, a value of JSON.
    """
    settled = _settled(path)
    before = _fingerprint(path)
    name = hashlib.sha256(os.path.abspath(path).encode()).hexdigest()[:16]
    note = CACHE / kind / f"{path.stem}-{name}.json"
    with suppress(OSError, ValueError, TypeError, KeyError):
        kept = json.loads(note.read_text(encoding="utf-8"))
        if kept["source"] == before:
            return kept["value"]
    value = compute(path)
    if settled and _fingerprint(path) == before:
        with suppress(OSError, UserError):  # in a project of somebody else, say: then it is computed each time
            write_json(note, {"source": before, "value": value})
    return value


def _fingerprint(path: Path) -> dict[str, Any]:
    stat = os.stat(path)
    times = {"mtime_ns": stat.st_mtime_ns, "ctime_ns": stat.st_ctime_ns}
    return {"file": os.path.abspath(path), "size": stat.st_size, **times, "inode": stat.st_ino}


def _settled(path: Path) -> bool:
    """Whether every later change of a file will show in its times; waits for that if it takes a moment only."""
    changed = os.stat(path).st_ctime_ns
    tick = _TICK_NS if changed % 10**6 else _COARSE_TICK_NS
    left = tick - (time.time_ns() - changed)
    if 0 < left <= _TICK_NS:
        time.sleep(left / 1e9)
    return left <= _TICK_NS
