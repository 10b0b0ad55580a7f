"""Box arithmetic of older code bases, for weights that were trained with it.

The last pixel used to belong to a box: its width was ``x2 - x1 + 1``, and RoIAlign did not shift by half a pixel.

| | anchors | boxes | pooled region | suppression |
|---|---|---|---|---|
| ``mmdet1`` (mmdetection 0.6 and 1.x) | corners rounded | +1 | ``x1 .. x2 + 1`` | +1 |
| ``benchmark`` (maskrcnn-benchmark) | sizes rounded at stride scale, as in Detectron | +1 | ``x1 .. x2`` | +1 |

Final boxes name their last pixel too: they are longer by ``last_pixel`` than the difference of their corners.
Matching of anchors and proposals in training, and the pasting of masks, stay modern.
"""

from __future__ import annotations

from typing import Any

import torch
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.models.task_modules.coders import LegacyDeltaXYWHBBoxCoder
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from mmengine.config import ConfigDict
from torch import Tensor

from ltpipe.engine.heads import as_list
from ltpipe.errors import UserError
from ltpipe.registry import MODELS, TASK_UTILS

PIXEL = 1.0
PAST_END = 1


@MODELS.register_module()
class LegacyRoIExtractor(SingleRoIExtractor):
    """Chooses the level by sizes with +1, and pools up to ``x2 + end_offset``.

    Args:
        end_offset: 1 for mmdetection 0.6 and 1.x, 0 for maskrcnn-benchmark.
        **kwargs: Passed to mmdet's ``SingleRoIExtractor``; its RoIAlign must have ``aligned=False``.
    """

    def __init__(self, *args: Any, end_offset: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.end_offset = end_offset

    def map_roi_levels(self, rois: Tensor, num_levels: int) -> Tensor:
        """Return the 0-based level of each pooled region ``(N, 5)``, batch index then xyxy in pixels of the input."""
        return super().map_roi_levels(_longer(rois, PIXEL - self.end_offset), num_levels)

    def forward(self, feats: tuple[Tensor, ...], rois: Tensor, roi_scale_factor: float | None = None) -> Tensor:
        """Return pooled features ``(N, c, h, w)`` of the RoIs ``(N, 5)``."""
        return super().forward(feats, _longer(rois, self.end_offset), roi_scale_factor)


def _longer(rois: Tensor, by: float) -> Tensor:
    """Return RoIs whose far corner is moved out."""
    return rois + rois.new_tensor([0.0, 0.0, 0.0, by, by])


@TASK_UTILS.register_module()
class LastPixelBoxCoder(LegacyDeltaXYWHBBoxCoder):
    """Box deltas of the older code: widths with +1, and corners on the first and the last pixel of a box.

    mmdet's legacy coder leaves the corners half a pixel further out, which suits a pipeline that is modern otherwise.
    """

    def decode(
        self, bboxes: Tensor, pred_bboxes: Tensor, max_shape: Any = None, wh_ratio_clip: float = 16 / 1000
    ) -> Tensor:
        """Return boxes ``(N, 4)``, xyxy, first and last pixel.

        Args:
            bboxes: ``(N, 4)`` float, boxes that the deltas are relative to, alike.
            pred_bboxes: ``(N, 4)`` float deltas.
            max_shape: Height and width of the image, or None.
            wh_ratio_clip: Largest change of a side, as a factor and its inverse.
        """
        corners = super().decode(bboxes, pred_bboxes, None, wh_ratio_clip)
        corners = corners + corners.new_tensor([0.5, 0.5, -0.5, -0.5])
        if max_shape is None:
            return corners
        height, width = max_shape[:2]
        last = corners.new_tensor([width, height, width, height]) - 1
        return corners.clamp(min=0).minimum(last)


@TASK_UTILS.register_module()
class DetectronAnchorGenerator(AnchorGenerator):
    """Anchors of Detectron and maskrcnn-benchmark: rounded at the size of a cell, then scaled about its centre.

    A cell of stride ``s`` is the box ``(0, 0, s - 1, s - 1)``. For ratio ``r``: width ``round(sqrt(s^2 / r))``, height
    ``round(width r)``, both times the scale.
    """

    def gen_single_level_base_anchors(
        self, base_size: float, scales: Tensor, ratios: Tensor, center: tuple[float, float] | None = None
    ) -> Tensor:
        """Return ``(A, 4)`` xyxy anchors of one level about the first cell, in pixels; the last pixel is inside."""
        widths = torch.round(torch.sqrt(base_size * base_size / ratios))
        heights = torch.round(widths * ratios)
        sizes = torch.stack([widths, heights], dim=1)[:, None] * scales[None, :, None]
        half = (sizes.reshape(-1, 2) - 1) / 2
        middle = (base_size - 1) / 2
        return torch.cat([middle - half, middle + half], dim=1)


def use_geometry(model: ConfigDict, name: str) -> None:
    """Put the parts of an older geometry into a model config.

    Args:
        model: Config of a two-stage detector; changed in place.
        name: ``modern`` (nothing changes), ``mmdet1`` or ``benchmark``.

    Raises:
        UserError: The detector has parts that the geometry is not written for.
    """
    if name == "modern":
        return
    anchors = model.rpn_head.anchor_generator
    _expect(anchors, "AnchorGenerator", "rpn_head.anchor_generator")
    if name == "mmdet1":
        anchors.update(type="mmdet.LegacyAnchorGenerator", center_offset=0.5)
    else:
        anchors.type = "ltpipe.DetectronAnchorGenerator"
    roi_head = model.roi_head
    for head in (model.rpn_head, *as_list(roi_head.bbox_head)):
        coder = head.setdefault("bbox_coder", ConfigDict(type="DeltaXYWHBBoxCoder"))
        _expect(coder, "DeltaXYWHBBoxCoder", "bbox_coder")
        coder.type = "ltpipe.LastPixelBoxCoder"
    for extractor in (*as_list(roi_head.bbox_roi_extractor), *as_list(roi_head.get("mask_roi_extractor"))):
        _expect(extractor, "SingleRoIExtractor", "roi_extractor")
        extractor.update(type="ltpipe.LegacyRoIExtractor", end_offset=PIXEL if name == "mmdet1" else 0.0)
        extractor.roi_layer.update(aligned=False, sampling_ratio=2)
    for suppression in (model.test_cfg.rpn.nms, model.test_cfg.rcnn.nms):
        suppression.offset = PAST_END


def _expect(config: ConfigDict, kind: str, where: str) -> None:
    if config.type.removeprefix("mmdet.") != kind:
        raise UserError(
            f"an older geometry is not known for this {where}", where="detector.geometry", got=config.type, allowed=kind
        )


def last_pixel(model: ConfigDict) -> int:
    """Return what a detector's boxes are longer by than the difference of their corners: 1 in the older geometries."""
    if model.get("roi_head") is None:  # one-stage detectors have no older geometry
        return 0
    coder = as_list(model.roi_head.bbox_head)[0].get("bbox_coder", {})
    return PAST_END if coder.get("type") == "ltpipe.LastPixelBoxCoder" else 0
