"""Older box arithmetic against the formulas of mmdetection 1.x and maskrcnn-benchmark, written down again as loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from mmcv.ops import batched_nms
from mmengine.config import ConfigDict
from torch import Tensor, nn

from ltpipe.engine.geometry import use_geometry
from ltpipe.errors import UserError
from ltpipe.interop.layout import apply_layout
from ltpipe.interop.maskrcnn_benchmark import BENCHMARK
from ltpipe.interop.mmdet1 import MMDET1
from tests.helpers.old_detectors import CHANNELS, OLD, K, build, heads, model_config, pyramid, random_inputs

LAYOUTS = {"mmdet1": MMDET1, "benchmark": BENCHMARK}
STRIDES = (4, 8, 16, 32)


def detector(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return our detector with converted weights and the old checkpoint."""
    config = model_config(style=OLD[name].style)
    use_geometry(config, name)
    model = build(config)
    state = OLD[name].state(model)
    plain = {key.removeprefix("module."): value for key, value in state.items()}
    model.load_state_dict(apply_layout(LAYOUTS[name], plain))
    return model, state


def sampled(feature: Tensor, y: float, x: float) -> Tensor:
    """Interpolate ``(c, H, W)`` at a point; zero outside."""
    height, width = feature.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return feature.new_zeros(len(feature))
    y, x = max(y, 0.0), max(x, 0.0)
    top, left = min(int(y), height - 1), min(int(x), width - 1)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = (min(y, height - 1.0) - top), (min(x, width - 1.0) - left)
    upper = feature[:, top, left] * (1 - across) + feature[:, top, right] * across
    lower = feature[:, bottom, left] * (1 - across) + feature[:, bottom, right] * across
    return upper * (1 - down) + lower * down


def old_pooling(maps: list[Tensor], boxes: Tensor, size: int, past_end: float) -> Tensor:
    """RoIAlign of the older code: two samples per bin and axis, no shift by half a pixel."""
    pooled = []
    for x1, y1, x2, y2 in boxes.tolist():
        level = math.floor(4 + math.log2(math.sqrt((x2 - x1 + 1) * (y2 - y1 + 1)) / 224 + 1e-6))
        level = min(max(level, 2), 5) - 2
        scale = 1 / STRIDES[level]
        left, top = x1 * scale, y1 * scale
        wide, high = (max((end + past_end) * scale - start, 1.0) for end, start in ((x2, left), (y2, top)))
        out = torch.zeros(CHANNELS, size, size)
        for i, j, a, b in itertools.product(range(size), range(size), (0.5, 1.5), (0.5, 1.5)):
            y = top + (i + a / 2) * high / size
            x = left + (j + b / 2) * wide / size
            out[:, i, j] += sampled(maps[level][0], y, x) / 4
        pooled.append(out)
    return torch.stack(pooled)


def old_decode(box: list[float], delta: list[float], height: int, width: int) -> list[float]:
    """One box of the older code: the far edge is the last pixel."""
    x1, y1, x2, y2 = box
    w, h = x2 - x1 + 1, y2 - y1 + 1
    cx, cy = x1 + w / 2 + delta[0] * w, y1 + h / 2 + delta[1] * h
    limit = math.log(1000 / 16)
    new_w, new_h = (side * math.exp(min(max(d, -limit), limit)) for side, d in ((w, delta[2]), (h, delta[3])))
    found = [cx - new_w / 2, cy - new_h / 2, cx + new_w / 2 - 1, cy + new_h / 2 - 1]
    return [min(max(value, 0.0), end - 1.0) for value, end in zip(found, (width, height) * 2, strict=True)]


@pytest.mark.parametrize(("name", "past_end"), [("mmdet1", 1.0), ("benchmark", 0.0)])
def test_scores_boxes_and_masks_are_those_of_the_old_detector(name: str, past_end: float) -> None:
    model, state = detector(name)
    old = OLD[name]
    image = random_inputs()[0]
    boxes = [[3.2, 5.1, 60.7, 40.9], [0.0, 0.0, 95.0, 63.0], [10.0, 12.0, 11.5, 30.0], [70.0, 20.0, 90.0, 60.0]]
    scaled = torch.cat(
        [torch.tensor(boxes), torch.tensor(boxes) * 5]
    )  # larger than the image too: other levels, and samples outside
    rois = torch.cat([torch.zeros(len(scaled), 1), scaled], dim=1)

    def get(key: str) -> Tensor:
        return state[old.key(key)]

    maps = pyramid(old, get, image)
    box, mask = (old_pooling(maps[:4], scaled, size, past_end) for size in (7, 14))
    expected = heads(old, get, maps, box, mask)
    with torch.no_grad():
        ours = model.extract_feat(image)
        found = model.roi_head._bbox_forward(ours, rois)
        masks = model.roi_head._mask_forward(ours, rois)["mask_preds"]
    logits = torch.cat([expected.classes, expected.background[:, None]], dim=1)
    torch.testing.assert_close(found["cls_score"], logits, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(masks, expected.masks, rtol=1e-3, atol=1e-4)
    stds = torch.tensor([0.1, 0.1, 0.2, 0.2])
    decoded = [
        [old_decode(roi, (delta * stds).tolist(), 320, 480) for delta in rows]
        for roi, rows in zip(scaled.tolist(), expected.deltas, strict=True)
    ]
    deltas = found["bbox_pred"].reshape(-1, 4)
    coder = model.roi_head.bbox_head.bbox_coder
    found_boxes = coder.decode(scaled.repeat_interleave(K, dim=0), deltas, max_shape=(320, 480)).reshape(-1, K, 4)
    torch.testing.assert_close(found_boxes, torch.tensor(decoded), rtol=1e-3, atol=1e-3)


def test_anchors() -> None:
    # As py-faster-rcnn lists them: stride 16, scales 8, 16 and 32.
    listed = [
        [-84, -40, 99, 55], [-176, -88, 191, 103], [-360, -184, 375, 199],
        [-56, -56, 71, 71], [-120, -120, 135, 135], [-248, -248, 263, 263],
        [-36, -80, 51, 95], [-80, -168, 95, 183], [-168, -344, 183, 359],
    ]  # fmt: skip
    config = model_config(style="caffe")
    config.rpn_head.anchor_generator.update(scales=[8, 16, 32], strides=[16])
    use_geometry(config, "benchmark")
    assert build(config).rpn_head.prior_generator.base_anchors[0].tolist() == listed
    config = model_config()
    use_geometry(config, "mmdet1")
    anchors = build(config).rpn_head.prior_generator.base_anchors
    for stride, found in zip((4, 8, 16, 32, 64), anchors, strict=True):
        for ratio, anchor in zip((0.5, 1.0, 2.0), found.tolist(), strict=True):
            half_high, half_wide = ((stride * 8 * side - 1) / 2 for side in (math.sqrt(ratio), 1 / math.sqrt(ratio)))
            middle = (stride - 1) / 2
            corners = [middle - half_wide, middle - half_high, middle + half_wide, middle + half_high]
            assert anchor == [round(value) for value in corners]


def test_suppression_counts_the_last_pixel() -> None:
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 8.0]])  # IoU 0.5, with the last pixel 25 / 45 = 0.56
    config = model_config()
    for name, kept in (("modern", 2), ("mmdet1", 1)):
        use_geometry(config, name)
        nms = {**config.test_cfg.rcnn.nms, "iou_threshold": 0.52}
        assert len(batched_nms(boxes, torch.tensor([0.9, 0.8]), torch.zeros(2), nms)[1]) == kept


def test_parts_that_are_not_known_are_refused() -> None:
    config = model_config()
    config.rpn_head.anchor_generator = ConfigDict(type="YOLOAnchorGenerator")
    with pytest.raises(UserError, match="older geometry"):
        use_geometry(config, "mmdet1")
