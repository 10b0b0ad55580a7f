"""What is measured beside AP, at the size of LVIS v1's validation: AP-fixed, kinds of errors, resamples, confidence.

The other side is one ordinary evaluation of the same detections by ltpipe, which ``benchmarks/evaluation.py`` compares
with ``lvis``. Every number that both sides have must be equal.

Run from the repository's root; missing inputs are drawn first (a few minutes, 3 GB of disk):

    python benchmarks/further_numbers.py [--inputs data/benchmarks/lvis_v1] [--iou-types bbox segm]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from evaluation import KINDS
from large_inputs import make_inputs
from measuring import Cost, Row, apart, result_file, write_result

from ltpipe.data.statistics import class_statistics
from ltpipe.data.store import AnnotationStore
from ltpipe.metrics.confidence import measure_confidence
from ltpipe.metrics.error_costs import error_costs
from ltpipe.metrics.error_kinds import find_errors
from ltpipe.metrics.evaluation import evaluate, evaluate_matched
from ltpipe.metrics.fixed_ap import fixed_ap
from ltpipe.metrics.predictions import Predictions
from ltpipe.metrics.resampled_ap import resample, weighted_ap
from ltpipe.metrics.resamples import COUNT

CLOSE = 1e-9


def opened(folder: Path) -> tuple[AnnotationStore, Predictions]:
    """Return annotations and detections."""
    return AnnotationStore.open(folder / "val"), Predictions.open(folder / "detections.arrow")


def plain(folder: Path, kind: Any) -> dict[str, float]:
    """Evaluate once."""
    precision = evaluate(*opened(folder), kind).precision[..., 0]
    return {"AP": float(precision[precision > -1].mean()), "AP50": float(precision[0][precision[0] > -1].mean())}


def fixed(folder: Path, kind: Any) -> dict[str, float]:
    """Measure AP-fixed and AP-pool."""
    gt, found = opened(folder)
    ours = fixed_ap(gt, found, kind, pools={"all": np.array(gt.category_ids).tolist()})
    cells = ours.precision[..., 0]
    cut = int((ours.detections > ours.per_category).sum())
    return {"AP_fixed": float(cells[cells > -1].mean()), "classes_cut": cut}


def errors(folder: Path, kind: Any) -> dict[str, float | None]:
    """Name the errors of all detections, and what each kind costs."""
    return error_costs(find_errors(*opened(folder), kind)).of()


def resampled(folder: Path, kind: Any) -> dict[str, float]:
    """Evaluate once, and on all resamples; also with every image counted once."""
    gt, found = opened(folder)
    tensors, selection, matches = evaluate_matched(gt, found, kind)
    drawn = resample(selection, matches, class_statistics(gt))
    ap, ap50 = weighted_ap(selection, matches, np.ones((len(gt.image_ids), 1), np.uint8))
    assert len(drawn.values["AP"]) == COUNT and len(tensors.category_ids) == len(ap)
    return {"AP": float(np.nanmean(ap)), "AP50": float(np.nanmean(ap50)), "spread": float(drawn.values["AP"].std())}


def confidence(folder: Path, kind: Any) -> dict[str, float]:
    """Evaluate once, and compare scores with precision and IoU."""
    gt, found = opened(folder)
    _, selection, _ = evaluate_matched(gt, found, kind)
    ours = measure_confidence(selection, found.scores, class_statistics(gt))
    assert ours is not None
    return {"D-ECE": ours.groups["all"].error, "LaECE0": float(np.nanmean(ours.localization))}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write ``benchmarks/results/further_numbers.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=Path, default=Path("data/benchmarks/lvis_v1"))
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--iou-types", nargs="+", choices=("bbox", "segm"), default=["bbox", "segm"])
    parser.add_argument("--output", type=result_file, default=Path("benchmarks/results/further_numbers.json"))
    options = parser.parse_args(arguments)
    make_inputs(options.inputs, share=options.share, parts=["val"])
    rows: list[Row] = []
    details: dict[str, Any] = {}
    for kind in options.iou_types:
        numbers, once = apart(plain, options.inputs, kind)
        costs = {"plain": once}
        for work in (fixed, errors, resampled, confidence):
            found, costs[work.__name__] = apart(work, options.inputs, kind)
            check(numbers, found)
            details[f"{kind}.{work.__name__}"] = found
        details |= {f"{kind}.{name}.cost": vars(cost) for name, cost in costs.items()}
        rows += rows_of(KINDS[kind], costs)
    write_result(__file__, options.output, arguments, rows, details)


def check(plain_numbers: dict[str, float], found: dict[str, Any]) -> None:
    """Demand equal numbers where both sides have them."""
    pairs = [(key, key) for key in ("AP", "AP50") if key in found]
    if found.get("classes_cut") == 0:
        pairs.append(("AP", "AP_fixed"))  # no image has more detections than the ordinary limit
    for one, other in pairs:
        assert abs(plain_numbers[one] - found[other]) <= CLOSE, f"{other}: {found[other]}, not {plain_numbers[one]}"


def rows_of(what: str, costs: dict[str, Cost]) -> list[Row]:
    """Return the lines of one IoU type."""
    once, lines = costs["plain"], []
    texts = {
        "fixed": ("AP-fixed and AP-pool", 2 * once.seconds, "twice the time of the evaluation"),
        "errors": ("kinds of errors with their costs", 60.0, "60 s, 4 GiB"),
        "resampled": (
            f"evaluation and AP on {COUNT:,} resamples of the images",
            240.0,
            "240 s: two minutes on two cores",
        ),
        "confidence": ("evaluation, D-ECE and LaECE0", 4 * once.seconds, "four times the time of the evaluation"),
    }
    for name, (text, most, aim) in texts.items():
        cost = costs[name]
        reached = cost.seconds <= most and cost.peak_mib < 4096
        work = f"{text}, LVIS v1 validation {what}"
        lines.append(Row(work, cost.text(), f"evaluated once: {once.text()}", None, aim, reached))
    return lines


if __name__ == "__main__":
    main()
