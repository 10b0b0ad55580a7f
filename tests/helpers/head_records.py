"""What RoI heads computed in an earlier version: configs, weights, inputs and outputs in one file.

``tests/data/heads_4a6e01d.npz`` was written by that commit, whose RoI heads had all call points in themselves, with
``python tests/helpers/head_records.py FILE``. Nothing here may depend on where a module of ltpipe lies.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor

import ltpipe.engine
import ltpipe.methods  # noqa: F401  both register the components
from ltpipe.registry import MODELS

K, CHANNELS, WIDTH, SIDE, IMAGE = 4, 4, 8, 3, 64
COUNTS = {"num_classes": K, "image_counts": [500, 40, 9, 2], "instance_counts": [900, 60, 12, 2]}
FASA = {"type": "ltpipe.FASA", "instance_prob_scale": 1000.0, **COUNTS}
CRAT = {"type": "ltpipe.CRAT", "mask_weights_from": "mask", **COUNTS}


def extractor(size: int) -> dict[str, Any]:
    layer = {"type": "RoIAlign", "output_size": size, "sampling_ratio": 2}
    return {"type": "SingleRoIExtractor", "roi_layer": layer, "out_channels": CHANNELS, "featmap_strides": [4]}


def box_head(**options: Any) -> dict[str, Any]:
    coder = {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": [0.1, 0.1, 0.2, 0.2]}
    return {
        "type": "ltpipe.LTBBoxHead",
        "in_channels": CHANNELS,
        "fc_out_channels": WIDTH,
        "roi_feat_size": SIDE,
        "num_classes": K,
        "bbox_coder": coder,
        "cls_predictor_cfg": {"type": "ltpipe.LinearClassifier"},
        "loss_cls": {"type": "ltpipe.SoftmaxLoss"},
        "loss_bbox": {"type": "SmoothL1Loss", "loss_weight": 1.0},
        **options,
    }


def mask_head(**options: Any) -> dict[str, Any]:
    loss = {"type": "CrossEntropyLoss", "use_mask": True, "loss_weight": 1.0}
    sizes = {"num_convs": 1, "in_channels": CHANNELS, "conv_out_channels": CHANNELS, "roi_feat_size": SIDE}
    return {"type": "FCNMaskHead", **sizes, "num_classes": K, "loss_mask": loss, **options}


def roi_head(kind: str, stages: int | None = None, **options: Any) -> dict[str, Any]:
    rcnn: dict[str, Any] = {
        "assigner": {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.5, "min_pos_iou": 0.5},
        # Takes every RoI: nothing is drawn.
        "sampler": {"type": "RandomSampler", "num": 512, "pos_fraction": 0.5, "add_gt_as_proposals": True},
        "mask_size": 2 * SIDE,
        "pos_weight": -1,
    }
    nms = {"type": "nms", "iou_threshold": 0.5}
    staged = {"num_stages": stages, "stage_loss_weights": [1, 0.5, 0.25]} if stages else {}
    return {
        "type": f"ltpipe.LT{kind}RoIHead",
        "bbox_roi_extractor": extractor(SIDE),
        "mask_roi_extractor": extractor(SIDE),
        "train_cfg": [rcnn] * stages if stages else rcnn,
        "test_cfg": {"score_thr": 0.0, "nms": nms, "max_per_img": 20, "mask_thr_binary": 0.5},
        **staged,
        **options,
    }


def calibrator(stages: int | None = None) -> dict[str, Any]:
    layers = {"in_features": CHANNELS * SIDE**2, "hidden": [WIDTH], "num_classes": K}
    fusion = {"instance_counts": COUNTS["instance_counts"], "threshold": 50, "mode": "dual"}
    if stages is None:
        return {"type": "ltpipe.DualHead", **layers, **fusion}
    return {"type": "ltpipe.CascadeDualHead", "stages": [layers] * stages, **fusion}


def cases() -> dict[str, dict[str, Any]]:
    """Return the config of every RoI head."""
    seesaw = {"type": "ltpipe.SyncedSeesawLoss", "num_classes": K}
    cosine = box_head(cls_predictor_cfg={"type": "ltpipe.CosineLinear"}, reg_class_agnostic=True)
    transferred = mask_head(type="ltpipe.MaskXTransferHead", class_features=WIDTH, fusion_rank=2)
    hybrid = [mask_head(type="HTCMaskHead", with_conv_res=stage > 0, class_agnostic=True) for stage in range(3)]
    return {
        "plain": roi_head("", bbox_head=box_head(), mask_head=mask_head()),
        "parts": roi_head("", bbox_head=box_head(), mask_head=mask_head(), parts=[FASA, CRAT], calibrator=calibrator()),
        "transferred": roi_head("", bbox_head=cosine, mask_head=transferred, loss_average="batch"),
        "cascade": roi_head(
            "Cascade",
            3,
            bbox_head=[box_head(loss_cls=seesaw) for _ in range(3)],
            mask_head=[mask_head() for _ in range(3)],
            parts=[[{**FASA, "seed": stage} for stage in range(3)]],
            calibrator=calibrator(3),
        ),
        "cascade, transferred": roi_head("Cascade", 3, bbox_head=[cosine] * 3, mask_head=[transferred] * 3),
        "hybrid": roi_head(
            "HybridTaskCascade",
            3,
            bbox_head=[box_head() for _ in range(3)],
            mask_head=hybrid,
            parts=[[{**FASA, "seed": stage} for stage in range(3)]],
        ),
    }


def inputs() -> dict[str, Tensor]:
    """Return two FPN maps, proposals and objects."""
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(2, 4, 2, generator=generator) * 30
    objects = torch.cat([corner, corner + 12 + 12 * torch.rand(2, 4, 2, generator=generator)], dim=2)
    around = objects.repeat(1, 3, 1) + 3 * torch.randn(2, 12, 4, generator=generator)
    return {
        "maps": torch.randn(2, CHANNELS, IMAGE // 4, IMAGE // 4, generator=generator),
        "objects": objects,
        "labels": torch.randint(0, K, (2, 4), generator=generator),
        "proposals": around.clamp(0, IMAGE - 1),
    }


def outcome(head: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return losses, gradients and detections of a RoI head."""
    maps, samples = (given["maps"],), []
    for boxes, labels in zip(given["objects"], given["labels"], strict=True):
        masks = np.zeros((len(boxes), IMAGE, IMAGE), np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.round().int().tolist(), strict=True):
            mask[y1:y2, x1 : (x1 + x2) // 2] = 1
        shape = {"img_shape": (IMAGE, IMAGE), "ori_shape": (IMAGE // 2, IMAGE // 2), "scale_factor": (2.0, 2.0)}
        sample = DetDataSample(metainfo=shape)
        sample.gt_instances = InstanceData(bboxes=boxes, labels=labels, masks=BitmapMasks(masks, IMAGE, IMAGE))
        samples.append(sample)

    def proposals() -> list[InstanceData]:
        return [InstanceData(bboxes=boxes.clone(), scores=torch.ones(len(boxes))) for boxes in given["proposals"]]

    for module in head.modules():
        module.epoch = 1  # FASA draws from the second epoch on
    losses = head.train().loss(maps, proposals(), samples)
    sum(value.sum() for name, value in losses.items() if "loss" in name).backward()
    found = {f"loss/{name}": value.detach() for name, value in losses.items()}
    found |= {f"grad/{name}": p.grad for name, p in head.named_parameters() if p.grad is not None}
    found |= {f"after/{name}": value.clone() for name, value in head.state_dict().items()}
    with torch.no_grad():
        for i, result in enumerate(head.eval().predict(maps, proposals(), samples, rescale=True)):
            found |= {f"detected/{i}/{key}": result[key] for key in ("bboxes", "scores", "labels", "masks")}
    return found


def build(config: dict[str, Any]) -> Any:
    init_default_scope("mmdet")
    torch.manual_seed(0)
    return MODELS.build(ConfigDict(config))


def write(file: Path) -> None:
    """Write what the version that is imported computes."""
    given = inputs()
    arrays = packed("given", given)
    for name, config in cases().items():
        head = build(config)
        generator = torch.Generator().manual_seed(2)
        for parameter in head.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        arrays |= packed(f"{name}/state", head.state_dict()) | packed(f"{name}/outcome", outcome(head, given))
        arrays[f"{name}/config"] = np.array(json.dumps(config))
    np.savez_compressed(file, **arrays)


def packed(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return one array for all tensors, and one for their names, shapes and types."""
    index = [(key, tuple(value.shape), str(value.dtype).removeprefix("torch.")) for key, value in tensors.items()]
    values = torch.cat([value.detach().flatten().float() for value in tensors.values()])
    return {name: values.numpy(), f"{name}/index": np.array(json.dumps(index))}


def unpacked(file: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """Return the tensors of :func:`packed`."""
    index = json.loads(str(file[f"{name}/index"]))
    parts = torch.from_numpy(file[name]).split([math.prod(shape) for _, shape, _ in index])
    found = zip(index, parts, strict=True)
    return {key: part.reshape(shape).to(getattr(torch, kind)) for (key, shape, kind), part in found}


if __name__ == "__main__":
    write(Path(sys.argv[1]))
