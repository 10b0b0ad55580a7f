"""Calibration of finished detections, and how far scores are from what they mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ltpipe.data.store import AnnotationStore
from ltpipe.metrics.confidence import bin_detections, class_errors
from ltpipe.metrics.contract import select
from ltpipe.metrics.evaluation import evaluate
from ltpipe.metrics.matched_overlaps import matched_overlaps
from ltpipe.metrics.predictions import Predictions
from ltpipe.metrics.score_calibration import fit_scores, label
from ltpipe.metrics.tensors import IOU_THRESHOLDS
from tests.helpers.reference_cases import frequency_pools, mean_of, read_documents

METHOD = "score_calibration"
NAMES = {
    "HistogramBinning": ("histogram", 1e-9),
    "IsotonicRegression": ("isotonic", 1e-9),
    "LogisticCalibration": ("platt", 1e-3),
    "TemperatureScaling": ("temperature", 1e-3),
    "BetaCalibration": ("beta", 0.02),
}
GROUPINGS = {"overall": "overall", "frequency": "frequency", "per-class": "class"}


def letters_of(gt: AnnotationStore) -> dict[int, str]:
    """Return the frequency group by category id."""
    return dict(zip(np.array(gt.category_ids).tolist(), gt.category_frequency, strict=True))


def check_calibrate(path: Path) -> None:
    """Labels, and every method with every grouping and policy."""
    case = json.loads(path.read_text(encoding="utf-8"))
    gt, found = read_documents(case["train_ground_truth"], case["train_predictions"])
    labelled = label(gt, found, case["iou_type"], case["iou_threshold"], protocol="lvis", ignored="count")
    labels: list[bool | None] = [None] * len(found)
    for row, right in zip(labelled.rows.tolist(), labelled.right.tolist(), strict=True):
        labels[row] = right
    assert labels == case["train_matched"]
    test = case["test_predictions"]
    ids, scores = (np.array([item[key] for item in test]) for key in ("category_id", "score"))
    assert case["calibrated_scores"]
    for name, expected in case["calibrated_scores"].items():
        method, grouping, missing, never_right = name.split("/")
        own, tolerance = NAMES[method]
        options: dict[str, Any] = {"missing": missing, "never_right": never_right, "bins": case["bins"]}
        fitted = fit_scores(labelled, letters_of(gt), own, grouping=GROUPINGS[grouping], **options)  # type: ignore[arg-type]
        compared = np.ones(len(ids), bool)
        if grouping == "per-class" and own in ("platt", "temperature", "beta"):
            # Without a finite optimum the published code returns what its optimiser stops at.
            compared = ~np.isin(ids, case["separable_categories"])
        given = fitted.apply(ids, scores)
        np.testing.assert_allclose(given[compared], np.array(expected)[compared], rtol=0, atol=tolerance, err_msg=name)


def check_errors(path: Path) -> None:
    """ECE of all, of classes and of groups; AP at one threshold; D-ECE and LaECE."""
    case = json.loads(path.read_text(encoding="utf-8"))
    gt, found = read_documents(case["ground_truth"], case["predictions"])
    check_ece(case, gt, found)
    check_laece(case, gt, found)


def check_ece(case: dict[str, Any], gt: AnnotationStore, found: Predictions) -> None:
    """What Dave et al. compute."""
    labelled = label(gt, found, case["iou_type"], case["iou_threshold"], protocol="lvis", ignored="count")
    ids = np.array(gt.category_ids)
    category = np.searchsorted(np.sort(ids), labelled.category_ids)
    per_class = class_errors(category, labelled.scores, labelled.right, len(ids), case["bins"])
    letters = np.array([letters_of(gt)[one] for one in np.sort(ids).tolist()])
    measured = {"overall": np.ones(len(category), bool)} | {f"freq-{one}": letters[category] == one for one in "rcf"}
    ours = {
        f"ece-{name}": bin_detections(labelled.scores[own], labelled.right[own], case["bins"]).error
        for name, own in measured.items()
    }
    ours["ece-per-class"] = np.nanmean(per_class)
    for one in "rcf":
        if f"ece-per-class-{one}" in case["results"]:
            ours[f"ece-per-class-{one}"] = np.nanmean(per_class[letters == one])
    for name, expected in case["results"].items():
        np.testing.assert_allclose(ours[name], expected, rtol=0, atol=1e-9, err_msg=name)
    place = int(np.argmin(np.abs(IOU_THRESHOLDS - case["iou_threshold"])))
    assert abs(IOU_THRESHOLDS[place] - case["iou_threshold"]) < 1e-9
    precision = evaluate(gt, found, case["iou_type"], protocol="lvis", max_detections=-1).precision[place, ..., 0]
    for name, expected in case["ap"].items():
        members = np.isin(np.sort(ids), frequency_pools(gt)[name.removeprefix("AP") or "all"])
        assert abs(mean_of(precision[:, members]) - expected) <= 1e-9, name


def check_laece(case: dict[str, Any], gt: AnnotationStore, found: Predictions) -> None:
    """What Kuzucu et al. compute: at most 300 detections per image, without those that are ignored."""
    selection = select(gt, found, case["iou_type"], protocol="lvis", max_detections=300)
    ids = gt.category_ids[selection.categories]
    category = np.searchsorted(ids, found.category_ids[selection.dets])
    scores = found.scores[selection.dets].astype(np.float64)
    with_objects = np.isin(np.arange(len(ids)), np.searchsorted(ids, gt.category_ids[gt.ann_category[selection.anns]]))
    for threshold in (0.0, 0.5):
        matched = matched_overlaps(selection, threshold)
        used = ~matched.ignored & with_objects[category]
        targets = np.where(matched.overlap >= 0, matched.overlap, 0.0)
        errors = class_errors(category[used], scores[used], targets[used], len(ids), case["laece_bins"], "right")
        # Classes whose error is exactly 0 are dropped there together with those that have no detections.
        shown = np.isfinite(errors) & (errors != 0)
        expected = case["laece"][f"laece_{threshold}_per_category"]
        known = {int(one): value for one, value in expected.items() if value is not None and value == value}
        assert {one for one, value in known.items() if value not in (0, -1)} == set(ids[shown].tolist())
        for one, value in zip(ids[shown].tolist(), errors[shown].tolist(), strict=True):
            assert abs(known[one] - value) <= 1e-9, one
        assert abs(errors[shown].mean() - case["laece"][f"laece_{threshold}"]) <= 1e-9
        if threshold:
            pooled = bin_detections(scores[used], matched.overlap[used] >= 0, case["dece_bins"], "right")
            assert abs(pooled.error - case["laece"][f"dece_{threshold}"]) <= 1e-9


CHECKS = {"calibrate_": check_calibrate, "ece_": check_errors}
