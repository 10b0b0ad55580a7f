"""Checksums are remembered, and every change of a file shows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ltpipe.run import checksums
from ltpipe.run.checksums import SMALL, checksum
from ltpipe.run.files import sha256_file


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the files that are read, in a project of their own."""
    monkeypatch.chdir(tmp_path)
    names: list[str] = []

    def counted(path: Path) -> str:
        names.append(Path(path).name)
        return sha256_file(path)

    monkeypatch.setattr(checksums, "sha256_file", counted)
    yield names


def large(text: str) -> bytes:
    return text.encode() * (SMALL // len(text) + 1)


def test_a_file_is_read_once(read: list[str]) -> None:
    file = Path("a.json")
    file.write_bytes(large("one "))
    assert checksum(file) == checksum(file.absolute()) == sha256_file(file)
    assert read == ["a.json"]
    file.touch()
    assert checksum(file) == checksum(file) == sha256_file(file)
    assert read == ["a.json", "a.json"], "a touched file costs a checksum, once"


@pytest.mark.parametrize("way", ["in place", "moved over", "older", "cut"])
def test_every_change_shows_whatever_the_time(read: list[str], way: str) -> None:
    file, other = Path("a.json"), Path("b.json")
    file.write_bytes(large("one "))
    checksum(file)
    before = file.stat()
    if way == "in place":
        file.write_bytes(large("two "))
    elif way == "cut":
        os.truncate(file, SMALL)
    else:
        other.write_bytes(large("two "))
        other.rename(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns - (way == "older")))
    assert checksum(file) == sha256_file(file)
    assert read == ["a.json", "a.json"]


def test_two_changes_at_the_same_moment(read: list[str]) -> None:
    file = Path("a.json")
    for number in range(20):
        file.write_bytes(large(f"{number:4d} "))
        assert checksum(file) == sha256_file(file)


def test_a_project_that_cannot_be_written(read: list[str]) -> None:
    Path(".ltpipe").write_text("no folder")
    file = Path("a.json")
    file.write_bytes(large("one "))
    assert checksum(file) == checksum(file) == sha256_file(file)


def test_damaged_notes_are_passed_over(read: list[str]) -> None:
    file = Path("a.json")
    file.write_bytes(large("one "))
    checksum(file)
    (note,) = Path(".ltpipe/checksums").iterdir()
    for text in ("", "{", "[]", "{}"):
        note.write_text(text)
        assert checksum(file) == sha256_file(file)
