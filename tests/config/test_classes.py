"""Class lists and categories without reading the whole file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ltpipe.config.class_list import annotation_categories, read_class_list, scan_categories
from ltpipe.errors import UserError
from tests.helpers.small_project import write_annotations


def test_scan_equals_parsing(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_annotations(file, [f"name {i} é" for i in range(3000)])
    assert scan_categories(file) == json.loads(file.read_text())["categories"]


def test_scan_grows_its_window(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    categories = [{"id": i, "name": "x" * 1000} for i in range(5000)]
    file.write_text(json.dumps({"categories": categories, "images": []}))
    assert scan_categories(file) == categories


def test_no_categories(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"images": [1, 2, 3]}')
    with pytest.raises(UserError, match="no categories"):
        scan_categories(file)
    file.write_text("")
    with pytest.raises(UserError, match="no categories"):
        scan_categories(file)


def test_the_memory_of_categories_follows_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "a.json"
    write_annotations(file, ["a", "b"])
    assert [c["name"] for c in annotation_categories(file)] == ["a", "b"]
    monkeypatch.setattr("ltpipe.config.class_list.scan_categories", lambda path: pytest.fail("read again"))
    assert len(annotation_categories(file)) == 2
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    write_annotations(file, ["a", "b", "c"])
    assert len(annotation_categories(file)) == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [("[", "not JSON"), ("[]", "empty"), ('[{"id": 1}]', "no name"), ('{"id": 1}', "no name"), ("[3]", "no id")],
)
def test_bad_class_lists(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "classes.json"
    file.write_text(text)
    with pytest.raises(UserError, match=words):
        read_class_list(file)
