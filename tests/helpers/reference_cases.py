"""Reference cases that hold annotations, or name those of the tests, and a results list."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ltpipe.data.store import AnnotationStore
from ltpipe.interop.read_detections import read_results
from ltpipe.metrics.predictions import Predictions
from tests.helpers.detection_cases import GROUND_TRUTH
from tests.helpers.ground_truth import read_ground_truth


def read_case(path: Path) -> tuple[dict[str, Any], AnnotationStore, Predictions]:
    """Return a case, its annotations and its detections."""
    case = json.loads(path.read_text(encoding="utf-8"))
    with TemporaryDirectory() as folder:
        annotations = Path(folder) / "gt.json"
        if "gt_file" in case:
            assert hashlib.sha256(GROUND_TRUTH.read_bytes()).hexdigest() == case["gt_sha256"]
            annotations.write_bytes(GROUND_TRUTH.read_bytes())
        else:
            annotations.write_text(json.dumps(case["ground_truth"]), encoding="utf-8")
        results = Path(folder) / "results.json"
        results.write_text(json.dumps(case["predictions"]), encoding="utf-8")
        return case, read_ground_truth(annotations), read_results(results)


def read_documents(ground_truth: Any, predictions: Any) -> tuple[AnnotationStore, Predictions]:
    """Return annotations and detections of a case that holds several of them."""
    with TemporaryDirectory() as folder:
        for name, content in (("gt.json", ground_truth), ("results.json", predictions)):
            (Path(folder) / name).write_text(json.dumps(content), encoding="utf-8")
        return read_ground_truth(Path(folder) / "gt.json"), read_results(Path(folder) / "results.json")


def frequency_pools(gt: AnnotationStore) -> dict[str, list[int]]:
    """Return the categories of all pools that the annotations name."""
    letters, ids = np.array(gt.category_frequency), np.array(gt.category_ids)
    return {"all": ids.tolist()} | {letter: ids[letters == letter].tolist() for letter in "rcf"}


def mean_of(cells: np.ndarray) -> float:
    """Return the mean of the cells with something to be found; -1 without any, as the official packages write it."""
    valid = cells[cells > -1]
    return float(valid.mean()) if len(valid) else -1.0
