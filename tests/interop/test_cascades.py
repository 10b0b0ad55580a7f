"""Cascade and HTC checkpoints: one set of heads per stage, with the keys of mmdet's own modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from torch import Tensor, nn

from ltpipe.engine.training import read_checkpoint
from ltpipe.interop.class_order import reorder_config
from ltpipe.interop.convert import Request, convert
from ltpipe.methods.class_rows import reorder_layers
from tests.helpers.old_detectors import CHANNELS, WIDTH, K
from tests.published.old_layouts import convert_detector


def roi_head(kind: str) -> nn.Module:
    """Return mmdet's cascade or HTC, with class-agnostic boxes as SimCal's and BAGS' have."""

    def extractor(size: int) -> dict[str, Any]:
        layer = dict(type="RoIAlign", output_size=size, sampling_ratio=2)
        return dict(type="SingleRoIExtractor", roi_layer=layer, out_channels=CHANNELS, featmap_strides=[4, 8, 16, 32])

    box = dict(
        type="Shared2FCBBoxHead", in_channels=CHANNELS, roi_feat_size=7, fc_out_channels=WIDTH, num_classes=K,
        reg_class_agnostic=True, cls_predictor_cfg=dict(type="Linear"), loss_cls=dict(type="CrossEntropyLoss"),
    )  # fmt: skip
    mask = dict(
        type="HTCMaskHead" if kind == "htc" else "FCNMaskHead", num_convs=2, in_channels=CHANNELS,
        conv_out_channels=CHANNELS, num_classes=K, loss_mask=dict(type="CrossEntropyLoss", use_mask=True),
    )  # fmt: skip
    # The first mask head of HTC gets nothing from a stage before.
    masks = [{**mask, "with_conv_res": stage > 0} if kind == "htc" else mask for stage in range(3)]
    config: dict[str, Any] = dict(
        type="HybridTaskCascadeRoIHead" if kind == "htc" else "CascadeRoIHead",
        num_stages=3,
        stage_loss_weights=[1, 0.5, 0.25],
        bbox_roi_extractor=extractor(7),
        bbox_head=[box] * 3,
        mask_roi_extractor=extractor(14),
        mask_head=masks,
    )
    if kind == "htc":
        config["semantic_roi_extractor"] = {**extractor(14), "featmap_strides": [8]}
        config["semantic_head"] = dict(
            type="FusedSemanticHead", num_ins=5, fusion_level=1, in_channels=CHANNELS, conv_out_channels=CHANNELS,
            num_classes=183, loss_seg=dict(type="CrossEntropyLoss", ignore_index=255),
        )  # fmt: skip
    return MODELS.build(ConfigDict(config))


def old_state(head: nn.Module) -> dict[str, Tensor]:
    """Return the checkpoint of mmdetection 1.x with the same layers and the background first."""
    draw = torch.Generator().manual_seed(0)
    found = {}
    for name, value in head.state_dict().items():
        shape = list(value.shape)
        if name.startswith("mask_head.") and ".conv_logits." in name:
            shape[0] += 1
        found[name] = torch.randn(shape, generator=draw)
    return found


@pytest.mark.parametrize("kind", ["cascade", "htc"])
def test_every_stage_loads_strictly_and_scores_alike(kind: str) -> None:
    head = roi_head(kind)
    state = old_state(head)
    new = convert_detector(state)
    head.load_state_dict({key.removeprefix("roi_head."): value for key, value in new.items()})
    x = torch.randn(4, CHANNELS, 7, 7, generator=torch.Generator().manual_seed(1))
    for stage in range(3):
        here = f"bbox_head.{stage}."
        y = x.flatten(1)
        for layer in ("shared_fcs.0", "shared_fcs.1"):
            y = torch.relu(y @ state[f"{here}{layer}.weight"].T + state[f"{here}{layer}.bias"])
        logits = y @ state[f"{here}fc_cls.weight"].T + state[f"{here}fc_cls.bias"]
        deltas = y @ state[f"{here}fc_reg.weight"].T + state[f"{here}fc_reg.bias"]
        found, found_deltas = head.bbox_head[stage](x)
        torch.testing.assert_close(found, torch.cat([logits[:, 1:], logits[:, :1]], dim=1), rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(found_deltas, deltas, rtol=1e-4, atol=1e-3)
        filters = state[f"mask_head.{stage}.conv_logits.weight"]
        assert torch.equal(head.mask_head[stage].conv_logits.weight, filters[1:])
    if kind == "htc":
        assert torch.equal(head.semantic_head.conv_logits.weight, state["semantic_head.conv_logits.weight"])


def test_the_command_and_another_class_order(tmp_path: Path) -> None:
    classes = tmp_path / "statistics.csv"
    classes.write_text("category_id,name,image_count,instance_count\n5,a,1,1\n2,b,1,1\n9,c,1,1\n", encoding="utf-8")
    state = old_state(roi_head("htc"))
    torch.save({"state_dict": state}, tmp_path / "htc.pth")
    meta = convert(Request((tmp_path / "htc.pth",), tmp_path / "new.pth", classes=classes))
    assert meta["category_ids"] == [5, 2, 9] and meta["converted"]["model"]["loss"] == {"type": "cross_entropy"}
    new = read_checkpoint(tmp_path / "new.pth")["state_dict"]
    turned = reorder_layers(new, K, [2, 0, 1])
    for stage in range(3):
        key = f"roi_head.bbox_head.{stage}.fc_cls.bias"
        old = state[f"bbox_head.{stage}.fc_cls.bias"]
        assert torch.equal(turned[key], old[[3, 1, 2, 0]])
        assert torch.equal(
            turned[f"roi_head.bbox_head.{stage}.fc_reg.bias"], new[f"roi_head.bbox_head.{stage}.fc_reg.bias"]
        )
        mask = f"{stage}.conv_logits.bias"
        assert torch.equal(turned[f"roi_head.mask_head.{mask}"], state[f"mask_head.{mask}"][[3, 1, 2]])


def test_a_config_in_another_class_order() -> None:
    """Counts, names, ranks and weights have an entry per class; limits of groups do not, however many there are."""
    loss = {"image_counts": [5, 6, 7], "class_names": ("a", "b", "c"), "class_weight": [1.0, 2.0, 3.0, 9.0]}
    model = {"heads": [{"loss": {**loss, "edges": [10, 100, 1000]}}], "ranks": {"class_ranks": [0, 1, 2]}}
    found = reorder_config(model, [2, 0, 1])
    assert found["heads"][0]["loss"] == {
        "image_counts": [7, 5, 6],
        "class_names": ["c", "a", "b"],
        "class_weight": [3.0, 1.0, 2.0, 9.0],
        "edges": [10, 100, 1000],
    }
    assert found["ranks"] == {"class_ranks": [2, 0, 1]}
