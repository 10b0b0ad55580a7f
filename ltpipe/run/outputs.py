"""Files that commands write where the user says. What ltpipe did not make, or was changed since, is never replaced.

What ltpipe made is known by a record beside it: ``X.record.json`` for a file ``X``, ``record.json`` in a folder, with
the SHA-256 of every file. The results of stages have records of their own (``stage.json``) and are not for commands to
replace either. Standard library only.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from ltpipe.errors import UserError
from ltpipe.run.files import ATTEMPT, attempt, sha256_file, write_json

RECORD = "record.json"
MADE_BY = "made_by"
UNCHANGED = "Nothing was changed"


class NotOurs(UserError):
    """What lies where a command would write is not ltpipe's, or not as ltpipe made it."""


class Output:
    """A file, or some files in a folder, that a command makes; checked before any work is done, and again at the end.

    Args:
        target: The file; or the folder, which is new, empty or was made by the same command.
        command: The command, e.g. ``make-lt``.
        inputs: What it reads; None is left out.
        names: Files below the folder that are known before, in the order in which they appear, after any others; None:
            the target is a file.
        at_once: Check at once. Otherwise a file without a record passes if it is what the command makes.

    Raises:
        NotOurs: Something lies there that ltpipe did not make, or that was changed since.
        UserError: The output is an input, by whatever name, or lies inside one.
    """

    def __init__(
        self,
        target: Path,
        command: str,
        *,
        inputs: Iterable[Path | None] = (),
        names: Sequence[str] | None = None,
        at_once: bool = True,
    ) -> None:
        self.target, self._made_by = target, f"ltpipe {command}"
        self._inputs = [one for one in inputs if one is not None]
        if names is None and target.is_dir():
            raise NotOurs("a folder lies where a file is to be written", where=target, fix="name a file")
        if names is not None and os.path.lexists(target) and not target.is_dir():
            self._refuse_input(target)
            raise NotOurs("a file lies where a folder is to be written", where=target, fix="name a folder")
        self._folder, self._names = (target.parent, (target.name,)) if names is None else (target, names)
        self.record_file = target.with_name(f"{target.name}.{RECORD}") if names is None else target / RECORD
        self.record: dict[str, Any] = {}
        if at_once:
            self._check()

    @contextmanager
    def write(self, facts: Mapping[str, Any] | None = None) -> Iterator[Path]:
        """Yield a temporary file, or folder, to write to; on success it takes the place of what ltpipe made before.

        Each file appears as a whole. After a kill the same command starts again: the record names a file before it
        appears. Other files in the folder stay; those that ltpipe made before and does not make now go.

        Args:
            facts: What the record says beside the checksums; read at the end.

        Raises:
            NotOurs: As above, if that has changed meanwhile.
            UserError: The disk is full or not writable.
            Overtaken: The same folder is written by a later command.
        """
        new = not self._folder.exists()
        try:
            with self._staged() as staged:
                yield staged
                self._put(self._found(staged), facts or {})
        except OSError as error:
            raise UserError(
                "cannot write a result",
                where=self.target,
                got=error.strerror or str(error),
                fix="free disk space or check the folder's permissions, then run the command again",
            ) from error
        finally:
            if new and self._folder.is_dir() and not any(self._folder.iterdir()):
                self._folder.rmdir()

    @contextmanager
    def _staged(self) -> Iterator[Path]:
        if self._folder == self.target:
            with attempt(self.target) as own:
                staged = own / "new"
                staged.mkdir()
                yield staged
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        staged = self._folder / f".{self.target.name}.{uuid.uuid4().hex[:8]}.part{self.target.suffix}"
        try:
            yield staged
        finally:
            staged.unlink(missing_ok=True)

    def _found(self, staged: Path) -> dict[str, Path]:
        """Return what was made, by name."""
        if self._folder != self.target:
            return {self.target.name: staged}
        order = {name: place for place, name in enumerate(self._names, 1)}
        found = {path.relative_to(staged).as_posix(): path for path in staged.rglob("*") if path.is_file()}
        return {name: found[name] for name in sorted(found, key=lambda name: (order.get(name, 0), name))}

    def _put(self, made: Mapping[str, Path], facts: Mapping[str, Any]) -> None:
        """Move what was made to its place. The record holds the old and the new checksums until all of it is there."""
        now = {name: sha256_file(file) for name, file in made.items()}
        before = self._check(now)
        self.record = {MADE_BY: self._made_by, **facts, "files": now}
        write_json(self.record_file, {**self.record, "replaces": before})
        for name, file in made.items():
            place = self._folder / name
            if before.get(name) != now[name]:
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, place)
        for name in before.keys() - now.keys():
            (self._folder / name).unlink(missing_ok=True)
        write_json(self.record_file, self.record)

    def _check(self, now: Mapping[str, str] | None = None) -> dict[str, str]:
        """Refuse to replace what is not ours and not what is made ``now``; return the checksums of what is there."""
        known, there = self._known(), dict[str, str]()
        if self._folder == self.target and not os.path.lexists(self.record_file):
            self._refuse_others()
        for name in sorted({*known, *self._names, *(now or {})}):
            place = self._folder / name
            self._refuse_input(place)
            if not os.path.lexists(place):
                continue
            plain = place.is_file() and not place.is_symlink()
            there[name] = sha256_file(place) if plain else ""
            if there[name] not in (*known.get(name, ()), (now or {}).get(name)):
                raise self._not_ours(place, "a link, folder or device" if not plain else "a file", name in known)
        self._refuse_input(self.record_file)
        return there

    def _refuse_others(self) -> None:
        others = os.listdir(self.target) if self.target.is_dir() else []
        found = sorted(name for name in others if not name.startswith(ATTEMPT))
        if found:
            got = f"{', '.join(found[:3])}; no {RECORD}"
            raise NotOurs(
                "the folder holds other files", where=self.target, got=got, fix=f"name a new one. {UNCHANGED}"
            )

    def _known(self) -> dict[str, tuple[str, ...]]:
        """Checksums by name that a file of ours may have; two while it is being replaced."""
        if not os.path.lexists(self.record_file):
            return {}
        try:
            record = json.loads(self.record_file.read_text(encoding="utf-8"))
            made_by = record[MADE_BY]
            sets = [dict(record["files"]), dict(record.get("replaces", {}))]
            safe = all(_below(name) and isinstance(value, str) for files in sets for name, value in files.items())
        except (OSError, ValueError, TypeError, KeyError):
            made_by, sets, safe = None, [], False
        if not safe or made_by != self._made_by or self.record_file.is_symlink():
            raise NotOurs(
                f"the record is not one of {self._made_by!r}",
                where=self.record_file,
                got=f"made by {made_by!r}" if safe else "something else, or a damaged record",
                fix=f"write elsewhere, or move it and what it describes away. {UNCHANGED}",
            )
        return {name: tuple(files[name] for files in sets if name in files) for name in sets[0].keys() | sets[1].keys()}

    def _not_ours(self, place: Path, kind: str, named: bool) -> NotOurs:
        what = "a file has changed since ltpipe made it" if named else "ltpipe did not make what lies here"
        got = f"{kind} {'with another checksum than in' if named else 'not named in'} {self.record_file}"
        return NotOurs(what, where=place, got=got, fix=f"write elsewhere, or move it away. {UNCHANGED}")

    def _refuse_input(self, place: Path) -> None:
        for given in self._inputs:
            if _same(place, given) or (given.is_dir() and any(_same(above, given) for above in _above(place))):
                raise UserError(
                    "the output is an input of the command, or lies inside one",
                    where=place,
                    got=f"{given}, which is read",
                    fix=f"write elsewhere. {UNCHANGED}",
                )


def _below(name: str) -> bool:
    return not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts


def _same(one: Path, other: Path) -> bool:
    """Whether two paths mean one file: through links, hard links and spellings that the file system takes for equal."""
    if one.exists() and other.exists():
        return os.path.samefile(one, other)
    return os.path.realpath(one) == os.path.realpath(other)


def _above(place: Path) -> Sequence[Path]:
    return Path(os.path.realpath(place)).parents
