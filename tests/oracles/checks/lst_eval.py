"""LST: AP per category and per phase on real ground truth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from ltpipe.data.id_rows import row_of
from ltpipe.interop.read_detections import read_results
from ltpipe.metrics.evaluation import evaluate
from ltpipe.metrics.table import per_class_table, summarize
from tests.helpers.ground_truth import read_ground_truth

METHOD = "lst"
GROUND_TRUTH = Path(__file__).parents[2] / "data" / "lvis_val_100.json"


def check_phase_eval(path: Path) -> None:
    """Check a file of numbers or the detections they belong to."""
    if path.suffix == ".json":
        check_detections(path)
    else:
        check_numbers(path)


def check_numbers(path: Path) -> None:
    """Per-category AP, means per phase, and the global numbers."""
    with np.load(path, allow_pickle=False) as file:
        oracle = dict(file)
    gt = read_ground_truth(GROUND_TRUTH)
    tensors = evaluate(gt, read_results(detections_of(path)), "bbox", protocol="lvis")

    frequency = dict(zip(gt.category_ids.tolist(), gt.category_frequency, strict=True))
    ids = oracle["cat_id"]
    rank = row_of(ids, oracle["sorted_cat_id"])
    base, step = int(oracle["base_size"]), int(oracle["step_size"])
    phase = np.where(rank < base, 0, (rank - base) // step + 1)
    np.testing.assert_array_equal(phase, oracle["phase_of_cat"])
    columns = {"category_id": ids, "name": "", "frequency": [frequency[i] for i in ids.tolist()]}
    classes = pd.DataFrame(columns | {"image_count": 0, "instance_count": 0, "phase": phase})

    table = per_class_table(tensors, classes).set_index("category_id").loc[ids]
    np.testing.assert_allclose(table["AP"], oracle["ap"], atol=1e-6)
    np.testing.assert_allclose(table["AP50"], oracle["ap50"], atol=1e-6)
    metrics = summarize(tensors, classes)
    for name in ("AP", "AP50", "AP75", "APr", "APc", "APf"):
        if name in oracle:
            _assert_number(metrics[name], oracle[name])
    numbers = zip(oracle["phase_ids"], oracle["phase_ap"], oracle["phase_num_evaluated"], strict=True)
    for number, ap, evaluated in numbers:
        group = metrics["groups"]["b0" if number == 0 else f"t{number}"]
        assert group["classes"] == evaluated
        _assert_number(group["AP"], ap)


def detections_of(path: Path) -> Path:
    """Return the detections that lie beside a file of numbers and have its name plus ``_detections``."""
    files = [file for file in path.parent.glob("*.json") if file.stem.replace("_detections", "", 1) == path.stem]
    assert len(files) == 1, f"{path.name}: detections found: {[file.name for file in files]}"
    return files[0]


def check_detections(path: Path) -> None:
    """The detections load unchanged and belong to the ground truth."""
    records = json.loads(path.read_text(encoding="utf-8"))
    predictions = read_results(path)
    assert len(predictions) == len(records)
    assert np.isin(predictions.image_ids, read_ground_truth(GROUND_TRUTH).image_ids).all()
    assert predictions.boxes is not None
    np.testing.assert_array_equal(predictions.boxes, [record["bbox"] for record in records])


def _assert_number(ours: float | None, theirs: float) -> None:
    """Compare with -1 and NaN meaning "no class"."""
    if np.isnan(theirs) or theirs == -1:
        assert ours is None
    else:
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


CHECKS = {"phase_eval": check_phase_eval}
