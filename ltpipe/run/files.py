"""Atomic writes, attempts that fence each other off, and checksums, shared by all stages. Standard library only."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ltpipe.errors import UserError

ATTEMPT = ".attempt-"
_FENCE_SECONDS = 30.0
Changing = Callable[[Path, Path | None], None]


class Overtaken(UserError):
    """Another attempt of the same stage has begun: this one can no longer change the results."""


class _Attempt:
    """The folder through which this process changes the results of its stage; ``path`` is None outside a stage.

    ``changing`` is told of each change just before it takes effect.
    """

    path: Path | None = None
    changing: Changing | None = None


@contextmanager
def attempt(folder: Path, changing: Changing | None = None) -> Iterator[Path]:
    """Make this process the only one that can change the results in a folder.

    Inside, :func:`atomic_path` and :func:`discard` reach the results only by renames out of and into a folder of this
    attempt, and the folders of all earlier attempts are removed first. Whatever an earlier attempt still does then
    fails, at the file server itself: also a rename that hung in a lost connection and is sent again hours later, which
    no check of a token beforehand would stop. This needs no locks.

    Resume state may be written in place: earlier attempts of the same key write the same content.

    Args:
        folder: The stage's results.
        changing: Called with a file or folder below ``folder`` that is about to be replaced or removed, and with what
            comes in its place, if anything.

    Raises:
        UserError: The folder of an earlier attempt cannot be removed.
        Overtaken: At the end of the block, instead of its own error, if a later attempt has begun meanwhile.
    """
    own = folder / f"{ATTEMPT}{platform.node()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    own.mkdir(parents=True)
    try:
        for other in folder.glob(f"{ATTEMPT}*"):
            if other != own:
                _remove(other)
        _Attempt.path, _Attempt.changing = own, changing
        yield own
    except Exception as error:
        if own.is_dir() or isinstance(error, Overtaken):
            raise
        raise _overtaken(folder) from error
    finally:
        _Attempt.path = _Attempt.changing = None
        shutil.rmtree(own, ignore_errors=True)


def _remove(other: Path) -> None:
    """Remove the folder of an earlier attempt, which may go on creating files in it."""
    gone = other.with_name(f"{ATTEMPT}gone-{uuid.uuid4().hex[:8]}")
    with suppress(FileNotFoundError):
        # Takes effect at once where the other process is on this host. On another host that knows the folder under its
        # old name for a while, only its removal does.
        other.rename(gone)
    end = time.monotonic() + _FENCE_SECONDS
    while gone.exists():
        shutil.rmtree(gone, ignore_errors=True)
        if time.monotonic() > end:
            raise UserError(
                "an earlier attempt still writes here",
                where=gone,
                fix="stop its process, or remove this folder by hand",
            )
        time.sleep(0.01)


def _overtaken(folder: Path) -> Overtaken:
    return Overtaken(
        "another attempt of this stage has begun elsewhere",
        where=folder,
        got="this one can no longer change the results",
        fix="nothing to do: the later attempt continues from the last state",
    )


def _own_folder(path: Path) -> Path | None:
    """Folder of this attempt, if it is for the results that a path belongs to."""
    own = _Attempt.path
    return own if own is not None and Path(os.path.abspath(path)).is_relative_to(os.path.abspath(own.parent)) else None


def _tell(own: Path | None, path: Path, new: Path | None) -> None:
    """Tell of a change of this attempt's results."""
    if own is not None and _Attempt.changing is not None:
        if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(own)):
            _Attempt.changing(path, new)


def discard(path: Path) -> None:
    """Remove a file or folder at once, as a whole; a missing one is fine.

    Raises:
        Overtaken: A later attempt of this stage has begun.
    """
    own = _own_folder(path)
    gone = (own or path.parent) / f".{path.name}.{uuid.uuid4().hex[:8]}.part"
    if path.exists():
        _tell(own, path, None)
    try:
        path.rename(gone)
    except FileNotFoundError:
        if own is not None and not own.is_dir():
            raise _overtaken(own.parent) from None
        return
    if gone.is_dir():
        shutil.rmtree(gone, ignore_errors=True)
    else:
        gone.unlink(missing_ok=True)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path on the same disk; on success flush it and rename it over ``path``.

    A reader sees the old content or the new, never a part. On an exception the temporary file (or folder) is removed
    and an existing ``path`` stays as it was.

    Args:
        path: The final file. Its folder is created.

    Raises:
        UserError: The disk is full or not writable.
        Overtaken: A later attempt of this stage has begun.
    """
    final = Path(path)
    own = _own_folder(final)
    temporary = (own or final.parent) / f".{final.name}.{uuid.uuid4().hex[:8]}.part{final.suffix}"
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if temporary.is_file():
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
        _tell(own, final, temporary)
        os.replace(temporary, final)
    except OSError as error:
        if own is not None and not own.is_dir():
            raise _overtaken(own.parent) from error
        raise UserError(
            "cannot write a result",
            where=final,
            got=error.strerror or str(error),
            fix="free disk space or check the folder's permissions, then run the stage again: earlier results are kept",
        ) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with suppress(OSError):
                temporary.unlink()


def move(source: Path, target: Path) -> None:
    """Rename a file or folder over ``target``, which may exist.

    Raises:
        UserError: The disk is not writable.
        Overtaken: A later attempt of this stage has begun.
    """
    with atomic_path(target) as temporary:
        source.rename(temporary)
        if target.is_dir():
            discard(target)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as hexadecimal text."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
