"""``import ltpipe``: light, typed, and its page in the documentation does what it says."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ltpipe
from ltpipe.data.toy import write_toy_data
from tests.helpers.workspace import ROOT

PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
HEAVY = ("torch", "mmdet", "mmcv", "mmengine", "pandas", "numpy", "pyarrow", "matplotlib", "numba", "pydantic")


def test_import_loads_nothing_heavy_and_only_detectors_need_torch() -> None:
    code = f"""
import sys, ltpipe
assert not {set(HEAVY)!r} & set(sys.modules), sys.modules.keys() & {set(HEAVY)!r}
for name in ltpipe.__all__:
    getattr(ltpipe, name)
print(*sorted({{"torch", "mmdet", "mmcv", "mmengine"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_every_name_is_documented() -> None:
    documented = {line.rpartition(".")[2] for line in re.findall(r"^::: (\S+)$", PAGE, re.MULTILINE)}
    assert documented - {"LoadedDetector"} == set(ltpipe.__all__) - {"UserError", "__version__"}
    assert set(dir(ltpipe)) == set(ltpipe.__all__)
    for name in sorted(documented - {"LoadedDetector"}):
        function = getattr(ltpipe, name)
        parameters = inspect.signature(function).parameters
        assert all(one.annotation is not one.empty for one in parameters.values()), name
        assert all(re.search(rf"^ +{one}: ", function.__doc__, re.MULTILINE) for one in parameters), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ltpipe.nothing


def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first two; what the third calls is in ``tests/stages/test_predict.py``, where a detector is trained."""
    monkeypatch.chdir(tmp_path)
    write_toy_data(tmp_path / "data/shapes", num_classes=36, train_images=60, val_images=20, image_size=64)
    val = json.loads(Path("data/shapes/val.json").read_text(encoding="utf-8"))
    keys = ("image_id", "category_id", "bbox", "segmentation")
    drawn = np.random.default_rng(0).random(len(val["annotations"])).tolist()
    found = [
        {key: one[key] for key in keys} | {"score": score} for one, score in zip(val["annotations"], drawn, strict=True)
    ]
    Path("ours.json").write_text(json.dumps(found), encoding="utf-8")
    first, second, third = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    space: dict[str, Any] = {}
    exec(first, space)
    classes, objects = space["classes"], space["objects"]
    assert classes["instance_count"].sum() == (~objects["crowd"]).sum() > 60
    one = json.loads(Path("data/shapes/train.json").read_text(encoding="utf-8"))["annotations"][0]
    row = objects[objects["annotation_id"] == one["id"]].iloc[0]
    assert [row[key] for key in "xywh"] == one["bbox"] and row["category_id"] == one["category_id"]
    assert space["split"].boundaries == (12, 24, 36)
    assert Path("long_tail.png").is_file()
    exec(second, space)
    assert len(space["table"]) == len(found)
    kept = [one for one in found if one["score"] > 0.5]
    written = json.loads(Path("confident.json").read_text(encoding="utf-8"))
    assert [one["score"] for one in written] == [one["score"] for one in kept]
    assert set(space["scores"]) == {"ours", "confident"}
    assert Path("groups.png").is_file()
    assert "load_detector" in third


def test_what_somebody_else_wrote_is_not_replaced(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    file.write_text(json.dumps([{"image_id": 1, "category_id": 2, "bbox": [0, 0, 4, 4], "score": 0.5}]))
    found = ltpipe.read_predictions(file)
    with pytest.raises(ltpipe.UserError):
        ltpipe.write_predictions(found, file)
    for name in ("copy.arrow", "copy.json"):
        ltpipe.write_predictions(found, tmp_path / name)
        ltpipe.write_predictions(found, tmp_path / name)
        again = ltpipe.detections_table(ltpipe.read_predictions(tmp_path / name))
        assert again.equals(ltpipe.detections_table(found))


def test_a_store_without_a_folder_goes_with_it(tmp_path: Path) -> None:
    write_toy_data(tmp_path, num_classes=9, train_images=9, val_images=3, image_size=64)
    store = ltpipe.open_store(tmp_path / "val.json")
    folder = store.folder
    assert folder.is_dir() and ltpipe.open_store(folder).info == store.info
    del store
    assert not folder.exists()
    kept = ltpipe.open_store(tmp_path / "val.json", folder=tmp_path / "store")
    assert kept.folder == tmp_path / "store"
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ltpipe.UserError):
        ltpipe.open_store(tmp_path / "bad.json")


def test_results_that_are_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    exp = ltpipe.load_experiment("toy_joint")
    with pytest.raises(ltpipe.UserError, match="unknown checkpoint"):
        ltpipe.read_metrics(exp, "nothing")
    with pytest.raises(ltpipe.UserError, match="ltpipe evaluate toy_joint --checkpoint base"):
        ltpipe.read_per_class("toy_joint", "base", results=tmp_path)
