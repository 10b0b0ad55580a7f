"""SimCal: official LVIS numbers and AP over bins of training instances."""

from __future__ import annotations

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from ltpipe.interop.read_detections import read_results
from ltpipe.metrics.class_groups import bin_metrics
from ltpipe.metrics.evaluation import evaluate
from ltpipe.metrics.table import per_class_table, summarize
from tests.helpers.ground_truth import read_ground_truth

METHOD = "simcal"
GROUND_TRUTH = Path(__file__).parents[2] / "data" / "lvis_val_100.json"
SETTING = re.compile(r"f(\d+)_m(\d+)")


def check_bin_ap(path: Path) -> None:
    """Evaluate the file's predictions: 13 global numbers, AP per category, bins for every setting."""
    oracle = json.loads(path.read_text(encoding="utf-8"))
    gt = read_ground_truth(GROUND_TRUTH)
    with TemporaryDirectory() as folder:
        results = Path(folder) / "results.json"
        results.write_text(json.dumps(oracle["predictions"]), encoding="utf-8")
        tensors = evaluate(gt, read_results(results), oracle["iou_type"], protocol="lvis")

    ids = np.arange(1, len(oracle["ap_per_category_id_1_to_1230"]) + 1)
    frequency = dict(zip(gt.category_ids.tolist(), gt.category_frequency, strict=True))
    train = oracle["train_instance_count_id_1_to_1230"]
    columns = {"category_id": ids, "name": "", "frequency": [frequency[i] for i in ids.tolist()]}
    classes = pd.DataFrame(columns | {"image_count": train, "instance_count": train})
    table = per_class_table(tensors, classes).set_index("category_id").loc[ids]
    expected = np.array([np.nan if ap is None else ap for ap in oracle["ap_per_category_id_1_to_1230"]])
    np.testing.assert_allclose(table["AP"], expected, rtol=0, atol=1e-9)

    metrics = summarize(tensors, classes)
    assert oracle["results"]
    for name, value in oracle["results"].items():
        ours = metrics[name.split("@")[0]]
        assert ours is None if value == -1 else abs(ours - value) <= 1e-9, name
    for setting, fixed in oracle["fixed_bins"].items():
        factor, count = map(int, SETTING.fullmatch(setting).groups())
        ours = bin_metrics(table["AP"].to_numpy(), np.array(train), geometric_edges(factor, count))
        _assert_bins(ours, fixed["bin_ap"], fixed["num"], 1e-9)
        _assert_bap(ours, fixed["bAP_nonempty"], 1e-9)
        reference = oracle["reference_bins"].get(setting)
        if reference:  # its last bin has an upper bound; the others must agree
            assert [item["label"].replace("-", "_") for item in ours["bins"][:-1]] == reference["edges"][:-1]
            _assert_bins({"bins": ours["bins"][:-1]}, reference["bin_ap"][:-1], None, 1e-9)


def geometric_edges(factor: int, count: int) -> list[int]:
    """Return the edges of SimCal's ``f`` and ``m``."""
    return [factor**power for power in range(1, count + 1)]


def check_bap(path: Path) -> None:
    """Bins of given AP values, with the last bin unbounded."""
    with np.load(path, allow_pickle=False) as file:
        oracle = dict(file)
    settings = [key.removesuffix("_fixed") for key in oracle if key.endswith("_fixed")]
    assert settings
    for name in settings:
        case, setting = name.split("_", 1)
        factor, count = map(int, SETTING.fullmatch(setting).groups())
        ap = np.where(oracle[f"{case}_val"] > 0, oracle[f"{case}_ap"], np.nan)
        ours = bin_metrics(ap, oracle[f"{case}_train"], geometric_edges(factor, count))
        fixed = oracle[f"{name}_fixed"]
        _assert_bins(ours, fixed[:-1], oracle[f"{name}_fixednum"], 1e-12)
        filled = fixed[:-1][~np.isnan(fixed[:-1])]
        assert ours["bAP_complete"] == (len(filled) == count + 1) == bool(np.isfinite(fixed[-1]))
        _assert_bap(ours, filled.mean() if len(filled) else None, 1e-12)


def _assert_bins(ours: dict[str, Any], ap: Any, classes: Any, tolerance: float) -> None:
    values = [np.nan if item["AP"] is None else item["AP"] for item in ours["bins"]]
    expected = [np.nan if value is None else value for value in ap]
    np.testing.assert_allclose(values, expected, rtol=0, atol=tolerance)
    if classes is not None:
        assert [item["classes"] for item in ours["bins"]] == list(classes)


def _assert_bap(ours: dict[str, Any], expected: float | None, tolerance: float) -> None:
    if expected is None or np.isnan(expected):
        assert ours["bAP"] is None
    else:
        assert abs(ours["bAP"] - expected) <= tolerance


CHECKS = {"bin_ap_": check_bin_ap, "bap_": check_bap}
