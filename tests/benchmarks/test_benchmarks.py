"""The benchmarks on tiny inputs: what is drawn is as announced, both sides agree, and the page shows the results."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from ltpipe.data.statistics import class_statistics
from ltpipe.data.store import AnnotationStore
from ltpipe.metrics.predictions import Predictions

ROOT = Path(__file__).parents[2]
NAMES = (
    *("annotations", "detector_step", "distillation_logits", "evaluation", "further_numbers"),
    *("large_inputs", "measuring", "split_replay", "summary"),
)
SHARE = 0.0015


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ModuleType]]:
    """The scripts, whose work runs in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        patch.chdir(ROOT)
        patch.setattr(np, "float", float, raising=False)
        found = {name: __import__(name) for name in NAMES}
        # The official evaluation takes its time per class.
        classes = json.loads(found["large_inputs"].CLASSES.read_text(encoding="utf-8"))[::3]
        few = tmp_path_factory.mktemp("classes") / "few.json"
        few.write_text(json.dumps(classes), encoding="utf-8")
        patch.setattr(found["large_inputs"], "CLASSES", few)

        def here(work: Callable[..., Any], *arguments: Any) -> tuple[Any, Any]:
            start = time.process_time()
            result = work(*arguments)
            return result, found["measuring"].Cost(time.process_time() - start + 1e-9, 0.0, 1.0, 1.0)

        for module in found.values():
            if hasattr(module, "apart"):
                patch.setattr(module, "apart", here)
        yield found
        for name in NAMES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def inputs(scripts: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small version of LVIS v1."""
    folder = tmp_path_factory.mktemp("inputs")
    scripts["large_inputs"].make_inputs(folder, share=SHARE)
    return folder


def test_inputs_have_the_size_and_the_form_of_lvis(scripts: dict[str, ModuleType], inputs: Path) -> None:
    store, found = AnnotationStore.open(inputs / "val"), Predictions.open(inputs / "detections.arrow").checked()
    large = scripts["large_inputs"]
    images, instances = large.SOURCES["lvis_v1"].class_counts()
    assert len(images) == 401 and (instances >= images).all() and (images <= 100170).all()
    assert len(store.image_ids) == round(SHARE * 19809) and store.federated
    scale = SHARE * 19809 / 100170
    expected = np.maximum(1, np.rint(scale * instances))
    counted = class_statistics(store)["instance_count"].to_numpy()
    assert (counted >= 1).all() and abs(counted.sum() / expected.sum() - 1) < 0.1
    for row in range(len(store.image_ids)):
        present = store.category_ids[store.ann_category[store.image_ptr[row] : store.image_ptr[row + 1]]]
        assert not np.intersect1d(store.negative_categories(row), present).size
        assert np.isin(store.not_exhaustive_categories(row), present).all()
    x, y, w, h = store.ann_bbox.T
    height, width = store.image_sizes[store.ann_image].T
    assert (np.stack([x, y, w, h]) >= 0).all() and (x + w <= width + 0.01).all() and (y + h <= height + 0.01).all()
    assert (np.unique(found.image_ids, return_counts=True)[1] == 300).all() and found.masks is not None
    boxes = store.ann_bbox[:, 2] * store.ann_bbox[:, 3]
    assert 0.3 < np.median(store.ann_area / np.maximum(boxes, 1)) < 0.9


def test_inputs_depend_on_the_seed(scripts: dict[str, ModuleType], inputs: Path, tmp_path: Path) -> None:
    for name, seed in (("same", 0), ("other", 1)):
        scripts["large_inputs"].make_inputs(tmp_path / name, share=SHARE, seed=seed)
    for file in ("train.json", "detections.arrow"):
        content = [(folder / file).read_bytes() for folder in (inputs, tmp_path / "same", tmp_path / "other")]
        assert content[0] == content[1] != content[2]


def test_v3det(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    scripts["large_inputs"].make_inputs(tmp_path, "v3det", 0.001)
    store = AnnotationStore.open(tmp_path / "val")
    assert (len(store.category_ids), store.federated) == (13204, False)
    assert np.allclose(store.ann_area, store.ann_bbox[:, 2] * store.ann_bbox[:, 3], rtol=0.05, atol=1)
    instances = scripts["large_inputs"].SOURCES["v3det"].class_counts()[1]
    assert abs(instances.sum() / 1_361_181 - 1) < 0.01


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "options", "rows"),
    [
        ("annotations", ["--share", str(SHARE)], 2),
        ("split_replay", ["--share", str(SHARE), "--epochs", "2"], 1),
        ("evaluation", ["--share", str(SHARE), "--slices", "3"], 2),
        ("further_numbers", ["--share", str(SHARE)], 8),
        ("distillation_logits", ["--boxes", "60"], 4),
    ],
)
def test_both_sides_agree(
    name: str, options: list[str], rows: int, scripts: dict[str, ModuleType], inputs: Path, tmp_path: Path
) -> None:
    """Every script compares results before it writes."""
    if name != "distillation_logits":
        options = ["--inputs", str(inputs), *options]
    scripts[name].main([*options, "--output", str(tmp_path / f"{name}.json")])
    content = json.loads((tmp_path / f"{name}.json").read_text())
    assert content["command"].startswith(f"python benchmarks/{name}.py --") and len(content["rows"]) == rows
    lines = [scripts["summary"].line(row, content["command"]) for row in content["rows"]]
    assert all(line.count(" | ") == 6 for line in lines)


def test_files_of_others_stay(scripts: dict[str, ModuleType], inputs: Path, tmp_path: Path, capsys: Any) -> None:
    """Images beside the annotations that are measured, and what is no result of a benchmark."""
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "photo.png").write_text("mine")
    (tmp_path / "train.json").symlink_to(inputs / "train.json")
    for name in ("mine.json", "mine.txt"):
        (tmp_path / name).write_text("[1]")
        for script in ("annotations", "detector_step", "distillation_logits", "evaluation", "split_replay"):
            with pytest.raises(SystemExit):
                scripts[script].main(["--output", str(tmp_path / name)])
            assert "is no result of a benchmark" in capsys.readouterr().err
        assert (tmp_path / name).read_text() == "[1]"
    for _ in range(2):
        scripts["annotations"].main(["--inputs", str(tmp_path), "--output", str(tmp_path / "new.json")])
    assert (tmp_path / "train" / "photo.png").read_text() == "mine"
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "mine.json",
        "mine.txt",
        "new.json",
        "train",
        "train.json",
    ]


def test_whole_detectors_agree_and_have_a_row(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    """With softmax the losses are mmdet's, else the script stops; the row says which methods keep the aim."""
    options = ["--detector", "toy", "--methods", "softmax", "--steps", "1", "--output", str(tmp_path / "step.json")]
    scripts["detector_step"].main(options)
    content = json.loads((tmp_path / "step.json").read_text())
    assert [(item["detector"], item["method"]) for item in content["methods"]] == [("toy", "softmax")]
    for percent in (1.9, 2.1):
        content["methods"][0]["overhead_percent"] = percent
        row = scripts["summary"].detector(content)
        assert row["reached"] == (percent < 2) and f"softmax +{percent} %" in row["ours"]


def test_page_shows_the_results(scripts: dict[str, ModuleType]) -> None:
    """After a new result: ``python benchmarks/summary.py --write``."""
    summary = scripts["summary"]
    text = summary.PAGE.read_text(encoding="utf-8")
    assert summary.page(text) == text
