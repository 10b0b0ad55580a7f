"""Class indices of SimCal: both layouts, and pickles that are refused."""

from __future__ import annotations

import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltpipe.convert.class_index import by_category, read_class_index, write_class_index
from ltpipe.errors import UserError
from ltpipe.plain_pickle import read_plain_pickle


def record(key: int, images: list[Any], instances: int) -> dict[str, Any]:
    """One class; the row numbers are wrong on purpose."""
    return {"category_id": key, "img_id": images, "image_info_id": [999] * len(images), "isntance_count": instances}


def written(path: Path, content: Any, protocol: int = 3) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def test_lvis_layout_has_a_background(tmp_path: Path) -> None:
    content = {0: record(0, [], 0), 1: record(1, [7, 9], 3), 2: record(2, [], 0)}
    for protocol in (2, 3, 4):
        found = read_class_index(written(tmp_path / "a.pt", content, protocol))
        assert [(c.label, c.image_ids, c.instances) for c in found] == [(0, (7, 9), 3), (1, (), 0)]


def test_coco_layout_has_labels_not_category_ids(tmp_path: Path) -> None:
    content = OrderedDict((k, record(k, [np.int64(10 * k), 4], np.int64(2))) for k in (2, 1, 3))
    path = written(tmp_path / "a.pt", content)
    classes = read_class_index(path)
    assert by_category(classes, [90, 1, 13], path) == {1: [10, 4], 13: [20, 4], 90: [30, 4]}
    with pytest.raises(UserError, match="another data set"):
        by_category(classes, [1, 2], path)
    write_class_index(tmp_path / "a.json", classes, [90, 1, 13], "abc")
    stored = json.loads((tmp_path / "a.json").read_text())
    assert stored["annotation_sha256"] == "abc"
    second = {"category_id": 13, "label": 1, "n_instances": 2, "n_images": 2, "image_ids": [20, 4]}
    assert stored["classes"][1] == second


class Harmful:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


def test_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for content in (Harmful(), {1: record(1, [Harmful()], 1)}, {1: Path("a")}):
        with pytest.raises(UserError, match="not a pickle of plain data"):
            read_class_index(written(tmp_path / "a.pt", content))
    with pytest.raises(UserError, match="not a class index"):
        read_class_index(written(tmp_path / "a.pt", {1: np.zeros(3)}))
    assert not Path("executed").exists()


def test_broken_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        read_plain_pickle(tmp_path / "missing.pt")
    (tmp_path / "cut.pt").write_bytes(pickle.dumps({1: record(1, [1], 1)})[:-9])
    with pytest.raises(UserError, match="not a pickle of plain data"):
        read_plain_pickle(tmp_path / "cut.pt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "not a class index"),
        ({}, "not a class index"),
        ({1: {"img_id": []}}, "not a class index"),
        ({1: record(1, [], 0), 3: record(3, [], 0)}, "without gaps"),
        ({0: record(0, [5], 1), 1: record(1, [5], 1)}, "no background"),
        ({1: record(2, [], 0)}, "contradicts itself"),
        ({1: record(1, [5, 5], 2)}, "contradicts itself"),
        ({1: record(1, [5, 6], 1)}, "contradicts itself"),
        ({1: record(1, ["x"], 1)}, "other than numbers"),
    ],
)
def test_other_contents(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_class_index(written(tmp_path / "a.pt", content))
