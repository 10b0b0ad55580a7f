"""Real photographs with real annotations, kept outside the project: ``pytest tests/stages --photographs DIR``.

``DIR`` holds ``train.json`` and ``val.json`` in COCO format and their images in ``images/train`` and ``images/val``.
The embedded toy images take the same ways in ``test_data_kinds.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO

from ltpipe.data.store import AnnotationStore
from tests.helpers.tiny_project import experiment, run_stages

Content = dict[str, Any]


@pytest.fixture(scope="module")
def photographs(request: pytest.FixtureRequest) -> Path:
    folder: Path | None = request.config.getoption("--photographs")
    if folder is None:
        pytest.skip("no photographs belong to the project; name a folder of some with --photographs")
    return folder.resolve()


def boxes_only(content: Content, runs: Callable[[Content], Content]) -> None:
    for record in content["annotations"]:
        del record["segmentation"]


def runs_only(content: Content, runs: Callable[[Content], Content]) -> None:
    for record in content["annotations"]:
        record["segmentation"] = runs(record)


def mixed(content: Content, runs: Callable[[Content], Content]) -> None:
    for place, record in enumerate(content["annotations"]):
        record["segmentation"] = [[], runs(record), record["segmentation"]][place % 3]


def rewritten(source: Path, target: Path, change: Callable[[Content, Any], None]) -> dict[str, Any]:
    """Write changed annotations; return the parts of a ``dataset`` block."""
    parts = {}
    for part in ("train", "val"):
        known = COCO(source / f"{part}.json")

        def runs(record: Content, known: COCO = known) -> Content:
            rle = known.annToRLE(record)
            return rle | {"counts": rle["counts"].decode()}

        content = json.loads((source / f"{part}.json").read_text(encoding="utf-8"))
        change(content, runs)
        (target / f"{part}.json").write_text(json.dumps(content), encoding="utf-8")
        parts[part] = {"annotations": str(target / f"{part}.json"), "images": str(source / "images" / part)}
    return parts


@pytest.mark.parametrize(
    ("change", "detector"),
    [
        (boxes_only, "detector.py"),
        (boxes_only, "boxes.py"),
        (runs_only, "detector.py"),
        (runs_only, "boxes.py"),
        (mixed, "detector.py"),
        (mixed, "boxes.py"),
    ],
)
def test_photographs_train_and_are_measured(
    project: Path, photographs: Path, tmp_path: Path, change: Any, detector: str
) -> None:
    boxes = detector == "boxes.py"
    exp = experiment(
        project,
        lst=None,
        split=None,
        detector={"config": str(project / detector)},
        dataset={"name": "photographs", "format": "coco", **rewritten(photographs, tmp_path, change)},
        evaluate={"checkpoints": ["base"], "iou_types": ["bbox"] if boxes else ["bbox", "segm"]},
    )
    paths = run_stages(exp, tmp_path / "results", "validate", "index", "split", "base", ("evaluate", "base"), "report")
    val = AnnotationStore.open(paths.store("val"))
    metrics = json.loads(paths.metrics("base").read_text())
    assert metrics["bbox"]["counts"]["gt"] == len(val.ann_ids)
    assert ("segm" in metrics) is (change is not boxes_only and not boxes)
    if "segm" in metrics:
        without = int((~val.ann_has_mask).sum())
        assert metrics["segm"]["counts"].get("gt_without_mask", 0) == without and (without > 0) is (change is mixed)
        assert metrics["segm"]["counts"]["gt"] == len(val.ann_ids) - without
    page = (paths.folder("report") / "report.html").read_text()
    assert ("objects without a mask" in page) is (change is not runs_only)
