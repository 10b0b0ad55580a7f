"""Data sets as people have them, through the stages: boxes only, run lengths, both, faults, fewer classes in val."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
from mmengine.config import ConfigDict
from pycocotools import mask as coco_mask

from ltpipe.config.experiment import Experiment
from ltpipe.data.store import AnnotationStore
from ltpipe.data.summary import sentences
from ltpipe.data.tables import read_csv
from ltpipe.engine.dataset_configs import check_masks
from ltpipe.engine.roi_heads import RoICallPoints
from ltpipe.errors import UserError
from ltpipe.metrics.evaluation import evaluate
from ltpipe.metrics.predictions import Predictions
from ltpipe.pipeline.paths import Paths
from tests.helpers.tiny_project import experiment, rewritten, run_stages

if TYPE_CHECKING:
    from conftest import Chain

Content = dict[str, Any]
Change = Callable[[str, Content], Any]
ONE_STAGE: dict[str, Any] = {"lst": None, "split": None}


def run_lengths(content: Content, record: Content) -> Content:
    """Return the mask of an annotation as run lengths."""
    image = next(image for image in content["images"] if image["id"] == record["image_id"])
    rle = coco_mask.merge(coco_mask.frPyObjects(record["segmentation"], image["height"], image["width"]))
    return {"size": [image["height"], image["width"]], "counts": rle["counts"].decode()}


def boxes_only(_: str, content: Content) -> None:
    for record in content["annotations"]:
        del record["segmentation"]


def runs_only(_: str, content: Content) -> None:
    for record in content["annotations"]:
        record["segmentation"] = run_lengths(content, record)


def mixed(_: str, content: Content) -> None:
    """Every third object is a box, every third has run lengths."""
    for place, record in enumerate(content["annotations"]):
        record["segmentation"] = [[], run_lengths(content, record), record["segmentation"]][place % 3]


def prepared(
    chain: Chain, target: Path, change: Change, faults: str = "refuse", **options: Any
) -> tuple[Experiment, Paths]:
    """Return an experiment on changed annotations, and its artefacts up to the split."""
    parts = rewritten(chain.folder, target, change)
    evaluated = {"checkpoints": ["base"], **options.pop("evaluate", {})}
    data = {"name": "other", "faults": faults, **parts}
    exp = experiment(chain.folder, **ONE_STAGE, **options, evaluate=evaluated, dataset=data)
    return exp, run_stages(exp, target / "results", "index", "split")


@pytest.mark.parametrize(
    ("change", "detector"),
    [
        (boxes_only, "detector.py"),
        (runs_only, "detector.py"),
        (mixed, "detector.py"),
        (mixed, "cascade.py"),
        (mixed, "hybrid.py"),
        (mixed, "boxes.py"),
        (boxes_only, "boxes.py"),
    ],
)
def test_any_kind_of_objects_trains_and_is_measured(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change, detector: str
) -> None:
    seen: list[tuple[int, int]] = []
    whole = RoICallPoints.learning_masks

    def noted(self: Any, results: Any, gts: Any) -> Any:
        with_mask = [int(gt.has_mask[res.pos_assigned_gt_inds].sum()) for res, gt in zip(results, gts, strict=True)]
        found = whole(self, results, gts)
        seen.append((sum(len(res.pos_priors) for res in found), sum(with_mask)))
        return found

    monkeypatch.setattr(RoICallPoints, "learning_masks", noted)
    boxes = detector == "boxes.py"
    exp, paths = prepared(
        chain,
        tmp_path,
        change,
        detector={"config": str(chain.folder / detector)},
        evaluate={"iou_types": ["bbox"] if boxes else ["bbox", "segm"]},
    )
    run_stages(exp, paths.results, "base", ("evaluate", "base"), "report")
    assert all(used == there for used, there in seen) and bool(seen) is not boxes
    assert (sum(used for used, _ in seen) > 0) is (not boxes and change is not boxes_only)
    metrics = json.loads(paths.metrics("base").read_text())
    val = AnnotationStore.open(paths.store("val"))
    assert list(metrics) == ["bbox"] if boxes or change is boxes_only else ["bbox", "segm"]
    if change is mixed and not boxes:
        left_out = int((~val.ann_has_mask).sum())
        assert metrics["segm"]["counts"]["gt_without_mask"] == left_out > 0
        assert metrics["segm"]["counts"]["gt"] == len(val.ann_ids) - left_out
        assert metrics["bbox"]["counts"]["gt"] == len(val.ann_ids)
    page = (paths.folder("report") / "report.html").read_text()
    assert ("objects without a mask" in page) is (change is not runs_only)
    for part in ("train", "val"):
        for sentence in sentences(AnnotationStore.open(paths.store(part)).info):
            assert html.escape(sentence, quote=False) in page or html.escape(sentence) in page


def test_mask_ap_is_that_of_the_objects_with_masks(chain: Chain, tmp_path: Path) -> None:
    """As if the others had not been annotated."""
    exp, paths = prepared(chain, tmp_path / "mixed", mixed)
    run_stages(exp, paths.results, "base", ("evaluate", "base"))

    def fewer(part: str, content: Content) -> None:
        mixed(part, content)
        content["annotations"] = [record for record in content["annotations"] if record["segmentation"]]

    _, other = prepared(chain, tmp_path / "fewer", fewer)
    found = Predictions.open(paths.predictions("base"))
    one, two = (AnnotationStore.open(place.store("val")) for place in (paths, other))
    for kind, same in (("segm", True), ("boundary", True), ("bbox", False)):
        first, second = evaluate(one, found, kind), evaluate(two, found, kind)  # type: ignore[arg-type]
        assert (first.info.counts["gt"] == second.info.counts["gt"]) is same
        if same:
            assert np.array_equal(first.precision, second.precision) and np.array_equal(first.recall, second.recall)


def test_a_mask_head_that_cannot_leave_objects_out_is_refused(chain: Chain, tmp_path: Path) -> None:
    _, paths = prepared(chain, tmp_path, mixed)
    heads = {"mask_head": {"type": "FCNMaskHead"}}
    for kind, masks, refused in (
        ("PointRendRoIHead", heads, True),
        ("PointRendRoIHead", {}, False),
        ("ltpipe.LTRoIHead", heads, False),
    ):
        model = ConfigDict(roi_head={"type": kind, **masks})
        if refused:
            with pytest.raises(UserError, match="PointRendRoIHead; [0-9]+ training objects without a mask"):
                check_masks(paths, model, "detector.py")
        else:
            check_masks(paths, model, "detector.py")
            check_masks(chain.paths, model, "detector.py")


# ---- index -----------------------------------------------------------------------------------------------------------


def test_index_says_what_it_saw(chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def odd(part: str, content: Content) -> None:
        content["annotations"][0]["area"] = None
        content["annotations"][1]["segmentation"] = None

    _, paths = prepared(chain, tmp_path, odd)
    said = capsys.readouterr().out
    assert "train: 24 images" in said and "val: 6 images" in said
    for words in (
        "9 classes",
        "rare, common, frequent: ",
        "rarest classes (images/objects): ",
        "1 objects without a mask",
    ):
        assert f"{words}" in said
    assert said.count("1 objects without an area: that of the mask") == 2
    info = AnnotationStore.open(paths.store("train")).info
    assert {"counts", "frequencies", "rarest", "remarks", "dropped"} <= set(info)


def test_masks_alone_cannot_be_measured_without_any(chain: Chain, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="segm, boundary, and no object of .*val.json has a mask"):
        prepared(chain, tmp_path, boxes_only, evaluate={"iou_types": ["segm", "boundary"]})


def test_faults_are_left_out_on_request(chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def faulty(part: str, content: Content) -> None:
        if part == "train":
            content["annotations"][3]["bbox"][2] = -1
            content["annotations"][5]["category_id"] = 12345

    with pytest.raises(UserError, match="faults: drop") as raised:
        prepared(chain, tmp_path / "refuse", faulty)
    assert "negative width" in str(raised.value) and "12345" in str(raised.value)
    before = len(AnnotationStore.open(chain.paths.store("train")).ann_ids)
    _, paths = prepared(chain, tmp_path / "drop", faulty, faults="drop")
    assert len(AnnotationStore.open(paths.store("train")).ann_ids) == before - 2
    assert "train: left out: 1 boxes of negative width or height" in capsys.readouterr().out


def test_a_validation_file_with_fewer_classes_is_measured_on_these(chain: Chain, tmp_path: Path) -> None:
    """And `validate` takes it as well."""
    kept: set[int] = set()

    def part_of(part: str, content: Content) -> None:
        if part == "val":
            used = sorted({record["category_id"] for record in content["annotations"]})
            kept.update(used[: len(used) // 2 + 1])
            content["categories"] = [c for c in content["categories"] if c["id"] in kept][::-1]
            content["annotations"] = [a for a in content["annotations"] if a["category_id"] in kept]
            for image in content["images"]:
                for key in ("neg_category_ids", "not_exhaustive_category_ids"):
                    image[key] = [number for number in image[key] if number in kept]

    exp, paths = prepared(chain, tmp_path, part_of)
    run_stages(exp, paths.results, "validate", "base", ("evaluate", "base"))
    table = read_csv(paths.per_class("base"))
    boxes = table[table["iou_type"] == "bbox"]
    assert len(boxes) == 9 and set(boxes[boxes["AP"].notna()]["category_id"]) == kept
    assert json.loads(paths.metrics("base").read_text())["bbox"]["evaluated_classes"] == len(kept)


def test_an_image_that_cannot_be_resized_is_named(chain: Chain, tmp_path: Path) -> None:
    def narrow(part: str, content: Content) -> None:
        if part == "train":
            content["images"][0] |= {"width": 1000, "height": 3, "file_name": str(tmp_path / "narrow.png")}
            content["annotations"] = [a for a in content["annotations"] if a["image_id"] != content["images"][0]["id"]]
            one = dict(content["annotations"][0], id=10**6, image_id=content["images"][0]["id"], bbox=[5, 0, 40, 3])
            one["segmentation"] = [[5, 0, 45, 0, 45, 3, 5, 3]]
            content["annotations"].append(one)
            content["images"], rest = content["images"][:1], content["images"][1:]
            names = {image["id"] for image in rest}
            content["annotations"] = [a for a in content["annotations"] if a["image_id"] not in names]

    cv2.imwrite(str(tmp_path / "narrow.png"), np.zeros((3, 1000, 3), np.uint8))
    exp, paths = prepared(chain, tmp_path, narrow)
    with pytest.raises(UserError, match=r"narrow.png, image id [0-9]+\n.*height 3, width 1000"):
        run_stages(exp, paths.results, "base")
