"""Input files, opened in one way: a regular file of a bounded size, or a clear error; and JSON of a stated shape.

A pipe or a device would be waited for without end, and a file of another size than its reader expects takes the memory
of the machine. What is asked here is asked before anything is read.
"""

from __future__ import annotations

import mmap
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

from ltpipe.errors import UserError

Content = TypeVar("Content", mmap.mmap, bytes)
MIB = 1 << 20
SMALL = 64 * MIB
"""Largest file that is read as a whole and is no annotation file: records, class lists, notes, tables of classes."""
IN_MEMORY = MIB
"""Largest annotation or results file that is read into memory."""
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
_MARK = b"\xef\xbb\xbf"
_OTHER_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\xff\xfe\x00\x00": "UTF-32"}


@contextmanager
def open_input(path: str | os.PathLike[str], what: str, *, limit: int | None = None) -> Iterator[IO[bytes]]:
    """Open a regular file to read its bytes.

    Args:
        path: The file.
        what: What it is, for the error, e.g. ``"the class list"``.
        limit: Largest size in bytes; None: any.

    Raises:
        UserError: It cannot be opened, is a folder, pipe or device, or is larger.
    """
    try:
        # A pipe without a writer is not waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise _unreadable(path, what, error) from error
    try:
        _check(os.fstat(descriptor), path, what, limit)
        handle = os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
    with handle:
        yield handle


def read_bytes(path: str | os.PathLike[str], what: str, *, limit: int | None = SMALL) -> bytes:
    """Return the content of a regular file; arguments and errors as :func:`open_input`."""
    with open_input(path, what, limit=limit) as handle:
        return _content(handle, path, what)


def map_input(path: str | os.PathLike[str], what: str) -> mmap.mmap | bytes:
    """Return the content of a file that may be large: mapped, from a copy without a name that takes space on the disk.

    Memory holds the pages that are looked at only, and :func:`release` gives them back. The file itself is not mapped:
    one that somebody cuts off would end the process that looks at it.

    Raises:
        UserError: As :func:`open_input`; or it was cut off while it was read, or there is no space for the copy.
    """
    with open_input(path, what) as handle, tempfile.TemporaryFile() as copy:
        size = os.fstat(handle.fileno()).st_size
        if size <= IN_MEMORY:
            return _whole(_content(handle, path, what), size, path, what)
        try:
            shutil.copyfileobj(handle, copy, 1 << 16)
            copy.flush()
        except OSError as error:
            raise UserError(
                f"no copy of {what} can be made, from which it is read",
                where=tempfile.gettempdir(),
                got=error.strerror,
                fix=f"free {size / MIB:.0f} MiB there, or name another folder in TMPDIR",
            ) from error
        return _whole(mmap.mmap(copy.fileno(), 0, access=mmap.ACCESS_READ), size, path, what)


def release(content: object) -> None:
    """Give the pages of a mapped content back that have been looked at."""
    if isinstance(content, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        content.madvise(mmap.MADV_DONTNEED)


def _content(handle: IO[bytes], path: object, what: str) -> bytes:
    try:
        return handle.read()
    except OSError as error:
        raise _unreadable(path, what, error) from error


def _whole(content: Content, size: int, path: object, what: str) -> Content:
    if len(content) < size:
        raise UserError(
            f"{what} was cut off while it was read",
            where=path,
            got=f"{len(content)} of {size} bytes",
            fix="let whatever writes it end, then run the command again",
        )
    return content


def read_text(path: str | os.PathLike[str], what: str, *, limit: int = SMALL) -> str:
    """Return the content of a regular file as text: UTF-8, with or without a byte order mark.

    Raises:
        UserError: As :func:`open_input`; or it is in another encoding, or no text.
    """
    return decoded(read_bytes(path, what, limit=limit), path, what)


def decoded(content: bytes, where: object, what: str) -> str:
    """Return bytes as text; errors as :func:`read_text`."""
    marked = next((name for mark, name in _OTHER_MARKS.items() if content.startswith(mark)), None)
    try:
        if marked is None and b"\0" not in content:
            return content.removeprefix(_MARK).decode("utf-8")
        got = f"{marked}, by its first bytes" if marked else "zero bytes: UTF-16, or no text at all"
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        got = f"bytes in line {line} that are none: another encoding (Latin-1, Windows-1252), or no text at all"
    raise UserError(f"{what} is not in UTF-8", where=where, got=got, fix="save it as UTF-8, e.g. with iconv -t UTF-8")


def parse_json(content: bytes, where: object, what: str, shape: Any = Any) -> Any:
    """Return the value of a JSON text, checked.

    Args:
        content: The text.
        where: Its file, for the error.
        what: What it is.
        shape: Type, as msgspec understands it: what must be there; other keys of objects may be there, too.

    Raises:
        UserError: It is no JSON, or of another shape.
    """
    try:
        value = msgspec.json.decode(decoded(content, where, what))
        if shape is not Any:
            msgspec.convert(value, shape)
    except RecursionError as error:
        raise UserError(f"{what} cannot be read", where=where, got="lists in lists without end") from error
    except msgspec.ValidationError as error:
        raise UserError(f"{what} is not what it should be", where=where, got=error) from error
    except msgspec.DecodeError as error:
        raise UserError(f"{what} is not JSON", where=where, got=error) from error
    return value


def read_json_input(path: str | os.PathLike[str], what: str, shape: Any = Any, *, limit: int | None = SMALL) -> Any:
    """Return the value of a JSON file; arguments and errors as :func:`open_input` and :func:`parse_json`."""
    return parse_json(read_bytes(path, what, limit=limit), Path(path), what, shape)


def _check(state: os.stat_result, path: object, what: str, limit: int | None) -> None:
    kind = stat.S_IFMT(state.st_mode)
    if kind != stat.S_IFREG:
        raise UserError(f"{what} is no file", where=path, got=_KINDS.get(kind, "something else"), allowed="a file")
    if limit is not None and state.st_size > limit:
        raise UserError(
            f"{what} is too large",
            where=path,
            got=f"{state.st_size / MIB:.1f} MiB",
            allowed=f"at most {limit / MIB:g} MiB: larger ones are something else",
        )


def _unreadable(path: object, what: str, error: OSError | ValueError) -> UserError:
    got = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    shown = str(path)
    return UserError(f"cannot read {what}", where=shown if len(shown) < 500 else f"{shown[:80]}...", got=got)
