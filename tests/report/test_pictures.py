"""Pages of pictures: what is on them, that every link and picture is there, their limits, and no torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest

from ltpipe.cli import main
from ltpipe.data.odd_objects import odd_objects
from ltpipe.data.store import AnnotationStore
from ltpipe.data.store_writer import build_store
from ltpipe.errors import UserError
from ltpipe.report.class_ranking import by_importance
from ltpipe.report.picture_pages import PAGE_BYTES
from ltpipe.stages.pictures_of_files import pictures_of_files
from tests.helpers.pages import check_pages

ROOT = Path(__file__).parents[2]
NAMES = ["cat", "dog <b>", "bus"]


def box(number: int, category: int, bbox: list[float], image: int = 1, **more: Any) -> dict[str, Any]:
    """Return an annotation with a mask that fills its box."""
    x, y, w, h = bbox
    corners = [x, y, x + w, y, x + w, y + h, x, y + h]
    whole = {"segmentation": [corners], "area": w * h, "iscrowd": 0, **more}
    return {"id": number, "image_id": image, "category_id": category, "bbox": bbox, **whole}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two images, four objects of three classes, and detections: right, of another class, of nothing."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 120, "height": 90} for i in (1, 2)]
    for image in images:
        cv2.imwrite(str(tmp_path / "images" / image["file_name"]), rng.integers(0, 255, (90, 120, 3), np.uint8))
    anns = [box(1, 1, [5, 5, 30, 30]), box(2, 2, [60, 10, 30, 40]), box(3, 3, [10, 50, 40, 30], 2)]
    anns.append(box(4, 1, [70, 50, 40, 30], 2))
    categories = [{"id": i, "name": name} for i, name in enumerate(NAMES, 1)]
    (tmp_path / "gt.json").write_text(json.dumps({"images": images, "annotations": anns, "categories": categories}))
    found = [
        {"image_id": 1, "category_id": 1, "bbox": [5, 5, 30, 30], "score": 0.9},
        {"image_id": 1, "category_id": 3, "bbox": [60, 10, 30, 40], "score": 0.8},
        {"image_id": 2, "category_id": 2, "bbox": [0, 0, 8, 8], "score": 0.7},
    ]
    (tmp_path / "found.json").write_text(json.dumps(found))
    return tmp_path


def section(text: str, name: str) -> str:
    """Return the section of a class."""
    return next(part for part in text.split("<section")[1:] if f"<h2>{name}" in part)


def test_right_and_wrong(data: Path) -> None:
    """Each kind of mistake stands in the section of the class that was detected, missed objects in their own."""
    pictures_of_files(data / "gt.json", data / "images", [data / "found.json"], data / "out")
    pages = check_pages(data / "out")
    assert set(pages) == {"index.html", "examples_001.html", "detected_found_json_001.html"}
    text = pages["detected_found_json_001.html"]
    cat, dog, bus = (section(text, name) for name in ("cat", "dog &lt;b&gt;", "bus"))
    assert "Best hits (1)" in cat and "Missed objects, the largest (1)" in cat and "Confident" not in cat
    assert "Confident mistakes: nothing there (1)" in dog and "Its objects, taken for other classes (1)" in dog
    assert "Confident mistakes: an object taken for another class (1)" in bus
    assert "bus 0.80, is a dog &lt;b&gt;" in bus and "Truth and detections side by side" in bus
    assert "dog <b>" not in "".join(pages.values())
    index = pages["index.html"]
    rows = re.findall(r"<tr>(.*?)</tr>", index[index.index('id="table"') :])[1:]
    assert ["cat" in row and ">50.5<" in row for row in rows].count(True) == 1  # half of its objects are found


def test_a_limit_that_is_said(data: Path) -> None:
    """Pages end before they are too large, and the first one says which classes have no pictures."""
    pictures_of_files(data / "gt.json", data / "images", [data / "found.json"], data / "out", megabytes=0.05)
    pages = check_pages(data / "out")
    size = sum(len(text) for name, text in pages.items() if name != "index.html" and "<figure" in text)
    assert size < 0.05e6 + 20_000 * len(pages) and "limit of 0.05 MB is reached" in pages["index.html"]
    assert all(len(text) < PAGE_BYTES for text in pages.values())


def test_an_image_that_cannot_be_read_is_named(data: Path) -> None:
    (data / "images" / "2.jpg").write_bytes(b"no image")
    pictures_of_files(data / "gt.json", data / "images", [], data / "out")
    index = check_pages(data / "out")["index.html"]
    assert "Images that cannot be read" in index and "2.jpg" in index


def test_it_loads_no_torch(data: Path) -> None:
    """On the command line, with detections."""
    command = ["pictures", "--annotations", "gt.json", "--images", "images", "--detections", "found.json"]
    code = f"""
import sys
from ltpipe.cli import main
assert main({[*command, "--output", "out"]!r}) == 0
assert not {{"torch", "mmcv", "mmdet", "mmengine"}} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=data,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "out/index.html"


def test_refusals(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = ["pictures", "--annotations", str(data / "gt.json")]
    assert main(named) == 2
    assert "--annotations needs --images" in capsys.readouterr().err
    whole = [*named, "--images", str(data / "images"), "--output", str(data)]
    assert main(whole) == 2
    assert "the folder holds other files" in capsys.readouterr().err
    (data / "more").mkdir()
    twice = [data / "found.json", data / "more" / "found.json"]
    twice[1].write_text(twice[0].read_text())
    with pytest.raises(UserError, match="two files of detections have one name"):
        pictures_of_files(data / "gt.json", data / "images", twice, data / "out")
    with pytest.raises(UserError, match="do not belong to these annotations"):
        (data / "found.json").write_text('[{"image_id": 9, "category_id": 1, "bbox": [1, 1, 5, 5], "score": 1}]')
        pictures_of_files(data / "gt.json", data / "images", [data / "found.json"], data / "out")


def test_objects_that_look_broken(tmp_path: Path) -> None:
    """Each kind is found once, sound objects and crowd regions are not."""
    wrong = {
        "degenerate": box(1, 1, [5, 5, 30, 0.5]),
        "outside": box(2, 1, [300, 5, 30, 30]),
        "over the border": box(3, 1, [180, 40, 40, 30]),
        "unlike": box(4, 1, [10, 10, 60, 60], segmentation=[[10, 10, 30, 10, 30, 30, 10, 30]]),
        "hollow": box(5, 1, [10, 10, 50, 50], segmentation=[[10, 10, 60, 60, 60, 61, 10, 12]]),
        "twice": box(7, 2, [101, 50, 40, 40]),
        "stretched": box(8, 1, [0, 80, 190, 5]),
        "tiny": box(9, 1, [50, 90, 9, 1.5]),
    }
    sound = [box(6, 2, [100, 50, 40, 40]), box(10, 1, [100, 50, 40, 40]), box(11, 2, [100, 50, 40, 40], iscrowd=1)]
    document = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 200, "height": 100}],
        "annotations": sorted([*wrong.values(), *sound], key=lambda ann: ann["id"]),
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    (tmp_path / "gt.json").write_text(json.dumps(document))
    build_store(tmp_path / "gt.json", tmp_path / "store", fmt="coco", progress=False)
    store = AnnotationStore.open(tmp_path / "store")
    found = {kind: store.ann_ids[rows].tolist() for kind, rows in odd_objects(store).items()}
    expected = {kind: [ann["id"]] for kind, ann in wrong.items()}
    assert found == expected | {"stretched": [8], "unlike": [4]}


def test_what_matters_comes_first() -> None:
    """The worst rare, the most confused and the most changed class take turns; classes without objects come last."""
    nan = float("nan")
    classes = pd.DataFrame(
        [
            ("frequent, fine", "f", 0.9, 0, 0.0),
            ("nothing to find", "r", nan, 0, nan),
            ("rare, bad", "r", 0.1, 2, 0.01),
            ("confused", "f", 0.5, 9, 0.0),
            ("rare, worst", "r", 0.0, 0, nan),
            ("changed", "c", 0.4, 1, -0.2),
        ],
        columns=["name", "frequency", "AP", "confused", "change"],
    )
    order = by_importance(classes)
    assert [classes["name"][row] for row, _ in order] == [
        "rare, worst", "confused", "changed", "rare, bad", "frequent, fine", "nothing to find",
    ]  # fmt: skip
    assert set(dict(order)[5].split(", ")) == {"AP −20.0", "confused 1 times"}
