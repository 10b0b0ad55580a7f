"""AP-pool: the detections of many categories in one curve."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ltpipe.metrics.fixed_ap import fixed_ap
from tests.helpers.reference_cases import frequency_pools, mean_of, read_case

METHOD = "ap_pool"
TOLERANCE = 1e-9


def check_pool(path: Path) -> None:
    """Every pool: the number, AP and the last recall at every overlap threshold."""
    case, gt, found = read_case(path)
    options = {"per_category": case["dets_per_category"], "pools": frequency_pools(gt)}
    ours = fixed_ap(gt, found, case["iou_type"], protocol="lvis", **options)
    assert {f"AP-pooled-{name}" for name in ours.pooled} == case["results"].keys()
    for name, (precision, recall) in ours.pooled.items():
        assert abs(mean_of(precision) - case["results"][f"AP-pooled-{name}"]) <= TOLERANCE
        if case["results"][f"AP-pooled-{name}"] == -1:
            assert set(np.unique(precision)) | set(np.unique(recall)) == {-1.0}
            continue
        np.testing.assert_allclose(precision.mean(axis=1), case["ap_by_iou"][name], rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(recall, case["recall_by_iou"][name], rtol=0, atol=TOLERANCE)


CHECKS = {"pool_": check_pool}
