"""A project small enough to run whole stages in a second: nine classes, 24 images, a detector of 0.2 M weights."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.distributed import TCPStore

from ltpipe.config.experiment import Experiment
from ltpipe.config.loading import load_experiment
from ltpipe.data.toy import write_toy_data
from ltpipe.pipeline.paths import Paths

ROOT = Path(__file__).parents[2]
DETECTOR = f"""
_base_ = [{str(ROOT / "configs/detectors/mask_rcnn_toy.py")!r}]
model = dict(
    backbone=dict(base_channels=8),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=24),
        mask_roi_extractor=dict(out_channels=16),
        mask_head=dict(in_channels=16, conv_out_channels=8),
    ),
)
"""
CASCADE = DETECTOR.replace("mask_rcnn_toy", "cascade_mask_rcnn_toy").replace(
    "bbox_head=dict(in_channels=16, fc_out_channels=24)",
    """bbox_head=[
            dict(
                type="Shared2FCBBoxHead",
                in_channels=16,
                fc_out_channels=24,
                bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[s, s, 2 * s, 2 * s]),
                reg_class_agnostic=True,
                loss_bbox=dict(type="SmoothL1Loss", beta=1.0, loss_weight=1.0),
            )
            for s in (0.1, 0.05, 0.033)
        ]""",
)
HYBRID = """
model["type"] = "HybridTaskCascade"
model["roi_head"].update(type="HybridTaskCascadeRoIHead", interleaved=True, mask_info_flow=True)
model["roi_head"]["mask_head"] = [
    dict(
        type="HTCMaskHead",
        with_conv_res=stage > 0,
        num_convs=1,
        in_channels=16,
        conv_out_channels=16,
        class_agnostic=True,
        loss_mask=dict(type="CrossEntropyLoss", use_mask=True, loss_weight=1.0),
    )
    for stage in range(3)
]
"""
# What is learnt depends on the batch alone when normalisation is frozen and every image gives as many RoIs.
WITHOUT_MASKS = """
model["type"] = "FasterRCNN"
model["backbone"]["norm_eval"] = True
model["roi_head"].update(mask_roi_extractor=None, mask_head=None)
model["train_cfg"] = dict(rpn=dict(sampler=dict(num=16)), rcnn=dict(sampler=dict(num=8)))
"""
EXPERIMENT: dict[str, Any] = {
    "dataset": {"name": "tiny", "format": "lvis"},
    "model": {"classifier": {"type": "cosine"}},
    "split": {"boundaries": [5, 7, 9]},
    "base": {"schedule": {"iterations": 4, "batch_size": 2, "lr": 0.01, "warmup_iterations": 2}},
    "lst": {"schedule": {"iterations": 3, "batch_size": 2}, "rois": {"num": 16}},
    "features": {"steps": 4, "classes_per_step": 3, "rois": 16},
    "calibrate": {"simcal": {"type": "simcal", "threshold": 6, "schedule": {"iterations": 6, "lr": 0.02}}},
    "evaluate": {"max_detections": 20, "iou_types": ["bbox", "segm"]},
}
Stage = tuple[str, Any] | str
_MEETING_PLACES: list[TCPStore] = []  # they end with what refers to them


def write_project(folder: Path) -> None:
    """Write images, annotations and detector files."""
    write_toy_data(folder / "data", num_classes=9, train_images=24, val_images=6, image_size=64, seed=3)
    (folder / "detector.py").write_text(DETECTOR, encoding="utf-8")
    (folder / "cascade.py").write_text(CASCADE, encoding="utf-8")
    (folder / "hybrid.py").write_text(CASCADE + HYBRID, encoding="utf-8")
    (folder / "boxes.py").write_text(DETECTOR + WITHOUT_MASKS, encoding="utf-8")


def experiment(folder: Path, **changes: Any) -> Experiment:
    """Return the experiment on the project in a folder, with changed blocks (merged in)."""
    parts = {p: {"annotations": f"{folder}/data/{p}.json", "images": f"{folder}/data/{p}"} for p in ("train", "val")}
    whole = _merged(EXPERIMENT, {"dataset": parts, "detector": {"config": str(folder / "detector.py")}})
    text = yaml.safe_dump({"name": "tiny", **_merged(whole, changes)})
    file = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.yaml"
    file.write_text(text, encoding="utf-8")
    return load_experiment(file)


def rewritten(folder: Path, target: Path, change: Callable[[str, dict[str, Any]], Any]) -> dict[str, Any]:
    """Write changed annotations of a project; return the parts of a ``dataset`` block that name them.

    Args:
        folder: The project.
        target: Where to write.
        change: Changes the content of ``train`` or ``val`` in place, or returns another.
    """
    target.mkdir(parents=True, exist_ok=True)
    parts = {}
    for part in ("train", "val"):
        content = json.loads((folder / "data" / f"{part}.json").read_text(encoding="utf-8"))
        content = change(part, content) or content
        (target / f"{part}.json").write_text(json.dumps(content), encoding="utf-8")
        parts[part] = {"annotations": str(target / f"{part}.json"), "images": str(folder / "data" / part)}
    return parts


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    both = {k: _merged(old[k], v) for k, v in new.items() if isinstance(v, dict) and isinstance(old.get(k), dict)}
    return {**old, **new, **both}


def run_stages(exp: Experiment, results: Path, *stages: Stage) -> Paths:
    """Run stages in this process: names, or pairs of name and key."""
    paths = Paths(results, exp)
    for stage in stages:
        name, *key = (stage,) if isinstance(stage, str) else stage
        import_module(f"ltpipe.stages.{name}").run(exp, paths, *key)
    return paths


def in_child(work: Callable[[], None], **environment: str) -> int:
    """Start a process forked from this one; return its id for :func:`ended`."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.environ.update(environment)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(child: int) -> int:
    """Wait for a process of :func:`in_child`: its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def together(work: Callable[[], None], processes: int) -> None:
    """Run work in several processes as torchrun would, gloo between them."""
    children = [in_child(work, **environment) for environment in torchrun(processes)]
    assert [ended(child) for child in children] == [0] * processes


def command_line(*arguments: object, **environment: str) -> tuple[int, str]:
    """Run the command line in a process of its own; return its exit code and what it wrote to the error stream."""
    return command_lines([environment], *arguments)[0]


def command_lines(environments: list[dict[str, str]], *arguments: object) -> list[tuple[int, str]]:
    """Run the same command line at the same time, once per environment; returns as :func:`command_line`."""
    running = []
    for environment in environments:
        reading, writing = os.pipe()

        def work(writing: int = writing) -> None:
            from ltpipe.cli import main

            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(writing, 2)
            sys.stdout, sys.stderr = (open(fd, "w", buffering=1, closefd=False) for fd in (1, 2))
            os._exit(main([str(argument) for argument in arguments]))

        running.append((in_child(work, **environment), reading))
        os.close(writing)
    found = []
    for child, reading in running:
        with open(reading, encoding="utf-8") as stream:
            text = stream.read()
        found.append((ended(child), text))
    return found


def torchrun(processes: int) -> list[dict[str, str]]:
    """Return what torchrun tells its processes, and serve their meeting place as it does.

    A port that is only looked up for them may be taken when they listen, also by a connection of another address.
    """
    _MEETING_PLACES.append(TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
    port = str(_MEETING_PLACES[-1].port)
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), **shared} for rank in range(processes)]


def kill_here() -> None:
    """End this process as the kernel ends one that uses too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def state_of(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint."""
    return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]


def assert_same_state(first: Path, second: Path) -> None:
    """Compare two checkpoints bit by bit."""
    one, other = state_of(first), state_of(second)
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


def copied(results: Path, target: Path) -> Path:
    """Return a copy of a results folder to change."""
    return Path(shutil.copytree(results, target))
