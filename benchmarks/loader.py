"""Images per second that a training's data pipeline yields: reading, transforms and packing, by loader processes.

Toy images are drawn at the size asked for, so that nothing else is needed. A number beside the throughput of
``detector_step.py`` says whether a training waits for its data.

Run from the repository's root:

    python benchmarks/loader.py [--size 480] [--workers 0 2 4] [--images 200] [--output loader.json]
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from ltpipe.data.convert import build_store
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from torch.utils.data import DataLoader, SequentialSampler

import ltpipe.engine  # noqa: F401  registers everything
from ltpipe.data.split import make_split
from ltpipe.data.toy import write_toy_data
from ltpipe.engine.dataset import StreamDataset
from ltpipe.engine.model_config import with_our_steps
from ltpipe.run.files import write_json

READ = [
    {"type": "LoadImageFromFile"},
    {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True, "poly2mask": False},
]


def pipelines(size: int) -> dict[str, list[dict[str, Any]]]:
    """Return the pipelines that are compared."""
    jitter = [
        {"type": "RandomResize", "scale": (size, size), "ratio_range": (0.1, 2.0), "keep_ratio": True},
        {"type": "RandomCrop", "crop_size": (size, size), "recompute_bbox": True, "allow_negative_crop": True},
        {"type": "FilterAnnotations", "min_gt_bbox_wh": (0.01, 0.01), "keep_empty": False},
        {"type": "RandomFlip", "prob": 0.5},
    ]
    found = {
        "resize and flip": [{"type": "Resize", "scale": (size, size), "keep_ratio": True}, jitter[-1]],
        "large-scale jitter": jitter,
        "jitter, rare objects pasted": [*jitter, {"type": "ltpipe.PasteObjects", "by_class": True}],
        "jitter, mosaic": [{"type": "Mosaic", "img_scale": (size, size)}, *jitter],
    }
    return {name: with_our_steps([*READ, *steps, {"type": "PackDetInputs"}]) for name, steps in found.items()}


def throughput(data: dict[str, Any], steps: list[dict[str, Any]], workers: int, images: int) -> float:
    """Return images per second on the clock, after the first batch."""
    dataset = StreamDataset(**data, pipeline=steps)
    loader = DataLoader(
        dataset, batch_size=4, sampler=SequentialSampler(range(images)), num_workers=workers, collate_fn=pseudo_collate
    )
    batches = iter(loader)
    next(batches)
    start, seen = time.perf_counter(), 0
    for batch in batches:
        seen += len(batch["inputs"])
    return seen / (time.perf_counter() - start)


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=480)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--output", type=Path, help="file for the numbers; default: only printed")
    given = parser.parse_args()
    init_default_scope("mmdet")
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_toy_data(root / "data", num_classes=12, train_images=60, val_images=2, image_size=given.size)
        build_store(
            root / "data/train.json", root / "store", fmt="lvis", image_folder=root / "data/train", progress=False
        )
        make_split(np.arange(1, 13), np.arange(12, 0, -1), dataset="toy", annotation_sha256="").save(
            root / "split.json"
        )
        parts = {"store": str(root / "store"), "images": str(root / "data/train"), "split": str(root / "split.json")}
        data = {**parts, "num_classes": 12, "phase": 0, "seed": 0, "sampler": {"type": "random"}}
        for name, steps in pipelines(given.size).items():
            found[name] = {str(w): throughput(data, steps, w, given.images) for w in given.workers}
            print(
                f"{name}: " + ", ".join(f"{w} processes {v:.1f} images/s" for w, v in found[name].items()), flush=True
            )
    if given.output is not None:
        command = shlex.join(["python", *sys.argv])
        write_json(given.output, {"command": command, "size": given.size, "images_per_second": found})


if __name__ == "__main__":
    main()
