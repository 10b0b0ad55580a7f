"""Files that are no files, end early, or hold something else than their reader asks for: one clear error, at once."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from ltpipe import input_files
from ltpipe.config.class_list import read_class_list
from ltpipe.data.findings import Findings
from ltpipe.data.long_tail import read_targets
from ltpipe.data.readers import READERS
from ltpipe.data.store import AnnotationStore
from ltpipe.errors import UserError
from ltpipe.input_files import map_input, read_bytes, read_json_input, read_text, release
from ltpipe.interop.read_detections import read_results
from ltpipe.interop.safe_reading import is_torch_file
from ltpipe.run.records import read_json, read_record, recorded_outputs
from tests.helpers.limits import limited

READ = {
    "annotations": lambda path: READERS["coco"](path, Findings()),
    "detections": read_results,
    "class list": read_class_list,
    "target counts": read_targets,
    "checkpoint": is_torch_file,
}


@pytest.mark.parametrize("kind", READ)
@pytest.mark.parametrize("what", ["a pipe", "a folder", "a device", "nothing"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, kind: str, what: str) -> None:
    path = tmp_path / "input"
    if what == "a pipe":
        os.mkfifo(path)
    elif what == "a folder":
        path.mkdir()
    elif what == "a device":
        path = Path("/dev/zero")
    found = limited(lambda: READ[kind](path))
    assert found.kind == "refused" and str(path) in found.text, found
    assert (what if what != "nothing" else "No such file") in found.text


@pytest.mark.parametrize("size", [1000, 3 << 20])
def test_a_file_that_is_cut_off_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    file = tmp_path / "train.json"
    file.write_bytes(b"x" * size)
    real = input_files.open_input

    @contextmanager
    def cut(path: Path, *arguments: Any, **options: Any) -> Iterator[IO[bytes]]:
        with real(path, *arguments, **options) as handle:

            class Cut(io.BytesIO):
                def fileno(self) -> int:
                    return handle.fileno()

            yield Cut(b"x" * (size - 600))

    monkeypatch.setattr(input_files, "open_input", cut)
    with pytest.raises(UserError, match="cut off while it was read") as caught:
        READERS["coco"](file, Findings())
    assert f"{size - 600} of {size} bytes" in str(caught.value)


def test_a_file_that_is_cut_off_later_is_read_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    text = b"[" + b" " * (3 << 20) + b"]"
    file.write_bytes(text)
    content = map_input(file, "the file")
    os.truncate(file, 10)
    release(content)
    assert content[:] == text


def test_no_space_for_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "results.json"
    file.write_bytes(b" " * (3 << 20))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(input_files.shutil, "copyfileobj", full)
    with pytest.raises(UserError, match="No space left") as caught:
        map_input(file, "the file")
    assert "TMPDIR" in str(caught.value)


def test_sizes_and_encodings(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbfa\n")
    assert read_text(file, "the file") == "a\n"
    file.write_bytes(b"a" * 11)
    assert read_bytes(file, "the file", limit=11) == b"a" * 11
    with pytest.raises(UserError, match="the file is too large"):
        read_bytes(file, "the file", limit=10)
    file.write_bytes(b"a\n\xe4")
    with pytest.raises(UserError, match="bytes in line 2"):
        read_text(file, "the file")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 200_000, "lists in lists without end"),
        ("{", "is not JSON"),
        ("[1]", "is not what it should be"),
        ('{"a": {"b": 1}}', "is not what it should be"),
    ],
)
def test_json_of_another_shape(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "a.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=words):
        read_json_input(file, "the file", dict[str, int])


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "7", '"x"', "[" * 200_000, "{}", '{"digest": 1, "inputs": {}, "outputs": {}}']
    + ['{"digest": "d", "inputs": [], "outputs": {}}', '{"digest": "d", "inputs": {}, "outputs": {"a": 1}}']
    + ['{"digest": "d", "inputs": {}, "outputs": {}, "place": "here"}', "\udce4"],
)
def test_a_damaged_record_is_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "stage.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert read_record(file) is None and recorded_outputs(file) == {}
    assert read_json(file) is None or isinstance(read_json(file), dict)


def test_a_record_of_a_folder_or_pipe_is_none(tmp_path: Path) -> None:
    (tmp_path / "stage.json").mkdir()
    os.mkfifo(tmp_path / "pipe.json")
    assert read_record(tmp_path / "stage.json") is None
    assert limited(lambda: read_record(tmp_path / "pipe.json")).kind == "done"


def test_a_record_that_cannot_be_read_for_now_is_not_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_record(tmp_path / "stage.json") is None
    (tmp_path / "stage.json").write_text("{}", encoding="utf-8")

    def stale(*_: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(input_files.os, "open", stale)
    with pytest.raises(UserError, match="Stale file handle"):
        read_record(tmp_path / "stage.json")


@pytest.mark.parametrize("text", ["[]", "null", "7", '{"store_version": []}', "[" * 100_000])
def test_a_damaged_description_of_a_store(tmp_path: Path, text: str) -> None:
    (tmp_path / "info.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError):
        AnnotationStore.open(tmp_path)
