"""LVIS evaluation at the size of LVIS v1's validation set: predictions on disk to every table, beside ``lvis``.

The official package does not fit into memory at this size, so both sides evaluate the same slice of the images, every
cell of their tensors is compared, and ours alone evaluates everything. What the package would take for everything is
computed: its time for a few images, which it takes once, and what the slice takes longer, times the number of slices.

Run from the repository's root; missing inputs are drawn first (a few minutes, 3 GB of disk):

    python benchmarks/evaluation.py [--inputs data/benchmarks/lvis_v1] [--slices 16] [--cross-check]
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
from large_inputs import make_inputs
from measuring import Cost, Row, apart, result_file, write_result

from ltpipe.data.statistics import class_statistics
from ltpipe.data.store import AnnotationStore
from ltpipe.data.store_writer import build_store
from ltpipe.interop.write_detections import write_results
from ltpipe.metrics.evaluation import evaluate
from ltpipe.metrics.predictions import Predictions
from ltpipe.metrics.predictions_writer import PredictionWriter
from ltpipe.metrics.table import per_class_table, summarize
from ltpipe.metrics.tensors import save_tensors

Numbers = tuple[np.ndarray, np.ndarray]
FEW = 50  # slices of a slice, for what the package takes whatever the number of images
KINDS = {"bbox": "boxes", "segm": "masks", "boundary": "boundaries"}


def ours(folder: Path, iou_type: str, engine: str | None, output: Path) -> tuple[Numbers, dict[str, Any]]:
    """Evaluate detections on disk and write tensors, summary and the table of classes."""
    gt = AnnotationStore.open(folder / "val")
    kind: Any = iou_type
    tensors = evaluate(gt, Predictions.open(folder / "detections.arrow"), kind, engine=engine)
    classes = class_statistics(gt)
    save_tensors(output / "tensors.npz", {iou_type: tensors})
    metrics = summarize(tensors, classes)
    (output / "metrics.json").write_bytes(msgspec.json.encode(metrics))
    pd.DataFrame(per_class_table(tensors, classes)).to_csv(output / "per_class.csv")
    return (tensors.precision, tensors.recall), metrics


def theirs(folder: Path, iou_type: str) -> Numbers:
    """Evaluate with the official package, from its JSON files."""
    np.float = float  # type: ignore[attr-defined]  # the package was written for an older numpy
    from lvis import LVIS, LVISEval, LVISResults

    logging.getLogger("lvis").setLevel(logging.ERROR)
    gt = LVIS(str(folder / "val.json"))
    evaluation = LVISEval(gt, LVISResults(gt, str(folder / f"{iou_type}.json")), iou_type)
    evaluation.run()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def make_slice(inputs: Path, folder: Path, slices: float) -> float:
    """Write the first of so many slices of the images in both forms; return how many of its size there really are."""
    content = msgspec.json.decode((inputs / "val.json").read_bytes(), type=dict[str, msgspec.Raw])
    images = msgspec.json.decode(content["images"], type=list[dict[str, Any]])
    total = len(images)
    images = images[: max(1, round(total / slices))]
    kept = {image["id"] for image in images}
    annotations = msgspec.json.decode(content["annotations"], type=list[dict[str, Any]])
    content["images"] = msgspec.Raw(msgspec.json.encode(images))
    content["annotations"] = msgspec.Raw(msgspec.json.encode([a for a in annotations if a["image_id"] in kept]))
    folder.mkdir(parents=True)
    (folder / "val.json").write_bytes(msgspec.json.encode(content))
    build_store(folder / "val.json", folder / "val", fmt="lvis")
    found = Predictions.open(inputs / "detections.arrow")
    rows = np.flatnonzero(np.isin(found.image_ids, list(kept)))
    assert found.boxes is not None and found.masks is not None
    with PredictionWriter(folder / "detections.arrow", masks=True) as writer:
        for image in sorted(kept):
            own = rows[found.image_ids[rows] == image]
            size = tuple(found.masks.sizes[own[0]].tolist())
            columns = found.category_ids[own], found.scores[own], found.boxes[own], found.masks.counts(own)
            writer.append(image, *columns, size)
    part = Predictions.open(folder / "detections.arrow")
    write_results(part, folder / "bbox.json", masks=False)
    write_results(replace(part, boxes=None), folder / "segm.json", boxes=False)
    return total / len(images)


def same(first: Numbers, second: Numbers) -> bool:
    """Whether every cell of precision and recall is equal."""
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write ``benchmarks/results/evaluation.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=Path, default=Path("data/benchmarks/lvis_v1"))
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--slices", type=int, default=16)
    parser.add_argument("--cross-check", action="store_true", help="also vernier, and Boundary AP, at full size")
    parser.add_argument("--output", type=result_file, default=Path("benchmarks/results/evaluation.json"))
    options = parser.parse_args(arguments)
    make_inputs(options.inputs, share=options.share, parts=["val"])
    rows, details = [], {}
    with tempfile.TemporaryDirectory(dir=options.inputs) as name:
        work = Path(name)
        slices = make_slice(options.inputs, work / "slice", options.slices)
        make_slice(options.inputs, work / "few", options.slices * FEW)
        for iou_type in ("bbox", "segm"):
            official, slow = apart(theirs, work / "slice", iou_type)
            _, fixed = apart(theirs, work / "few", iou_type)
            (tensors, _), quick = apart(ours, work / "slice", iou_type, None, work)
            assert same(tensors, official), f"{iou_type}: the tensors differ"
            (tensors, metrics), cost = apart(ours, options.inputs, iou_type, None, work)
            details[iou_type] = {"whole": vars(cost), "slice": vars(quick), "official_slice": vars(slow)}
            details[iou_type] |= {"official_few": vars(fixed), "AP": metrics["AP"], "counts": metrics["counts"]}
            everything = fixed.seconds + (slow.seconds - fixed.seconds) * (slices - 1 / FEW) / (1 - 1 / FEW)
            rows.append(row(iou_type, metrics["counts"]["detections"], cost, slow, slices, everything))
            if options.cross_check:
                (again, _), checking = apart(ours, options.inputs, iou_type, "vernier", work)
                assert same(tensors, again), f"{iou_type}: the engines differ"
                details[iou_type]["vernier"] = vars(checking)
        if options.cross_check:
            (_, metrics), cost = apart(ours, options.inputs, "boundary", None, work)
            details["boundary"] = {"whole": vars(cost), "AP": metrics["AP"]}
    write_result(__file__, options.output, arguments, rows, details)


def row(iou_type: str, detections: int, whole: Cost, slow: Cost, slices: float, everything: float) -> Row:
    """Return the line of one IoU type."""
    ratio = everything / whole.seconds
    return Row(
        f"evaluate LVIS v1 validation {KINDS[iou_type]}, {detections / 1e6:.2g} M detections on disk to all tables",
        whole.text(),
        f"`lvis`: {slow.text()} for 1/{slices:.3g} of the images; {everything:.0f} s for all, computed",
        ratio,
        "60 times, 4 GiB",
        ratio >= 60 and whole.peak_mib < 4096,
        "every cell equal on the slice. Both numbers are computing times; ours matches on all cores, `lvis` on one.",
    )


if __name__ == "__main__":
    main()
