"""Transforms of several images: mosaic, mixup and copy-paste, mmdet's algorithms for streams of positions.

mmdet draws the other images from a wrapper of the dataset or from a cache that each worker fills; with either, what is
seen depends on workers and restarts. Here :class:`ltpipe.engine.augmentation.Source` draws them from generators that
the position seeds. Masks follow: mmdet's mixup flips them about another axis than the boxes.
"""

from __future__ import annotations

from typing import Any

import cv2
import mmcv
import numpy as np
from mmdet.datasets.transforms import CachedMixUp, CachedMosaic, CopyPaste
from mmdet.structures.bbox import HorizontalBoxes, autocast_box_type
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from numpy import random
from pycocotools import mask as coco_mask

from ltpipe.engine.augmentation import Mixing, Results, Source
from ltpipe.engine.tracked_labels import TrackedLabels
from ltpipe.errors import UserError
from ltpipe.registry import TRANSFORMS


@TRANSFORMS.register_module()
class MosaicImages(CachedMosaic, Mixing):
    """mmdet's mosaic with masks: four images around a random centre, twice as wide and high as ``img_scale``.

    Args:
        chained: The other images have gone through all steps before, as in ``CachedMosaic``.
        img_scale: Width and height of each quarter, equal.
        **options: As in mmdet; those of the cache are not needed.
    """

    def __init__(self, chained: bool = False, img_scale: tuple[int, int] = (640, 640), **options: Any) -> None:
        if img_scale[0] != img_scale[1]:
            raise UserError(
                "a mosaic needs quarters as high as wide: mmdet gives its masks the wrong shape otherwise",
                where="img_scale", got=tuple(img_scale),
            )  # fmt: skip
        options |= dict(max_cached_images=5, random_pop=False)
        super().__init__(img_scale=tuple(img_scale), **options)
        self.chained = chained

    def draw(self, source: Source) -> Any:
        """Draw three images."""
        return source.images(3)

    def get_indexes(self, cache: list[Any]) -> list[int]:
        """Return the three."""
        return [0, 1, 2]

    def transform(self, results: Results) -> Results:
        """Put the image to the top left of three others."""
        others = results.pop("partners")
        self.results_cache = [*others, others[0]]  # mmdet waits for a fifth image
        made: Results = super().transform(results)
        self.results_cache = []
        return made


@TRANSFORMS.register_module()
class MixUpImages(CachedMixUp, Mixing):
    """mmdet's mixup: the mean of the image and another one, resized, flipped and cut at random; masks follow.

    Args:
        chained: The other image has gone through all steps before, as in ``CachedMixUp``.
        **options: As in mmdet; those of the cache are not needed.
    """

    def __init__(self, chained: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.chained = chained

    def draw(self, source: Source) -> Any:
        """Draw an image, with objects if there are some."""
        for _ in range(self.max_iters):
            found = source.images(1)
            if found is None or len(found[0]["gt_bboxes"]):
                break
        return found

    @autocast_box_type()
    def transform(self, results: Results) -> Results:
        """Mix with the image drawn."""
        (other,) = results.pop("partners")
        if random.uniform(0, 1) > self.prob or not len(other["gt_bboxes"]):
            return results
        jitter, flip = random.uniform(*self.ratio_range), random.uniform(0, 1) > self.flip_ratio
        image, scale = self._fitted(other["img"], jitter)
        (high, wide), (height, width) = image.shape[:2], results["img"].shape[:2]
        image = image[:, ::-1] if flip else image
        canvas = np.full((max(high, height), max(wide, width), 3), self.pad_val).astype(np.uint8)
        canvas[:high, :wide] = image
        y = random.randint(0, len(canvas) - height) if len(canvas) > height else 0
        x = random.randint(0, canvas.shape[1] - width) if canvas.shape[1] > width else 0
        window = canvas[y : y + height, x : x + width].astype(np.float32)
        boxes = other["gt_bboxes"]
        boxes.rescale_([scale, scale])
        if self.bbox_clip_border:
            boxes.clip_([high, wide])
        if flip:
            boxes.flip_([high, wide], direction="horizontal")
        boxes.translate_([-x, -y])
        if self.bbox_clip_border:
            boxes.clip_([height, width])
        results["img"] = (0.5 * results["img"].astype(np.float32) + 0.5 * window).astype(np.uint8)
        boxes = boxes.cat([results["gt_bboxes"], boxes])
        inside = boxes.is_inside([height, width]).numpy()
        results["gt_bboxes"] = boxes[inside]
        for key in ("gt_bboxes_labels", "gt_ignore_flags"):
            results[key] = np.concatenate([results[key], other[key]])[inside]
        if "gt_masks" in results:
            moved = _moved(other["gt_masks"], scale, wide if flip else None, (x, y), (height, width))
            results["gt_masks"] = _joined([results["gt_masks"], moved])[np.flatnonzero(inside)]
        return results

    def _fitted(self, image: np.ndarray, jitter: float) -> tuple[np.ndarray, float]:
        """Return an image on the canvas of ``img_scale``, resized with it, and the image's own factor."""
        width, height = self.dynamic_scale
        scale = min(height / image.shape[0], width / image.shape[1])
        fitted = mmcv.imresize(image, (int(image.shape[1] * scale), int(image.shape[0] * scale)))
        canvas = np.full((height, width, 3), float(self.pad_val))
        canvas[: fitted.shape[0], : fitted.shape[1]] = fitted
        return mmcv.imresize(canvas, (int(width * jitter), int(height * jitter))), scale * jitter


def _moved(masks: Any, scale: float, mirror: int | None, corner: tuple[int, int], shape: tuple[int, int]) -> Any:
    """Return masks resized, mirrored within a width, and seen through a window of a shape at a corner."""
    (x, y), (height, width) = corner, shape
    if isinstance(masks, PolygonMasks):
        moved = []
        for polygons in masks.masks:
            points = [np.asarray(p, dtype=np.float64).reshape(-1, 2) * scale for p in polygons]
            for p in points:
                p[:, 0] = p[:, 0] if mirror is None else mirror - p[:, 0]
                p -= (x, y)
                np.clip(p, 0, (width, height), out=p)
            moved.append([p.reshape(-1) for p in points])
        return PolygonMasks(moved, height, width)
    matrix = np.array([[scale, 0.0, -x], [0.0, scale, -y]])
    if mirror is not None:
        matrix[0] = [-scale, 0.0, mirror - x - 1]
    drawn = [cv2.warpAffine(mask, matrix, (width, height), flags=cv2.INTER_NEAREST) for mask in masks.masks]
    return BitmapMasks(np.array(drawn, np.uint8).reshape(-1, height, width), height, width)


def _joined(masks: list[Any]) -> Any:
    """Join masks of several images of one size: polygons if all are, else bitmaps."""
    if all(isinstance(one, PolygonMasks) for one in masks):
        return PolygonMasks([polygons for one in masks for polygons in one.masks], masks[0].height, masks[0].width)
    height, width = masks[0].height, masks[0].width
    return BitmapMasks(np.concatenate([_bitmaps(one) for one in masks]), height, width)


def _bitmaps(masks: Any) -> np.ndarray:
    """Return ``(G, H, W)`` uint8."""
    found = masks.to_ndarray() if len(masks) else np.zeros((0, masks.height, masks.width), np.uint8)
    return np.asarray(found, dtype=np.uint8)


@TRANSFORMS.register_module()
class PasteObjects(CopyPaste, Mixing):
    """Copy-paste: objects of other images cover part of this one (Ghiasi et al., CVPR 2021), as mmdet does it.

    Unlike in mmdet, an object that is covered wholly always goes, one that is not touched keeps its box, images stay 8
    bit and need not be of one size, and neither crowds nor objects without a mask are pasted.

    Args:
        max_num_pasted: Fewer objects than this are pasted, a number drawn evenly; null: 100, ``by_class``: 6.
        bbox_occluded_thr: A covered object stays if no side of its box moves by more than so many pixels,
        mask_occluded_thr: or if more than so many pixels of its mask remain.
        selected: Draw some of the other image's objects; False: paste all.
        paste_by_box: Take boxes for masks where the annotations are loaded without masks.
        by_class: Draw classes instead of an image, the rarer the more often, then any object of the class in the
            training set, and paste it at a random place, flipped with a chance of one half.
        rarity: ``by_class``: a class is drawn in proportion to its images to the power of minus this. 0: all alike,
            as X-Paste (Zhao et al., ICML 2023) does; 1: in inverse proportion.
        scale_range: ``by_class``: size of a pasted object relative to that in its own image, resized as this one was.
        prob: Chance that anything is pasted.
    """

    def __init__(
        self,
        max_num_pasted: int | None = None,
        bbox_occluded_thr: int = 10,
        mask_occluded_thr: int = 300,
        selected: bool = True,
        paste_by_box: bool = False,
        by_class: bool = False,
        rarity: float = 0.5,
        scale_range: tuple[float, float] = (0.5, 1.5),
        prob: float = 1.0,
    ) -> None:
        most = max_num_pasted if max_num_pasted is not None else 6 if by_class else 100
        super().__init__(most, bbox_occluded_thr, mask_occluded_thr, selected, paste_by_box)
        self.by_class, self.rarity, self.prob = by_class, rarity, prob
        self.smallest, self.largest = scale_range

    def draw(self, source: Source) -> Any:
        """Draw what is pasted: an image, or objects as ``(pixels, mask, label, annotation id)``."""
        if self.prob < 1 and random.uniform(0, 1) > self.prob:
            return []
        if not self.by_class:
            return source.images(1)
        drawn = source.bank.draw(int(random.randint(0, self.max_num_pasted)), self.rarity)
        return [(*_cut_out(source, row), label, int(source.dataset.store.ann_ids[row])) for row, label in drawn]

    @autocast_box_type()
    def transform(self, results: Results) -> Results:
        """Paste what was drawn."""
        partners = results.pop("partners")
        height, width = results["img"].shape[:2]
        if self.by_class:
            layers = [self._placed(results, *one) for one in partners]
        else:
            layers = [layer for other in partners for layer in self._layers(other, height, width)]
        layers = [layer for layer in layers if layer[1].any()]
        return self._pasted(results, layers) if layers else results

    def _layers(self, other: Results, height: int, width: int) -> list[Any]:
        """Return the objects of another image that are pasted, where they are, cut or padded to this image's size."""
        masks = _bitmaps(self.get_gt_masks(other)).astype(bool)
        labels, ignored = other["gt_bboxes_labels"], np.asarray(other["gt_ignore_flags"]).astype(bool)
        usable = np.flatnonzero(masks.any(axis=(1, 2)) & ~ignored)
        chosen = usable[self._get_selected_inds(len(usable))] if self.selected else usable
        window = (min(height, masks.shape[1]), min(width, masks.shape[2]))
        image = _on_canvas(other["img"], (height, width), window)
        return [(image, _on_canvas(masks[k], (height, width), window), labels[k : k + 1]) for k in chosen.tolist()]

    def _placed(self, results: Results, pixels: np.ndarray, mask: np.ndarray, label: int, annotation: int) -> Any:
        """Return an object resized, flipped and at a random place of the image."""
        height, width = results["img"].shape[:2]
        scale = random.uniform(self.smallest, self.largest) * float(np.mean(results.get("scale_factor", 1.0)))
        scale = min(scale, height / mask.shape[0], width / mask.shape[1])
        size = (max(1, int(mask.shape[1] * scale)), max(1, int(mask.shape[0] * scale)))
        pixels = mmcv.imresize(pixels, size)
        mask = mmcv.imresize(mask.astype(np.uint8), size, interpolation="nearest").astype(bool)
        if random.uniform(0, 1) < 0.5:
            pixels, mask = pixels[:, ::-1], mask[:, ::-1]
        x, y = random.randint(0, width - size[0] + 1), random.randint(0, height - size[1] + 1)
        image, where = np.zeros_like(results["img"]), np.zeros((height, width), bool)
        image[y : y + size[1], x : x + size[0]], where[y : y + size[1], x : x + size[0]] = pixels, mask
        return image, where, TrackedLabels.of(np.array([label]), np.array([[annotation, 1]]))

    def _pasted(self, results: Results, layers: list[Any]) -> Results:
        """Return the image with objects over it; later ones cover earlier ones."""
        image, boxes = results["img"].copy(), results["gt_bboxes"].tensor
        with_masks = results.get("gt_masks") is not None
        before = _bitmaps(self.get_gt_masks(results)).astype(bool)
        for pixels, where, _ in layers:
            image[where] = pixels[where]
        shown = [where & ~_union(layers[k + 1 :], where.shape) for k, (_, where, _) in enumerate(layers)]
        kept = [k for k, where in enumerate(shown) if where.any()]
        after = before & ~_union(layers, image.shape[:2])
        moved = BitmapMasks(after.astype(np.uint8), *image.shape[:2]).get_bboxes("hbox").tensor
        untouched = (before == after).all(axis=(1, 2))
        near = ((moved - boxes).abs() <= self.bbox_occluded_thr).all(dim=-1).numpy()
        pixels_left = after.sum(axis=(1, 2))
        stays = untouched | ((pixels_left > 0) & (near | (pixels_left > self.mask_occluded_thr)))
        moved[untouched] = boxes[untouched]
        new = BitmapMasks(np.array([shown[k] for k in kept], np.uint8), *image.shape[:2])
        results["img"] = image
        results["gt_bboxes"] = HorizontalBoxes(moved[stays]).cat(
            [HorizontalBoxes(moved[stays]), new.get_bboxes("hbox")]
        )
        results["gt_bboxes_labels"] = np.concatenate(
            [results["gt_bboxes_labels"][stays], *(layers[k][2] for k in kept)]
        )
        results["gt_ignore_flags"] = np.append(results["gt_ignore_flags"][stays], np.zeros(len(kept), bool))
        if with_masks:
            results["gt_masks"] = BitmapMasks(
                np.concatenate([after[stays], new.masks]).astype(np.uint8), *image.shape[:2]
            )
        return results


def _union(layers: list[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Return ``(H, W)`` bool: covered by any of the layers."""
    found = np.zeros(shape, bool)
    for _, where, _ in layers:
        found |= where
    return found


def _on_canvas(content: np.ndarray, shape: tuple[int, int], window: tuple[int, int]) -> np.ndarray:
    """Return an image or mask cut or padded at the right and below."""
    found = np.zeros((*shape, *content.shape[2:]), content.dtype)
    found[: window[0], : window[1]] = content[: window[0], : window[1]]
    return found


def _cut_out(source: Source, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels ``(h, w, 3)`` of an object's box and its mask ``(h, w)`` bool."""
    store = source.dataset.store
    image = source.pixels(int(store.ann_image[row]))
    height, width = image.shape[:2]
    segmentation: Any = store.segmentation(row)
    if isinstance(segmentation, list) or isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, height, width)
    runs = coco_mask.merge(segmentation) if isinstance(segmentation, list) else segmentation
    mask = coco_mask.decode(runs).astype(bool)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):  # a sliver between pixels
        return image[:1, :1], np.zeros((1, 1), bool)
    part = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return image[part], mask[part]
