"""Every cell of the tensors equals the official evaluators', with every engine."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltpipe import __version__
from ltpipe.data.store import AnnotationStore
from ltpipe.data.store_writer import build_store
from ltpipe.errors import UserError
from ltpipe.interop.read_detections import read_results
from ltpipe.metrics import native_engine as native
from ltpipe.metrics import vernier_engine as backends
from ltpipe.metrics.evaluation import evaluate
from ltpipe.metrics.predictions import Predictions
from ltpipe.metrics.predictions_writer import PredictionWriter
from ltpipe.metrics.tensors import Tensors, differing_categories, load_tensors, save_tensors
from ltpipe.stages.cross_check import cross_check
from tests.helpers.detection_cases import GROUND_TRUTH, encode
from tests.helpers.engines import evaluate_by
from tests.helpers.ground_truth import read_ground_truth

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
Make = Callable[[str, str, int], list[dict[str, Any]]]


def load(detections: list[dict[str, Any]], folder: Path) -> Predictions:
    """Pass detections through a results file."""
    path = folder / "results.json"
    path.write_text(json.dumps(detections), encoding="utf-8")
    return read_results(path)


def assert_equal_bits(ours: Tensors, official: tuple[np.ndarray, np.ndarray]) -> None:
    """Compare every cell."""
    np.testing.assert_array_equal(ours.precision, official[0])
    np.testing.assert_array_equal(ours.recall, official[1])


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("kind", ["plain", "ties", "crowded", "zero_area"])
def test_equals_official_lvis(
    kind: str, iou_type: str, gt_path: Path, make_detections: Make, official_lvis: Any, tmp_path: Path
) -> None:
    """Bit for bit, including ties, capped images, empty detections and unverified categories."""
    detections = make_detections(kind, iou_type, seed=len(kind))
    gt, predictions = read_ground_truth(gt_path), load(detections, tmp_path)
    ours = evaluate(gt, predictions, iou_type)
    assert_equal_bits(ours, official_lvis(gt_path, detections, iou_type))
    for engine in ("hotcoco", "vernier"):
        assert differing_categories(ours, evaluate_by(engine, gt, predictions, iou_type)) == []
    counts = ours.info.counts
    removed = [counts[name] for name in ("over_cap", "other_categories", "unverified", "zero_area")]
    assert counts["detections"] == len(detections) == sum(removed) + counts["evaluated"]
    assert counts["unverified"] > 0
    assert (counts["over_cap"] > 400) == (kind == "crowded")
    assert (counts["zero_area"] > 20) == (kind == "zero_area")


def test_box_size_does_not_size_masks(gt_path: Path, make_detections: Make, official_lvis: Any, tmp_path: Path) -> None:
    """Masks keep their own area when detections carry boxes too."""
    detections = make_detections("plain", "segm", 3)
    with_boxes = [item | {"bbox": [0.0, 0.0, 500.0, 400.0]} for item in detections]
    ours = evaluate(read_ground_truth(gt_path), load(with_boxes, tmp_path), "segm")
    assert_equal_bits(ours, official_lvis(gt_path, detections, "segm"))


def test_without_cap(gt_path: Path, make_detections: Make, official_lvis: Any, tmp_path: Path) -> None:
    """A cap of -1 keeps every detection, and other caps are the official ones of that size."""
    detections = make_detections("crowded", "bbox", 4)
    gt, predictions = read_ground_truth(gt_path), load(detections, tmp_path)
    for cap in (-1, 20):
        ours = evaluate(gt, predictions, "bbox", max_detections=cap)
        assert_equal_bits(ours, official_lvis(gt_path, detections, "bbox", cap))
        assert differing_categories(ours, evaluate_by("vernier", gt, predictions, "bbox", max_detections=cap)) == []


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_awkward_ground_truth(
    iou_type: str, gt_document: dict[str, Any], make_detections: Make, official_lvis: Any, tmp_path: Path
) -> None:
    """Id 0, crowd, ignored and empty objects, contradictory lists, categories in reverse order, an image id order."""
    rng = np.random.default_rng(5)
    document = copy.deepcopy(gt_document)
    document["categories"].reverse()
    document["images"] = [document["images"][i] for i in rng.permutation(100)]
    kept = []
    for ann in document["annotations"]:
        flaw = rng.choice(["iscrowd", "ignore", "area", "", "", "", ""])
        ann |= {"area": 0} if flaw == "area" else {flaw: 1} if flaw else {}
        kept += [] if flaw else [ann]
    for image in document["images"]:
        absent = image["neg_category_ids"]
        present = [ann["category_id"] for ann in kept if ann["image_id"] == image["id"]]
        absent += present[:1]
        image["not_exhaustive_category_ids"] += absent[:1] + rng.choice(present, 1).tolist() if present else []
    clean = document | {"annotations": [ann | {"id": i} for i, ann in enumerate(kept, 1)]}
    for number, ann in enumerate(document["annotations"]):
        ann["id"] = number
    paths = tmp_path / "awkward.json", tmp_path / "clean.json"
    for path, content in zip(paths, (document, clean), strict=True):
        path.write_text(json.dumps(content), encoding="utf-8")
    detections = make_detections("ties", iou_type, 6)
    gt, predictions = read_ground_truth(paths[0]), load(detections, tmp_path)
    ours = evaluate(gt, predictions, iou_type)
    assert_equal_bits(ours, official_lvis(paths[1], detections, iou_type))
    assert differing_categories(ours, evaluate_by("vernier", gt, predictions, iou_type)) == []
    counts = ours.info.counts
    assert counts["gt"] == len(kept)
    assert min(counts[name] for name in ("gt_crowd", "gt_ignore", "gt_zero_area")) > 50
    assert sum(counts[name] for name in ("gt_crowd", "gt_ignore", "gt_zero_area", "gt")) == len(document["annotations"])


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("engine", ["ltpipe", "hotcoco", "vernier"])
def test_no_detections(iou_type: str, engine: str, gt_path: Path) -> None:
    """Zeros for classes with ground truth of that size, -1 elsewhere."""
    gt = read_ground_truth(gt_path)
    nothing = Predictions(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros((0, 4)))
    tensors = evaluate_by(engine, gt, nothing, iou_type)
    limits = [(0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10)]
    for index, (low, high) in enumerate(limits):
        inside = (gt.ann_area >= low) & (gt.ann_area <= high)
        has = np.isin(tensors.category_ids, gt.category_ids[gt.ann_category[inside]])
        expected = np.where(has, 0.0, -1.0)
        np.testing.assert_array_equal(tensors.precision[:, :, :, index], np.broadcast_to(expected, (10, 101, len(has))))
        np.testing.assert_array_equal(tensors.recall[:, :, index], np.broadcast_to(expected, (10, len(has))))


def test_all_detections_unjudged(gt_path: Path, gt_document: dict[str, Any]) -> None:
    """When nothing is left after the federated rule the result is that of no detections."""
    gt = read_ground_truth(gt_path)
    image = gt_document["images"][0]
    said = set(image["neg_category_ids"]) | set(gt.category_ids[gt.ann_category[gt.ann_image == 0]].tolist())
    silent = next(category for category in gt.category_ids.tolist() if category not in said)
    alone = Predictions(np.array([image["id"]]), np.array([silent]), np.ones(1), np.array([[0.0, 0.0, 9.0, 9.0]]))
    tensors = evaluate(gt, alone, "bbox")
    assert tensors.info.counts["unverified"] == 1
    assert set(np.unique(tensors.precision)) == {-1.0, 0.0}


@pytest.mark.parametrize("engine", ["ltpipe", "hotcoco", "vernier"])
def test_category_subset_is_a_slice(engine: str, gt_path: Path, make_detections: Make, tmp_path: Path) -> None:
    """A subset of categories has the numbers it has in the complete evaluation."""
    gt, predictions = read_ground_truth(gt_path), load(make_detections("crowded", "bbox", 7), tmp_path)
    whole = evaluate(gt, predictions, "bbox")
    chosen = np.random.default_rng(0).permutation(gt.category_ids)[:60]
    part = evaluate_by(engine, gt, predictions, "bbox", category_ids=chosen.tolist())
    np.testing.assert_array_equal(part.category_ids, np.sort(chosen))
    where = np.isin(whole.category_ids, chosen)
    np.testing.assert_array_equal(part.precision, whole.precision[:, :, where])
    np.testing.assert_array_equal(part.recall, whole.recall[:, where])


def test_image_order_does_not_matter(gt_path: Path, make_detections: Make, tmp_path: Path) -> None:
    """Several processes may write their images in any order; only the order inside an image breaks ties."""
    detections = make_detections("ties", "bbox", 8)
    gt, predictions = read_ground_truth(gt_path), load(detections, tmp_path)
    order = np.argsort(np.random.default_rng(0).permutation(600000)[predictions.image_ids], kind="stable")
    assert predictions.boxes is not None
    moved = Predictions(
        predictions.image_ids[order],
        predictions.category_ids[order],
        predictions.scores[order],
        predictions.boxes[order],
    )
    assert differing_categories(evaluate(gt, predictions, "bbox"), evaluate(gt, moved, "bbox")) == []


def test_boundary_ap(gt_document: dict[str, Any], make_detections: Make, official_lvis: Any, tmp_path: Path) -> None:
    """The official evaluator with the overlap of contours in the place of that of masks."""
    images = gt_document["images"][:25]
    chosen = {image["id"] for image in images}
    anns = [ann for ann in gt_document["annotations"] if ann["image_id"] in chosen]
    path = tmp_path / "some.json"
    path.write_text(json.dumps(gt_document | {"images": images, "annotations": anns}), encoding="utf-8")
    detections = [item for item in make_detections("zero_area", "segm", 11) if item["image_id"] in chosen]
    gt, predictions = read_ground_truth(path), load(detections, tmp_path)
    ours = evaluate(gt, predictions, "boundary")
    assert_equal_bits(ours, official_lvis(path, detections, "boundary"))
    assert (ours.info.boundary_ratio, ours.info.engine[:8]) == (0.02, "vernier ")
    masks = evaluate(gt, predictions, "segm")
    assert masks.info.boundary_ratio is None
    assert (ours.precision <= masks.precision).all() and differing_categories(ours, masks)
    with pytest.raises(UserError, match="knows no boundaries"):
        evaluate(gt, predictions, "boundary", engine="ltpipe")


@pytest.mark.parametrize("iou_type", ["bbox", "segm", "boundary"])
def test_cutting_the_work_changes_nothing(
    iou_type: str, gt_path: Path, make_detections: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images in small blocks, categories in small groups."""
    kind = "bbox" if iou_type == "bbox" else "segm"
    gt, predictions = read_ground_truth(gt_path), load(make_detections("ties", kind, 12), tmp_path)
    engines = ("vernier",) if iou_type == "boundary" else ("ltpipe", "vernier")
    whole = [evaluate_by(engine, gt, predictions, iou_type) for engine in engines]
    monkeypatch.setattr(native, "DETECTIONS_PER_PART", 40)
    monkeypatch.setattr(backends, "DETECTIONS_PER_PART", 150)
    for engine, expected in zip(engines, whole, strict=True):
        assert differing_categories(evaluate_by(engine, gt, predictions, iou_type), expected) == []


def test_cross_check(make_detections: Make, tmp_path: Path) -> None:
    """A second engine confirms stored tensors; a changed cell is found and its category named."""
    build_store(GROUND_TRUTH, tmp_path / "store", fmt="lvis", progress=False)
    gt, predictions = AnnotationStore.open(tmp_path / "store"), load(make_detections("plain", "segm", 13), tmp_path)
    with PredictionWriter(tmp_path / "found.arrow", boxes=False, masks=True, dtype="float64") as writer:
        writer.extend(predictions)
    chosen = gt.category_ids[::2]
    tensors = {
        "segm": evaluate(gt, predictions, "segm", max_detections=7, category_ids=chosen),
        "boundary": evaluate(gt, predictions, "boundary", category_ids=chosen[:50]),
    }
    files = tmp_path / "store", tmp_path / "found.arrow", tmp_path / "tensors.npz"
    save_tensors(files[2], tensors)
    assert [line.split(":")[0] for line in cross_check(*files)] == ["segm", "boundary"]
    tensors["segm"].precision[3, 50, 20, 0] += 1e-9
    tensors["segm"].recall[0, 30, 1] += 0.5
    save_tensors(files[2], tensors)
    with pytest.raises(UserError, match="disagree") as raised:
        list(cross_check(*files))
    assert f"2 of {len(chosen)}" in str(raised.value) and str(sorted(chosen)[30]) in str(raised.value)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_equals_pycocotools(
    iou_type: str, gt_document: dict[str, Any], gt_masks: dict[int, np.ndarray], make_detections: Make, tmp_path: Path
) -> None:
    """The COCO protocol with crowd regions, more than 100 detections of a class, and empty detections."""
    pycocotools = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    chosen = {image["id"] for image in gt_document["images"][:40]}
    images = [
        {key: image[key] for key in ("id", "height", "width", "file_name")} for image in gt_document["images"][:40]
    ]
    anns = [ann | {"iscrowd": 0} for ann in gt_document["annotations"] if ann["image_id"] in chosen]
    for ann in anns[::5]:
        rle = encode(gt_masks[ann["id"]])
        ann |= {"iscrowd": 1, "segmentation": rle}
    document = {"images": images, "annotations": anns, "categories": gt_document["categories"]}
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    found = [item for item in make_detections("zero_area", iou_type, 9) if item["image_id"] in chosen]
    found += [item for item in found if item["category_id"] == found[0]["category_id"]] * 60

    ours = evaluate(read_ground_truth(path), load(found, tmp_path), iou_type)
    assert (ours.info.protocol, ours.info.max_detections) == ("coco", 100)
    with contextlib.redirect_stdout(io.StringIO()):
        gt = pycocotools.COCO(str(path))
        official = COCOeval(gt, gt.loadRes(copy.deepcopy(found)), iou_type)
        official.evaluate()
        official.accumulate()
    assert_equal_bits(ours, (official.eval["precision"][..., -1], official.eval["recall"][..., -1]))
    for engine in ("hotcoco", "vernier"):
        again = evaluate_by(engine, read_ground_truth(path), load(found, tmp_path), iou_type)
        assert differing_categories(ours, again) == []


def test_tensors_round_trip(gt_path: Path, make_detections: Make, tmp_path: Path) -> None:
    """Saved tensors come back with their origin; damaged files are refused."""
    tensors = evaluate(read_ground_truth(gt_path), load(make_detections("plain", "bbox", 1), tmp_path), "bbox")
    save_tensors(tmp_path / "tensors.npz", {"bbox": tensors})
    back = load_tensors(tmp_path / "tensors.npz")
    assert list(back) == ["bbox"]
    assert differing_categories(back["bbox"], tensors) == []
    assert back["bbox"].info == tensors.info
    assert tensors.info.engine == f"ltpipe {__version__}"
    (tmp_path / "damaged.npz").write_bytes((tmp_path / "tensors.npz").read_bytes()[:1000])
    for name in ("damaged.npz", "missing.npz"):
        with pytest.raises(UserError, match="(no|damaged) file of precision and recall tensors"):
            load_tensors(tmp_path / name)
