"""Time and memory of a training step of the box head with each method, beside mmdet's own box head in the same run.

Steps of a method and of plain mmdet alternate on the same rows, so that both feel the same load of the machine. A step
is forward, losses, parts, backward and SGD, on pooled features of RoIs drawn as LVIS v1's instances are. Backbone and
RoI pooling, which methods do not change, are left out: in a whole detector the relative cost is smaller.

Run from the repository's root:

    python benchmarks/training_step.py [--device cuda] [--steps 20] [--methods eqlv2 fasa crat]
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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.registry import init_default_scope
from torch import Tensor, nn

import ltpipe.engine
import ltpipe.methods  # noqa: F401  registers everything
from ltpipe.files import write_json
from ltpipe.methods.base import BoxBatch
from ltpipe.registry import MODELS
from ltpipe.spec import catalogue

CHANNELS, SIZE, HIDDEN = 256, 7, 1024
NUM_IMAGES, NUM_ANNOTATED = 100170, 99388  # LVIS v1
PLAIN = "mmdet"
Step = Callable[[], None]


@dataclass(frozen=True)
class Rows:
    """Pooled features of one iteration and their targets."""

    features: Tensor
    rois: Tensor
    labels: Tensor
    bbox_targets: Tensor
    bbox_weights: Tensor


@dataclass(frozen=True)
class Cost:
    """Result of one method.

    Attributes:
        method: Its name.
        seconds: Median time of a step; on the CPU, computing time of all threads.
        plain_seconds: Median time of the steps of plain mmdet between them.
        overhead_percent: What it takes longer than plain mmdet.
        saved_mib: Memory kept for the backward pass, beyond parameters and inputs.
        state_mib: Parameters and buffers.
        peak_mib: Peak memory of a step on the GPU; None on the CPU.
    """

    method: str
    seconds: float
    plain_seconds: float
    overhead_percent: float
    saved_mib: float
    state_mib: float
    peak_mib: float | None


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
    )
    return Rows(*(tensor.to(device) for tensor in made))


def component(slot: str, name: str, counts: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a method with its default options and the counts it asks for."""
    config = catalogue.component(slot, {"type": name})
    wanted = inspect.signature(MODELS.get(config["type"]).__init__).parameters
    return config | {key: value for key, value in counts.items() if key in wanted}


def build(slot: str, name: str, counts: dict[str, Any], device: str) -> tuple[nn.Module, nn.ModuleList]:
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
    head = MODELS.build(config)
    parts = nn.ModuleList([MODELS.build(component("part", name, counts))] if slot == "part" else [])
    for part in parts:
        part.epoch, part.hooked = 1, True  # after the first epoch, when every part is active
    return head.to(device).train(), parts.to(device).train()


def losses_of(head: Any, parts: nn.ModuleList, rows: Rows) -> Tensor:
    """Return the sum of the losses of one step."""
    weights = torch.ones_like(rows.labels, dtype=torch.float)
    targets = (rows.labels, weights, rows.bbox_targets, rows.bbox_weights)
    if not hasattr(head, "shared_features"):
        losses = head.loss(*head(rows.features), rows.rois, *targets)
    else:
        features, for_reg = head.shared_features(rows.features)
        scores, deltas = head.fc_cls(features), head.fc_reg(for_reg)
        losses = head.loss(scores, deltas, rows.rois, *targets)
        batch = BoxBatch(features, scores, rows.labels, weights, rows.features, rows.rois, losses, deltas, *targets[2:])
        for part in parts:
            losses.update(part.box_losses(head, batch))
    return torch.stack([value.sum() for key, value in losses.items() if "loss" in key]).sum()


def make_step(head: nn.Module, parts: nn.ModuleList, rows: Rows) -> Step:
    """Return a function that takes one training step and waits for its end."""
    optimizer = torch.optim.SGD(head.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        losses_of(head, parts, rows).backward()
        optimizer.step()
        if rows.features.is_cuda:
            torch.cuda.synchronize()

    return step


def saved_bytes(head: nn.Module, parts: nn.ModuleList, rows: Rows) -> int:
    """Return the bytes that one forward pass keeps for its backward pass, parameters and inputs not counted."""
    known = {t.untyped_storage().data_ptr() for t in [*head.parameters(), *parts.buffers(), rows.features]}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = losses_of(head, parts, rows)
    torch.autograd.backward(loss)
    return sum(kept.values())


def timed(step: Step, clock: Callable[[], float]) -> float:
    """Return the seconds of one step."""
    start = clock()
    step()
    return clock() - start


def measure(slot: str, name: str, counts: dict[str, Any], rows: Rows, plain: Step, steps: int) -> Cost:
    """Alternate steps of a method and of plain mmdet."""
    device = rows.features.device.type
    head, parts = build(slot, name, counts, device)
    step = make_step(head, parts, rows)
    for _ in range(3):  # the first steps allocate memory and fill statistics
        step(), plain()
    # On the CPU other programs may run; the time that this one spends computing is hardly theirs.
    clock = time.perf_counter if rows.features.is_cuda else time.process_time
    seconds, between = zip(*((timed(step, clock), timed(plain, clock)) for _ in range(steps)), strict=True)
    peak = None
    if rows.features.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        step()
        peak = torch.cuda.max_memory_allocated() / 2**20
    state = sum(t.nbytes for module in (head, parts) for t in [*module.parameters(), *module.buffers()])
    ours, theirs = statistics.median(seconds), statistics.median(between)
    saved = saved_bytes(head, parts, rows)
    return Cost(name or PLAIN, ours, theirs, 100 * (ours / theirs - 1), saved / 2**20, state / 2**20, peak)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write ``benchmarks/results/training_step.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1203)
    parser.add_argument("--rois", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--methods", nargs="*", help="names; all losses, classifiers and parts by default")
    parser.add_argument("--counts", type=Path, default=Path("configs/classes/lvis_v1.json"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/training_step.json"))
    options = parser.parse_args(arguments)
    init_default_scope("mmdet")
    counts = read_counts(options.counts, options.classes)
    rows = draw_rows(counts, options.rois, options.device)
    plain = make_step(*build(PLAIN, "", counts, options.device), rows)
    found = []
    for slot, name in [(PLAIN, ""), *((s, n) for s in ("loss", "classifier", "part") for n in catalogue.names(s))]:
        if slot == PLAIN or options.methods is None or name in options.methods:
            found.append(measure(slot, name, counts, rows, plain, options.steps))
            print(
                f"{found[-1].method:15} {1000 * found[-1].seconds:8.1f} ms {found[-1].overhead_percent:+6.1f} %"
                f"  saved {found[-1].saved_mib:7.1f} MiB  state {found[-1].state_mib:7.1f} MiB",
                flush=True,
            )
    on_gpu = options.device == "cuda"
    write_json(
        options.output,
        {
            "command": shlex.join(["python", "benchmarks/training_step.py", *(arguments or sys.argv[1:])]),
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
