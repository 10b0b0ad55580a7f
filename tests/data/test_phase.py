"""Phase views against a naive filter, on the 100-image LVIS sample with degenerate, crowd and ignored boxes."""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from ltpipe.data.phase import PhaseView
from ltpipe.data.split import Split, make_split
from ltpipe.data.store import AnnotationStore
from ltpipe.data.store_writer import build_store
from ltpipe.errors import UserError

SAMPLE = Path(__file__).parent / "lvis_val_100.json"


def make_table(image_ids: Any, category_ids: Any, annotations: list[dict[str, Any]]) -> Any:
    """Return store columns: annotations sorted by image row, given order inside an image."""
    row = {image: i for i, image in enumerate(image_ids)}
    column = {category: i for i, category in enumerate(category_ids)}
    annotations = sorted(annotations, key=lambda a: row[a["image_id"]])
    return SimpleNamespace(
        image_ids=np.array(image_ids),
        image_sizes=np.array([[10, 20 if i % 3 else 5] for i in range(len(image_ids))], dtype=np.int32),
        category_ids=np.array(category_ids),
        ann_ids=np.array([a["id"] for a in annotations]),
        ann_image=np.array([row[a["image_id"]] for a in annotations], dtype=np.int32),
        ann_category=np.array([column[a["category_id"]] for a in annotations], dtype=np.int32),
        ann_bbox=np.array([a["bbox"] for a in annotations], dtype=np.float64),
        ann_iscrowd=np.array([a.get("iscrowd", 0) for a in annotations], dtype=np.bool_),
        ann_ignore=np.array([a.get("ignore", 0) for a in annotations], dtype=np.bool_),
        records=annotations,
    )


@pytest.fixture(scope="module")
def table() -> Any:
    content = json.loads(SAMPLE.read_text())
    rng = np.random.default_rng(0)
    for annotation in content["annotations"]:
        kind = rng.random()
        if kind < 0.15:
            annotation["bbox"][int(rng.integers(2, 4))] = float(rng.choice([0.0, 0.7, 1.0]))
        elif kind < 0.2:
            annotation["iscrowd"] = 1
        elif kind < 0.25:
            annotation["ignore"] = 1
    present = {a["category_id"] for a in content["annotations"]}
    categories = [c["id"] for c in content["categories"] if c["id"] in present]
    return make_table([i["id"] for i in content["images"]], categories, content["annotations"])


@pytest.fixture(scope="module")
def split(table: Any) -> Split:
    return make_split(table.category_ids, np.bincount(table.ann_category), base_classes=100, step=40)


def naive(table: Any, split: Split, phase: int) -> tuple[dict[int, set[int]], list[dict[str, Any]]]:
    """Return image ids per label and the annotations kept, one annotation after another."""
    label = {c: i for i, c in enumerate(split.order[: split.classes_known(phase)].tolist())}
    pairs: dict[int, set[int]] = defaultdict(set)
    for a in table.records:
        usable = a["bbox"][2] > 1 and a["bbox"][3] > 1 and not a.get("iscrowd") and not a.get("ignore")
        if a["category_id"] in label and usable:
            pairs[label[a["category_id"]]].add(a["image_id"])
    known = [a for a in table.records if a["category_id"] in label]
    return pairs, [a for a in known if a["image_id"] in pairs[label[a["category_id"]]]]


@pytest.mark.parametrize("phase", range(4))
def test_against_naive_filter(table: Any, split: Split, phase: int) -> None:
    view = PhaseView(table, split, phase)
    pairs, kept = naive(table, split, phase)
    assert table.ann_ids[view.annotations].tolist() == [a["id"] for a in kept]
    assert split.order[view.labels].tolist() == [a["category_id"] for a in kept]
    assert view.image_ids.tolist() == sorted(set().union(*pairs.values()))
    assert (view.num_classes, view.num_old) == (min(100 + 40 * phase, 190), [0, 100, 140, 180][phase])
    classes = view.class_images
    for label in range(view.num_classes):
        assert table.image_ids[view.pairs(label)].tolist() == classes.images_of(label).tolist() == sorted(pairs[label])
        of_label = [a for a in kept if a["category_id"] == split.order[label]]
        single = [a for a in of_label if not (a.get("iscrowd") or a.get("ignore"))]
        assert classes.annotation_counts[label] == len(single)
    new = set().union(*(pairs[label] for label in split.new_labels(phase)))
    assert table.image_ids[view.new_images].tolist() == sorted(new)


@pytest.mark.parametrize("phase", range(4))
def test_per_image(table: Any, split: Split, phase: int) -> None:
    view = PhaseView(table, split, phase)
    pairs, kept = naive(table, split, phase)
    labels = view.image_labels
    assert (labels.num_images, labels.num_classes) == (len(view.images), view.num_classes)
    for index, image in enumerate(view.image_ids.tolist()):
        rows, of_row = view.annotations_of(index)
        assert table.ann_ids[rows].tolist() == [a["id"] for a in kept if a["image_id"] == image]
        assert split.order[of_row].tolist() == [a["category_id"] for a in kept if a["image_id"] == image]
        present = labels.label[labels.ptr[index] : labels.ptr[index + 1]].tolist()
        assert present == sorted(label for label, images in pairs.items() if image in images)
        height, width = table.image_sizes[view.images[index]]
        assert labels.group[index] == (width > height)
    assert_array_equal(labels.image_counts, view.class_images.image_counts)
    objects = Counter(a["category_id"] for a in kept if not (a.get("iscrowd") or a.get("ignore")))
    known = split.order[: view.num_classes].tolist()
    assert labels.instance_counts.tolist() == [objects[category] for category in known]
    ptr, image = labels.by_class
    assert_array_equal(ptr, view.class_images.ptr)
    assert_array_equal(view.image_ids[image], view.class_images.image_id)


def test_phases_nest(table: Any, split: Split) -> None:
    views = [PhaseView(table, split, phase) for phase in range(4)]
    for before, after in pairwise(views):
        place = np.searchsorted(after.annotations, before.annotations)
        assert_array_equal(after.annotations[place], before.annotations)
        assert_array_equal(after.labels[place], before.labels)
        assert after.labels.max() < after.num_classes
        assert np.isin(before.images, after.images).all()
        for label in range(before.num_classes):
            assert_array_equal(before.pairs(label), after.pairs(label))


def test_category_order_of_the_store_does_not_matter(table: Any, split: Split) -> None:
    turned = SimpleNamespace(**vars(table))
    turned.category_ids = table.category_ids[::-1]
    turned.ann_category = (len(table.category_ids) - 1 - table.ann_category).astype(np.int32)
    turned_view, view = PhaseView(turned, split, 2), PhaseView(table, split, 2)
    assert_array_equal(turned_view.annotations, view.annotations)
    assert_array_equal(turned_view.labels, view.labels)


def test_on_a_store(tmp_path: Path) -> None:
    """The columns of a real store, its images in file order, give the same as plain arrays."""
    build_store(SAMPLE, tmp_path / "store", fmt="lvis", progress=False)
    store = AnnotationStore.open(tmp_path / "store")
    content = json.loads(SAMPLE.read_text())
    table = make_table(
        [i["id"] for i in content["images"]], [c["id"] for c in content["categories"]], content["annotations"]
    )
    counts = np.bincount(table.ann_category, minlength=len(table.category_ids))
    split = make_split(store.category_ids, counts, base_classes=80, step=70)
    for phase in range(3):
        ours, expected = PhaseView(store, split, phase), PhaseView(table, split, phase)
        assert_array_equal(store.ann_ids[ours.annotations], table.ann_ids[expected.annotations])
        assert_array_equal(ours.labels, expected.labels)
        assert_array_equal(ours.image_ids, expected.image_ids)


def test_class_without_usable_box_keeps_its_label(caplog: pytest.LogCaptureFixture) -> None:
    records = [
        {"id": 1, "image_id": 8, "category_id": 5, "bbox": [0, 0, 4, 4]},
        {"id": 2, "image_id": 8, "category_id": 6, "bbox": [0, 0, 1, 9]},
        {"id": 3, "image_id": 2, "category_id": 6, "bbox": [0, 0, 9, 0.5]},
        {"id": 4, "image_id": 2, "category_id": 7, "bbox": [0, 0, 9, 9]},
        {"id": 5, "image_id": 2, "category_id": 7, "bbox": [0, 0, 1, 1]},
        {"id": 6, "image_id": 8, "category_id": 7, "bbox": [0, 0, 1, 1]},
        {"id": 7, "image_id": 4, "category_id": 99, "bbox": [0, 0, 9, 9]},
    ]
    table = make_table([8, 4, 2], [5, 6, 7, 99], records)
    split = make_split([5, 6, 7], [3, 2, 1], base_classes=1, step=2)
    with caplog.at_level(logging.WARNING):
        view = PhaseView(table, split, 1)
    assert "1 of 3 classes have no usable box" in caplog.text and "category ids 6)" in caplog.text
    assert table.ann_ids[view.annotations].tolist() == [1, 4, 5]
    assert view.labels.tolist() == [0, 2, 2]
    assert view.image_ids.tolist() == [2, 8]
    assert view.class_images.image_counts.tolist() == [1, 0, 1]
    assert view.pairs(1).size == 0
    assert PhaseView(table, split, 1, min_size=-1).class_images.annotation_counts.tolist() == [1, 2, 3]


def test_phase_without_images() -> None:
    table = make_table([1], [1], [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 0, 0]}])
    with pytest.raises(UserError, match="no training image"):
        PhaseView(table, make_split([1], [1]), 0)
