"""Reading annotation files as a stream: every layout of JSON, cut anywhere, and the same store from both readers."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltpipe.data import convert, segments, stream
from ltpipe.data.convert import build_store
from ltpipe.data.polygon_text import read_masks, read_number
from ltpipe.data.records import read_annotation_file
from ltpipe.data.stream import AnnotationStream
from ltpipe.errors import UserError
from tests.helpers.annotation_cases import LVIS_100, coco_content, lvis_content, write_content


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def small_blocks(patch: pytest.MonkeyPatch, size: int) -> None:
    patch.setattr(stream, "BLOCK", size)
    patch.setattr(stream, "RECORDS", 2)


LAYOUTS: dict[str, dict[str, Any]] = {
    "compact": {"separators": (",", ":")},
    "wide": {"indent": 3},
    "escaped": {"ensure_ascii": True},
    "plain": {"ensure_ascii": False},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [1, 7, 100, 1 << 20])
def test_any_layout_cut_anywhere(layout: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts with brackets, quotes and backslashes, other lists and objects around, keys in another order."""
    content = lvis_content()
    content["categories"][0]["name"] = 'a "sock" [ {\\'
    content["images"][1] |= {"note": "}]", "list": [{"id": 3}, []]}
    others = {"info": {"a": [{"b": 1}], "s": 'x"'}, "licenses": [{"id": 1}, [], {"id": {"id": 2}}], "note": "[{"}
    content = others | dict(reversed(content.items())) | {"videos": []}
    path = write_content(tmp_path, json.dumps(content, **LAYOUTS[layout]))
    small_blocks(monkeypatch, size)
    found, expected = AnnotationStream.open(path, "lvis"), read_annotation_file(path, "lvis")
    assert found.images == expected.images and found.categories == expected.categories
    rows = [row for part in found.annotations() for row in part]
    assert len(rows) == 4
    for row, other in zip(rows, expected.annotations, strict=True):
        for key in ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "ignore"):
            assert getattr(row, key) == getattr(other, key)


@pytest.mark.parametrize("file", ["lvis", "coco", "real"])
def test_both_readers_write_the_same_store(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte: polygons read from the text, and polygons that became Python numbers first."""
    contents = {"lvis": lvis_content, "coco": coco_content}
    path = write_content(tmp_path, contents[file]()) if file in contents else LVIS_100
    fmt: Any = "coco" if file == "coco" else "lvis"
    build_store(path, tmp_path / "fast", fmt=fmt, progress=False)
    monkeypatch.setattr(segments, "read_masks", lambda *_: (0, 0))
    small_blocks(monkeypatch, 50)
    build_store(path, tmp_path / "slow", fmt=fmt, progress=False)
    assert digests(tmp_path / "fast") == digests(tmp_path / "slow")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"images": [], "images": [], "categories": [], "annotations": []}', "unusual JSON"),
        ('{"im\\u0061ges": [], "categories": [], "annotations": []}', "unusual JSON"),
        ('{"images": [5], "categories": [], "annotations": []}', "Expected `object`"),
        ('{"images": [], "categories": [{"id": 1, "name": "a"} {"id": 2}], "annotations": []}', "not valid JSON"),
        ('{"images": [], "categories": [], "annotations": [], "more": }', "not valid JSON"),
    ],
)
def test_what_cannot_be_followed(text: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        build_store(write_content(tmp_path, text), tmp_path / "store", fmt="coco", progress=False)
    assert problem in str(caught.value)


def test_fault_between_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comma that is missing exactly where the file is cut."""
    text = json.dumps(lvis_content())
    place = text.index(', {"id": 4')
    small_blocks(monkeypatch, 1 << 20)
    with pytest.raises(UserError, match="not valid JSON"):
        build_store(
            write_content(tmp_path, text[:place] + "  " + text[place + 1 :]),
            tmp_path / "store",
            fmt="lvis",
            progress=False,
        )


NUMBERS = ["0", "-0", "7", "-7", "12.3", "0.05", "-12.34", "21474836.47", "-21474836.47", "0.0", "-0.00"]
OTHERS = ["01", "-", "", ".5", "5.", "1.234", "1e2", "1.5E1", "21474836.48", "99999999999999999999", "nan", "+1", "--1"]


@pytest.mark.parametrize("text", [*NUMBERS, *OTHERS])
def test_numbers(text: str) -> None:
    """Whole hundredths are read, everything else is left to the general reader."""
    padded = np.frombuffer(f"{text},".encode(), np.uint8)
    value, place = read_number(padded, 0, len(padded))
    if text in NUMBERS:
        assert place == len(text) and value / 100.0 == float(text)
    else:
        assert place != len(text)


def test_masks_in_records() -> None:
    """The mask is the record's own, wherever it stands; what is no list of polygons is left out."""
    polygon = "[[1,2,3.5,4,5,6.25]]"
    records = {
        f'{{"segmentation":{polygon}}}': 1,
        f'{{ "x" : {{"segmentation":[[9,9,9,9,9,9]]}}, "y\\"" : "segmentation" , "segmentation":{polygon} , "z":0}}': 1,
        '{"segmentation": [ [ 1 , 2 , 3.5,4,5,6.25 ] , [1,2,3.5,4,5,6.25] ] }': 2,
        f'{{"segmentation":{polygon},"segmentation":{polygon}}}': 0,
        '{"segmentation":[[1,2,3.5,4,5,6.255]]}': 0,
        '{"segmentation":[]}': 0,
        '{"segmentation":[[1,2,3,4]]}': 0,
        '{"segmentation":[[1,2,3,4,5,6,7]]}': 0,
        '{"segmentation":{"counts":[1]}}': 0,
        '{"id":1}': 0,
    }
    text = np.frombuffer("".join(records).encode(), np.uint8)
    stops = np.cumsum([len(record) for record in records])
    counts, lengths, values = np.zeros(len(records), np.int64), *np.zeros((2, len(text)), np.int32)
    polygons, total = read_masks(text, np.stack([np.append(0, stops[:-1]), stops], axis=1), counts, lengths, values)
    assert counts.tolist() == list(records.values())
    assert (polygons, total) == (4, 24)
    assert values[:24].tolist() == [100, 200, 350, 400, 500, 625] * 4


def test_memory_does_not_grow_with_the_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred times as many coordinates, the same peak."""
    small_blocks(monkeypatch, 1 << 14)
    monkeypatch.setattr(convert, "SEGMENT_ROWS", 16)
    peaks = {}
    for corners in (4, 4, 400):  # the first one compiles
        content = lvis_content()
        record = content["annotations"][0] | {"segmentation": [[1.25, 2.5] * corners]}
        content["annotations"] = [record | {"id": number} for number in range(1000)]
        path = write_content(tmp_path, content)
        del content
        tracemalloc.start()
        build_store(path, tmp_path / "store", fmt="lvis", progress=False)
        peaks[corners] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert path.stat().st_size > 4e6
    assert peaks[400] - peaks[4] < 1e6


def test_a_log_gets_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("ltpipe.data.progress_bar.SECONDS_PER_LINE", 0.0)
    build_store(LVIS_100, tmp_path / "store", fmt="lvis")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "lvis_val_100.json: 50%" and lines[-1] == "lvis_val_100.json: 100%"
