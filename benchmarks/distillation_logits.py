"""Size and loading time of stored distillation logits, beside the JSON file of the original code.

The teacher of LVIS v0.5's first phase: 40,762 boxes of new classes in 16,000 images, 270 old classes, images as they
are and flipped. The numbers are random.

Run from the repository's root:

    python benchmarks/distillation_logits.py [--boxes 40762]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from measuring import Cost, Row, apart, result_file, write_result

from ltpipe.methods.lst.teacher import TeacherLogits
from tests.published.teacher_json import write_legacy_json

OLD_CLASSES, BOXES_PER_IMAGE = 270, 2.5
REPEATS = 5  # of the short side; the median counts
DTYPES = {"float16": 1e-2, "float32": 1e-6}
"""Stored precision and relative difference to the JSON file that it allows."""


def make_teacher(boxes: int) -> TeacherLogits:
    """Return random similarities."""
    random = np.random.default_rng(0)
    images = max(1, int(boxes / BOXES_PER_IMAGE))
    ptr = np.concatenate([[0], np.sort(random.integers(0, boxes + 1, images - 1)), [boxes]])
    logits = random.normal(0, 3, (2, boxes, OLD_CLASSES)).astype(np.float32)
    return TeacherLogits(np.arange(images), ptr, np.arange(boxes), np.full(boxes, OLD_CLASSES), logits)


def write(folder: Path, boxes: int) -> None:
    """Write the JSON file and ours in both precisions."""
    teacher = make_teacher(boxes)
    write_legacy_json(teacher, teacher.logits[:, :, 0], folder / "teacher.json")
    for dtype in DTYPES:
        replace(teacher, logits=teacher.logits.astype(dtype)).save(folder / f"{dtype}.npz")


def load_ours(path: Path) -> float:
    """Load our file and look at one image."""
    teacher = TeacherLogits.load(path)
    return float(np.abs(teacher.logits[:, teacher.rows(len(teacher.image_id) - 1)].astype(np.float32)).sum())


def load_json(path: Path) -> float:
    """Load the original's file and look at one image."""
    with open(path, encoding="utf-8") as handle:
        passes = json.load(handle)
    last = [np.array(rows[str(len(rows) - 1)], np.float32).reshape(-1, OLD_CLASSES + 1) for rows in passes]
    return float(sum(np.abs(rows[:, 1:]).sum() for rows in last))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write ``benchmarks/results/distillation_logits.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=int, default=40_762)
    parser.add_argument("--output", type=result_file, default=Path("benchmarks/results/distillation_logits.json"))
    options = parser.parse_args(arguments)
    rows, details = [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        apart(write, folder, options.boxes)
        expected, slow = apart(load_json, folder / "teacher.json")
        large = (folder / "teacher.json").stat().st_size
        for dtype, tolerance in DTYPES.items():
            runs = [apart(load_ours, folder / f"{dtype}.npz") for _ in range(REPEATS)]
            assert all(np.isclose(value, expected, rtol=tolerance) for value, _ in runs), (runs, expected)
            quick = sorted((cost for _, cost in runs), key=lambda cost: cost.seconds)[REPEATS // 2]
            small = (folder / f"{dtype}.npz").stat().st_size
            rows += make_rows(f"distillation logits, {options.boxes} boxes, {dtype}", small, large, quick, slow)
            details[dtype] = {"bytes": small, "load": vars(quick)}
    write_result(__file__, options.output, arguments, rows, {**details, "json": {"bytes": large, "load": vars(slow)}})


def make_rows(work: str, small: int, large: int, quick: Cost, slow: Cost) -> list[Row]:
    """Return the lines of one precision."""
    note = "the stage stores float32, bit by bit what the teacher said." if "float32" in work else ""
    times = slow.seconds / quick.seconds
    return [
        Row(
            f"{work}: bytes",
            f"{small / 2**20:.3g} MiB",
            f"JSON: {large / 2**20:.3g} MiB",
            large / small,
            "10 times",
            large >= 10 * small,
            note,
        ),
        Row(f"{work}: loading", quick.text(), f"JSON: {slow.text()}", times, "50 times", times >= 50),
    ]


if __name__ == "__main__":
    main()
