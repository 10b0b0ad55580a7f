"""AP-fixed: a limit of detections per category and none per image, and the thresholds that find such detections."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ltpipe.engine.top_k import TopScores
from ltpipe.metrics.evaluation import evaluate
from ltpipe.metrics.fixed_ap import fixed_ap
from tests.helpers.reference_cases import frequency_pools, mean_of, read_case

METHOD = "ap_fixed"
TOLERANCE = 1e-9


def numbers(precision: np.ndarray, ids: np.ndarray, pools: dict[str, list[int]]) -> dict[str, float]:
    """Return the numbers of the published table."""
    found = {"AP": precision[..., 0], "AP50": precision[0, ..., 0], "AP75": precision[5, ..., 0]}
    found |= {f"AP{name}": precision[..., index] for index, name in enumerate("sml", 1)}
    found |= {f"AP{name}": precision[:, :, np.isin(ids, pools[name]), 0] for name in "rcf"}
    return {name: mean_of(cells) for name, cells in found.items()}


def check_fixed(path: Path) -> None:
    """All numbers, every category, which categories have few detections, and ordinary AP for contrast."""
    case, gt, found = read_case(path)
    pools = frequency_pools(gt)
    ours = fixed_ap(gt, found, case["iou_type"], per_category=case["dets_per_category"], protocol="lvis")
    usual = evaluate(gt, found, case["iou_type"], protocol="lvis")
    for precision, expected in ((ours.precision, case["results"]), (usual.precision, case["results_300_per_image"])):
        measured = numbers(precision, ours.category_ids, pools)
        assert measured.keys() == expected.keys()
        for name, value in expected.items():
            assert abs(measured[name] - value) <= TOLERANCE, name
    per_category = {
        str(category): mean_of(ours.precision[:, :, row, 0])
        for row, category in enumerate(ours.category_ids.tolist())
        if (ours.precision[:, :, row, 0] > -1).any()
    }
    assert per_category.keys() == case["ap_per_category"].keys()
    for category, value in case["ap_per_category"].items():
        assert abs(per_category[category] - value) <= TOLERANCE, category
    few = (ours.detections > 0) & (ours.detections < case["dets_per_category"])
    assert ours.category_ids[few].tolist() == sorted(case["categories_with_fewer_detections"])


def check_thresholds(path: Path) -> None:
    """Thresholds image by image, at the end, and of two processes together."""
    with np.load(path, allow_pickle=False) as file:
        oracle = dict(file)
    top = TopScores(oracle["k"].tolist(), float(oracle["min_score"]))
    halves = [TopScores(oracle["k"].tolist(), float(oracle["min_score"])) for _ in range(2)]
    for image in range(int(oracle["num_images"])):
        own = oracle["image"] == image
        labels, scores = oracle["label"][own], oracle["score"][own]
        thresholds = top.thresholds()
        np.testing.assert_array_equal(thresholds, oracle["thresholds"][image])
        kept = scores >= thresholds[labels]
        top.update(labels[kept], scores[kept])
        halves[image % 2].update(labels, scores)
    np.testing.assert_array_equal(top.thresholds(), oracle["final_thresholds"])
    halves[0].merge(halves[1:])
    np.testing.assert_array_equal(halves[0].thresholds(), oracle["gathered_thresholds"])


CHECKS = {"fixed_": check_fixed, "topk_": check_thresholds}
