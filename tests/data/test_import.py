"""``ltpipe import``: data sets of other formats come out as what they mean."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from ltpipe.cli import main
from ltpipe.data.images import exif_orientation
from ltpipe.data.import_data import import_data
from ltpipe.data.store import AnnotationStore
from ltpipe.data.store_writer import build_store
from ltpipe.errors import UserError

SIZE = (40, 20)  # width, height


def image(file: Path, size: tuple[int, int] = SIZE, orientation: int = 1) -> Path:
    """Write an image; with an orientation, ``size`` is that of the stored pixels."""
    file.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[274] = orientation
    Image.new("RGB", size).save(file, **({"exif": exif.tobytes()} if orientation != 1 else {}))
    return file


def text(file: Path, content: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, encoding="utf-8")
    return file


def imported(source: Path, target: Path, **options: Any) -> tuple[dict[str, dict[str, Any]], str]:
    """Import; return the content of every part, checked by our own reader, and the report."""
    report = import_data(source, target, **options)
    record = json.loads((target / "record.json").read_text())
    parts = {}
    for name, part in record["parts"].items():
        content = json.loads((target / part["annotations"]).read_text())
        if content["annotations"]:
            build_store(
                target / part["annotations"], target.parent / f"store_{name}", fmt="coco", image_folder=part["images"],
                progress=False,
            )  # fmt: skip
        assert part["counts"]["annotations"] == len(content["annotations"])
        parts[name] = content
    assert (target / "report.txt").read_text() == "\n".join(report) + "\n"
    return parts, "\n".join(report)


def objects(content: dict[str, Any]) -> list[tuple[str, str, list[float], Any]]:
    """Image file, class, box and mask of every object, in file order."""
    files = {one["id"]: one["file_name"] for one in content["images"]}
    names = {one["id"]: one["name"] for one in content["categories"]}
    found = [
        (files[a["image_id"]], names[a["category_id"]], a["bbox"], a["segmentation"]) for a in content["annotations"]
    ]
    return sorted(found, key=lambda one: (one[0], one[2]))


def close(found: list[float], wanted: list[float]) -> bool:
    return bool(np.allclose(found, wanted, atol=1e-5))


# ---- YOLO ------------------------------------------------------------------------------------------------------------


def yolo(folder: Path, labels: dict[str, str | None], header: str = "nc: 2\nnames: [cat, dog]\n") -> Path:
    """Write a data set as Roboflow does: ``train/images``, ``train/labels`` and the same for ``valid``."""
    for name, content in labels.items():
        part, _, stem = name.partition("/")
        image(folder / part / "images" / f"{stem}.png")
        if content is not None:
            text(folder / part / "labels" / f"{stem}.txt", content)
    parts = "".join(
        f"{'val' if part == 'valid' else part}: ../{part}/images\n"
        for part in sorted({n.split("/")[0] for n in labels})
    )
    text(folder / "data.yaml", header + parts)
    return folder


def test_yolo_boxes_and_segments(tmp_path: Path) -> None:
    labels = {
        "train/a": "0 0.5 0.5 0.25 0.5\n1 0.1 0.1 0.6 0.1 0.6 0.55\n",
        "train/b": "\n1.0 0.25 0.25 0.1 0.1\r\n",
        "train/empty": "",
        "train/none": None,
        "valid/c": "1 0.5 0.5 1 1",
    }
    parts, said = imported(yolo(tmp_path / "ds", labels), tmp_path / "out")
    assert list(parts) == ["train", "val"]
    for content in parts.values():
        assert [(c["id"], c["name"]) for c in content["categories"]] == [(1, "cat"), (2, "dog")]
        assert all((one["width"], one["height"]) == SIZE for one in content["images"])
    assert [one["file_name"] for one in parts["train"]["images"]] == ["a.png", "b.png", "empty.png", "none.png"]
    found = objects(parts["train"])
    assert found[0] == ("a.png", "dog", [4.0, 2.0, 20.0, 9.0], [[4.0, 2.0, 24.0, 2.0, 24.0, 11.0]])
    assert found[1] == ("a.png", "cat", [15.0, 5.0, 10.0, 10.0], [])
    assert found[2][:2] == ("b.png", "dog") and close(found[2][2], [8, 4, 4, 2])
    areas = {a["bbox"][2]: a["area"] for a in parts["train"]["annotations"]}
    rle = coco_mask.merge(coco_mask.frPyObjects(found[0][3], 20, 40))
    assert areas[10.0] == 100 and areas[20.0] == float(coco_mask.area(rle))
    assert "1 images without a label file" in said and "none.png" in said
    assert "2 objects without a mask" in said
    assert "annotations: " in said and f"images: {tmp_path}/ds/train/images" in said


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ("names: ['no', yes, 1, 01]\n", ["no", "yes", "1", "01"]),
        ("names:\n  0: a\n  10: b\n  2: c\n", ["a", "c", "b"]),
        ("nc: 2\nnames: {'1': two, '0': one}\n", ["one", "two"]),
        ("nc: 2\n", ["class_0", "class_1"]),
    ],
)
def test_yolo_names(tmp_path: Path, header: str, names: list[str]) -> None:
    parts, _ = imported(yolo(tmp_path / "ds", {"train/a": "0 0.5 0.5 0.5 0.5"}, header), tmp_path / "out")
    assert [c["name"] for c in parts["train"]["categories"]] == names
    assert objects(parts["train"])[0][1] == names[0]


def test_a_number_means_its_own_class_where_numbers_have_gaps(tmp_path: Path) -> None:
    source = yolo(tmp_path / "ds", {"train/a": "10 0.5 0.5 0.5 0.5"}, "names: {0: a, 10: b, 2: c}\n")
    parts, _ = imported(source, tmp_path / "out")
    assert [(c["id"], c["name"]) for c in parts["train"]["categories"]] == [(1, "a"), (3, "c"), (11, "b")]
    assert objects(parts["train"])[0][1] == "b"


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("nc: 3\nnames: [a, b]\n", "nc 3, 2 names"),
        ("names: {a: 1}\n", "names are no class names"),
        ("names: a\n", "names are no class names"),
        ("nc: many\n", "nc is no number"),
        ("nc: ²\n", "nc is no number"),
        ("nc: 0\nnames: []\n", "nc is no number"),
        ("nc: 999999999999\n", "nc is no number"),
        ("names: [a, b\n", "is not valid YAML"),
        ("names: [a]\nval: elsewhere/images\n", "no such folder or list of images"),
    ],
)
def test_unusable_descriptions(tmp_path: Path, header: str, words: str) -> None:
    source = yolo(tmp_path / "ds", {"train/a": "0 0.5 0.5 0.5 0.5"}, header)
    with pytest.raises(UserError, match=words) as raised:
        import_data(source, tmp_path / "out")
    assert "data.yaml" in str(raised.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("written", "mended"),
    [
        ("train: images/train\nval: images/val\n", False),
        ("path: .\ntrain: images/train\nval: images/val\n", False),
        ("path: ../ds\ntrain: images/train\nval: [images/val]\n", False),
        ("path: /somewhere/else\ntrain: images/train\nval: images/val\n", True),
        ("train: /content/drive/ds/images/train\nval: C:\\ds\\images\\val\n", True),
        ("train: train.txt\nval: val.txt\n", False),
        ("path: {here}\ntrain: images/train\nval: {here}/images/val\n", False),
    ],
)
def test_yolo_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, mended: bool) -> None:
    folder = tmp_path / "ds"
    for part in ("train", "val"):
        for stem in "ab":
            image(folder / "images" / part / "sub" / f"{stem}.jpg")
            text(folder / "labels" / part / "sub" / f"{stem}.txt", "0 0.5 0.5 0.5 0.5")
        text(folder / f"{part}.txt", f"./images/{part}/sub/a.jpg\n{folder}/images/{part}/sub/b.jpg\n")
    text(folder / "data.yaml", f"names: [x]\n{written.replace('{here}', str(folder))}")
    monkeypatch.chdir(tmp_path)
    for source in (Path("ds"), folder / "data.yaml"):
        parts, said = imported(source, tmp_path / f"out_{source.name}")
        assert {name: len(content["annotations"]) for name, content in parts.items()} == {"train": 2, "val": 2}
        assert ("found by a part of their name" in said) is mended


def test_yolo_images_seen_turned(tmp_path: Path) -> None:
    """Stored 40 x 20, shown 20 x 40: fractions are of the shown image."""
    folder = yolo(tmp_path / "ds", {"train/a": "0 0.5 0.25 0.5 0.25"}, "names: [x]\n")
    (folder / "train/images/a.png").unlink()
    image(folder / "train/images/a.jpg", orientation=6)
    parts, _ = imported(folder, tmp_path / "out")
    assert [(one["width"], one["height"]) for one in parts["train"]["images"]] == [(20, 40)]
    assert objects(parts["train"])[0][2] == [5.0, 5.0, 10.0, 10.0]


def test_yolo_labels_with_more_numbers(tmp_path: Path) -> None:
    lines = ["0 0.5 0.5 0.5 0.5 0.9", "1 0.1 0.1 0.6 0.1 0.6 0.5 7", "1 0.5 0.5 0.5 0.5", "1 0.5 0.5 0.5 0.5"]
    parts, said = imported(yolo(tmp_path / "ds", {"train/a": "\n".join(lines)}), tmp_path / "out")
    assert len(parts["train"]["annotations"]) == 3
    assert "2 labels with a number behind their coordinates" in said
    assert "1 labels that are written more than once: read once" in said and "line 4" in said
    header = "names: [person, dog]\nkpt_shape: [2, 3]\n"
    pose = {"train/a": "0 0.5 0.5 0.5 0.5 0.1 0.2 2 0.3 0.4 2"}
    parts, said = imported(yolo(tmp_path / "pose", pose, header), tmp_path / "out2")
    assert objects(parts["train"]) == [("a.png", "person", [10.0, 5.0, 20.0, 10.0], [])] and "keypoints" in said


FAULTY = {
    "2 0.5 0.5 0.5 0.5": "of a class that data.yaml does not have",
    "0.5 0.5 0.5 0.5 0.5": "of a class that data.yaml does not have",
    "0 20 10 5 5": "whose coordinates are no fractions",
    "0 nan 0.5 0.5 0.5": "whose coordinates are no fractions",
    "0 0.5 0.5 0.5": "of fewer than five numbers",
    "0 0.5 0.5 x 0.5": "that are no numbers",
    "0 0.5 0.5 -0.005 0.5": "of negative width or height",
}


@pytest.mark.parametrize("line", FAULTY)
def test_faulty_yolo_lines(tmp_path: Path, line: str) -> None:
    source = yolo(tmp_path / "ds", {"train/a": f"0 0.5 0.5 0.5 0.5\n{line}\n"})
    with pytest.raises(UserError) as raised:
        import_data(source, tmp_path / "out")
    assert f"1 labels {FAULTY[line]}" in str(raised.value) and "a.txt, line 2" in str(raised.value)
    assert "--faults drop" in str(raised.value) and not (tmp_path / "out").exists()
    parts, said = imported(source, tmp_path / "out", faults="drop")
    assert len(parts["train"]["annotations"]) == 1 and "left out: 1 labels" in said


def test_all_faults_of_all_parts_at_once(tmp_path: Path) -> None:
    good = "0 0.5 0.5 0.5 0.5\n"
    source = yolo(tmp_path / "ds", {"train/a": good, "train/b": good, "valid/a": good + "9 0.5 0.5 0.5 0.5"})
    (source / "train/images/b.png").write_bytes(b"no image")
    text(source / "train/labels/lone.txt", good)
    with pytest.raises(UserError) as raised:
        import_data(source, tmp_path / "out")
    for words in (
        "train: 1 image files that cannot be read",
        "train: 1 label files without an image",
        "val: 1 labels of a class",
    ):
        assert words in str(raised.value)
    parts, _ = imported(source, tmp_path / "out", faults="drop")
    assert [len(parts[name]["images"]) for name in ("train", "val")] == [1, 1]


def test_images_that_pillow_does_not_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above its limit of pixels it raises an error of its own kind."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20 * 40 // 3)
    source = yolo(tmp_path / "ds", {"train/a": "0 0.5 0.5 0.5 0.5"})
    image(source / "train/images/small.png", (5, 5))
    text(source / "train/labels/small.txt", "0 0.5 0.5 0.5 0.5")
    with pytest.raises(UserError, match="1 image files that cannot be read.*a.png"):
        import_data(source, tmp_path / "out")
    assert len(imported(source, tmp_path / "out", faults="drop")[0]["train"]["images"]) == 1
    assert exif_orientation(source / "train/images/a.png") == 1


def test_what_was_left_out_is_said_when_nothing_remains(tmp_path: Path) -> None:
    source = yolo(tmp_path / "ds", {"train/a": "0 0.5 0.5 0.5 0.5"})
    (source / "train/images/a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="no images.*\n.*\n.*left out: 1 image files that cannot be read"):
        import_data(source, tmp_path / "out", faults="drop")


def test_images_of_two_parts_are_remarked(tmp_path: Path) -> None:
    folder = tmp_path / "ds"
    image(folder / "images/a.jpg")
    text(folder / "labels/a.txt", "0 0.5 0.5 0.5 0.5")
    text(folder / "data.yaml", "names: [x]\ntrain: images\nval: images\n")
    assert "1 images that are both in train and in val" in imported(folder, tmp_path / "out")[1]


def test_a_missing_test_part_is_left_out(tmp_path: Path) -> None:
    source = yolo(tmp_path / "ds", {"train/a": "0 0.5 0.5 0.5 0.5"}, "test: ../test/images\nnames: [x]\n")
    parts, said = imported(source, tmp_path / "out")
    assert list(parts) == ["train"] and "parts that are not there: left out" in said and "make-split" in said


def test_lists_of_classes(tmp_path: Path) -> None:
    """LabelImg's classes.txt, with labels beside the images, and what CVAT exports for darknet."""
    one, other = tmp_path / "labelimg", tmp_path / "cvat"
    image(one / "a.jpg")
    text(one / "a.txt", "1 0.5 0.5 0.5 0.5")
    text(one / "classes.txt", "x\ny z\n")
    parts, _ = imported(one, tmp_path / "out1")
    assert objects(parts["annotations"]) == [("a.jpg", "y z", [10.0, 5.0, 20.0, 10.0], [])]
    image(other / "obj_train_data" / "a.jpg")
    text(other / "obj_train_data" / "a.txt", "1 0.5 0.5 0.5 0.5")
    text(other / "train.txt", "data/obj_train_data/a.jpg\n")
    text(other / "obj.names", "x\ny z\n")
    text(other / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    parts, _ = imported(other, tmp_path / "out2")
    assert objects(parts["train"]) == [("a.jpg", "y z", [10.0, 5.0, 20.0, 10.0], [])]


# ---- Pascal VOC ------------------------------------------------------------------------------------------------------


def voc(*items: str, size: tuple[int, int] | None = SIZE, filename: str = "") -> str:
    sides = "" if size is None else f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation><folder>x</folder><filename>{filename}</filename>{sides}{''.join(items)}</annotation>"


def thing(name: str, *corners: float, more: str = "") -> str:
    keys = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, corners, strict=True))
    return f"<object><name>{name}</name>{more}<bndbox>{box}</bndbox></object>"


def devkit(folder: Path) -> Path:
    """A data set as the challenge lays it out."""
    for stem, content in {
        "000001": voc(thing("dog", 1, 1, 40, 20), thing("cat", 5, 3, 14, 8), filename="000001.jpg"),
        "000002": voc(thing(" dog ", 2, 2, 3, 3, more="<difficult>1</difficult>"), thing("cat", 1, 1, 9, 9)),
        "000003": voc(filename="000003.jpg"),
    }.items():
        text(folder / "VOC2007/Annotations" / f"{stem}.xml", content)
        image(folder / "VOC2007/JPEGImages" / f"{stem}.jpg")
        image(folder / "VOC2007/SegmentationClass" / f"{stem}.png")
    sets = folder / "VOC2007/ImageSets/Main"
    for name, content in {"train": "000001\n", "val": "000002\n000003\n", "trainval": "000001\n000002\n"}.items():
        text(sets / f"{name}.txt", content)
    text(sets / "dog_train.txt", "000001  1\n")
    return folder


def test_voc_counts_pixels_from_one(tmp_path: Path) -> None:
    parts, said = imported(devkit(tmp_path / "VOCdevkit"), tmp_path / "out")
    assert list(parts) == ["train", "val"] and len(parts["val"]["images"]) == 2
    assert [(c["id"], c["name"]) for c in parts["train"]["categories"]] == [(1, "cat"), (2, "dog")]
    assert parts["val"]["categories"] == parts["train"]["categories"]
    assert objects(parts["train"]) == [
        ("000001.jpg", "dog", [0.0, 0.0, 40.0, 20.0], []),
        ("000001.jpg", "cat", [4.0, 2.0, 10.0, 6.0], []),
    ]
    assert parts["train"]["annotations"][0]["area"] == 800
    assert [a.get("ignore") for a in parts["val"]["annotations"]] == [1, None]
    assert AnnotationStore.open(tmp_path / "store_val").ann_ignore.tolist() == [True, False]
    assert "4 boxes whose corners are pixels counted from 1" in said and "1 objects marked as difficult" in said


def test_voc_corners_from_zero(tmp_path: Path) -> None:
    """One corner at 0 proves it, for all files of the data set."""
    for part, corners in {"train": (0, 2, 10, 8.5), "valid": (4, 2, 10, 8)}.items():
        image(tmp_path / "ds" / part / "a.jpg")
        text(tmp_path / "ds" / part / "a.xml", voc(thing("cat", *corners)))
    parts, said = imported(tmp_path / "ds", tmp_path / "out")
    assert objects(parts["train"])[0][2] == [0.0, 2.0, 10.0, 6.5]
    assert objects(parts["val"])[0][2] == [4.0, 2.0, 6.0, 6.0]
    assert "2 boxes whose corners are edges counted from 0" in said


def test_voc_objects(tmp_path: Path) -> None:
    """Parts of objects are no objects; polygons of two spellings; swapped corners."""
    hand = "<part><name>hand</name><bndbox><xmin>9</xmin><ymin>9</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"
    one = "<polygon><y1>2</y1><x1>2</x1><x2>12</x2><y2>2</y2><x3>12</x3><y3>12</y3></polygon>"
    other = (
        "<polygon>" + "".join(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in ((2, 2), (12, 2), (12, 12))) + "</polygon>"
    )
    image(tmp_path / "ds/a.jpg")
    items = [
        thing("person", 2, 3, 11, 12, more=hand),
        thing("x", 2, 2, 11, 11, more=one),
        thing("x", 2, 2, 11, 11, more=other),
    ]
    text(tmp_path / "ds/a.xml", voc(*items, thing("swapped", 11, 12, 2, 3), size=None))
    parts, said = imported(tmp_path / "ds", tmp_path / "out")
    found = objects(parts["annotations"])
    assert [one[1] for one in found] == ["x", "x", "person", "swapped"] and "hand" not in said
    assert found[0][3] == found[1][3] == [[1.0, 1.0, 11.0, 1.0, 11.0, 11.0]]
    assert found[2][2] == found[3][2] == [1.0, 2.0, 10.0, 10.0] and found[0][2] == [1.0, 1.0, 10.0, 10.0]
    assert "1 boxes whose corners are swapped" in said
    assert "1 annotation files without the size of their image" in said


def test_voc_images(tmp_path: Path) -> None:
    """That of the same name, whatever the file says; in other folders; turned ones as annotated; strangers left out."""
    ds = tmp_path / "ds"
    for part in ("train", "test"):
        image(ds / "images" / part / "a.jpg")
        text(ds / "annotations" / part / "a.xml", voc(thing("x", 1, 1, 9, 9), filename="lone.jpg"))
    image(ds / "images/train/b.jpg", orientation=6)
    text(ds / "annotations/train/b.xml", voc(thing("x", 1, 1, 9, 9), size=(40, 20)))
    image(ds / "images/train/c.jpg", orientation=6)
    text(ds / "annotations/train/c.xml", voc(thing("x", 1, 1, 9, 9), size=(20, 40)))
    image(ds / "images/train/renamed.jpg")
    text(ds / "annotations/train/d.xml", voc(thing("x", 1, 1, 9, 9), filename="C:\\pictures\\renamed.jpg"))
    image(ds / "images/train/lone.jpg")
    parts, said = imported(ds, tmp_path / "out")
    sizes = {one["file_name"]: (one["width"], one["height"]) for one in parts["train"]["images"]}
    assert sizes == {"a.jpg": SIZE, "b.jpg": (40, 20), "c.jpg": (20, 40), "renamed.jpg": SIZE}
    assert [one["file_name"] for one in parts["test"]["images"]] == ["a.jpg"]
    assert "2 images without an annotation file: not annotated, left out" in said and "lone.jpg" in said


FAULTY_VOC = {
    "not xml": "annotation files that are no XML",
    voc(thing("x", 1, 1, 9, 9), size=(41, 20)): "annotation files of images of another size",
    voc(thing("x", 1, 1, 9, 9), size=("a", "b")): "annotation files whose size is no number",  # type: ignore[arg-type]
    voc("<object><name>x</name></object>"): "objects without a box",
    voc(thing("", 1, 1, 9, 9)): "objects without a name",
    voc(thing("x", 1, 1, "nine", 9)): "objects whose coordinates are no numbers",  # type: ignore[arg-type]
    voc(
        thing(
            "x",
            1,
            1,
            9,
            9,
            more="<polygon><x1>1</x1><y1>1</y1><x2>4e8</x2><y2>1</y2><x3>4e8</x3><y3>4e8</y3></polygon>",
        )
    ): "objects with a point beyond a million pixels",
    voc(thing("x", 1, 1, float("inf"), 9)): "objects whose coordinates are not finite",
}


@pytest.mark.parametrize("content", FAULTY_VOC)
def test_faulty_voc(tmp_path: Path, content: str) -> None:
    for stem, written in {"a": voc(thing("x", 1, 1, 9, 9)), "b": content}.items():
        image(tmp_path / "ds" / f"{stem}.jpg")
        text(tmp_path / "ds" / f"{stem}.xml", written if "<" in written else f"<annotation>{written}")
    with pytest.raises(UserError) as raised:
        import_data(tmp_path / "ds", tmp_path / "out")
    assert f"1 {FAULTY_VOC[content]}" in str(raised.value) and "b.xml" in str(raised.value)
    parts, _ = imported(tmp_path / "ds", tmp_path / "out", faults="drop")
    assert len(parts["annotations"]["annotations"]) == 1


def test_voc_lists_and_images_that_are_not_there(tmp_path: Path) -> None:
    source = devkit(tmp_path / "VOCdevkit")
    (source / "VOC2007/JPEGImages/000003.jpg").unlink()
    with pytest.raises(UserError, match="1 annotation files without an image"):
        import_data(source, tmp_path / "out")
    (source / "VOC2007/Annotations/000003.xml").unlink()
    with pytest.raises(UserError, match="1 of 2 images without annotation file"):
        import_data(source, tmp_path / "out")


# ---- Labelme ---------------------------------------------------------------------------------------------------------


def labelme(shapes: list[dict[str, Any]], path: str, size: tuple[int, int] | tuple[None, None] = SIZE) -> str:
    content = {"version": "5.2.1", "flags": {}, "shapes": shapes, "imagePath": path, "imageData": None}
    return json.dumps(content | {"imageWidth": size[0], "imageHeight": size[1]})


def shape(label: Any, kind: str | None, points: Any, **more: Any) -> dict[str, Any]:
    return {
        "label": label,
        "points": points,
        "group_id": None,
        **({} if kind is None else {"shape_type": kind}),
        **more,
    }


TRIANGLE = [[4, 4], [14, 4.5], [14, 12]]
FLAT = [4.0, 4.0, 14.0, 4.5, 14.0, 12.0]


def test_labelme_shapes(tmp_path: Path) -> None:
    pixels = np.zeros((6, 8), bool)
    pixels[1:5, 2:7] = True
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, format="PNG")
    mask = base64.b64encode(png.getvalue()).decode()
    shapes = [
        shape("a", "polygon", TRIANGLE),
        shape("old", None, TRIANGLE),
        shape("b", "rectangle", [[30, 12], [20, 2]]),
        shape("c", "circle", [[20, 10], [20, 16]]),
        shape("g", "polygon", TRIANGLE, group_id=1),
        shape("g", "polygon", [[20, 4], [30, 4], [30, 14]], group_id=1),
        shape("other", "polygon", TRIANGLE, group_id=1),
        shape("m", "mask", [[10, 5], [17, 10]], mask=mask),
    ]
    image(tmp_path / "ds/pictures/a.jpg")
    text(tmp_path / "ds/json/a.json", labelme(shapes, "..\\pictures\\a.jpg"))
    image(tmp_path / "ds/json/nothing.jpg")
    text(tmp_path / "ds/json/nothing.json", labelme([], "nothing.jpg"))
    image(tmp_path / "ds/json/unseen.jpg")
    parts, said = imported(tmp_path / "ds", tmp_path / "out")
    content = parts["annotations"]
    assert sorted(one["file_name"] for one in content["images"]) == ["json/nothing.jpg", "pictures/a.jpg"]
    found = {one[1]: one[2:] for one in objects(content)}
    assert list(found) and len(content["annotations"]) == 7
    assert found["a"] == found["old"] == found["other"] == ([4.0, 4.0, 10.0, 8.0], [FLAT])
    assert found["b"] == ([20.0, 2.0, 10.0, 10.0], [])
    assert found["g"] == ([4.0, 4.0, 26.0, 10.0], [FLAT, [20.0, 4.0, 30.0, 4.0, 30.0, 14.0]])
    box, rle = found["m"]
    drawn = np.zeros((20, 40), bool)
    drawn[6:10, 12:17] = True
    assert box == [12.0, 6.0, 5.0, 4.0] and np.array_equal(coco_mask.decode(rle).astype(bool), drawn)
    area = next(a["area"] for a in content["annotations"] if a["bbox"] == found["c"][0])
    assert abs(area - np.pi * 36) < 6 and close(found["c"][0], [14, 4, 12, 12])
    assert "1 images without an annotation file" in said and "1 objects of several shapes" in said


def test_labelme_sizes_and_parts(tmp_path: Path) -> None:
    for part in ("train", "val"):
        image(tmp_path / "ds" / part / "a.jpg", orientation=6)
        text(tmp_path / "ds" / part / "a.json", labelme([shape("x", "polygon", TRIANGLE)], "a.jpg", (20, 40)))
    image(tmp_path / "ds/train/b.jpg", orientation=8)
    text(tmp_path / "ds/train/b.json", labelme([shape("y", "polygon", TRIANGLE)], "/home/me/b.jpg", (None, None)))
    parts, said = imported(tmp_path / "ds", tmp_path / "out")
    assert [(i["width"], i["height"]) for i in parts["train"]["images"]] == [(20, 40), (20, 40)]
    assert parts["train"]["categories"] == parts["val"]["categories"] and len(parts["val"]["categories"]) == 2
    assert "1 annotation files without the size of their image" in said


FAULTY_LABELME = {
    "line": (shape("x", "line", [[1, 1], [5, 5]]), "objects of a shape without an area"),
    "no label": (shape(None, "polygon", TRIANGLE), "objects without a label"),
    "two points": (shape("x", "polygon", [[1, 1], [5, 5]]), "objects with a polygon of fewer than three points"),
    "far": (shape("x", "polygon", [[0, 0], [4e8, 0], [4e8, 4e8]]), "objects whose points are not finite, or beyond"),
    "text": (shape("x", "polygon", [["a", 1]]), "objects whose points cannot be read"),
    "mask": (shape("x", "mask", [[1, 1], [5, 5]], mask="!"), "objects whose mask cannot be read"),
}


@pytest.mark.parametrize("name", FAULTY_LABELME)
def test_faulty_labelme(tmp_path: Path, name: str) -> None:
    faulty, words = FAULTY_LABELME[name]
    image(tmp_path / "ds/a.jpg")
    text(tmp_path / "ds/a.json", labelme([shape("x", "polygon", TRIANGLE), faulty], "a.jpg"))
    with pytest.raises(UserError, match=f"1 {words}.*a.json, object 2"):
        import_data(tmp_path / "ds", tmp_path / "out")
    parts, _ = imported(tmp_path / "ds", tmp_path / "out", faults="drop")
    assert objects(parts["annotations"]) == [("a.jpg", "x", [4.0, 4.0, 10.0, 8.0], [FLAT])]


# ---- COCO folders ----------------------------------------------------------------------------------------------------


def coco(name: str, categories: list[str] = ["none", "cat"], **more: Any) -> str:  # noqa: B006
    box = {"id": 5, "image_id": 3, "category_id": 1, "bbox": [1, 2, 5, 6], "area": 30, "segmentation": [], "iscrowd": 0}
    images = [{"id": 3, "file_name": name, "width": SIZE[0], "height": SIZE[1], **more}]
    return json.dumps(
        {"images": images, "annotations": [box], "categories": [{"id": i, "name": n} for i, n in enumerate(categories)]}
    )


def roboflow(folder: Path) -> Path:
    for part in ("train", "valid", "test"):
        image(folder / part / "a_jpg.rf.0.jpg")
        text(folder / part / "_annotations.coco.json", coco("a_jpg.rf.0.jpg", ["none", "cat"]))
    text(folder / "README.roboflow.txt", "x")
    return folder


def cvat(folder: Path) -> Path:
    for part in ("train", "val", "test"):
        image(folder / "images" / part / "a.jpg")
        text(folder / "annotations" / f"instances_{part}.json", coco("a.jpg"))
    return folder


def cvat_default(folder: Path) -> Path:
    image(folder / "images/default/a.jpg")
    text(folder / "annotations/instances_default.json", coco("a.jpg"))
    return folder


def original(folder: Path) -> Path:
    for part in ("train2017", "val2017", "test2017"):
        image(folder / part / "a.jpg")
        text(folder / "annotations" / f"instances_{part}.json", coco("a.jpg"))
    text(folder / "annotations/person_keypoints_val2017.json", coco("a.jpg"))
    text(folder / "annotations/captions_val2017.json", '{"images": [], "annotations": []}')
    return folder


@pytest.mark.parametrize("layout", [roboflow, cvat, original])
def test_coco_folders(tmp_path: Path, layout: Callable[[Path], Path]) -> None:
    parts, said = imported(layout(tmp_path / "ds"), tmp_path / "out")
    assert list(parts) == ["train", "val", "test"]
    for content in parts.values():
        (annotation,) = content["annotations"]
        assert (annotation["id"], annotation["image_id"], annotation["category_id"]) == (5, 3, 1)
        assert content["images"][0]["file_name"] == ("a_jpg.rf.0.jpg" if layout is roboflow else "a.jpg")
        assert [c["name"] for c in content["categories"]] == ["none", "cat"]
    assert ("annotation files of another kind: not read" in said) is (layout is original)
    record = json.loads((tmp_path / "out/record.json").read_text())
    assert all(
        (Path(part["images"]) / parts[name]["images"][0]["file_name"]).is_file()
        for name, part in record["parts"].items()
    )


def test_a_layout_without_parts(tmp_path: Path) -> None:
    parts, said = imported(cvat_default(tmp_path / "ds"), tmp_path / "out")
    assert objects(parts["annotations"]) == [("a.jpg", "cat", [1.0, 2.0, 5.0, 6.0], [])]
    assert f"images in {tmp_path}/ds/images/default" in said and "make-split" in said


def test_one_annotation_file(tmp_path: Path) -> None:
    """Crowds, ignored objects, text ids and frequencies survive; the mapping is kept."""
    image(tmp_path / "a.jpg")
    content = json.loads(coco("pictures/a.jpg"))
    content["categories"] = [{"id": "uuid-c", "name": "cat", "frequency": "r"}]
    content["annotations"][0] |= {
        "category_id": "uuid-c",
        "iscrowd": 1,
        "segmentation": {"size": [20, 40], "counts": [9, 4, 787]},
    }
    content["annotations"].append(dict(content["annotations"][0], id=6, iscrowd=0, ignore=1))
    content["annotations"].append(dict(content["annotations"][0], id=7, iscrowd=0, ignore=0))
    file = text(tmp_path / "all.json", json.dumps(content))
    parts, _ = imported(file, tmp_path / "out")
    found = {
        a["id"]: (a["iscrowd"], a.get("ignore"), a["segmentation"]["counts"])
        for a in parts["annotations"]["annotations"]
    }
    assert found == {5: (1, None, [9, 4, 787]), 6: (0, 1, [9, 4, 787]), 7: (0, None, [9, 4, 787])}
    assert parts["annotations"]["categories"] == [{"id": 1, "name": "cat", "frequency": "r"}]
    assert json.loads((tmp_path / "out/record.json").read_text())["parts"]["annotations"]["ids"] == {
        "categories": {"uuid-c": 1}
    }


def test_federated_folders(tmp_path: Path) -> None:
    for part in ("train", "val"):
        image(tmp_path / "ds" / part / "a.jpg")
        listed = {"neg_category_ids": [0], "not_exhaustive_category_ids": [1]}
        text(tmp_path / f"ds/lvis_v1_{part}.json", coco("", **listed, coco_url=f"http://x/{part}/a.jpg"))
    parts, said = imported(tmp_path / "ds", tmp_path / "out")
    assert [content["images"][0]["neg_category_ids"] for content in parts.values()] == [[0], [0]]
    assert "format: lvis" in said


def test_parts_whose_classes_differ(tmp_path: Path) -> None:
    source = roboflow(tmp_path / "ds")
    text(source / "test/_annotations.coco.json", coco("a_jpg.rf.0.jpg").replace('{"id": 0, "name": "none"}, ', ""))
    parts, said = imported(source, tmp_path / "out")
    assert {c["name"] for c in parts["test"]["categories"]} == {"none", "cat"}
    text(source / "test/_annotations.coco.json", coco("a_jpg.rf.0.jpg", ["cat", "none"]))
    with pytest.raises(UserError, match="id 0 is 'none' in .*, 'cat' in"):
        import_data(source, tmp_path / "out2")


def test_unclear_sources(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no data set of a known format"):
        import_data(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(UserError, match="no such data set"):
        import_data(tmp_path / "nowhere", tmp_path / "out")
    source = roboflow(tmp_path / "ds")
    text(source / "train/a_jpg.rf.0.xml", voc(thing("x", 1, 1, 9, 9)))
    with pytest.raises(UserError, match="--format voc or coco"):
        import_data(source, tmp_path / "out")
    assert list(imported(source, tmp_path / "out", fmt="coco")[0]) == ["train", "val", "test"]
    text(source / "train/more.json", coco("a_jpg.rf.0.jpg"))
    with pytest.raises(UserError, match="several annotation files for one part"):
        import_data(source, tmp_path / "out", fmt="coco")


# ---- the command -----------------------------------------------------------------------------------------------------


def test_nothing_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = yolo(tmp_path / "ds", {"train/a": "0 0.5 0.5 0.5 0.5"}), tmp_path / "out"
    command = ["import", str(source), "--output"]
    assert main([*command, str(out)]) == 0 and "train: 1 images" in capsys.readouterr().out
    made = (out / "train.json").read_bytes()
    assert main([*command, str(out)]) == 0 and (out / "train.json").read_bytes() == made
    (out / "train.json").write_text("{}")
    assert main([*command, str(out)]) == 2 and "has changed since" in capsys.readouterr().err
    assert main([*command, str(source / "json")]) == 2 and "is an input" in capsys.readouterr().err
    assert not (source / "json").exists()
    assert main([*command, str(source)]) == 2


def test_a_data_set_without_a_usable_object(tmp_path: Path) -> None:
    source = yolo(tmp_path / "ds", {"train/a": "", "valid/a": "0 0.5 0.5 0.5 0.5"})
    with pytest.raises(UserError, match="no object that could be trained"):
        import_data(source, tmp_path / "out")
    source = yolo(tmp_path / "ok", {"train/a": "0 0.5 0.5 0.5 0.5", "valid/a": ""})
    assert imported(source, tmp_path / "out")[0]["val"]["annotations"] == []
