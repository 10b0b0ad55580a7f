"""Class split and replay lists of all phases at LVIS v1's size, beside the notebooks' way of making them.

The notebooks of "Learning to Segment the Tail" walk over classes and images through ``pycocotools``: for every phase
and class of its prefix they ask the index for the annotations of each of its images, test the boxes, and draw the
lists of an epoch class by class with PyTorch. Both sides start from loaded annotations and must give equal lists.

Run from the repository's root, after ``benchmarks/annotations.py``, which converts the annotations:

    python benchmarks/split_replay.py [--inputs data/benchmarks/lvis_v1] [--epochs 12]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from large_inputs import make_inputs
from measuring import Row, apart, result_file, write_result

from ltpipe.data.calibration_plan import PlanInfo, draw_plan
from ltpipe.data.phase import PhaseView
from ltpipe.data.replay import build_replay
from ltpipe.data.samplers import SAMPLERS
from ltpipe.data.split import make_split
from ltpipe.data.statistics import class_statistics
from ltpipe.data.store import AnnotationStore
from ltpipe.data.store_writer import build_store

BASE, STEP = 270, 160
Lists = list[np.ndarray]


def with_store(folder: Path, epochs: int) -> tuple[Lists, float]:
    """Return the pairs of every phase ``(L, 2)`` and the seconds this took."""
    store = AnnotationStore.open(folder)
    start = time.process_time()
    table = class_statistics(store)
    ids, counts = table["category_id"].to_numpy(), table["instance_count"].to_numpy()
    split = make_split(ids, counts, base_classes=min(BASE, len(ids)), step=STEP)
    lists = []
    for phase in range(1, split.num_phases + 1):
        replay = build_replay(PhaseView(store, split, phase), epochs=epochs)
        lists.append(np.stack([replay.image_id, replay.label], axis=1))
    return lists, time.process_time() - start


def as_the_notebooks(folder: Path, epochs: int) -> tuple[Lists, float]:
    """Do the same through the index of ``pycocotools``."""
    import torch
    from pycocotools.coco import COCO

    store, coco = AnnotationStore.open(folder), COCO()
    image, category = store.image_ids[store.ann_image].tolist(), store.category_ids[store.ann_category].tolist()
    columns = zip(store.ann_ids.tolist(), image, category, store.ann_bbox.tolist(), strict=True)
    coco.dataset = {
        "images": [{"id": i} for i in store.image_ids.tolist()],
        "categories": [{"id": c} for c in store.category_ids.tolist()],
        "annotations": [{"id": a, "image_id": i, "category_id": c, "bbox": b, "iscrowd": 0} for a, i, c, b in columns],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    start = time.process_time()
    counts = {c: len(coco.getAnnIds(catIds=[c])) for c in coco.getCatIds()}
    order = sorted(counts, key=lambda c: -counts[c])
    lists = []
    for old in range(BASE, len(order), STEP):
        images, annotations = _valid(coco, order[: old + STEP])
        lists.append(np.concatenate([_epoch(images, annotations, old, e, torch) for e in range(epochs)]))
    return lists, time.process_time() - start


def _valid(coco: Any, classes: list[int]) -> tuple[list[list[int]], list[int]]:
    """Return per class its images with a box that counts, ascending, and its annotations there."""
    images, annotations = [], []
    for c in classes:
        found, number = [], 0
        for image in sorted(coco.getImgIds(catIds=c)):
            boxes = [a["bbox"] for a in coco.loadAnns(coco.getAnnIds(imgIds=image, catIds=c, iscrowd=None))]
            if any(w > 1 and h > 1 for _, _, w, h in boxes):
                found.append(image)
                number += len(boxes)
        images.append(found)
        annotations.append(number)
    return images, annotations


def _epoch(images: list[list[int]], annotations: list[int], old: int, seed: int, torch: Any) -> np.ndarray:
    target = np.mean(annotations[old:])
    pairs = [(image, c) for c in range(old, len(images)) for image in images[c]]
    generator = torch.Generator().manual_seed(seed)
    for c in range(old):
        count = max(1, int(np.round(target / (annotations[c] / len(images[c])))))
        picks = torch.randint(0, len(images[c]), (count, 1), generator=generator).squeeze(1).tolist()
        pairs += [(images[c][i], c) for i in picks]
    return np.array([pairs[i] for i in torch.randperm(len(pairs), generator=generator).tolist()])


def orders(folder: Path) -> dict[str, float]:
    """Return the seconds of one epoch of every sampler and of a calibration plan, over all classes."""
    store = AnnotationStore.open(folder)
    table = class_statistics(store)
    split = make_split(table["category_id"].to_numpy(), table["instance_count"].to_numpy())
    view = PhaseView(store, split, 0)
    labels, seconds = view.image_labels, {}
    for name, kind in SAMPLERS.items():
        if name != "combined":
            start = time.process_time()
            kind().epoch(labels, epoch=0, seed=0)
            seconds[name] = time.process_time() - start
    start = time.process_time()
    draw_plan(view.class_images, PlanInfo(steps=12000)).samples()
    return {**seconds, "calibration plan": time.process_time() - start}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write ``benchmarks/results/split_replay.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=Path, default=Path("data/benchmarks/lvis_v1"))
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--output", type=result_file, default=Path("benchmarks/results/split_replay.json"))
    options = parser.parse_args(arguments)
    make_inputs(options.inputs, share=options.share, parts=["train"])
    folder = options.inputs / "train"
    if not (folder / "info.json").is_file():
        build_store(options.inputs / "train.json", folder, fmt="lvis")
    (ours, seconds), cost = apart(with_store, folder, options.epochs)
    (theirs, slow), other = apart(as_the_notebooks, folder, options.epochs)
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)), "the lists differ"
    samplers, _ = apart(orders, folder)
    slowest = max(samplers, key=lambda name: samplers[name])
    row = Row(
        f"class split and replay lists, {len(ours)} phases, {options.epochs} epochs, LVIS v1",
        f"{seconds:.2g} s, {cost.peak_mib / 1024:.2g} GiB",
        f"the notebooks' loops: {slow:.3g} s, {other.peak_mib / 1024:.2g} GiB",
        slow / seconds,
        "50 times",
        slow / seconds >= 50,
        f"equal lists; loading is not counted. Longest of one epoch of a sampler or a calibration plan of 12000 steps: "
        f"{slowest}, {samplers[slowest]:.2g} s.",
    )
    details = {"ours_seconds": seconds, "ours": cost, "theirs_seconds": slow, "theirs": other, "samplers": samplers}
    write_result(__file__, options.output, arguments, [row], {**details, "pairs": [len(pairs) for pairs in ours]})


if __name__ == "__main__":
    main()
