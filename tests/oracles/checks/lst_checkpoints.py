"""LST's checkpoints: expansion, trimming, conversion, freezing; and its learning-rate schedule.

Source layout: background rows come first; converted before every comparison.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.optim import LinearLR, MultiStepLR
from torch import Tensor, nn

from ltpipe.engine.schedule import warmup_multistep
from ltpipe.methods.lst.expansion import expand_checkpoint
from ltpipe.methods.lst.freezing import FROZEN_STAGES, freezing_options
from ltpipe.registry import MODELS
from tests.helpers.lst_arrays import load, near, tensor
from tests.published.old_layouts import background_first, convert_state_dict, rename_key, trim_class_layers

METHOD = "lst"
CLS = "module.roi_heads.box.predictor.cls_score.weight"
REG = "module.roi_heads.box.predictor.bbox_pred."


def _source_checkpoint(cls: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> dict[str, Tensor]:
    return {CLS: tensor(cls), f"{REG}weight": tensor(weight), f"{REG}bias": tensor(bias)}


def check_expand(path: Path) -> None:
    """Shapes, kept rows and statistics of the new rows."""
    d = load(path)
    base, step, phase = (int(d[key]) for key in ("base_size", "step_size", "step"))
    old, new = base + step * (phase - 1), step
    if "in_cls_score_weight" in d:
        source, target = (
            _source_checkpoint(
                *(d[f"{side}_{name}"] for name in ("cls_score_weight", "bbox_pred_weight", "bbox_pred_bias"))
            )
            for side in ("in", "out")
        )
        assert len(source[CLS]) == old + 1
    else:
        rows, width = d["in_cls_weight_shape"].tolist()
        assert rows == old + 1
        draw = torch.Generator().manual_seed(0)
        source = _source_checkpoint(
            torch.randn(rows, width, generator=draw).numpy(),
            torch.randn(4 * rows, width, generator=draw).numpy(),
            torch.randn(4 * rows, generator=draw).numpy(),
        )
        source["module.roi_heads.box.predictor.scale_cls"] = tensor(d["scale_cls"])
        source["module.roi_heads.bbox2mask.0.bias"] = torch.zeros(width)
        target = None
    ours = expand_checkpoint(before := convert_state_dict(source), old, new, seed=0)
    cls, reg, bias = (ours[f"roi_head.bbox_head.{k}"] for k in ("fc_cls.weight", "fc_reg.weight", "fc_reg.bias"))
    for key in before.keys() - {f"roi_head.bbox_head.{k}" for k in ("fc_cls.weight", "fc_reg.weight", "fc_reg.bias")}:
        assert torch.equal(ours[key], before[key])
    added = {"cls": cls[old:-1], "bbox": reg[4 * old :], "bias": bias[4 * old :]}
    if target is not None:
        theirs = convert_state_dict(target)
        for key, value in theirs.items():
            assert ours[key].shape == value.shape
        keep = torch.tensor([*range(old), old + new])
        assert torch.equal(cls[keep], theirs["roi_head.bbox_head.fc_cls.weight"][keep])
        assert torch.equal(reg[: 4 * old], theirs["roi_head.bbox_head.fc_reg.weight"][: 4 * old])
        assert torch.equal(bias, theirs["roi_head.bbox_head.fc_reg.bias"])
        expected = {"cls": float(target[CLS][-new:].std()), "bbox": float(target[f"{REG}weight"][-4 * new :].std())}
    else:
        assert list(cls.shape) == d["out_cls_weight_shape"].tolist()
        assert [len(reg) + 4, reg.shape[1]] == d["out_bbox_weight_shape"].tolist()
        assert [len(bias) + 4] == d["out_bbox_bias_shape"].tolist()
        assert ours.keys() == {rename_key(str(key)) for key in d["out_model_keys"]}
        assert bool(d["old_rows_preserved"])
        assert torch.equal(background_first(cls)[: old + 1], source[CLS])
        assert torch.equal(reg[: 4 * old], source[f"{REG}weight"][4:])
        assert float(added["bias"].abs().max()) == float(d["new_bbox_bias_abs_max"])
        expected = {"cls": float(d["new_cls_std"]), "bbox": float(d["new_bbox_std"])}
    for name, std in expected.items():
        size = added[name].numel()
        # Both are samples of the same normal distribution: five standard errors of a standard deviation.
        near(added[name].std(), std, rtol=5 / size**0.5 + 1e-3, atol=0)
        near(added[name].mean(), 0.0, rtol=0, atol=5 * std / size**0.5)


def check_trim(path: Path) -> None:
    """Which keys remain of the COCO checkpoint."""
    d = load(path)
    checkpoint = {"model": {str(k): torch.zeros(1) for k in d["in_model_keys"]}, "optimizer": {}, "iteration": 7}
    trimmed = trim_class_layers(checkpoint)
    assert sorted(trimmed) == sorted(d["out_top_level_keys"].tolist())
    assert sorted(trimmed["model"]) == sorted(d["out_model_keys"].tolist())


def _detector(classes: int, width: int, fusion: str, frozen: str) -> nn.Module:
    """Return the LST detector (ResNet-50, FPN) without memory behind its weights."""
    model = dict(
        type="mmdet.MaskRCNN",
        train_cfg=None,
        test_cfg=dict(rpn=None, rcnn=None),
        backbone=dict(
            type="mmdet.ResNet",
            depth=50,
            norm_cfg=dict(type="BN", requires_grad=False),
            style="caffe",
            **freezing_options(frozen),
        ),
        neck=dict(type="mmdet.FPN", in_channels=[256, 512, 1024, 2048], out_channels=256, num_outs=5),
        rpn_head=dict(
            type="mmdet.RPNHead",
            in_channels=256,
            feat_channels=256,
            anchor_generator=dict(
                type="mmdet.AnchorGenerator", scales=[8], ratios=[0.5, 1, 2], strides=[4, 8, 16, 32, 64]
            ),
            bbox_coder=dict(type="mmdet.DeltaXYWHBBoxCoder"),
            loss_cls=dict(type="mmdet.CrossEntropyLoss", use_sigmoid=True),
            loss_bbox=dict(type="mmdet.L1Loss"),
        ),
        roi_head=dict(
            type="ltpipe.LTRoIHead",
            bbox_roi_extractor=_extractor(7),
            bbox_head=dict(
                type="ltpipe.LTBBoxHead",
                in_channels=256,
                roi_feat_size=7,
                fc_out_channels=width,
                num_classes=classes,
                cls_predictor_cfg=dict(type="ltpipe.CosineLinear"),
            ),
            mask_roi_extractor=_extractor(14),
            mask_head=dict(
                type="ltpipe.MaskXTransferHead",
                num_convs=4,
                num_classes=classes,
                class_features=width,
                fusion=fusion,
                loss_mask=dict(type="mmdet.CrossEntropyLoss", use_mask=True),
            ),
        ),
    )
    with torch.device("meta"):
        return MODELS.build(ConfigDict(model))


def _extractor(size: int) -> dict[str, Any]:
    layer = dict(type="RoIAlign", output_size=size, sampling_ratio=2)
    strides = [4, 8, 16, 32]
    return dict(type="mmdet.SingleRoIExtractor", roi_layer=layer, out_channels=256, featmap_strides=strides)


def check_keys(path: Path) -> None:
    """Every source key has its place, with the same shape, in our detector; the same parameters train."""
    content = json.loads(path.read_text())
    shapes = content["state_dict"]
    source = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    converted = convert_state_dict(source)
    rows, width = next(shape for key, shape in shapes.items() if key.endswith("cls_score.weight"))
    fusion = "full" if any("MLP_mask" in key for key in shapes) else "none"
    frozen = {rename_key(key) for key in content.get("frozen_parameters", ())}
    reached = max((key.split(".")[1] for key in frozen if key.startswith("backbone.layer")), default=None)
    detector = _detector(rows - 1, width, fusion, reached or ("stem" if frozen else "none"))
    ours = {k: list(v.shape) for k, v in detector.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert Counter({k: tuple(v.shape) for k, v in converted.items()}) == Counter({k: tuple(v) for k, v in ours.items()})
    if "trainable" not in content:
        return
    trained = {name for name, p in detector.named_parameters() if p.requires_grad}
    assert trained == {rename_key(key) for key in content["trainable"]}
    assert frozen.isdisjoint(trained) and (reached is None or reached in FROZEN_STAGES)


def check_schedule(path: Path) -> None:
    """mmengine's schedulers, built from our dicts, give the source's rate at every iteration."""
    d = load(path)
    rates = d["lr_at_iteration"]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=float(d["base_lr"]))
    configs = warmup_multistep(
        iterations=len(rates),
        warmup_iterations=int(d["warmup_iters"]),
        warmup_factor=float(d["warmup_factor"]),
        drops=d["milestones"].tolist(),
        gamma=float(d.get("gamma", 0.1)),
    )
    kinds = {"LinearLR": LinearLR, "MultiStepLR": MultiStepLR}
    schedulers = [kinds[config.pop("type")](optimizer, **config) for config in configs]
    ours = []
    for _ in rates:
        ours.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    near(ours, rates)


CHECKS = {
    "checkpoint_expand_": check_expand,
    "checkpoint_trim_": check_trim,
    "lr_schedule": check_schedule,
    "state_dict_keys": check_keys,
}
