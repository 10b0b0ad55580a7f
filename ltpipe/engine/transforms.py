"""Pipeline steps that read images and objects: mmdet's, without what those lose or let through in silence."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import cv2
import mmcv
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets.transforms import LoadAnnotations
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine import fileio

from ltpipe.data.images import as_annotated, unreadable
from ltpipe.registry import TRANSFORMS

NO_OUTLINE = [0.0] * 6  # mmdet's stand-in for the outline of an object without one


@TRANSFORMS.register_module()
class LoadImage(LoadImageFromFile):
    """mmdet's ``LoadImageFromFile`` that compares an image with the size in the annotation file.

    What becomes of a camera's orientation is said in :mod:`ltpipe.data.images`.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Read the image of a sample with ``img_path``, ``img_id``, ``height`` and ``width``.

        Raises:
            UserError: It cannot be read, or is of another size.
        """
        path, image_id = results["img_path"], results["img_id"]
        try:
            content = fileio.get(path, backend_args=self.backend_args)
        except OSError as error:
            raise unreadable(path, image_id, error.strerror or error) from error
        image = as_annotated(partial(self._decode, content), (results["height"], results["width"]), path, image_id)
        results["img"] = image.astype(np.float32) if self.to_float32 else image
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        return results

    def _decode(self, content: bytes, turn: bool) -> Any:
        flag = self.color_type if turn else f"{self.color_type}_ignore_orientation"
        if flag not in mmcv.image.io.imread_flags:
            return None
        try:
            return mmcv.imfrombytes(content, flag=flag, backend=self.imdecode_backend)
        except (OSError, ValueError, cv2.error):
            return None


@TRANSFORMS.register_module()
class LoadObjects(LoadAnnotations):
    """mmdet's ``LoadAnnotations`` that loses no object.

    mmdet ignores run-length masks where polygons are asked for (``poly2mask=False``), and objects without a mask. Here
    an image becomes bitmaps if an object that counts has a run-length mask, else it stays polygons, as in mmdet; and an
    object without a mask is an object like others, told by ``gt_has_mask`` ``(G,)`` bool.
    """

    def _load_masks(self, results: dict[str, Any]) -> None:
        height, width = results["ori_shape"]
        instances = results["instances"]
        masks = [instance["mask"] or [NO_OUTLINE] for instance in instances]
        results["gt_has_mask"] = np.array([bool(instance["mask"]) for instance in instances], dtype=bool)
        # Ignored ones, which crowd regions are, train nothing: they do not decide.
        counting = (m for m, instance in zip(masks, instances, strict=True) if not instance["ignore_flag"])
        if self.poly2mask or any(isinstance(mask, dict) for mask in counting):
            bitmaps = [self._poly2mask(mask, height, width) for mask in masks]
            results["gt_masks"] = BitmapMasks(bitmaps, height, width)
        else:
            results["gt_masks"] = PolygonMasks([_outlines(mask) for mask in masks], height, width)


def _outlines(mask: Sequence[Sequence[float]] | dict[str, Any]) -> list[np.ndarray]:
    return [np.array(polygon) for polygon in ([NO_OUTLINE] if isinstance(mask, dict) else mask)]
