"""Results files of any framework: every spelling of ids and masks gives the same columns; broken ones are refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ltpipe.data.rle import rle_runs
from ltpipe.errors import UserError
from ltpipe.interop import read_detections
from ltpipe.interop.known_ids import KnownIds
from ltpipe.interop.read_detections import read_results
from ltpipe.interop.write_detections import write_results
from ltpipe.metrics.predictions import Predictions
from ltpipe.metrics.predictions_writer import PredictionWriter
from tests.helpers.ground_truth import read_ground_truth
from tests.metrics.test_predictions import images, write

SQUARE = [[2, 3, 12, 3, 12, 13, 2, 13]]
CORNER = [[0, 0, 9, 0, 9, 5, 0, 5], [20, 10, 30, 10, 30, 20]]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> KnownIds:
    """Two images in a folder, and classes of which one is called like a number and two are called the same."""
    ids = [(7, "val/a.jpg"), (9, "val/000012.jpg")]
    document = {
        "images": [{"id": i, "file_name": name, "height": 20, "width": 30} for i, name in ids],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "bbox": [2, 3, 10, 10], "area": 100, "segmentation": SQUARE}
        ],
        "categories": [{"id": i, "name": name} for i, name in ((3, "cat"), (1, "7"), (8, "cup"), (9, "cup"))],
    }
    path = tmp_path_factory.mktemp("known") / "gt.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return KnownIds(read_ground_truth(path), path)


def read(content: Any, folder: Path, known: KnownIds | None = None) -> Predictions:
    """Pass content through a file."""
    (folder / "results.json").write_text(json.dumps(content), encoding="utf-8")
    return read_results(folder / "results.json", known)


def spellings(polygons: list[list[float]]) -> list[Any]:
    """Return a mask as polygons, packed and plain run lengths."""
    rle = coco_mask.merge(coco_mask.frPyObjects(polygons, 20, 30))
    packed = {"size": [20, 30], "counts": rle["counts"].decode()}
    return [polygons, packed, {"size": [20, 30], "counts": rle_runs(rle["counts"]).tolist()}]


def test_masks_in_every_spelling(known: KnownIds, tmp_path: Path) -> None:
    """All are one mask; one polygon may stand without its list."""
    for polygons in (SQUARE, CORNER):
        masks = [*spellings(polygons), *(polygons if len(polygons) == 1 else ())]
        records = [{"image_id": 7, "category_id": 3, "score": 0.5, "segmentation": mask} for mask in masks]
        found = read(records, tmp_path, known)
        assert found.boxes is None and found.masks is not None and found.masks.areas is not None
        assert len(set(found.masks.counts(np.arange(len(masks))))) == 1
        assert found.masks.areas.tolist() == [int(coco_mask.area(masks[1]))] * len(masks)
        assert found.masks.sizes.tolist() == [[20, 30]] * len(masks)


@pytest.mark.parametrize("key", [None, "annotations", "predictions", "detections", "results"])
@pytest.mark.parametrize("packed", [False, True])
def test_lists_objects_and_gzip(key: str | None, packed: bool, tmp_path: Path) -> None:
    records = [{"image_id": i, "category_id": 2, "score": 0.25, "bbox": [0, 1, 2, 3.5]} for i in range(5)]
    text = json.dumps(records if key is None else {"info": {"by": "someone"}, key: records}).encode()
    path = tmp_path / "results.json"
    path.write_bytes(gzip.compress(text) if packed else b"\n " + text + b"\n")
    found = read_results(path)
    assert found.image_ids.tolist() == [0, 1, 2, 3, 4] and found.boxes is not None
    assert found.boxes.tolist() == [[0, 1, 2, 3.5]] * 5 and found.scores.tolist() == [0.25] * 5


def test_names_instead_of_ids(known: KnownIds, tmp_path: Path) -> None:
    """Names of classes and files, numbers as text or with a point; a name that looks like a number is a name first."""
    records = [
        {"image_id": "a", "category_id": "cat"},
        {"image_id": "a.jpg", "category_id": "7"},
        {"image_id": "val/a.jpg", "category_id": "3"},
        {"file_name": "000012.jpg", "category_name": "cat"},
        {"image_id": "000012", "category_id": 3.0},
        {"image_id": 9.0, "category_id": 1},
        {"image_id": "9", "category_id": 8},
    ]
    found = read([{"score": 1, "bbox": [0, 0, 1, 1]} | record for record in records], tmp_path, known)
    assert found.image_ids.tolist() == [7, 7, 7, 9, 9, 9, 9]
    assert found.category_ids.tolist() == [3, 1, 3, 3, 3, 1, 8]


def test_blocks_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the text is cut; text and lists in records that look like the border of two do no harm."""
    records: list[dict[str, Any]] = [
        {"image_id": i, "category_id": i % 7, "score": i / 100, "bbox": [i, 1, 2, 3]} for i in range(60)
    ]
    whole = read(records, tmp_path)
    for extra in ({}, {"note": 'a}, {"b'}, {"parts": [{"a": 1}, {"b": [{}, {}]}]}):
        for block in (1, 7, 300):
            monkeypatch.setattr(read_detections, "BLOCK", block)
            for indent in (None, 1):
                (tmp_path / "r.json").write_text(json.dumps([r | extra for r in records], indent=indent))
                found = read_results(tmp_path / "r.json")
                for name in ("image_ids", "category_ids", "scores", "boxes"):
                    np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
    records[50]["score"] = "high"
    with pytest.raises(UserError, match=r"Expected `float`, got `str` - at `\$\[50\].score`"):
        read(records, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segmentation": [[0, 0, 1, 1]]}, "a polygon without three corners"),
        ({"segmentation": [[0, 0, 4e8, 0, 4e8, 4e8]]}, "4e\\+08 pixels away"),
        ({"segmentation": [0, 0, 1, 1, 2, 2, 3]}, "a polygon without three corners"),
        ({"segmentation": {"size": [20, 30], "counts": [3, 4]}}, "a mask does not cover the image"),
        ({"segmentation": {"size": [20, 30], "counts": [-3, 603]}}, "a mask does not cover the image"),
        ({"category_id": "cup"}, "several categories have this name"),
        ({"category_id": None}, "a detection has no category_id"),
        ({"image_id": "b.jpg", "category_id": "dog"}, "1 unknown image ids: 'b.jpg'; 1 of 1 .* 'dog'"),
        ({"image_id": 8, "segmentation": SQUARE}, "1 unknown image ids: 8"),
    ],
)
def test_what_does_not_belong_to_the_annotations(
    change: dict[str, Any], message: str, known: KnownIds, tmp_path: Path
) -> None:
    good = {"image_id": 7, "category_id": 3, "score": 0.5, "segmentation": SQUARE}
    with pytest.raises(UserError, match=message) as caught:
        read([good | change], tmp_path, known)
    assert "results.json" in str(caught.value) or "gt.json" in str(caught.value)


def test_polygons_and_names_need_annotations(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="polygons need the size"):
        read([{"image_id": 7, "category_id": 3, "score": 0.5, "segmentation": SQUARE}], tmp_path)
    with pytest.raises(UserError, match="a name as category_id"):
        read([{"image_id": 7, "category_id": "cat", "score": 0.5, "bbox": [0, 0, 1, 1]}], tmp_path)


def test_results_round_trip(tmp_path: Path) -> None:
    """JSON and back; masks alone on request."""
    write(tmp_path / "p.arrow", images(30), dtype="float64")
    ours = Predictions.open(tmp_path / "p.arrow")
    write_results(ours, tmp_path / "all.json")
    back = read_results(tmp_path / "all.json")
    for name in ("image_ids", "category_ids", "scores", "boxes"):
        np.testing.assert_array_equal(getattr(back, name), getattr(ours, name))
    rows = np.arange(len(ours))
    assert back.masks is not None and ours.masks is not None
    assert back.masks.counts(rows) == ours.masks.counts(rows)
    write_results(ours, tmp_path / "masks.json", boxes=False)
    records = json.loads((tmp_path / "masks.json").read_text())
    assert set(records[0]) == {"image_id", "category_id", "score", "segmentation"}
    assert read_results(tmp_path / "masks.json").boxes is None


def test_results_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks join to one valid list, and no detections to an empty one."""
    monkeypatch.setattr("ltpipe.interop.write_detections.ROWS_PER_BLOCK", 7)
    write(tmp_path / "p.arrow", images(20))
    ours = Predictions.open(tmp_path / "p.arrow")
    write_results(ours, tmp_path / "r.json")
    assert len(json.loads((tmp_path / "r.json").read_text())) == len(ours)
    with PredictionWriter(tmp_path / "none.arrow"):
        pass
    write_results(Predictions.open(tmp_path / "none.arrow"), tmp_path / "none.json")
    assert json.loads((tmp_path / "none.json").read_text()) == []
    assert len(read_results(tmp_path / "none.json")) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": []}', "not a results file"),
        ("", "is empty"),
        ('[{"image_id": 1, "category_id": 1, "score": NaN, "bbox": [0, 0, 1, 1]}]', "a number is not finite"),
        ('[{"image_id": 1, "category_id": 1, "score": null, "bbox": [0, 0, 1, 1]}]', "not a valid results file"),
        ('[{"image_id": 1, "category_id": 1, "score": "0.5", "bbox": [0, 0, 1, 1]}]', "not a valid results file"),
        ('[{"image_id": 1, "category_id": 1, "score": 0.5, "bbox": [0, 0, 1]}]', "not a valid results file"),
        ('[{"image_id": 1, "category_id": 1, "score": 0.5, "bbox": [0, 0, 1, 1]}', "cut off"),
        ('[{"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": "cat"}]', "not a valid results file"),
        ('[{"image_id": 1, "category_id": 1, "score": 0.5}]', "neither"),
        (
            '[{"image_id": 1, "category_id": 1, "score": 0.5, "bbox": [0, 0, 1, 1]},'
            ' {"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": {"size": [4, 4], "counts": "`0"}}]',
            "has no bbox but others have",
        ),
        (
            '[{"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": {"size": [4, -4], "counts": "`0"}}]',
            "an impossible mask size",
        ),
        (
            '[{"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": {"size": [4, 4], "counts": "`"}}]',
            "a mask stops in the middle of a number",
        ),
    ],
)
def test_broken_results_are_refused(text: str, message: str, tmp_path: Path) -> None:
    """With the file named."""
    path = tmp_path / "results.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        read_results(path)
    assert "results.json" in str(caught.value)
    with pytest.raises(UserError, match="cannot read the results file"):
        read_results(tmp_path / "missing.json")
