"""Time of a training step of whole detectors with ltpipe's heads and methods, beside the same detector of plain mmdet.

Both sides start from equal weights, see the same batch and draw the same RoIs in every step, and the learning rate is
zero, so that they stay equal; their steps alternate. A step is all that mmengine's ``train_step`` does: preprocessing,
forward, losses, backward, optimiser. With softmax, ltpipe's losses must be mmdet's, or no number is written. Images and
objects are drawn at random; classes as often as in LVIS v1. Loading images is not part of it.

Run from the repository's root:

    python benchmarks/detector_step.py [--detector r50] [--methods softmax fasa] [--steps 5] [--device cuda] [--bf16]
"""

from __future__ import annotations

import argparse
import copy
import gc
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import result_file
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from training_step import NUM_ANNOTATED, NUM_IMAGES, read_counts

import ltpipe.engine
import ltpipe.methods  # noqa: F401  registers everything
from ltpipe.config.loading import load_experiment
from ltpipe.engine.model_config import ClassCounts, assemble_model, read_detector
from ltpipe.engine.roi_sampling import with_seeded_samplers
from ltpipe.registry import MODELS
from ltpipe.run.files import write_json

METHODS = {
    "softmax": "{}",
    "seesaw": "{loss: {type: seesaw}}",
    "eqlv2": "{loss: {type: eqlv2}}",
    "fasa": "{parts: [{type: fasa}]}",
    "crat": "{parts: [{type: crat}]}",
}
LIMITS = {"fasa": 5.0, "crat": 5.0}
"""Per cent that a method may slow down a step; others 2."""


@dataclass(frozen=True)
class Scene:
    """A detector and its batch.

    Attributes:
        config: Detector file.
        classes: Classes.
        images: Images in a batch.
        size: Height and width of the images in pixels.
        objects: Objects in an image.
    """

    config: str
    classes: int
    images: int
    size: int
    objects: int


SCENES = {
    "toy": Scene("configs/detectors/mask_rcnn_toy.py", 24, 8, 96, 4),
    "r50": Scene("configs/detectors/mask_rcnn_r50_fpn_ms.py", 1203, 2, 320, 12),
}


@dataclass(frozen=True)
class Cost:
    """A training step of one detector with one method.

    Attributes:
        detector: Name of the scene.
        method: Name of the method.
        milliseconds: Median time; on the CPU, computing time of all threads.
        plain_milliseconds: Median time of the steps of plain mmdet between them.
        overhead_percent: Median over neighbouring steps of what it takes longer.
        spread_percent: Half the distance between the quartiles of the same.
    """

    detector: str
    method: str
    milliseconds: float
    plain_milliseconds: float
    overhead_percent: float
    spread_percent: float


class Trained:
    """A detector, its optimiser and its clock."""

    def __init__(self, model: Any, device: str, bf16: bool) -> None:
        self.model = model.to(device).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-4)
        self.wrapper = AmpOptimWrapper(optimizer=optimizer, dtype="bfloat16") if bf16 else OptimWrapper(optimizer)
        self.losses: dict[str, float] = {}

    def step(self, batch: dict[str, Any], seed: int) -> float:
        """Take a step and return its seconds."""
        data = {"inputs": batch["inputs"], "data_samples": copy.deepcopy(batch["data_samples"])}
        torch.manual_seed(seed)
        on_gpu = next(self.model.parameters()).is_cuda
        # On the CPU other programs may run; the time that this one spends computing is hardly theirs.
        clock = time.perf_counter if on_gpu else time.process_time
        start = clock()
        losses = self.model.train_step(data, self.wrapper)
        if on_gpu:
            torch.cuda.synchronize()
        seconds = clock() - start
        self.losses = {key: float(value.detach()) for key, value in losses.items()}
        return seconds


def draw_batch(scene: Scene, share: np.ndarray) -> dict[str, Any]:
    """Draw images with elliptic objects."""
    random = np.random.default_rng(0)
    inputs, samples = [], []
    grid = np.arange(scene.size) + 0.5
    for number in range(scene.images):
        inputs.append(torch.from_numpy(random.integers(0, 256, (3, scene.size, scene.size), dtype=np.uint8)))
        extent = scene.size * random.uniform(0.08, 0.5, (scene.objects, 2))
        corner = random.uniform(0, 1, (scene.objects, 2)) * (scene.size - extent)
        (x, y), (w, h) = ((part[:, :, None]) for part in (corner.T, extent.T))
        inside = ((grid - x - w / 2) / w * 2)[:, None] ** 2 + (((grid - y - h / 2) / h * 2)[:, :, None]) ** 2 <= 1
        gt = InstanceData(
            bboxes=torch.from_numpy(np.concatenate([corner, corner + extent], axis=1)).float(),
            labels=torch.from_numpy(random.choice(scene.classes, scene.objects, p=share)),
            masks=BitmapMasks(inside.astype(np.uint8), scene.size, scene.size),
        )
        shape = (scene.size, scene.size)
        meta = dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0), img_id=number, img_path="")
        sample = DetDataSample(metainfo=meta, gt_instances=gt, ignored_instances=InstanceData(bboxes=gt.bboxes[:0]))
        samples.append(sample)
    return {"inputs": inputs, "data_samples": samples}


def build(scene: Scene, counts: dict[str, Any], method: str | None) -> Any:
    """Return ltpipe's detector with a method, or without one that of plain mmdet."""
    if method is None:
        config = read_detector(scene.config).model
        for head in ("bbox_head", "mask_head"):
            config.roi_head[head].num_classes = scene.classes
        config.roi_head.bbox_head.pop("cls_predictor_cfg", None)
        config.roi_head.bbox_head.loss_cls = dict(type="CrossEntropyLoss", use_sigmoid=False)
    else:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "method.yaml"
            parent = Path("configs/experiments/toy/toy_joint.yaml").resolve()
            lines = [f"extends: {parent}", f"detector: {{config: {scene.config}}}", f"model: {METHODS[method]}"]
            file.write_text("\n".join(lines), encoding="utf-8")
            exp = load_experiment(file)
        classes = ClassCounts(counts["image_counts"], counts["instance_counts"], NUM_IMAGES, NUM_ANNOTATED)
        config = with_seeded_samplers(assemble_model(exp, classes)[1])
    config.backbone.init_cfg = None  # nothing is downloaded
    config.roi_head.bbox_head.reg_class_agnostic = config.roi_head.mask_head.class_agnostic = False  # as CRAT needs it
    torch.manual_seed(0)
    model: Any = MODELS.build(config)
    for part in getattr(model.roi_head, "parts", []):
        part.epoch, part.hooked = 1, True  # after the first epoch, when every part is active
    return model


def measure(name: str, steps: int, methods: Sequence[str], device: str, bf16: bool) -> list[Cost]:
    """Alternate steps of plain mmdet and of each method in turn."""
    scene = SCENES[name]
    counts = read_counts(Path("configs/classes/lvis_v1.json"), scene.classes)
    share = np.array(counts["instance_counts"], float)
    batch = draw_batch(scene, share / share.sum())
    plain = Trained(build(scene, counts, None), device, bf16)
    weights, found = plain.model.state_dict(), []
    for method in methods:
        model = build(scene, counts, method)
        own = model.state_dict()
        model.load_state_dict({k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}, strict=False)
        ours = Trained(model, device, bf16)
        pairs = [(ours.step(batch, seed), plain.step(batch, seed)) for seed in range(steps + 1)]
        if method == "softmax":
            apart = {key: (ours.losses[key], value) for key, value in plain.losses.items()}
            assert all(abs(a - b) <= 1e-5 * max(1.0, abs(b)) for a, b in apart.values()), f"other losses: {apart}"
        found.append(cost(name, method, pairs[1:]))  # the first steps allocate memory and fill statistics
        print(found[-1], flush=True)
        del ours, model, own
        gc.collect()
    return found


def cost(detector: str, method: str, pairs: Sequence[tuple[float, float]]) -> Cost:
    """Summarise the seconds of neighbouring steps."""
    ours, theirs = (1000 * statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = [100 * (a / b - 1) for a, b in pairs]
    low, high = np.quantile(ratios, [0.25, 0.75])
    return Cost(detector, method, ours, theirs, statistics.median(ratios), float(high - low) / 2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write ``benchmarks/results/detector_step.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", nargs="*", choices=SCENES, default=list(SCENES))
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--steps", type=int, default=5, help="pairs of steps with the large detector; 8 times as many toy"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true", help="both sides under automatic mixed precision")
    parser.add_argument("--output", type=result_file, default=Path("benchmarks/results/detector_step.json"))
    options = parser.parse_args(arguments)
    init_default_scope("mmdet")
    found = []
    for name in options.detector:
        steps = options.steps * (8 if name == "toy" else 1)
        found += measure(name, steps, options.methods, options.device, options.bf16)
    result = {
        "command": shlex.join(["python", "benchmarks/detector_step.py", *(arguments or sys.argv[1:])]),
        "scenes": {name: asdict(SCENES[name]) for name in options.detector},
        "steps": options.steps,
        "bf16": options.bf16,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "limits_percent": {method: LIMITS.get(method, 2.0) for method in options.methods},
        "versions": {name: version(name) for name in ("torch", "onedl-mmdetection", "numpy")},
        "methods": [asdict(item) for item in found],
    }
    write_json(options.output, result)


if __name__ == "__main__":
    main()
