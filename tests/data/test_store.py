"""A store gives back what the JSON held, maps its files, and appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ltpipe.data import store_writer
from ltpipe.data.statistics import class_statistics
from ltpipe.data.store import AnnotationStore
from ltpipe.data.store_writer import build_store
from ltpipe.errors import UserError
from ltpipe.frequency import frequency_groups
from tests.helpers.annotation_cases import LVIS_100, coco_content, lvis_content, write_content


def built(folder: Path, content: dict[str, Any], fmt: str) -> AnnotationStore:
    build_store(write_content(folder, content), folder / "store", fmt=fmt, progress=False)
    return AnnotationStore.open(folder / "store")


def assert_holds(store: AnnotationStore, content: dict[str, Any], federated: bool) -> None:
    """Compare every field of the store with the JSON document."""
    images, categories, annotations = content["images"], content["categories"], content["annotations"]
    assert store.image_ids.tolist() == [image["id"] for image in images]
    assert store.image_sizes.tolist() == [[image["height"], image["width"]] for image in images]
    assert [store.image_file(row) for row in range(len(images))] == [image["file_name"] for image in images]
    for row, image in enumerate(images):
        expected = image["neg_category_ids"] if federated else []
        assert store.negative_categories(row).tolist() == expected
        assert store.negative_categories(row).dtype == np.int64
        expected = image["not_exhaustive_category_ids"] if federated else []
        assert store.not_exhaustive_categories(row).tolist() == expected
    assert store.category_ids.tolist() == [category["id"] for category in categories]
    assert store.category_names == [category["name"] for category in categories]
    # Sorting is stable, so sorting the records by image position gives the order of the store.
    place = {image["id"]: row for row, image in enumerate(images)}
    order = sorted(range(len(annotations)), key=lambda a: place[annotations[a]["image_id"]])
    assert store.ann_order.tolist() == order
    for row, position in enumerate(order):
        record = annotations[position]
        assert store.ann_ids[row] == record["id"]
        assert store.image_ids[store.ann_image[row]] == record["image_id"]
        assert store.category_ids[store.ann_category[row]] == record["category_id"]
        assert store.ann_bbox[row].tolist() == record["bbox"]
        assert store.ann_area[row] == record["area"]
        assert store.ann_iscrowd[row] == bool(record.get("iscrowd", 0))
        assert store.ann_ignore[row] == bool(record.get("ignore", 0))
        assert store.segmentation(row) == record["segmentation"]
    for row in range(len(images)):
        assert (store.ann_image[store.image_ptr[row] : store.image_ptr[row + 1]] == row).all()
    assert store.image_ptr[-1] == len(annotations) == len(store.ann_ids)
    assert store.federated is federated


def test_real_lvis_file_round_trip(tmp_path: Path) -> None:
    content = json.loads(LVIS_100.read_text())
    build_store(LVIS_100, tmp_path / "store", fmt="lvis", progress=False)
    store = AnnotationStore.open(tmp_path / "store")
    assert_holds(store, content, federated=True)
    assert store.category_frequency == [category["frequency"] for category in content["categories"]]
    assert store.info["sha256"] == hashlib.sha256(LVIS_100.read_bytes()).hexdigest()
    assert store.info["format"] == "lvis" and store.info["file"] == "lvis_val_100.json"
    counts = store.info["counts"]
    assert (counts["images"], counts["annotations"], counts["categories"]) == (100, 977, 1230)
    assert counts["images_without_annotations"] == 7


@pytest.mark.parametrize("rows", [1, 3, 16384])
def test_small_files_round_trip_for_any_batch_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(store_writer, "SEGMENT_ROWS", rows)
    for fmt, content in (("lvis", lvis_content()), ("coco", coco_content())):
        (tmp_path / fmt).mkdir()
        assert_holds(built(tmp_path / fmt, content, fmt), content, federated=fmt == "lvis")


def test_coordinates_that_are_no_hundredths_stay_exact(tmp_path: Path) -> None:
    content = lvis_content()
    values = [0.1 + 0.2, 1e-9, -0.05, 1e6, 123.456, 1 / 3, 99.99, 2.0]
    content["annotations"][0]["segmentation"] = [values, [0.01, 0.07, 0.29, 0.57, 0.58, 1.15]]
    store = built(tmp_path, content, "lvis")
    row = int(np.flatnonzero(store.ann_ids == 8)[0])
    assert store.segmentation(row)[0] == values
    assert store.segmentation(row) == content["annotations"][0]["segmentation"]


def test_rows_beyond_the_last_one(tmp_path: Path) -> None:
    store = built(tmp_path, lvis_content(), "lvis")
    for row in (-1, 4):
        with pytest.raises(IndexError):
            store.segmentation(row)


def test_lvis_v1_names_come_from_the_url(tmp_path: Path) -> None:
    content = lvis_content()
    for image in content["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{image.pop('file_name')}"
    store = built(tmp_path, content, "lvis")
    assert store.image_file(0) == "train2017/b.png"


@pytest.mark.parametrize("level", ["", "train2017/"])
def test_names_follow_the_image_folder(tmp_path: Path, level: str) -> None:
    content = lvis_content()
    for image in content["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{image['file_name']}"
        file = tmp_path / "images" / f"{level}{image['file_name']}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        image["file_name"] = f"COCO_train2014_{image['file_name']}"
    source = write_content(tmp_path, content)
    build_store(source, tmp_path / "store", fmt="lvis", image_folder=tmp_path / "images", progress=False)
    store = AnnotationStore.open(tmp_path / "store")
    assert [store.image_file(row) for row in range(3)] == [f"{level}{name}.png" for name in "bac"]


def test_arrays_are_views_of_mapped_files(tmp_path: Path) -> None:
    build_store(LVIS_100, tmp_path / "store", fmt="lvis", progress=False)
    before = pa.total_allocated_bytes()
    store = AnnotationStore.open(tmp_path / "store")
    arrays = [getattr(store, name) for name in vars(store) if name.startswith("ann_")]
    arrays += [store.image_ids, store.image_sizes, store.category_ids, store.negative_categories(0)]
    assert len(arrays) == 12
    for array in arrays:
        assert not array.flags.owndata and not array.flags.writeable
    for row in range(len(store.ann_ids)):
        store.segmentation(row)
    assert pa.total_allocated_bytes() == before


def test_pickle_holds_the_path_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_store(LVIS_100, tmp_path / "store", fmt="lvis", progress=False)
    monkeypatch.chdir(tmp_path)
    text = pickle.dumps(AnnotationStore.open("store"))
    assert len(text) < 500
    monkeypatch.chdir("/")
    copy = pickle.loads(text)
    assert copy.ann_ids.tolist() == AnnotationStore.open(tmp_path / "store").ann_ids.tolist()


def test_failed_conversion_keeps_the_old_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built(tmp_path, lvis_content(), "lvis")

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store_writer, "read_masks", fail)
        built(tmp_path, coco_content(), "coco")
    assert AnnotationStore.open(tmp_path / "store").info["format"] == "lvis"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "train.json"]
    assert built(tmp_path, coco_content(), "coco").info["format"] == "coco"


def test_other_files_are_never_overwritten(tmp_path: Path) -> None:
    source = write_content(tmp_path, lvis_content())
    with pytest.raises(UserError, match="holds other files"):
        build_store(source, tmp_path, fmt="lvis", progress=False)
    assert source.exists()


def test_open_explains_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no annotation store"):
        AnnotationStore.open(tmp_path / "nothing")
    built(tmp_path, lvis_content(), "lvis")
    info = tmp_path / "store" / "info.json"
    text = info.read_text()
    info.write_text(text.replace('"store_version": 1', '"store_version": 99'))
    with pytest.raises(UserError, match="another version"):
        AnnotationStore.open(tmp_path / "store")
    info.write_text(text)
    file = tmp_path / "store" / "annotations.arrow"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match="damaged"):
        AnnotationStore.open(tmp_path / "store")


def test_frequency_groups_at_their_borders() -> None:
    assert frequency_groups(np.array([0, 1, 10, 11, 100, 101])) == list("rrrccf")
    assert frequency_groups([2, 3, 5, 6], (2, 5)) == list("rccf")


def test_class_statistics(tmp_path: Path) -> None:
    content = json.loads(LVIS_100.read_text())
    build_store(LVIS_100, tmp_path / "store", fmt="lvis", progress=False)
    table = class_statistics(AnnotationStore.open(tmp_path / "store"))
    assert list(table.columns) == ["category_id", "name", "image_count", "instance_count", "frequency"]
    for row, category in zip(table.itertuples(index=False), content["categories"], strict=True):
        images = [a["image_id"] for a in content["annotations"] if a["category_id"] == category["id"]]
        assert (row.category_id, row.name, row.frequency) == (category["id"], category["name"], category["frequency"])
        assert (row.image_count, row.instance_count) == (len(set(images)), len(images))
    by_count = class_statistics(AnnotationStore.open(tmp_path / "store"), (3, 20))["frequency"]
    assert by_count.tolist() == frequency_groups(table["image_count"], (3, 20)) != table["frequency"].tolist()


def test_statistics_without_crowd_ignored_and_given_frequency(tmp_path: Path) -> None:
    store = built(tmp_path, coco_content(), "coco")
    table = class_statistics(store).set_index("name")
    assert table["instance_count"].to_dict() == {"sock": 1, "Ünit": 2, "cup": 2}
    assert table["image_count"].to_dict() == {"sock": 1, "Ünit": 2, "cup": 1}
    assert store.category_frequency == ["r", "r", "r"]
    assert store.info["frequency_from"] == "counts"
    assert class_statistics(store, (0, 1))["frequency"].tolist() == ["c", "f", "c"]
    counts = store.info["counts"]
    assert (counts["crowd"], counts["ignored"], counts["rle"], counts["degenerate_boxes"]) == (1, 1, 2, 5)
