"""Broken annotation files: the message names file, record and key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ltpipe.data.convert import build_store
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
BROKEN: dict[str, tuple[Callable[[Content], None], list[str]]] = {
    "no box": (drop("annotations", 2, "bbox"), ["missing key", "annotations[2] (id 4)", '"bbox"']),
    "no mask": (drop("annotations", 3, "segmentation"), ["missing key", LAST, '"segmentation"']),
    "no annotation id": (drop("annotations", 1, "id"), ["missing key", "annotations[1] (id missing)"]),
    "no height": (drop("images", 1, "height"), ["missing key", "images[1] (id 40)", '"height"']),
    "no name": (drop("categories", 0, "name"), ["missing key", "categories[0] (id 9)", '"name"']),
    "no file": (drop("images", 2, "file_name"), ["without a file name", "images[2] (id 90)"]),
    "not federated": (
        drop("images", 0, "neg_category_ids"),
        ["LVIS format", "images[0] (id 70)", '"neg_category_ids"', "format: coco"],
    ),
    "same image id": (put("images", 2, "id", 70), ["duplicate id", "images[2] (id 70)", "images[0]"]),
    "same annotation id": (put("annotations", 3, "id", 3), ["duplicate id", "annotations[3] (id 3)", "annotations[1]"]),
    "same category id": (put("categories", 2, "id", 9), ["duplicate id", "categories[2] (id 9)", "categories[0]"]),
    "other image": (put("annotations", 3, "image_id", 71), ["not in images", LAST, '"image_id"', "71"]),
    "other category": (put("annotations", 3, "category_id", 1), ["not in categories", LAST, '"category_id"']),
    "huge id": (put("annotations", 3, "id", 2**64), ["annotations[3]", '"id"']),
    "text id": (put("annotations", 3, "id", "x9"), ["annotations[3] (id x9)", "Expected `int`, got `str`"]),
    "short box": (put("annotations", 3, "bbox", [1, 2, 3]), [LAST, '"bbox"', "length 4"]),
    "text in box": (put("annotations", 3, "bbox", [1, 2, 3, "4"]), [LAST, '"bbox"', "Expected `float`"]),
    "null box": (put("annotations", 3, "bbox", None), [LAST, '"bbox"', "null"]),
    "negative width": (put("annotations", 3, "bbox", [1, 2, -3, 4]), ["malformed box", LAST, "-3"]),
    "nan box": (put("annotations", 3, "bbox", [1, float("nan"), 3, 4]), ["non-finite", "id 9", "NaN"]),
    "infinite box": (put("annotations", 3, "bbox", [1, float("-inf"), 3, 4]), ["non-finite", "id 9", "Infinity"]),
    "negative area": (put("annotations", 3, "area", -1), ["negative area", LAST, '"area"']),
    "odd polygon": (mask([[1, 1, 2, 2, 3, 3, 4]]), ["malformed mask", LAST, "polygon of 7 numbers"]),
    "second polygon short": (mask([[1, 1, 2, 2, 3, 1], [1, 1, 2, 2]]), [LAST, "polygon of 4 numbers"]),
    "no polygon": (mask([]), [LAST, "empty list of polygons"]),
    "flat polygon": (mask([1, 1, 2, 2, 3, 1]), [LAST, '"segmentation"', "Expected `array`"]),
    "text polygon": (mask([[1, 1, 2, 2, 3, "1"]]), [LAST, "Expected `float`, got `str`"]),
    "null mask": (mask(None), [LAST, '"segmentation"']),
    "rle without size": (mask({"counts": [30]}), [LAST, "size and counts"]),
    "rle transposed": (mask(PLAIN_RLE | {"size": [5, 6]}), [LAST, "RLE size [5, 6]", "[6, 5]"]),
    "rle too short": (mask(PLAIN_RLE | {"counts": [8, 4]}), [LAST, "sum to 12", "30"]),
    "rle negative": (mask(PLAIN_RLE | {"counts": [8, -4, 26]}), [LAST, "negative RLE run"]),
    "rle fraction": (mask(PLAIN_RLE | {"counts": [8, 4.5, 17.5]}), [LAST, "whole numbers"]),
    "text rle too short": (mask(COMPRESSED_RLE | {"counts": "84"}), [LAST, "sum to 12"]),
    "text rle cut off": (mask(COMPRESSED_RLE | {"counts": "84b"}), [LAST, "middle of a number"]),
    "text rle illegal": (mask(COMPRESSED_RLE | {"counts": "84 0"}), [LAST, "illegal character"]),
    "unknown negative": (
        put("images", 1, "neg_category_ids", [2, 77]),
        ["not in categories", "images[1] (id 40)", '"neg_category_ids"', "77"],
    ),
    "unknown not exhaustive": (
        put("images", 2, "not_exhaustive_category_ids", [77]),
        ["not in categories", "images[2] (id 90)", '"not_exhaustive_category_ids"', "77"],
    ),
    "flat image": (put("images", 1, "width", 0), ["without extent", "images[1] (id 40)", '"width"', "0"]),
    "odd frequency": (put("categories", 1, "frequency", "x"), ["categories[1] (id 2)", '"frequency"']),
    "no images": (lambda content: content.update(images=[]), ["no images"]),
    "no categories": (lambda content: content.update(categories=[]), ["no categories"]),
    "no list": (lambda content: content.pop("annotations"), ["not an annotation file", "annotations"]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_message_names_file_record_and_key(tmp_path: Path, case: str) -> None:
    mutate, words = BROKEN[case]
    content = lvis_content()
    mutate(content)
    source = write_content(tmp_path, content)
    with pytest.raises(UserError) as caught:
        build_store(source, tmp_path / "store", fmt="lvis", progress=False)
    for word in [str(source), *words]:
        assert word in str(caught.value)
    assert not (tmp_path / "store").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["train.json"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["empty annotation file"]),
        ("[]", ["not an annotation file", "got `array`"]),
        (json.dumps(lvis_content())[:-100], ["truncated", f"byte {len(json.dumps(lvis_content())) - 100}"]),
        (json.dumps(lvis_content()) + "}", ["not valid JSON", "trailing characters"]),
        ("{'images': []}", ["not valid JSON", "byte 1"]),
        (json.dumps(lvis_content()).replace("3.5, 2.25]", "3.5, 1e999]"), ["annotations[0] (id 8)", '"bbox"']),
    ],
)
def test_text_that_is_no_annotation_file(tmp_path: Path, text: str, words: list[str]) -> None:
    source = write_content(tmp_path, text)
    with pytest.raises(UserError) as caught:
        build_store(source, tmp_path / "store", fmt="lvis", progress=False)
    for word in [str(source), *words]:
        assert word in str(caught.value)


def test_first_bad_mask_of_a_later_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltpipe.data.convert.SEGMENT_ROWS", 2)
    content = lvis_content()
    content["annotations"][2]["segmentation"] = [[1, 2, 3, 4, 5, 6], [0, 0, 1, 1, 2]]
    with pytest.raises(UserError, match=r"annotations\[2\] \(id 4\)"):
        build_store(write_content(tmp_path, content), tmp_path / "store", fmt="lvis", progress=False)


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
