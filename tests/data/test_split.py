"""Class order, phases, and split.json."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from ltpipe.data.split import Split, make_split
from ltpipe.errors import UserError

IDS = np.array([7, 3, 9, 1, 4, 12, 5])
COUNTS = np.array([5, 8, 5, 1, 0, 8, 5])


def test_order_is_by_count_then_file_position() -> None:
    split = make_split(IDS, COUNTS, base_classes=2, step=2)
    expected = sorted(range(len(IDS)), key=lambda i: (-COUNTS[i], i))
    assert split.order.tolist() == IDS[expected].tolist() == [3, 12, 7, 9, 5, 1, 4]
    assert split.counts.tolist() == [8, 8, 5, 5, 5, 1, 0]


def test_phases_partition_the_classes() -> None:
    split = make_split(IDS, COUNTS, base_classes=2, step=2)
    assert split.boundaries == (2, 4, 6, 7)
    assert split.num_phases == 3
    new = [list(split.new_labels(p)) for p in range(4)]
    assert new == [[0, 1], [2, 3], [4, 5], [6]]
    assert [split.classes_known(p) for p in range(4)] == [2, 4, 6, 7]
    for phase, labels in enumerate(new):
        assert (split.phase_of_label[labels] == phase).all()


@pytest.mark.parametrize(
    ("options", "boundaries"),
    [
        ({}, (7,)),
        ({"base_classes": 7, "step": 3}, (7,)),
        ({"base_classes": 7}, (7,)),
        ({"base_classes": 1, "step": 100}, (1, 7)),
        ({"base_classes": 3, "step": 2}, (3, 5, 7)),
        ({"boundaries": [1, 6, 7]}, (1, 6, 7)),
    ],
)
def test_boundaries(options: dict, boundaries: tuple[int, ...]) -> None:
    assert make_split(IDS, COUNTS, **options).boundaries == boundaries


@pytest.mark.parametrize(
    "options",
    [
        {"base_classes": 0, "step": 2},
        {"base_classes": 8, "step": 2},
        {"base_classes": -1, "step": 2},
        {"base_classes": 2, "step": 0},
        {"base_classes": 2, "step": -3},
        {"base_classes": 2},
        {"step": 2},
        {"boundaries": []},
        {"boundaries": [0, 7]},
        {"boundaries": [3, 3, 7]},
        {"boundaries": [5, 3, 7]},
        {"boundaries": [3, 6]},
        {"boundaries": [3, 9]},
        {"boundaries": [3, 7], "base_classes": 3},
    ],
)
def test_refused(options: dict) -> None:
    with pytest.raises(UserError):
        make_split(IDS, COUNTS, **options)


def test_no_classes_and_no_such_phase() -> None:
    with pytest.raises(UserError, match="no classes"):
        make_split([], [])
    with pytest.raises(UserError, match="no such phase"):
        make_split(IDS, COUNTS, base_classes=2, step=2).classes_known(4)


def test_labels_of() -> None:
    split = make_split(IDS, COUNTS)
    assert_array_equal(split.labels_of(split.order), np.arange(7))
    assert_array_equal(split.labels_of([12, 100, 4, 0, 2]), [1, -1, 6, -1, -1])
    assert split.labels_of([]).shape == (0,)


def test_file(tmp_path: Path) -> None:
    split = make_split(IDS, COUNTS, base_classes=2, step=2, dataset="toy", annotation_sha256="ab")
    path = tmp_path / "split.json"
    split.save(path)
    content = json.loads(path.read_text())
    assert content.keys() == {"dataset", "annotation_sha256", "order", "counts", "boundaries", "tie_break"}
    assert content["tie_break"] == "file_order"
    again = Split.load(path)
    assert_array_equal(again.order, split.order)
    assert_array_equal(again.counts, split.counts)
    assert (again.boundaries, again.dataset, again.annotation_sha256) == (split.boundaries, "toy", "ab")
    assert again.digest == split.digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["split.json"]


def test_digest_depends_on_what_labels_mean() -> None:
    split = make_split(IDS, COUNTS, base_classes=2, step=2)
    assert make_split(IDS, COUNTS * 2, base_classes=2, step=2, dataset="other").digest == split.digest
    assert make_split(IDS, COUNTS, base_classes=2, step=3).digest != split.digest
    assert make_split(IDS[::-1], COUNTS[::-1], base_classes=2, step=2).digest != split.digest


@pytest.mark.parametrize(
    "change",
    [{"order": [1, 1, 2]}, {"counts": [1]}, {"boundaries": [2]}, {"boundaries": None}, {"order": [[1], [2], [3]]}],
)
def test_damaged_file(tmp_path: Path, change: dict) -> None:
    path = tmp_path / "split.json"
    with pytest.raises(UserError, match="no class split"):
        Split.load(path)
    good = {"dataset": "", "annotation_sha256": "", "order": [1, 2, 3], "counts": [3, 2, 1], "boundaries": [1, 3]}
    path.write_text(json.dumps(good))
    Split.load(path)
    path.write_text(json.dumps(good | change))
    with pytest.raises(UserError, match="damaged class split"):
        Split.load(path)
    path.write_text("{")
    with pytest.raises(UserError, match="damaged class split"):
        Split.load(path)
