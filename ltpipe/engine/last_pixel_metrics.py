"""mmdet's metrics for detectors of the older geometries, whose boxes name their last pixel; ours writes the full size.

Only exported configs import this: mmdet's metrics import the ``lvis`` package, which sets up the root logger.
"""

from __future__ import annotations

from typing import Any

from mmdet.evaluation import CocoMetric, LVISMetric

from ltpipe.engine.geometry import PIXEL
from ltpipe.registry import METRICS


class _LastPixel:
    def xyxy2xywh(self, bbox: Any) -> list[float]:
        """Return xywh, absolute pixels, of a box ``(4,)`` xyxy."""
        x, y, w, h = super().xyxy2xywh(bbox)  # type: ignore[misc]
        return [x, y, w + PIXEL, h + PIXEL]


@METRICS.register_module()
class LastPixelCocoMetric(_LastPixel, CocoMetric):
    """mmdet's ``CocoMetric``."""


@METRICS.register_module()
class LastPixelLVISMetric(_LastPixel, LVISMetric):
    """mmdet's ``LVISMetric``."""
