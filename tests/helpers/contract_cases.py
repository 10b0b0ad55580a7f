"""Builds every component of the catalogue in a small size for the contract tests."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from mmengine.registry import DefaultScope
from torch import Tensor, nn

import ltpipe.engine.heads
import ltpipe.methods  # noqa: F401  registers everything
from ltpipe.config import catalogue
from ltpipe.methods.head_parts import BoxBatch, HeadPart, MaskBatch
from ltpipe.registry import MODELS

K, WIDTH, CHANNELS, ROI = 6, 16, 4, 2
UNSEEN = 5
# Where everything is built; the contract's tests set it.
DEVICE = torch.device("cpu")
# What the pipeline knows about the data; class 5 has none.
FACTS = {
    "num_classes": K,
    "image_counts": [900, 300, 60, 12, 3, 0],
    "instance_counts": [5000, 1200, 90, 15, 3, 0],
    "num_images": 1000,
    "num_annotated_images": 950,
    "class_features": WIDTH,
    "fractal_dimension": [1.9, 1.7, 1.5, 1.2, 1.0, 1.0],
}
BATCHES = {
    "mixed": [0, 1, K, 2, 0, 4, K, K, 3, 1],
    "unseen class": [UNSEEN, K, UNSEEN, 0],
    "one class": [2, 2, 2],
    "no foreground": [K, K, K, K],
    "no RoIs": [],
}


def names(slot: str) -> list[str]:
    """Return the names of a slot that are components of ours."""
    return [name for name in catalogue.names(slot) if catalogue.find(slot, name).component]


def config(slot: str, name: str, **given: Any) -> dict[str, Any]:
    """Return the config of a component with its default options and the facts it asks for."""
    made = catalogue.component(slot, {"type": name})
    parameters = inspect.signature(MODELS.get(made["type"]).__init__).parameters
    wanted = {key: value for key, value in FACTS.items() if key in parameters}
    return {**made, **wanted, **given}


def build(slot: str, name: str, **given: Any) -> Any:
    """Return the component, in training mode."""
    torch.manual_seed(0)
    return build_config(config(slot, name, **given))


def build_config(made: dict[str, Any]) -> Any:
    """Return the module of a config."""
    with DefaultScope.overwrite_default_scope("mmdet"):
        return MODELS.build(made).to(DEVICE)


def channels(loss: Any) -> int:
    """Return the classifier outputs a loss asks for."""
    return loss.get_cls_channels(K) if getattr(loss, "custom_cls_channels", False) else K + 1


def logits(loss: Any, labels: list[int], seed: int = 0) -> Tensor:
    """Return random classifier outputs."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(labels), channels(loss), generator=generator).to(DEVICE) * 2


def run_loss(loss: Any, z: Tensor, labels: list[int]) -> dict[str, Tensor]:
    """Call a loss as mmdet's box head does and return its terms."""
    target = torch.tensor(labels, dtype=torch.long, device=DEVICE)
    found = loss(
        z,
        target,
        torch.ones(len(labels), device=DEVICE),
        avg_factor=float(max(len(labels), 1)),
        reduction_override=None,
    )
    return found if isinstance(found, dict) else {"loss_cls": found}


def box_head_config(classifier: str = "linear", loss: str = "cross_entropy") -> dict[str, Any]:
    """Return the config of a small box head."""
    return {
        "type": "ltpipe.LTBBoxHead",
        "in_channels": CHANNELS,
        "roi_feat_size": ROI,
        "fc_out_channels": WIDTH,
        "num_classes": K,
        "cls_predictor_cfg": catalogue.component("classifier", {"type": classifier}),
        "loss_cls": config("loss", loss),
        "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
    }


def box_head(classifier: str = "linear", loss: str = "cross_entropy") -> Any:
    """Return an initialised small box head."""
    torch.manual_seed(0)
    head = build_config(box_head_config(classifier, loss))
    head.init_weights()
    return head


def pooled(count: int, seed: int = 0) -> Tensor:
    """Return pooled RoI features ``(count, CHANNELS, ROI, ROI)``."""
    return torch.randn(count, CHANNELS, ROI, ROI, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def box_batch(head: Any, labels: list[int], seed: int = 0, rows: slice = slice(None)) -> BoxBatch:
    """Return a batch after the head's forward and its ordinary losses."""
    generator = torch.Generator().manual_seed(seed + 1)
    corner = torch.rand(len(labels), 2, generator=generator) * 40
    rois = torch.cat([torch.zeros(len(labels), 1), corner, corner + 20], dim=1)[rows].to(DEVICE)
    targets = torch.randn(len(labels), 4, generator=generator)[rows].to(DEVICE)
    feats, target = pooled(len(labels), seed)[rows], torch.tensor(labels, dtype=torch.long, device=DEVICE)[rows]
    features, for_reg = head.predictor_inputs(feats)
    cls_score, deltas = head.fc_cls(features), head.fc_reg(for_reg)
    weights = (target < K).float()[:, None].expand(-1, 4)
    label_weights = torch.ones(len(target), device=DEVICE)
    losses = head.loss(cls_score, deltas, rois, target, label_weights, targets, weights) if len(target) else {}
    objects = torch.where(target < K, torch.arange(len(target), device=DEVICE), -1)
    targets_and_rois = (deltas, targets, weights, objects, len(target))
    return BoxBatch(features, cls_score, target, label_weights, feats, rois, losses, *targets_and_rois)


class MaskPredictor(nn.Module):
    """The last layer of a mask head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv_logits = nn.Conv2d(CHANNELS, K, 1).to(DEVICE)
        self.loss_mask = build_config({"type": "CrossEntropyLoss", "use_mask": True})


def mask_batch(head: MaskPredictor, labels: Tensor, seed: int = 0) -> MaskBatch:
    """Return the mask batch of the foreground rows of ``labels``."""
    labels = labels[labels < K]
    generator = torch.Generator().manual_seed(seed)
    features = torch.rand(len(labels), CHANNELS, 4, 4, generator=generator).to(DEVICE)
    targets = (torch.rand(len(labels), 4, 4, generator=generator) > 0.5).float().to(DEVICE)
    return MaskBatch(features, head.conv_logits(features), targets, labels)


def run_part(part: Any, head: Any, mask_head: MaskPredictor, batch: BoxBatch) -> dict[str, Tensor]:
    """Call a part at every point of the heads, in their order."""
    head.parts = [part]
    ordinary = {name: value for name, value in head.losses_of(batch).items() if "loss" in name}
    head.parts = []
    return {
        **(ordinary if type(part).before_losses is not HeadPart.before_losses else {}),
        **part.box_losses(head, batch),
        **part.mask_losses(mask_head, mask_batch(mask_head, batch.labels)),
    }


def total(terms: dict[str, Tensor]) -> Tensor:
    """Return the sum of the entries that mmdet adds to the objective."""
    return torch.stack([value.sum() for name, value in terms.items() if "loss" in name]).sum()
