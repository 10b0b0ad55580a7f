"""Time and memory of a training step of both heads with each method, beside mmdet's own heads in the same run.

Steps of a method and of plain mmdet alternate on the same rows, so that both feel the same load of the machine. A step
is forward, losses, parts, backward and SGD, on pooled features of RoIs drawn as LVIS v1's instances are. The box head
and the mask head are timed apart, since most methods leave the mask head as it is. Backbone and RoI pooling, which
methods do not change, are left out: in a whole detector the relative cost is smaller.

Run from the repository's root:

    python benchmarks/training_step.py [--head mask] [--device cuda] [--rois 512] [--steps 20] [--methods eqlv2 crat]
"""

from __future__ import annotations

import argparse
import inspect
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import result_file
from mmengine.registry import init_default_scope
from torch import Tensor, nn

import ltpipe.engine
import ltpipe.methods  # noqa: F401  registers everything
from ltpipe.config import catalogue
from ltpipe.engine.heads import with_call_points
from ltpipe.methods.head_parts import BoxBatch, HeadPart, MaskBatch
from ltpipe.registry import MODELS
from ltpipe.run.files import write_json

CHANNELS, SIZE, HIDDEN, MASK_SIZE = 256, 7, 1024, 14
NUM_IMAGES, NUM_ANNOTATED = 100170, 99388  # LVIS v1
PLAIN = "mmdet"
Step = Callable[[], float]


@dataclass(frozen=True)
class Rows:
    """Pooled features of one iteration and their targets; the first ``len(masks)`` rows are objects."""

    features: Tensor
    rois: Tensor
    labels: Tensor
    bbox_targets: Tensor
    bbox_weights: Tensor
    mask_features: Tensor
    masks: Tensor


@dataclass(frozen=True)
class Cost:
    """A training step of one head with one method.

    Attributes:
        method: Its name.
        milliseconds: Median time; on the CPU, computing time of all threads.
        plain_milliseconds: Median time of the steps of plain mmdet between them.
        overhead_percent: What it takes longer than plain mmdet.
        saved_mib: Memory kept for the backward pass, beyond parameters and inputs.
        state_mib: Parameters and buffers.
        peak_mib: Peak memory of a step on the GPU; None on the CPU.
    """

    method: str
    milliseconds: float
    plain_milliseconds: float
    overhead_percent: float
    saved_mib: float
    state_mib: float
    peak_mib: float | None


@dataclass(frozen=True)
class Branch:
    """One of the two heads of a method.

    Attributes:
        modules: The head and its parts.
        losses: Computes the sum of the losses.
        before: What the other head has done by then; not timed.
    """

    modules: nn.ModuleList
    losses: Callable[[], Tensor]
    before: Callable[[], object]


def read_counts(path: Path, num_classes: int) -> dict[str, Any]:
    """Return what the pipeline injects into methods: counts by falling number of instances, and image numbers."""
    table = sorted(json.loads(path.read_text(encoding="utf-8")), key=lambda row: -row["instance_count"])
    places = np.linspace(0, len(table) - 1, num_classes).round().astype(int)
    images, instances = ([table[i][key] for i in places] for key in ("image_count", "instance_count"))
    return {
        "num_classes": num_classes,
        "image_counts": images,
        "instance_counts": instances,
        "num_images": NUM_IMAGES,
        "num_annotated_images": NUM_ANNOTATED,
    }


def draw_rows(counts: dict[str, Any], rois: int, device: str) -> Rows:
    """Draw ``rois`` rows, a quarter of them objects with the classes' frequencies."""
    random = np.random.default_rng(0)
    classes, share = counts["num_classes"], np.array(counts["instance_counts"], dtype=float)
    labels = torch.full((rois,), classes)
    labels[: rois // 4] = torch.from_numpy(random.choice(classes, rois // 4, p=share / share.sum()))
    generator = torch.Generator().manual_seed(0)
    corner = 600 * torch.rand(rois, 2, generator=generator)
    boxes = torch.cat([torch.zeros(rois, 1), corner, corner + 20 + 200 * torch.rand(rois, 2, generator=generator)], 1)
    foreground = (labels < classes).float()[:, None].expand(rois, 4).contiguous()
    made = (
        torch.randn(rois, CHANNELS, SIZE, SIZE, generator=generator).relu(),
        boxes,
        labels,
        torch.randn(rois, 4, generator=generator) * foreground,
        foreground,
        torch.randn(rois // 4, CHANNELS, MASK_SIZE, MASK_SIZE, generator=generator).relu(),
        torch.rand(rois // 4, 2 * MASK_SIZE, 2 * MASK_SIZE, generator=generator).round(),
    )
    return Rows(*(tensor.to(device) for tensor in made))


def component(slot: str, name: str, counts: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a method with its default options and the counts it asks for."""
    config = catalogue.component(slot, {"type": name})
    wanted = inspect.signature(MODELS.get(config["type"]).__init__).parameters
    return config | {key: value for key, value in counts.items() if key in wanted}


def build_box(slot: str, name: str, counts: dict[str, Any], rows: Rows) -> tuple[Branch, list[HeadPart]]:
    """Return a box head with one method in it, and its parts; the slot :data:`PLAIN` is mmdet's own head."""
    chosen = {"classifier": "linear", "loss": "cross_entropy"}
    if slot in chosen:
        chosen[slot] = name
    config = {
        "type": "mmdet.Shared2FCBBoxHead" if slot == PLAIN else "ltpipe.LTBBoxHead",
        "in_channels": CHANNELS,
        "fc_out_channels": HIDDEN,
        "roi_feat_size": SIZE,
        "num_classes": counts["num_classes"],
        "loss_bbox": {"type": "mmdet.L1Loss"},
    }
    if slot != PLAIN:
        classifier = component("classifier", chosen["classifier"], counts)
        config |= {"cls_predictor_cfg": classifier, "loss_cls": component("loss", chosen["loss"], counts)}
    torch.manual_seed(0)
    head: Any = MODELS.build(config)
    parts: list[Any] = [MODELS.build(component("part", name, counts))] if slot == "part" else []
    head.parts = parts
    for part in parts:
        part.epoch, part.hooked = 1, True  # after the first epoch, when every part is active
    modules = nn.ModuleList([head, *parts]).to(rows.features.device).train()
    weights = torch.ones_like(rows.labels, dtype=torch.float)
    targets = (rows.labels, weights, rows.bbox_targets, rows.bbox_weights)

    def losses() -> Tensor:
        if slot == PLAIN:
            return total(head.loss(*head(rows.features), rows.rois, *targets))
        scores, deltas = head(rows.features)
        found = head.loss(scores, deltas, rows.rois, *targets)
        if not parts:
            return total(found)
        seen = head.seen
        batch = BoxBatch(seen[1], scores, *targets[:2], seen[0], rows.rois, found, deltas, *targets[2:])
        for part in parts:
            found.update(part.box_losses(head, batch))
        return total(found)

    return Branch(modules, losses, lambda: None), parts


def build_mask(
    slot: str, name: str, counts: dict[str, Any], rows: Rows, before: Branch, parts: Sequence[Any]
) -> Branch:
    """Return a mask head with one method in it, which may be parts that act in the box head before."""
    config: dict[str, Any] = {
        "type": "mmdet.FCNMaskHead",
        "num_convs": 4,
        "in_channels": CHANNELS,
        "conv_out_channels": CHANNELS,
        "num_classes": counts["num_classes"],
        "loss_mask": {"type": "mmdet.CrossEntropyLoss", "use_mask": True},
    }
    if slot == "mask":
        config |= component("mask", name, counts)
    torch.manual_seed(0)
    head: Any = MODELS.build(config if slot == PLAIN else with_call_points(config))
    head.parts = list(parts)
    rows_of_classes = torch.randn(counts["num_classes"] + 1, HIDDEN, device=rows.features.device)
    labels = rows.labels[: len(rows.masks)]
    given = dict(class_weight=rows_of_classes, labels=labels) if getattr(head, "needs_class_weight", False) else {}

    def losses() -> Tensor:
        logits = head(rows.mask_features, **given)
        found = {"loss_mask": head.loss_mask(logits, rows.masks, torch.zeros_like(labels) if given else labels)}
        for part in parts:
            found.update(part.mask_losses(head, MaskBatch(head.seen, logits, rows.masks, labels, found)))
        return total(found)

    modules = nn.ModuleList([head, *parts]).to(rows.features.device).train()
    return Branch(modules, losses, torch.no_grad()(before.losses) if parts else lambda: None)


def total(losses: dict[str, Tensor]) -> Tensor:
    """Return the sum of what is trained."""
    return torch.stack([value.sum() for key, value in losses.items() if "loss" in key]).sum()


def make_step(branch: Branch) -> Step:
    """Return a function that takes one training step and returns its seconds."""
    optimizer = torch.optim.SGD(branch.modules[0].parameters(), lr=1e-4, momentum=0.9)
    on_gpu = next(branch.modules.parameters()).is_cuda
    # On the CPU other programs may run; the time that this one spends computing is hardly theirs.
    clock = time.perf_counter if on_gpu else time.process_time

    def step() -> float:
        branch.before()
        start = clock()
        optimizer.zero_grad()
        branch.losses().backward()
        optimizer.step()
        if on_gpu:
            torch.cuda.synchronize()
        return clock() - start

    return step


def saved_bytes(branch: Branch, rows: Rows) -> int:
    """Return the bytes that one forward pass keeps for its backward pass, parameters and inputs not counted."""
    fixed = [*branch.modules.parameters(), *branch.modules.buffers(), rows.features, rows.mask_features]
    known = {t.untyped_storage().data_ptr() for t in fixed}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    branch.before()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = branch.losses()
    torch.autograd.backward(loss)
    return sum(kept.values())


def measure(name: str, branch: Branch, plain: Step, rows: Rows, steps: int) -> Cost:
    """Alternate steps of a method and of plain mmdet."""
    step = make_step(branch)
    step(), plain()  # the first steps allocate memory and fill statistics
    seconds, between = zip(*((step(), plain()) for _ in range(steps)), strict=True)
    peak = None
    if rows.features.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        step()
        peak = torch.cuda.max_memory_allocated() / 2**20
    state = sum(t.nbytes for t in [*branch.modules.parameters(), *branch.modules.buffers()])
    ours, theirs = 1000 * statistics.median(seconds), 1000 * statistics.median(between)
    return Cost(name, ours, theirs, 100 * (ours / theirs - 1), saved_bytes(branch, rows) / 2**20, state / 2**20, peak)


def measure_box(counts: dict[str, Any], rows: Rows, steps: int, chosen: Sequence[str] | None) -> Iterator[Cost]:
    """Yield the box head of plain mmdet, then that of each method."""
    plain = make_step(build_box(PLAIN, "", counts, rows)[0])
    for slot, name in [(PLAIN, PLAIN), *((s, n) for s in ("loss", "classifier", "part") for n in catalogue.names(s))]:
        if slot == PLAIN or chosen is None or name in chosen:
            yield measure(name, build_box(slot, name, counts, rows)[0], plain, rows, steps)


def measure_mask(counts: dict[str, Any], rows: Rows, steps: int, chosen: Sequence[str] | None) -> Iterator[Cost]:
    """Yield the mask head of plain mmdet, then that of each method that changes it."""
    box, _ = build_box(PLAIN, "", counts, rows)
    plain = make_step(build_mask(PLAIN, "", counts, rows, box, []))
    for slot, name in [(PLAIN, PLAIN), *((s, n) for s in ("part", "mask") for n in catalogue.names(s))]:
        if slot != PLAIN and chosen is not None and name not in chosen:
            continue
        box, parts = build_box(slot, name, counts, rows)
        if slot != "part" or any(type(part).mask_losses is not HeadPart.mask_losses for part in parts):
            yield measure(name, build_mask(slot, name, counts, rows, box, parts), plain, rows, steps)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write ``benchmarks/results/training_step.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head", choices=("box", "mask"), default="box")
    parser.add_argument("--classes", type=int, default=1203)
    parser.add_argument("--rois", type=int, default=512, help="RoIs of the batch, a quarter of them objects")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--methods", nargs="*", help="names; all that change the head by default")
    parser.add_argument("--counts", type=Path, default=Path("configs/classes/lvis_v1.json"))
    parser.add_argument("--output", type=result_file, default=Path("benchmarks/results/training_step.json"))
    options = parser.parse_args(arguments)
    init_default_scope("mmdet")
    counts = read_counts(options.counts, options.classes)
    rows = draw_rows(counts, options.rois, options.device)
    found = []
    kinds = {"box": measure_box, "mask": measure_mask}
    for cost in kinds[options.head](counts, rows, options.steps, options.methods):
        found.append(cost)
        print(
            f"{cost.method:15} {cost.milliseconds:8.1f} ms {cost.overhead_percent:+6.1f} %"
            f"  saved {cost.saved_mib:7.1f} MiB  state {cost.state_mib:7.1f} MiB",
            flush=True,
        )
    on_gpu = options.device == "cuda"
    write_json(
        options.output,
        {
            "command": shlex.join(["python", "benchmarks/training_step.py", *(arguments or sys.argv[1:])]),
            "head": options.head,
            "classes": options.classes,
            "rois": options.rois,
            "steps": options.steps,
            "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in ("torch", "onedl-mmdetection", "numpy")},
            "methods": [asdict(cost) for cost in found],
        },
    )


if __name__ == "__main__":
    main()
