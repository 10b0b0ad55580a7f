"""Class lists and categories without reading the whole file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ltpipe.config.class_list import annotation_categories, read_class_list
from ltpipe.data.readers.coco import read_categories, read_images
from ltpipe.errors import UserError
from tests.helpers.small_project import write_annotations


def test_categories_are_those_of_the_list(tmp_path: Path) -> None:
    """Not of another list with that name before it, and equal ones once."""
    categories = [{"id": i, "name": f"name {i} é"} for i in range(3000)]
    others = {"info": {"categories": [{"id": 1, "name": "wrong"}]}, "images": [{"id": 1, "categories": []}]}
    file = tmp_path / "a.json"
    file.write_text(json.dumps({**others, "annotations": [{"x": 1}], "categories": [*categories, categories[5]]}))
    assert [{"id": c.id, "name": c.name} for c in read_categories(file)] == categories


def test_only_the_list_at_the_top_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other objects of the file may use the same word, before and after it."""
    monkeypatch.chdir(tmp_path)
    file, other = tmp_path / "a.json", {"categories": [{"id": 7, "name": "of the info"}], "images": [{"id": 1}]}
    right = {"images": [], "annotations": [{**other, "id": 1}], "categories": [{"id": 1, "name": "right"}]}
    for name, content in {"before": {"info": other, **right}, "after": {**right, "info": other}}.items():
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(content))
        assert annotation_categories(file) == [{"id": 1, "name": "right"}]
        assert read_images(file) == []


def test_no_categories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "a.json"
    for text in ('{"images": [1, 2, 3]}', "", '{"categories": []}', '{"categories": 7}'):
        file.write_text(text)
        with pytest.raises(UserError, match="categories|empty"):
            annotation_categories(file)


def test_the_memory_of_categories_follows_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "a.json"
    write_annotations(file, ["a", "b"])
    assert [c["name"] for c in annotation_categories(file)] == ["a", "b"]
    monkeypatch.setattr("ltpipe.config.class_list.read_categories", lambda path: pytest.fail("read again"))
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
