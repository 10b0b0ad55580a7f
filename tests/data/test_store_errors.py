"""Broken annotation files: the message names file, record and key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ltpipe.data.store import AnnotationStore
from ltpipe.data.store_writer import build_store
from ltpipe.errors import UserError
from tests.helpers.annotation_cases import COMPRESSED_RLE, PLAIN_RLE, coco_content, lvis_content, write_content

Content = dict[str, Any]


def put(section: str, position: int, key: str, value: object) -> Callable[[Content], None]:
    """Return a mutation that sets one key of one record."""

    def change(content: Content) -> None:
        content[section][position][key] = value

    return change


def drop(section: str, position: int, key: str) -> Callable[[Content], None]:
    """Return a mutation that removes one key of one record."""

    def change(content: Content) -> None:
        del content[section][position][key]

    return change


def mask(value: object) -> Callable[[Content], None]:
    """Return a mutation of the mask of the last annotation: id 9, on an image of 6 x 5 pixels."""
    return put("annotations", 3, "segmentation", value)


LAST = "annotations[3] (id 9)"
FAULTY: dict[str, tuple[Callable[[Content], None], list[str]]] = {
    "no box and no mask": (
        lambda content: content["annotations"][2].update(bbox=None, segmentation=[]),
        ["1 objects with neither box nor mask", "annotations[2] (id 4)"],
    ),
    "no height": (drop("images", 0, "height"), ["without width or height", "images[0] (id 70)", "height -1"]),
    "no name": (drop("categories", 0, "name"), ["categories with an unusable", "categories[0] (id 9)", '"name"']),
    "no image id": (drop("annotations", 1, "image_id"), ['annotations without "image_id"', "annotations[1] (id 3)"]),
    "other image with its id": (
        put("images", 2, "id", 70),
        ["images with the id of another one", "images[2] (id 70)", "images[0]", "annotations of images that cannot be"],
    ),
    "same annotation id": (
        put("annotations", 3, "id", 3),
        ["annotations with the id of another object", "annotations[3] (id 3)", "annotations[1]"],
    ),
    "same category id": (
        put("categories", 2, "id", 9),
        ["categories with the id of another one", "categories[2] (id 9)", "categories[0]"],
    ),
    "other image": (put("annotations", 3, "image_id", 71), ["not in images", LAST, '"image_id": 71']),
    "other category": (put("annotations", 3, "category_id", 1), ["not in categories", LAST, '"category_id": 1']),
    "fraction of an id": (put("annotations", 3, "id", 1.5), ["annotations[3]", '"id"', "1.5 is no whole number"]),
    "unknown text id": (put("annotations", 3, "image_id", "x9"), ["not in images", LAST, "x9"]),
    "short box": (put("annotations", 3, "bbox", [1, 2, 3]), [LAST, '"bbox"', "[x, y, width, height]"]),
    "words in box": (put("annotations", 3, "bbox", [1, 2, 3, "four"]), [LAST, '"bbox"', "'four' is no number"]),
    "negative width": (put("annotations", 3, "bbox", [1, 2, -3, 4]), ["negative width or height", LAST, "-3"]),
    "nan box": (put("annotations", 3, "bbox", [1, float("nan"), 3, 4]), ["boxes that are not finite", LAST, "nan"]),
    "infinite box": (put("annotations", 3, "bbox", [1, float("-inf"), 3, 4]), ["not finite", LAST, "-inf"]),
    "number beyond all": (put("annotations", 3, "bbox", [1, 2, 3, 10**400]), [LAST, '"bbox"']),
    "odd polygon": (mask([[1, 1, 2, 2, 3, 3, 4]]), ["masks that cannot be read", LAST, "polygon of 7 numbers"]),
    "words in polygon": (mask([[1, 1, 2, 2, 3, "one"]]), [LAST, "'one' is no number"]),
    "rle without size": (mask({"counts": [30]}), [LAST, "size and counts"]),
    "rle transposed": (
        mask(PLAIN_RLE | {"size": [5, 6]}),
        ["masks of another size than their image", LAST, "RLE size [5, 6]", "[6, 5]"],
    ),
    "rle too short": (mask(PLAIN_RLE | {"counts": [8, 4]}), [LAST, "sum to 12", "30"]),
    "rle negative": (mask(PLAIN_RLE | {"counts": [8, -4, 26]}), [LAST, "negative RLE run"]),
    "rle fraction": (mask(PLAIN_RLE | {"counts": [8, 4.5, 17.5]}), [LAST, "4.5 is no whole number"]),
    "text rle too short": (mask(COMPRESSED_RLE | {"counts": "84"}), [LAST, "sum to 12"]),
    "text rle cut off": (mask(COMPRESSED_RLE | {"counts": "84b"}), [LAST, "middle of a number"]),
    "text rle illegal": (mask(COMPRESSED_RLE | {"counts": "84 0"}), [LAST, "illegal character"]),
    "unknown negative": (
        put("images", 1, "neg_category_ids", [2, 77]),
        ["not in categories", "images[1] (id 40)", '"neg_category_ids": 77'],
    ),
    "unknown not exhaustive": (
        put("images", 2, "not_exhaustive_category_ids", [77]),
        ["not in categories", "images[2] (id 90)", '"not_exhaustive_category_ids": 77'],
    ),
    "flat image": (put("images", 0, "width", 0), ["without width or height", "images[0] (id 70)", "width 0"]),
}
LEFT = {
    # Annotations with `faults: drop`; 0: none that could be trained.
    "no box and no mask": 3,
    "no height": 2,
    "no name": 3,
    "no image id": 3,
    "other image with its id": 0,
    "same annotation id": 4,
    "same category id": 0,
    "other image": 3,
    "other category": 3,
    "fraction of an id": 3,
    "unknown text id": 3,
    "short box": 3,
    "words in box": 3,
    "negative width": 3,
    "nan box": 3,
    "infinite box": 3,
    "number beyond all": 3,
    "odd polygon": 4,
    "words in polygon": 4,
    "rle without size": 4,
    "rle transposed": 4,
    "rle too short": 4,
    "rle negative": 4,
    "rle fraction": 4,
    "text rle too short": 4,
    "text rle cut off": 4,
    "text rle illegal": 4,
    "unknown negative": 4,
    "unknown not exhaustive": 4,
    "flat image": 2,
}
UNREADABLE: dict[str, tuple[Callable[[Content], None], list[str]]] = {
    "no file": (drop("images", 2, "file_name"), ["without a file name", "images[2] (id 90)"]),
    "not federated": (
        drop("images", 0, "neg_category_ids"),
        ["LVIS format", "images[0] (id 70)", '"neg_category_ids"', "format: coco"],
    ),
    "no images": (lambda content: content.update(images=[]), ["no images"]),
    "no categories": (lambda content: content.update(categories=[]), ["no categories"]),
    "no list": (lambda content: content.pop("annotations"), ["not an annotation file", "annotations"]),
    "no annotations": (lambda content: content.update(annotations=[]), ["no object that could be trained"]),
}


@pytest.mark.parametrize("case", [*FAULTY, *UNREADABLE])
def test_message_names_file_record_and_key(tmp_path: Path, case: str) -> None:
    mutate, words = (FAULTY | UNREADABLE)[case]
    content = lvis_content()
    mutate(content)
    source = write_content(tmp_path, content)
    with pytest.raises(UserError) as caught:
        build_store(source, tmp_path / "store", fmt="lvis", progress=False)
    for word in [str(source), *words]:
        assert word in str(caught.value)
    assert not (tmp_path / "store").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["train.json"]
    if LEFT.get(case):
        build_store(source, tmp_path / "store", fmt="lvis", faults="drop", progress=False)
        info = AnnotationStore.open(tmp_path / "store").info
        assert info["counts"]["annotations"] == LEFT[case] and info["dropped"]
    else:
        with pytest.raises(UserError):
            build_store(source, tmp_path / "store", fmt="lvis", faults="drop", progress=False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["the annotation file is empty"]),
        ("[]", ["not an annotation file", "got `array`"]),
        (json.dumps(lvis_content())[:-100], ["truncated", f"byte {len(json.dumps(lvis_content())) - 100}"]),
        (json.dumps(lvis_content()) + "}", ["not valid JSON", "trailing characters"]),
        ("{'images': []}", ["not valid JSON", "byte 1"]),
        (json.dumps(lvis_content()).replace("3.5, 2.25]", "3.5, 1e999]"), ["annotations[0] (id 8)", '"bbox"']),
        ("[" * 100_000, ["annotation file"]),
    ],
)
def test_text_that_is_no_annotation_file(tmp_path: Path, text: str, words: list[str]) -> None:
    source = write_content(tmp_path, text)
    with pytest.raises(UserError) as caught:
        build_store(source, tmp_path / "store", fmt="lvis", progress=False)
    for word in [str(source), *words]:
        assert word in str(caught.value)


def test_first_bad_mask_of_a_later_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltpipe.data.store_writer.SEGMENT_ROWS", 2)
    content = lvis_content()
    content["annotations"][2]["segmentation"] = [[1, 2, 3, 4, 5, 6], [0, 0, 1, 1, 2]]
    with pytest.raises(UserError, match=r"1 masks that cannot be read \(annotations\[2\] \(id 4\)"):
        build_store(write_content(tmp_path, content), tmp_path / "store", fmt="lvis", progress=False)


def test_all_kinds_of_faults_in_one_message(tmp_path: Path) -> None:
    content = coco_content()
    content["annotations"] += [dict(content["annotations"][0], id=100 + i, category_id=77) for i in range(5)]
    content["annotations"][1]["bbox"] = [1, 2, -3, 4]
    content["annotations"][2]["segmentation"] = [[1, 2, 3, 4, 5]]
    source = write_content(tmp_path, content)
    with pytest.raises(UserError) as caught:
        build_store(source, tmp_path / "store", fmt="coco", progress=False)
    lines = str(caught.value).splitlines()
    assert lines[0] == "the annotation file has faults" and "faults: drop" in lines[-1]
    assert "5 annotations whose category_id is not in categories (annotations[7] (id 100)" in lines[2]
    assert lines[2].endswith(', key "category_id": 77, ...)'), "the first three, and that there are more"
    assert "1 boxes of negative width or height (annotations[1] (id 3)" in lines[3]
    assert "1 masks that cannot be read (annotations[2] (id 4)" in lines[4]
    build_store(source, tmp_path / "store", fmt="coco", faults="drop", progress=False)
    store = AnnotationStore.open(tmp_path / "store")
    assert sorted(store.ann_ids.tolist()) == [4, 8, 9, 20, 21, 22]
    assert store.segmentation(store.ann_ids.tolist().index(4)) == []
    assert [entry["count"] for entry in store.info["dropped"].values()] == [5, 1, 1]


def test_missing_files_and_folders(tmp_path: Path) -> None:
    source = write_content(tmp_path, coco_content())
    with pytest.raises(UserError, match="cannot read"):
        build_store(tmp_path / "other.json", tmp_path / "store", fmt="coco")
    with pytest.raises(UserError, match="image folder not found"):
        build_store(source, tmp_path / "store", fmt="coco", image_folder=tmp_path / "images")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").touch()
    with pytest.raises(UserError) as caught:
        build_store(source, tmp_path / "store", fmt="coco", image_folder=tmp_path / "images")
    for word in ("2 of 3 not found: b.png, c.png", "images[0] (id 70)", str(source)):
        assert word in str(caught.value)
