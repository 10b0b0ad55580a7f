"""Whose classes the rows of a foreign checkpoint are: the names it stores, else its repository's rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from old_detectors import OLD, build, model_config

from ltpipe.cli import main
from ltpipe.convert.labels import label_order, read_classes
from ltpipe.convert.pretrained import DETECTRON2
from ltpipe.convert.released import Request, convert
from ltpipe.convert.simcal import MMDET1
from ltpipe.engine.train import read_checkpoint
from ltpipe.errors import UserError
from ltpipe.spec.classes import read_class_list

ROOT = Path(__file__).parents[2]
IDS, NAMES = [0, 7, 3], ["traffic light", "01", "None"]
SAID = ["--loss", "cross_entropy", "--classifier", "linear", "--mask", "fcn"]


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    path = tmp_path / "classes.json"
    records = [{"id": i, "name": n, "image_count": 5, "instance_count": 5} for i, n in zip(IDS, NAMES, strict=True)]
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def file(tmp_path: Path, meta: dict[str, Any]) -> Path:
    """A checkpoint of mmdetection whose row ``k`` of the classifier is filled with ``k``."""
    state = OLD["mmdet2"].state(build(model_config()))
    state["roi_head.bbox_head.fc_cls.bias"] = torch.arange(4.0)
    torch.save({"state_dict": state, "meta": meta}, tmp_path / "old.pth")
    return tmp_path / "old.pth"


def converted(tmp_path: Path, meta: dict[str, Any], classes: Path, *more: str) -> dict[str, Any]:
    output = tmp_path / "new.pth"
    arguments = ["convert", str(file(tmp_path, meta)), "--output", str(output), "--classes", str(classes), *SAID]
    assert main([*arguments, *more]) == 0
    found = read_checkpoint(output)
    assert found["state_dict"]["roi_head.bbox_head.fc_cls.bias"].tolist() == [0, 1, 2, 3]
    return found["meta"]


def test_without_names_the_rows_are_in_file_order(tmp_path: Path, classes: Path) -> None:
    meta = converted(tmp_path, {}, classes)
    assert meta["category_ids"] == IDS and meta["dataset_meta"] == {"classes": tuple(NAMES)}
    assert meta["converted"]["labels"] == "order of the class list"


@pytest.mark.parametrize(
    "stored",
    [
        {"CLASSES": ("None", "traffic light", "01")},
        {"dataset_meta": {"classes": ("None", "traffic light", "01"), "palette": None}},
        {"CLASSES": ["None", "traffic_light", "01"]},  # as mmdetection 1.x spells COCO
    ],
)
def test_names_in_the_file_give_the_order(tmp_path: Path, classes: Path, stored: dict[str, Any]) -> None:
    meta = converted(tmp_path, stored, classes)
    assert meta["category_ids"] == [3, 0, 7] and meta["dataset_meta"]["classes"] == ("None", "traffic light", "01")
    assert meta["converted"]["labels"] == "class names in the file"


def test_ids_in_the_file_are_compared(tmp_path: Path, classes: Path) -> None:
    stored = {"category_ids": [3, 0, 7], "dataset_meta": {"classes": ("None", "traffic light", "01")}}
    assert converted(tmp_path, stored, classes)["category_ids"] == [3, 0, 7]
    stored["category_ids"] = [7, 0, 3]
    request = Request((file(tmp_path, stored),), tmp_path / "new.pth", classes=classes)
    with pytest.raises(UserError, match="id 7 is '01' in the class list, 'None' in the checkpoint"):
        convert(request)


def test_other_names_are_refused(tmp_path: Path, classes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meta = {"CLASSES": ("person", "01", "None")}
    arguments = ["convert", str(file(tmp_path, meta)), "--output", str(tmp_path / "x"), "--classes", str(classes)]
    assert main([*arguments, *SAID]) == 2
    message = capsys.readouterr().err
    assert "1 of 3 not in the list: 'person'" in message and "--ignore-names" in message
    assert converted(tmp_path, meta, classes, "--ignore-names")["category_ids"] == IDS


def test_equal_names_need_the_list_in_order(tmp_path: Path, classes: Path) -> None:
    records = [{"id": i, "name": n, "instance_count": 1} for i, n in ((4, "a"), (2, "a"), (3, "b"))]
    assert label_order(MMDET1, {"CLASSES": ["a", "a", "b"]}, records, 3, None)[0].ids == (4, 2, 3)
    with pytest.raises(UserError, match="several classes of one name"):
        label_order(MMDET1, {"CLASSES": ["b", "a", "a"]}, records, 3, None)
    assert label_order(DETECTRON2, {}, records, 3, None)[0].ids == (2, 3, 4)


def test_released_names_of_lvis_and_coco() -> None:
    from mmdet.datasets import CocoDataset, LVISV05Dataset, LVISV1Dataset

    lists = {"lvis_v1": LVISV1Dataset, "lvis_v0.5": LVISV05Dataset, "coco": CocoDataset}
    for name, dataset in lists.items():
        listed = read_class_list(ROOT / f"configs/classes/{name}.json")
        stored = {"CLASSES": dataset.METAINFO["classes"]}
        found, source = label_order(MMDET1, stored, listed, len(listed), None)
        assert list(found.ids) == [c["id"] for c in listed] and source == "class names in the file", name


def test_class_lists_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,name\n1,a\n", encoding="utf-8")
    (tmp_path / "b.csv").write_text("category_id,name,instance_count\n1,a,1\n1,b,2\n", encoding="utf-8")
    (tmp_path / "c.csv").write_text("category_id,name,instance_count\n1,a,x\n", encoding="utf-8")
    for name, words in (("a", "not the class statistics"), ("b", "an id twice"), ("c", "no whole number")):
        with pytest.raises(UserError, match=words):
            read_classes(tmp_path / f"{name}.csv")
