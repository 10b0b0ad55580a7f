"""Reading of annotation files: any layout of JSON, and what is mended comes out as it was meant."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from argparse import ArgumentParser
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from pycocotools.coco import COCO

from ltpipe.command_options import import_options
from ltpipe.config.blocks import Dataset
from ltpipe.data import store_writer
from ltpipe.data.findings import Findings
from ltpipe.data.image_names import image_files
from ltpipe.data.readers import READERS
from ltpipe.data.readers.coco_records import ImageRecord
from ltpipe.data.readers.sources import SOURCES
from ltpipe.data.readers.text import quoted_words
from ltpipe.data.store import AnnotationStore
from ltpipe.data.store_writer import build_store
from ltpipe.data.summary import sentences
from ltpipe.errors import UserError
from tests.helpers.annotation_cases import (
    COMPRESSED_RLE,
    LVIS_100,
    PLAIN_RLE,
    coco_content,
    lvis_content,
    write_content,
)

SQUARE = [1.0, 1.0, 4.0, 1.0, 4.0, 3.0, 1.0, 3.0]
LAYOUTS: dict[str, dict[str, Any]] = {
    "compact": {"separators": (",", ":")},
    "wide": {"indent": 3},
    "escaped": {"ensure_ascii": True},
    "plain": {"ensure_ascii": False},
}


def stored(folder: Path, content: Any, **options: Any) -> AnnotationStore:
    """Write an annotation file and its store."""
    path = content if isinstance(content, Path) else write_content(folder, content)
    build_store(path, folder / "store", **{"fmt": "coco", "progress": False, **options})
    return AnnotationStore.open(folder / "store")


def of_id(store: AnnotationStore, number: int) -> dict[str, Any]:
    """Return what a store says of an annotation."""
    row = store.ann_ids.tolist().index(number)
    return {
        "bbox": store.ann_bbox[row].tolist(),
        "area": float(store.ann_area[row]),
        "segmentation": store.segmentation(row),
        "image": int(store.image_ids[store.ann_image[row]]),
        "category": store.category_names[store.ann_category[row]],
        "crowd": bool(store.ann_iscrowd[row]),
    }


def changed(number: int, **values: Any) -> dict[str, Any]:
    """Return the COCO content with other values in one annotation; None takes a key away."""
    content = coco_content()
    record = next(a for a in content["annotations"] if a["id"] == number)
    record.update(values)
    for key in [key for key, value in values.items() if value is ...]:
        del record[key]
    return content


# ---- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("odd", [False, True])
def test_any_layout(layout: str, odd: bool, tmp_path: Path) -> None:
    """Texts with brackets, quotes and backslashes, other lists and objects around, keys in another order."""
    content = lvis_content()
    content["categories"][0]["name"] = 'a "sock" [ {\\'
    content["images"][1] |= {"note": "}]", "list": [{"id": 3}, []]}
    others = {
        "info": {"annotations": [{"b": 1}], "s": 'x"'},
        "licenses": [{"id": 1}, [], {"id": {"id": 2}}],
        "note": "[{",
    }
    whole = others | dict(reversed(content.items())) | {"videos": [], "note": "[{"}
    expected = stored(tmp_path, content, fmt="lvis")
    if odd:  # a value of another type: every record is then read by itself
        whole["annotations"] = [dict(record, id=float(record["id"])) for record in whole["annotations"]]
    (tmp_path / layout).mkdir()
    found = stored(tmp_path / layout, json.dumps(whole, **LAYOUTS[layout]), fmt="lvis")
    assert found.category_names == expected.category_names and found.image_ids.tolist() == [70, 40, 90]
    for number in (8, 3, 4, 9):
        assert of_id(found, number) == of_id(expected, number)


def test_packed_files_and_other_encodings(tmp_path: Path) -> None:
    text = json.dumps(coco_content(), ensure_ascii=False)
    expected = stored(tmp_path, text)
    for name, content in {
        "a.json.gz": gzip.compress(text.encode()),
        "b.json.gz": gzip.compress(b"\xef\xbb\xbf" + text.encode()),
        "bom.json": b"\xef\xbb\xbf" + text.encode(),
        "16.json": text.encode("utf-16"),
        "32.json": text.encode("utf-32-le"),
    }.items():
        (tmp_path / name).write_bytes(content)
        (folder := tmp_path / f"{name}.d").mkdir()
        found = stored(folder, tmp_path / name)
        assert found.category_names == expected.category_names == ["sock", "Ünit", "cup"]
        assert found.ann_ids.tolist() == expected.ann_ids.tolist()
        assert ("UTF-" in "".join(found.info["remarks"])) is name.startswith(("16", "32"))
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(text.encode())[:-9])
    with pytest.raises(UserError, match="damaged gzip"):
        stored(tmp_path, tmp_path / "cut.json.gz")


def test_other_encodings_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(json.dumps(coco_content(), ensure_ascii=False).encode("cp1252"))
    with pytest.raises(UserError, match="not in UTF-8") as raised:
        stored(tmp_path, tmp_path / "a.json")
    assert "'Ünit' in Windows-1252" in str(raised.value) and "iconv" in str(raised.value)


def test_bare_words_become_text() -> None:
    text = r'{"a": NaN, "b": [-Infinity,Infinity], "c": "NaN, \" Infinity", "Infinity": "\\"}'
    expected = {"a": "NaN", "b": ["-Infinity", "Infinity"], "c": 'NaN, " Infinity', "Infinity": "\\"}
    assert json.loads(quoted_words(text.encode())) == expected


def test_memory_does_not_grow_with_the_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred times as many coordinates, the same peak."""
    monkeypatch.setattr(store_writer, "SEGMENT_ROWS", 16)
    peaks = {}
    for corners in (4, 4, 400):
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


# ---- values as they are meant ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mask",
    [
        SQUARE,
        [[[1, 1], [4, 1], [4, 3], [1, 3]]],
        [[1, 1], [4, 1], [4, 3], [1, 3]],
        [[str(value) for value in SQUARE]],
        [SQUARE, [1, 1, 2, 2], []],
    ],
)
def test_polygons_of_other_spellings(tmp_path: Path, mask: Any) -> None:
    store = stored(tmp_path, changed(8, segmentation=mask))
    assert of_id(store, 8)["segmentation"] == [SQUARE] and store.info["remarks"]
    assert store.ann_has_mask.all() and store.info["counts"]["without_mask"] == 0


@pytest.mark.parametrize("mask", [..., None, [], [[]], {}, "", [[1, 1, 4, 3]], [None]])
def test_objects_without_a_mask(tmp_path: Path, mask: Any) -> None:
    store = stored(tmp_path, changed(8, segmentation=mask))
    assert of_id(store, 8)["segmentation"] == [] and store.info["counts"]["without_mask"] == 1
    assert store.ann_ids[~store.ann_has_mask].tolist() == [8]
    assert of_id(store, 8)["bbox"] == [1, 1, 3.5, 2.25], "the box stays"
    assert any("without a mask" in sentence for sentence in sentences(store.info))


def test_coordinates_beyond_all_images(tmp_path: Path) -> None:
    """pycocotools would end the process."""
    far = {"segmentation": [[0, 0, 4e8, 0, 4e8, 4e8]], "area": None}
    with pytest.raises(UserError, match=r"1 masks that cannot be read \(annotations.*4e\+08 pixels away"):
        stored(tmp_path, changed(8, **far))
    store = stored(tmp_path, changed(8, **far), faults="drop")
    assert of_id(store, 8)["segmentation"] == [] and of_id(store, 8)["area"] == 3.5 * 2.25
    with pytest.raises(UserError, match="1 boxes beyond a million pixels"):
        stored(tmp_path, changed(8, bbox=[0, 0, 1e300, 1e300]))


def test_null_among_ids(tmp_path: Path) -> None:
    content = lvis_content()
    content["images"][0]["neg_category_ids"] = [5, None]
    store = stored(tmp_path, content, fmt="lvis")
    assert store.negative_categories(0).tolist() == [5] and "null among ids: left out" in store.info["remarks"]


@pytest.mark.parametrize("mask", [COMPRESSED_RLE, PLAIN_RLE, [PLAIN_RLE], {"size": ["6", 5.0], "counts": [8.0, 4, 18]}])
def test_run_lengths_of_other_spellings(tmp_path: Path, mask: Any) -> None:
    found = of_id(stored(tmp_path, changed(21, segmentation=mask, bbox=..., area=...)), 21)
    assert found["segmentation"]["size"] == [6, 5] and found["segmentation"]["counts"] in ("84b0", [8, 4, 18])
    assert found["bbox"] == [1, 2, 1, 4] and found["area"] == 4


def test_boxes_and_areas_come_from_masks(tmp_path: Path) -> None:
    """As pycocotools counts pixels; without a mask the box gives the area."""
    content = changed(8, segmentation=[SQUARE], bbox=None, area=None)
    content["annotations"][1] |= {"area": float("nan"), "segmentation": []}
    store = stored(tmp_path, content)
    reference = COCO()
    reference.imgs = {90: {"height": 8, "width": 9}}
    pixels = reference.annToMask({"segmentation": [SQUARE], "image_id": 90}).sum()
    assert of_id(store, 8)["bbox"] == [1, 1, 3, 2] and of_id(store, 8)["area"] == pixels
    assert of_id(store, 3)["area"] == 4 and of_id(store, 3)["bbox"] == [0.1, 0, 1, 4]


def test_ids_of_any_kind_are_kept_apart(tmp_path: Path) -> None:
    """Numbers as text are numbers, other texts get unused numbers; the file beside the store says which."""
    content = coco_content()
    names = {70: "7b6c-aa", 40: "40", 90: 90.0}
    for image in content["images"]:
        image["id"] = names[image["id"]]
    for annotation in content["annotations"]:
        annotation["image_id"] = names[annotation["image_id"]]
        annotation["category_id"] = str(annotation["category_id"])
    content["annotations"][0]["id"] = "a-8"
    content["annotations"][2]["id"] = 2**70
    del content["annotations"][1]["id"]
    store = stored(tmp_path, content)
    assert store.image_ids.tolist() == [1, 40, 90]
    assert json.loads((tmp_path / "store" / "ids.json").read_text()) == {
        "images": {"7b6c-aa": 1},
        "annotations": {"a-8": 1, str(2**70): 2},
    }
    assert of_id(store, 1)["image"] == 90 and of_id(store, 1)["category"] == "cup"
    assert of_id(store, 3) == {**of_id(store, 3), "image": 1, "category": "Ünit", "bbox": [0.1, 0, 1, 4]}
    assert len(set(store.ann_ids.tolist())) == 7


def test_classes_with_text_ids_get_the_same_numbers_in_every_file(tmp_path: Path) -> None:
    numbers = []
    for order in ((0, 1, 2), (2, 0, 1)):
        content = coco_content()
        content["categories"] = [dict(content["categories"][i]) for i in order]
        names = {category["id"]: category["name"] for category in content["categories"]}
        for category in content["categories"]:
            category["id"] = category["name"]
        for annotation in content["annotations"]:
            annotation["category_id"] = names[annotation["category_id"]]
        store = stored(tmp_path, content)
        numbers.append(dict(zip(store.category_names, store.category_ids.tolist(), strict=True)))
    assert numbers[0] == numbers[1] and sorted(numbers[0].values()) == [1, 2, 3]


def test_flags(tmp_path: Path) -> None:
    for value, crowd in (
        (1, True),
        (1.0, True),
        ("1", True),
        ("true", True),
        (True, True),
        ("0", False),
        (None, False),
    ):
        assert of_id(stored(tmp_path, changed(20, iscrowd=value)), 20)["crowd"] is crowd


def test_repeated_ids_are_numbered_anew(tmp_path: Path) -> None:
    store = stored(tmp_path, changed(4, id=8), faults="drop")
    assert sorted(store.ann_ids.tolist()) == [1, 3, 8, 9, 20, 21, 22]
    assert len(of_id(store, 1)["segmentation"]) == 2, "the later one"


def test_no_object_that_could_be_trained(tmp_path: Path) -> None:
    content = coco_content()
    for annotation in content["annotations"]:
        annotation["bbox"] = [value / 10 for value in annotation["bbox"]]
    with pytest.raises(UserError, match="fractions"):
        stored(tmp_path, content)
    content = coco_content()
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    with pytest.raises(UserError, match="7 crowd regions or ignored"):
        stored(tmp_path, content)


# ---- the summary -----------------------------------------------------------------------------------------------------


def test_the_summary_of_a_real_file(tmp_path: Path) -> None:
    info = stored(tmp_path, LVIS_100, fmt="lvis").info
    said = "\n".join(sentences(info))
    content = json.loads(LVIS_100.read_text())
    used = {annotation["category_id"] for annotation in content["annotations"]}
    letters = [category["frequency"] for category in content["categories"]]
    assert said.startswith("100 images; 7 of them without annotations; 977 annotations")
    assert f"1230 classes; {1230 - len(used)} of them without objects" in said
    assert info["frequencies"] == {letter: letters.count(letter) for letter in "rcf"}
    assert len(info["rarest"]) == 10 and all(item["images"] == 1 for item in info["rarest"])
    assert not info["dropped"]


def test_groups_are_those_of_the_training_images(tmp_path: Path) -> None:
    """Also for the validation part, and by the limits of the experiment."""
    train = stored(tmp_path, changed(8, category_id=2))
    assert train.info["frequencies"] == {"r": 3, "c": 0, "f": 0}
    assert train.info["counts"]["objects"] == 5 and "; 5 objects; " in sentences(train.info)[0]
    for limits, groups in (([0, 1], [0, 2, 1]), ([1, 2], [2, 0, 1]), ([1, 3], [2, 1, 0])):
        assert list(stored(tmp_path, changed(8, category_id=2), limits=limits).info["frequencies"].values()) == groups
        (tmp_path / "val").mkdir(exist_ok=True)
        content = coco_content()
        content["categories"].reverse()
        val = stored(tmp_path / "val", content, classes=train, limits=limits)
        assert list(val.info["frequencies"].values()) == groups, "with [1, 2] its own would be 2, 1, 0"


def test_a_summary_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    info = stored(tmp_path, coco_content()).info
    del info["counts"]["objects"]
    assert "7 annotations" in sentences(info)[0] and "objects;" not in sentences(info)[0]


# ---- TACO ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["taco_duplicate_ids.json", "taco_unofficial_infinity.json"])
def test_taco_reads_without_its_faults(tmp_path: Path, name: str) -> None:
    """Its oddities among good records: counts equal those of a plain loop over the file."""
    cases = Path(__file__).with_name("cases")
    content = json.loads((cases / "exports" / name).read_text())
    good = json.loads((cases / "variants" / "00_base.json").read_text())
    images, classes = (
        {record["id"]: 10_000 + record["id"] for record in good[key]} for key in ("images", "categories")
    )
    for key, ids in (("images", images), ("categories", classes)):
        content[key] += [record | {"id": ids[record["id"]], "name": f"good {record['id']}"} for record in good[key]]
    for record in good["annotations"]:
        numbers = {"image_id": images[record["image_id"]], "category_id": classes[record["category_id"]]}
        content["annotations"].append(record | numbers | {"id": 10_000 + record["id"]})
    expected, ids = [], set[int]()
    renumbered = unusable = 0
    for record in content["annotations"]:
        if not all(abs(value) < float("inf") for value in record["bbox"]):
            unusable += 1
            continue
        renumbered += record["id"] in ids
        ids.add(record["id"])
        expected.append((record["image_id"], record["category_id"], record["bbox"]))
    file = tmp_path / "taco.json"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="faults: drop"):
        stored(tmp_path, file)
    store = stored(tmp_path, file, faults="drop")
    found = [
        (store.image_ids[image].item(), store.category_ids[category].item(), box)
        for image, category, box in zip(store.ann_image, store.ann_category, store.ann_bbox.tolist(), strict=True)
    ]
    assert sorted(found) == sorted(expected) and len(set(store.ann_ids.tolist())) == len(expected)
    assert store.info["counts"]["annotations"] == len(expected)
    kinds = {"annotations with the id of another object": renumbered, "boxes that are not finite": unusable}
    assert {kind: entry["count"] for kind, entry in store.info["dropped"].items()} == {
        k: n for k, n in kinds.items() if n
    }
    assert renumbered + unusable >= 2


def test_oddities_are_counted_with_examples(tmp_path: Path) -> None:
    content = changed(8, bbox=[1, 1, 40, 2.25])
    content["annotations"][2]["bbox"] = [20, 1, 3, 2]
    content["categories"].append({"id": 77, "name": "nothing"})
    remarks = stored(tmp_path, content).info["remarks"]
    assert remarks["boxes that reach over the border of their image"]["count"] == 1
    assert remarks["boxes outside their image: not trained"]["examples"] == ["id 4: [20.0, 1.0, 3.0, 2.0]"]
    assert remarks["classes without objects"]["count"] == 1
    assert sum("boxes unlike their masks" in kind for kind in remarks) == 1


# ---- classes of two files --------------------------------------------------------------------------------------------


def test_a_validation_file_may_list_a_part_of_the_classes(tmp_path: Path) -> None:
    train = stored(tmp_path, coco_content())
    part = coco_content()
    part["categories"] = part["categories"][1:][::-1]
    part["annotations"] = [a for a in part["annotations"] if a["category_id"] != 9]
    (tmp_path / "val").mkdir()
    val = stored(tmp_path / "val", part, classes=train)
    assert val.category_ids.tolist() == [5, 2, 9] and val.category_names == ["cup", "Ünit", "sock"]
    assert any("that this file does not list" in kind for kind in val.info["remarks"])
    part["categories"][0]["name"] = "mug"
    with pytest.raises(UserError, match="'cup'"):
        stored(tmp_path / "val", part, classes=train)


# ---- image files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "there", "mended"),
    [
        ("a.png", "a.png", False),
        ("sub/a.png", "sub/a.png", False),
        ("sub\\a.png", "sub/a.png", True),
        ("data/images/a.png", "images/a.png", True),
        ("C:\\Users\\x\\a.png", "a.png", True),
        ("/home/x/train/a.png", "train/a.png", True),
        ("https://example.org/x/a%20b.png?size=2", "a b.png", True),
        ("a.png", "deep/er/a.png", True),
        ("u\u0308.png", "\u00fc.png", True),
    ],
)
def test_image_files_are_found(tmp_path: Path, written: str, there: str, mended: bool) -> None:
    file = tmp_path / "images" / there
    file.parent.mkdir(parents=True)
    file.touch()
    findings = Findings()
    images = [ImageRecord(1, 6, 5, written)]
    found = image_files(images, tmp_path / "images", tmp_path / "a.json", lambda row: f"images[{row}]", findings)
    assert found == [there] and bool(findings.remarks) is mended


def test_two_files_with_the_same_last_part_are_not_guessed(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").touch()
    with pytest.raises(UserError, match="1 of 1 not found: a.png"):
        image_files([ImageRecord(1, 6, 5, "a.png")], tmp_path, tmp_path / "a.json", str, Findings())


def test_every_reader_says_what_it_left_out(tmp_path: Path) -> None:
    """The protocol: columns of equal length, names of the records as the file counts them."""
    content = coco_content()
    content["annotations"].insert(1, {"id": 55, "bbox": "nothing"})
    for reader in (READERS["coco"],):
        findings = Findings()
        records = reader(write_content(tmp_path, content), findings)
        assert [fault.count for fault in findings.faults.values()] == [1]
        assert records.name("annotations", 1, "bbox") == 'annotations[2] (id 3), key "bbox"'
        columns = (records.ids, records.image_ids, records.category_ids, records.boxes, records.areas, records.masks)
        assert {len(column) for column in columns} == {7}
        assert records.boxes.dtype == np.float64 and records.has_box.all()


def test_every_format_can_be_named() -> None:
    verb = ArgumentParser()
    import_options(verb)
    (named,) = (action.choices for action in verb._actions if action.dest == "format")
    assert set(named or ()) == set(SOURCES)
    assert set(get_args(Dataset.model_fields["format"].annotation)) == set(READERS)
