"""Pipeline steps that read and pack images and objects: mmdet's, without what those lose or let through in silence."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import cv2
import mmcv
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs, RandomFlip
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine import fileio

from ltpipe.data.images import as_annotated, unreadable
from ltpipe.engine.tracked_labels import TrackedLabels
from ltpipe.errors import UserError
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

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Read boxes, labels and masks; the labels know their annotations from here on."""
        ids = results.pop("gt_ann_ids", None)
        found = super().transform(results)
        if found is not None and self.with_label and ids is not None:
            masked = found.pop("gt_has_mask", np.ones(len(ids), bool))
            found["with_masks"], found["all_masked"] = self.with_mask, bool(masked.all())
            tags = np.stack([np.asarray(ids, np.int64), masked.astype(np.int64)], axis=1)
            found["gt_bboxes_labels"] = TrackedLabels.of(found["gt_bboxes_labels"], tags)
        return found

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


@TRANSFORMS.register_module()
class PackLTInputs(PackDetInputs):
    """mmdet's ``PackDetInputs`` that keeps annotation ids and hands on what RoI samplers and mask heads need.

    ``gt_instances.ann_ids`` is ``(G,)`` int64, ``has_mask`` ``(G,)`` bool where masks are loaded. In the metainfo of
    ``gt_instances``, training streams have ``sample_seed`` and replay streams also ``replay_label``, the paired class.
    """

    mapping_table = {**PackDetInputs.mapping_table, "gt_ann_ids": "ann_ids", "gt_has_mask": "has_mask"}

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Pack one sample."""
        _untag(results)
        boxes, ann_ids = results.get("gt_bboxes"), results.get("gt_ann_ids")
        if boxes is not None and ann_ids is not None and len(ann_ids) != len(boxes):
            raise UserError(
                "the training pipeline drops or adds objects, which annotation ids cannot follow",
                where=f"image {results['img_id']}",
                got=f"{len(boxes)} boxes, {len(ann_ids)} annotation ids",
                fix="read annotations by LoadAnnotations, or use resizing, flipping and colour transforms only",
            )
        packed = super().transform(results)
        gt = packed["data_samples"].gt_instances
        gt.set_metainfo({key: int(results[key]) for key in ("replay_label", "sample_seed") if key in results})
        return packed


@TRANSFORMS.register_module()
class FixedFlip(RandomFlip):
    """mmdet's horizontal flip, decided by the sample's ``fixed_flip`` instead of chance."""

    def __init__(self) -> None:
        super().__init__(prob=1.0)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Mirror image, boxes and masks if the sample asks for it."""
        if results["fixed_flip"]:
            return super().transform(results)
        return {**results, "flip": False, "flip_direction": None}


def _untag(results: dict[str, Any]) -> None:
    """Turn what labels know of their annotations into columns, and leave out boxes without area, in place.

    Raises:
        UserError: A transform has made new arrays of labels, and some objects have no mask.
    """
    labels = results.get("gt_bboxes_labels")
    if not isinstance(labels, TrackedLabels):
        return
    tags = labels.tags
    results["gt_bboxes_labels"] = np.array(labels, subok=False)
    if tags is not None:
        results["gt_ann_ids"] = tags[:, 0]
        if results["with_masks"]:
            results["gt_has_mask"] = tags[:, 1].astype(bool)
    elif not results["all_masked"]:
        raise UserError(
            "a transform makes new arrays of labels, so that nobody knows which objects have no mask",
            where=f"image {results['img_id']}",
            fix="let the transform index and concatenate the arrays of objects that it gets",
        )
    boxes = results["gt_bboxes"]
    sides = boxes.tensor[:, 2:] - boxes.tensor[:, :2]
    keep = (sides > 0).all(dim=1).numpy()
    if not keep.all():
        for key in ("gt_bboxes", "gt_bboxes_labels", "gt_ignore_flags", "gt_masks", "gt_ann_ids", "gt_has_mask"):
            if results.get(key) is not None:
                results[key] = results[key][np.flatnonzero(keep) if key == "gt_masks" else keep]


def _outlines(mask: Sequence[Sequence[float]] | dict[str, Any]) -> list[np.ndarray]:
    return [np.array(polygon) for polygon in ([NO_OUTLINE] if isinstance(mask, dict) else mask)]
