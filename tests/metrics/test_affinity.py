"""Likeness of the classes: the table, the files, the section of the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.image import imread

from ltpipe.metrics.class_affinity import Affinity, load_affinity, neighbours, save_affinity
from ltpipe.report.build import draw_affinities
from ltpipe.report.sections_affinity import affinity

CLASSES = pd.DataFrame(
    {
        "category_id": [3, 5, 8, 9],
        "name": ["cat", "yak & co", "car", "bus"],
        "image_count": [300, 4, 200, 50],
        "instance_count": [310, 900, 220, 60],
        "frequency": ["f", "r", "f", "c"],
    }
)
IDS = np.array([9, 3, 5, 8])  # label order
COSINE = np.array([[1, 0.2, 0.5, 0.9], [0.2, 1, 0.7, 0.1], [0.5, 0.7, 1, 0], [0.9, 0.1, 0, 1]], np.float32)
NEAREST = np.array([[3, 2], [2, -1], [1, 0], [-1, -1]])


def table() -> pd.DataFrame:
    similarity = np.take_along_axis(COSINE, np.maximum(NEAREST, 0), axis=1)
    return neighbours(NEAREST, similarity, np.array([1.0, 2.0, 3.5, 4.0], np.float32), IDS, CLASSES)


def test_neighbours_by_name() -> None:
    found = table()
    assert found["category_id"].tolist() == [9, 9, 3, 5, 5, 8]
    assert found["neighbour"].tolist()[:-1] == ["car", "yak & co", "yak & co", "cat", "bus"]
    assert found["neighbour_id"].tolist()[:-1] == [8, 5, 5, 3, 9] and pd.isna(found["neighbour_id"].iloc[-1])
    assert found["neighbour_frequency"].tolist()[:-1] == ["f", "r", "r", "f", "c"]
    np.testing.assert_allclose(found["cosine"].iloc[:-1], [0.9, 0.5, 0.7, 0.7, 0.5])
    assert found["train_instances"].tolist() == [60, 60, 310, 900, 900, 220]
    assert found["effective"].tolist() == [1.0, 1.0, 2.0, 3.5, 3.5, 4.0]


def test_files_and_order(tmp_path: Path) -> None:
    save_affinity(tmp_path / "affinity.csv", table(), COSINE, IDS)
    found = load_affinity(tmp_path / "affinity.csv", "one", "base")
    pd.testing.assert_frame_equal(found.table, table(), check_dtype=False)
    # cat, car, bus, yak: by group and images, not by instances
    order = [1, 3, 0, 2]
    np.testing.assert_array_equal(found.cosine, COSINE[order][:, order])


def test_section_and_figure(tmp_path: Path) -> None:
    save_affinity(tmp_path / "affinity.csv", table(), COSINE, IDS)
    one = load_affinity(tmp_path / "affinity.csv", "one", "base")
    figures = draw_affinities(tmp_path, [one])
    assert list(figures) == ["affinity.one.base"] and imread(figures["affinity.one.base"]).std() > 0.05
    text = "".join(affinity([one], figures))
    assert text.count("<tr>") == 1 + 4 and "one: base" in text and "data:image/png" in text
    assert text.index(">bus<") < text.index(">car<") < text.index(">cat<") < text.index(">yak &amp; co<")
    assert "cat (0.70), bus (0.50)" in text and "none seen in training" in text
    assert affinity([], {}) == [] and draw_affinities(tmp_path, []) == {}
    plain = "".join(affinity([Affinity("one", "base", one.table, one.cosine)], {}))
    assert "<img" not in plain
