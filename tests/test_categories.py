"""Classes are matched by id and name; a difference is shown class by class."""

from __future__ import annotations

from typing import Any

import pytest

from ltpipe.categories import Categories, check_labels, labels_in, stored_names
from ltpipe.errors import UserError

HERE = Categories((7, 3, 900), ("cat", "dog", "01"), "the data")


def refusal(ids: tuple[int, ...], names: tuple[str, ...], **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        labels_in(Categories(ids, names, "the file"), HERE, where="x.pth", fix="do this", **options)
    return str(caught.value)


def test_another_order_is_permuted() -> None:
    known = Categories((900, 7, 3), ("01", "cat", "dog"), "the file")
    assert labels_in(known, HERE, where="", fix="") == [1, 2, 0]
    more = Categories((1, 900, 7, 3), ("x", "01", "cat", "dog"), "the file")
    assert labels_in(more, HERE, where="", fix="", part=True) == [2, 3, 1]


def test_equal_names_of_two_classes() -> None:
    twice = Categories((1, 2, 3), ("a", "a", "b"), "the data")
    known = Categories((3, 2, 1), ("b", "a", "a"), "the file")
    assert labels_in(known, twice, where="", fix="") == [2, 1, 0]
    with pytest.raises(UserError, match=r"'a' \(id 4\) is not in the data"):
        labels_in(Categories((1, 2, 3, 4), ("a", "a", "b", "a"), "the file"), twice, where="", fix="")


@pytest.mark.parametrize(
    ("ids", "names", "words"),
    [
        ((7, 3, 900), ("cat", "cow", "01"), "id 3 is 'cow' in the file, 'dog' in the data"),
        ((3, 7, 900), ("cat", "dog", "01"), "id 7 is 'dog' in the file, 'cat' in the data; id 3 is 'cat'"),
        ((1, 2, 3), ("cat", "01", "dog"), "'cat' has id 1 in the file, 7 in the data; '01' has id 2"),
        ((7, 3), ("cat", "dog"), "'01' (id 900) is not in the file"),
        ((7, 3, 900, 1), ("cat", "dog", "01", "new"), "'new' (id 1) is not in the data"),
        ((7, 3, 900), ("cat", "dog", "1"), "id 900 is '1' in the file, '01' in the data"),
    ],
)
def test_a_difference_is_shown(ids: tuple[int, ...], names: tuple[str, ...], words: str) -> None:
    text = refusal(ids, names)
    assert words in text and "x.pth" in text and "do this" in text


def test_many_differences_are_counted() -> None:
    many = Categories(tuple(range(20)), tuple(f"c{i}" for i in range(20)), "the data")
    with pytest.raises(UserError, match=r"0 classes, 20 differ: .*'c4' \(id 4\) is not in the file; \.\.\."):
        labels_in(Categories((), (), "the file"), many, where="", fix="")


def test_meta() -> None:
    meta = HERE.meta()
    assert meta == {"category_ids": [7, 3, 900], "dataset_meta": {"classes": ("cat", "dog", "01")}}
    assert Categories.of_checkpoint(meta, "the data") == HERE and Categories.of_checkpoint({}, "") is None
    with pytest.raises(UserError, match="called"):
        Categories.of_checkpoint({"category_ids": [1, 2]}, "x.pth")
    assert stored_names({"CLASSES": ["a"]}) == stored_names({"dataset_meta": {"CLASSES": ("a",)}}) == ("a",)
    assert stored_names({"CLASSES": None}) is None


def test_own_checkpoints() -> None:
    check_labels(HERE.meta(), HERE, "x.pth")
    check_labels({"category_ids": [7, 3, 900]}, HERE, "x.pth")
    with pytest.raises(UserError, match="another order"):
        check_labels({"category_ids": [3, 7, 900]}, HERE, "x.pth")
    for meta in ({}, {"category_ids": [7, 3]}, {**HERE.meta(), "dataset_meta": {"classes": ("a", "dog", "01")}}):
        with pytest.raises(UserError, match=r"run the stage that made it again"):
            check_labels(meta, HERE, "x.pth")


def test_a_split_of_other_annotations() -> None:
    assert HERE.take([3, 7], "the split").names == ("dog", "cat")
    with pytest.raises(UserError, match=r"\[4\]"):
        HERE.take([3, 4], "the split")
