"""Which method works with which kind of detector: what the checks of an experiment say, asked for every pair."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from ltpipe.config import catalogue
from ltpipe.config.combinations import COMBINATIONS
from ltpipe.config.detector import resolve_detector
from ltpipe.config.experiment import Experiment
from ltpipe.config.loading import complete
from ltpipe.config.yaml_positions import Document
from ltpipe.errors import UserError

FAMILIES = {
    "one stage of RoIs": "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
    "cascade": "mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py",
    "hybrid cascade": "mmdet::htc/htc-without-semantic_r50_fpn_1x_coco.py",
    "RetinaNet": "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py",
    "RTMDet-Ins": "mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py",
    "DINO": "mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py",
}
"""Kinds of detectors, and the config of mmdet that stands for each."""
# Many methods bring conditions that have nothing to do with the detector; these experiments fulfil all of them.
_SECOND_STAGE: dict[str, dict[str, Any]] = {
    "base": {"trained": ["fc_cls", "fc_reg", "rpn_head", "mask_head"]},
    "detector": {"load_from": "start.pth"},
}
_NEEDED: dict[str, dict[str, Any]] = {"combined": {"parts": [{"type": "random", "weight": 1.0}]}}


def refusal(slot: str, name: str, family: str) -> str | None:
    """Return why a method cannot be chosen for a kind of detector; None: it can.

    Args:
        slot: One of :data:`~ltpipe.config.catalogue.SLOTS`.
        name: The method.
        family: One of :data:`FAMILIES`.
    """
    reason = None
    for values in _experiments(slot, name, family):
        refused = _refused(values)
        if refused is None:
            return None
        reason = reason or refused
    return reason


def _experiments(slot: str, name: str, family: str) -> Iterator[dict[str, Any]]:
    """Yield experiments with a method: plain, with the loss that it needs, and as a second stage."""
    method: dict[str, Any] = {"type": name, **_NEEDED.get(name, {})}
    detector: dict[str, Any] = {"config": FAMILIES[family]}
    data = {p: {"annotations": f"{p}.json", "images": p} for p in ("train", "val")}
    common: dict[str, Any] = {"name": "any", "dataset": {"name": "any", **data}, "evaluate": {"iou_types": ["bbox"]}}
    elsewhere: dict[str, dict[str, Any]] = {
        "part": {"model": {"parts": [method]}}, "calibrator": {"calibrate": {"any": method}},
        "sampler": {"base": {"sampler": method}},
    }  # fmt: skip
    chosen: dict[str, Any] = elsewhere.get(slot, {"model": {slot: method}})
    yield {**common, "detector": detector, **chosen}
    for loss in catalogue.find(slot, name).flags.get("losses", []):
        yield {**common, "detector": detector, "model": {**chosen.get("model", {}), "loss": {"type": loss}}}
    base = {**_SECOND_STAGE["base"], **chosen.get("base", {})}
    yield {**common, **chosen, "base": base, "detector": {**detector, **_SECOND_STAGE["detector"]}}


def _refused(values: dict[str, Any]) -> str | None:
    """Return the fault of an experiment; None: there is none."""
    detector = _resolved(values["detector"]["config"])
    exp = complete(Experiment.model_validate(values), Document(values, {}), Path("any.yaml"))
    for check in COMBINATIONS:
        try:
            check(exp, detector)
        except UserError as error:
            return error.what
    return None


_resolved = cache(resolve_detector)


def table() -> dict[tuple[str, str], dict[str, str | None]]:
    """Return the reason, or None, for every method of ours by slot and name, and every kind of detector."""
    known = sorted(key for key, method in catalogue.catalogue().items() if method.plugin is None)
    known.sort(key=lambda key: catalogue.SLOTS.index(key[0]))
    return {(slot, name): {family: refusal(slot, name, family) for family in FAMILIES} for slot, name in known}


def as_text() -> tuple[list[list[str]], list[str]]:
    """Return rows of a table, the head first, and the reasons: ``no 2`` is explained by the second one."""
    rows, reasons = [["", "", *FAMILIES]], list[str]()
    for (slot, name), found in table().items():
        cells = []
        for reason in found.values():
            if reason is not None and reason not in reasons:
                reasons.append(reason)
            cells.append("yes" if reason is None else f"no {reasons.index(reason) + 1}")
        rows.append([slot, name, *cells])
    return rows, reasons
