"""Steps per second of calibration from stored features and with the detector in every step, in one run.

Both train the same calibrator on the same rows of the same plan, as the stage ``calibrate`` does; blocks of steps
alternate, so that both feel the same load of the machine. What storing costs once is in the records of the stage
``features``, which must have run with ``features.storage: cached``.

Run from the repository's root, after ``ltpipe features``:

    python benchmarks/calibration_steps.py --experiment toy [--name simcal] [--steps 20]
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from measuring import result_file
from torch import Tensor

from ltpipe.config.experiment import Experiment
from ltpipe.config.loading import load_experiment
from ltpipe.config.schedules import CalibrationSchedule
from ltpipe.data.calibration_rows import FeaturePlan
from ltpipe.data.split import Split
from ltpipe.engine.calibrator_training import train_head
from ltpipe.engine.dataset_configs import class_counts
from ltpipe.engine.feature_rows import LiveRows, StoredRows
from ltpipe.engine.model_config import build_component
from ltpipe.errors import UserError
from ltpipe.methods.box_layers import read_features
from ltpipe.pipeline.paths import Paths
from ltpipe.registry import MODELS
from ltpipe.run.files import write_json
from ltpipe.stages.features import frozen_detector

Block = Callable[[int, int], float]


def prepare(exp: Experiment, paths: Paths, name: str) -> dict[str, Block]:
    """Return a function per storage that trains a block of steps; both start from equal heads.

    Raises:
        UserError: The features are not stored.
    """
    if exp.features is None or not paths.features.is_file():
        raise UserError("no stored features", where=paths.features, fix="run `ltpipe features` with storage: cached")
    plan, detector = FeaturePlan.load(paths.plan), frozen_detector(exp, paths)
    head = detector.model.roi_head.bbox_head
    device = next(detector.model.parameters()).device
    split = Split.load(paths.split)
    counts = class_counts(paths, split, split.num_classes)
    torch.manual_seed(exp.seed)
    calibrator = MODELS.build(build_component("calibrator", exp.calibrate[name], counts))
    calibrator.initialise(head)
    calibrator.to(device)
    live = LiveRows(detector, plan.samples, plan.sample_boxes, plan.step_ptr, plan.rows, plan.labels)
    stored = StoredRows(paths.features, plan.step_ptr, plan.rows, plan.labels)
    steps = {}
    for storage, rows, level in (("cached", stored, exp.features.level), ("none", live, "roi")):
        steps[storage] = _block(copy.deepcopy(calibrator), rows, level, head, exp.calibrate[name].schedule.lr)
    return steps


def _block(calibrator: Any, rows: StoredRows | LiveRows, level: Any, head: Any, lr: float) -> Block:
    def batches(index: int) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            features, labels = rows.step(index % len(rows))
            with torch.no_grad():
                features = features.to(next(calibrator.parameters()).device, non_blocking=True).float()
                read = read_features(head, features, calibrator.reads, level)
            yield read, labels
            index += 1

    def block(first: int, length: int) -> float:
        """Return the loss of the last step."""
        losses = [float("nan")]  # stays if that step has no rows
        schedule = CalibrationSchedule(iterations=length, lr=lr, drops=())
        train_head(calibrator, lambda _: batches(first), schedule, report=lambda _, f: losses.append(f["loss"]))
        return losses[-1]

    return block


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write ``benchmarks/results/calibration_steps.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", required=True)
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--name", default="simcal", help="calibrator of the experiment")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--block", type=int, default=20, help="steps in a row before the other storage has its turn")
    parser.add_argument("--output", type=result_file, default=Path("benchmarks/results/calibration_steps.json"))
    options = parser.parse_args(arguments)
    exp = load_experiment(options.experiment)
    paths = Paths(options.results, exp)
    blocks = prepare(exp, paths, options.name)
    on_gpu = torch.cuda.is_available()
    # On the CPU other programs may run; the time that this one spends computing is hardly theirs.
    clock = time.perf_counter if on_gpu else time.process_time
    seconds: dict[str, list[float]] = {storage: [] for storage in blocks}
    apart = 0.0
    for first in range(0, options.steps + options.block, options.block):  # the first block warms up and is not counted
        losses = []
        for storage, block in blocks.items():
            start = clock()
            losses.append(block(first, options.block))
            seconds[storage].append((clock() - start) / options.block)
        apart = max(apart, abs(losses[0] - losses[1])) if losses[0] == losses[0] else apart
    rates = {storage: 1 / statistics.mean(times[1:]) for storage, times in seconds.items()}
    record = json.loads(paths.record("features").read_text(encoding="utf-8"))
    result = {
        "command": shlex.join(["python", "benchmarks/calibration_steps.py", *(arguments or sys.argv[1:])]),
        "experiment": exp.name,
        "calibrator": exp.calibrate[options.name].model_dump(mode="json"),
        "features": exp.features.model_dump(mode="json") if exp.features else None,
        "steps": options.steps,
        "block": options.block,
        "steps_per_second": rates,
        "ratio": rates["cached"] / rates["none"],
        "largest_loss_difference": apart,
        "storing_took_seconds": record["seconds"],
        "stored_bytes": paths.features.stat().st_size,
        "clock": "wall" if on_gpu else "computing time of the process",
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "onedl-mmdetection", "numpy")},
    }
    write_json(options.output, result)
    print(
        f"cached {rates['cached']:.3g} steps/s, on the fly {rates['none']:.3g} steps/s, ratio {result['ratio']:.3g}, "
        f"losses differ by at most {apart:.2g}"
    )


if __name__ == "__main__":
    main()
