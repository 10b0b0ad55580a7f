"""mmdet datasets on the columnar annotation store.

No annotation is copied: every worker maps the same Arrow files, and a phase is a list of row numbers.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmdet.datasets.transforms import PackDetInputs, RandomFlip
from mmengine.dataset import BaseDataset

from ltpipe.data.holdout import load_holdout
from ltpipe.data.id_rows import row_of
from ltpipe.data.images import other_size
from ltpipe.data.phase import PhaseView
from ltpipe.data.replay import ReplayIndex
from ltpipe.data.samplers import SAMPLERS
from ltpipe.data.split import Split
from ltpipe.data.store import AnnotationStore
from ltpipe.engine.training_stream import EpochStream
from ltpipe.errors import UserError
from ltpipe.registry import DATASETS, TRANSFORMS


@TRANSFORMS.register_module()
class PackLTInputs(PackDetInputs):
    """mmdet's ``PackDetInputs`` that keeps annotation ids and hands on what RoI samplers and mask heads need.

    ``gt_instances.ann_ids`` is ``(G,)`` int64, ``has_mask`` ``(G,)`` bool where masks are loaded. In the metainfo of
    ``gt_instances``, training streams have ``sample_seed`` and replay streams also ``replay_label``, the paired class.
    """

    mapping_table = {**PackDetInputs.mapping_table, "gt_ann_ids": "ann_ids", "gt_has_mask": "has_mask"}

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Pack one sample."""
        boxes, ann_ids = results.get("gt_bboxes"), results.get("gt_ann_ids")
        if boxes is not None and ann_ids is not None and len(ann_ids) != len(boxes):
            raise UserError(
                "the training pipeline drops or adds objects, which annotation ids cannot follow",
                where=f"image {results['img_id']}",
                got=f"{len(boxes)} boxes, {len(ann_ids)} annotation ids",
                fix="use resizing, flipping and colour transforms only",
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


@DATASETS.register_module()
class StoreDataset(BaseDataset):
    """All images of a store in file order, for testing.

    Args:
        store: Folder of the annotation store.
        images: Folder of the image files.
        split: ``split.json`` of the experiment; fixes the class order.
        num_classes: Number of leading classes of the split that the detector knows.
        pipeline: mmdet transforms.
        **kwargs: Passed to mmengine's ``BaseDataset``.
    """

    def __init__(
        self, *, store: str, images: str, split: str, num_classes: int, pipeline: list[Any], **kwargs: Any
    ) -> None:
        self.store_folder, self.images_folder, self.split_file = store, Path(images), split
        self.num_classes = num_classes
        super().__init__(pipeline=pipeline, lazy_init=True, serialize_data=False, **kwargs)
        names = dict(zip(self.store.category_ids.tolist(), self.store.category_names, strict=True))
        self._metainfo["classes"] = tuple(names[c] for c in self.split.order[:num_classes])

    @cached_property
    def store(self) -> AnnotationStore:
        """The memory-mapped annotations."""
        return AnnotationStore.open(self.store_folder)

    @cached_property
    def split(self) -> Split:
        """The class order and the phases."""
        return Split.load(self.split_file)

    def full_init(self) -> None:
        """Nothing to load: the store is mapped, not read."""
        self._fully_initialized = True

    def __len__(self) -> int:
        return len(self.store.image_ids)

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """Return path, size and id of the image in store row ``idx``."""
        height, width = self.store.image_sizes[idx].tolist()
        return {
            "img_path": str(self.images_folder / self.store.image_file(idx)),
            "img_id": int(self.store.image_ids[idx]),
            "height": height,
            "width": width,
            "sample_idx": idx,
        }

    def checked(self, idx: Any, info: dict[str, Any], sample: dict[str, Any] | None) -> dict[str, Any]:
        """Return what the pipeline made of an item.

        Args:
            idx: The item.
            info: What :meth:`get_data_info` said of it; the pipeline may have changed it.
            sample: What the pipeline returned.

        Raises:
            UserError: It dropped the image, or read one of another size than annotated (a loader that is not ours).
        """
        if sample is None:
            raise UserError(
                "the pipeline drops an image",
                where=info["img_path"],
                got=f"image id {info['img_id']}: nothing",
                fix="use resizing, flipping and colour transforms only",
            )
        wanted = (info["height"], info["width"])
        found = sample["data_samples"].metainfo.get("ori_shape", wanted)
        if tuple(found[:2]) != wanted:
            raise other_size(info["img_path"], info["img_id"], tuple(found[:2]), wanted)
        return sample

    def __getitem__(self, idx: int) -> dict[str, Any]:
        info = self.get_data_info(idx)
        try:
            sample = self.pipeline(info)
        except cv2.error as error:
            raise UserError(
                "a step of the pipeline cannot handle an image",
                where=f"{info['img_path']}, image id {info['img_id']}",
                got=f"height {info['height']}, width {info['width']}: {' '.join(str(error).split())}",
                fix="leave the image out of the annotations, or choose another size in the detector's pipeline",
            ) from error
        return self.checked(idx, info, sample)


@DATASETS.register_module()
class AnnotatedDataset(StoreDataset):
    """Images with the annotations of a phase; item ``(row, flip)`` is store row ``row``, mirrored if ``flip``.

    Degenerate boxes (``w <= 1`` or ``h <= 1`` pixel) and boxes outside the image are left out.

    Args:
        phase: Phase of the split whose annotations are seen.
        holdout: File of the images of :mod:`ltpipe.data.holdout`, which are left out; None: none.
        ignore_future: Also return the objects of later classes, as ignored ones.
        **kwargs: As :class:`StoreDataset`; :class:`FixedFlip` in the pipeline obeys ``flip``.
    """

    def __init__(self, *, phase: int, holdout: str | None = None, ignore_future: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.phase, self.holdout, self.ignore_future = phase, holdout, ignore_future

    @cached_property
    def view(self) -> PhaseView:
        """Images and annotations of the phase."""
        exclude = None if self.holdout is None else load_holdout(self.holdout)
        return PhaseView(self.store, self.split, self.phase, exclude=exclude)

    @cached_property
    def objects(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Usable annotations by image: ``ptr (I + 1,)``, annotation rows ``(A',)`` and labels ``(A',)``."""
        rows, labels = np.asarray(self.view.annotations), np.asarray(self.view.labels)
        if self.ignore_future:
            all_labels = self.split.labels_of(self.store.category_ids)[self.store.ann_category]
            rows = np.union1d(rows, np.flatnonzero(all_labels >= self.split.classes_known(self.phase)))
            labels = all_labels[rows]
        x, y, w, h = self.store.ann_bbox[rows].T
        height, width = self.store.image_sizes[self.store.ann_image[rows]].T
        inside = (np.minimum(x + w, width) > np.maximum(x, 0)) & (np.minimum(y + h, height) > np.maximum(y, 0))
        keep = (w > 1) & (h > 1) & inside
        rows, labels = rows[keep], labels[keep]
        return np.searchsorted(self.store.ann_image[rows], np.arange(len(self.store.image_ids) + 1)), rows, labels

    def annotated_info(self, row: int) -> dict[str, Any]:
        """Return the image in store row ``row`` with its objects, in mmdet's raw format (xyxy, absolute pixels)."""
        info = super().get_data_info(row)
        ptr, rows, labels = self.objects
        part = slice(ptr[row], ptr[row + 1])
        info["instances"] = [
            self._instance(a, c) for a, c in zip(rows[part].tolist(), labels[part].tolist(), strict=True)
        ]
        info["gt_ann_ids"] = self.store.ann_ids[rows[part]]
        info["counting"] = sum(not instance["ignore_flag"] for instance in info["instances"])
        return info

    def checked(self, idx: Any, info: dict[str, Any], sample: dict[str, Any] | None) -> dict[str, Any]:
        """Return what the pipeline made of an item.

        Raises:
            UserError: An object that counts would not reach the losses.
        """
        sample = super().checked(idx, info, sample)
        reached = len(sample["data_samples"].gt_instances)
        if reached != info["counting"]:
            raise UserError(
                "fewer objects reach the losses than the annotations hold",
                where=f"{info['img_path']}, image id {info['img_id']}",
                got=f"{reached} of {info['counting']} after {self._losing_step(idx)}",
                fix="leave out the step of the pipeline that drops or ignores objects",
            )
        return sample

    def _losing_step(self, idx: Any) -> str:
        """Return the first step of the pipeline after which fewer objects count."""
        results: Any = self.get_data_info(idx)
        counting = results["counting"]
        for step in self.pipeline.transforms:
            results = step(results)
            if np.count_nonzero(np.asarray(results.get("gt_ignore_flags", np.zeros(counting))) == 0) < counting:
                return type(step).__name__
        return "packing"

    def _instance(self, annotation: int, label: int) -> dict[str, Any]:
        x, y, w, h = self.store.ann_bbox[annotation].tolist()
        return {
            "bbox": [x, y, x + w, y + h],
            "bbox_label": label,
            "mask": self.store.segmentation(annotation),
            "ignore_flag": int(self._ignored(annotation, label)),
        }

    def _ignored(self, annotation: int, label: int) -> bool:
        future = label >= self.split.classes_known(self.phase)
        return bool(future or self.store.ann_iscrowd[annotation] or self.store.ann_ignore[annotation])

    def get_data_info(self, idx: Any) -> dict[str, Any]:
        """Return the sample ``(row, flip)``."""
        row, flip = idx
        return {**self.annotated_info(int(row)), "fixed_flip": bool(flip)}


@DATASETS.register_module()
class StreamDataset(AnnotatedDataset):
    """The training images of a phase as a stream of positions (see :mod:`ltpipe.engine.training_stream`).

    Random transforms depend on the seed and the position only, so any number of workers and processes, and a resumed
    run, see the same augmented images.

    Args:
        seed: Seed of the order and of the augmentation.
        sampler: ``{type: <name>, **options}`` of :mod:`ltpipe.data.samplers`; exactly one of this and ``replay``.
        replay: Replay index file of the phase.
        **kwargs: As :class:`AnnotatedDataset`.
    """

    def __init__(
        self, *, seed: int, sampler: dict[str, Any] | None = None, replay: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if (sampler is None) == (replay is None):
            raise ValueError("give exactly one of sampler and replay")
        self.seed, self.replay_file, self.sampler = seed, replay, sampler

    @cached_property
    def stream(self) -> EpochStream:
        """Entries by position: store rows ``()``, or pairs (store row, label) ``(2,)``."""
        if self.replay_file is not None:
            return EpochStream(self._replay_entries(ReplayIndex.load(self.replay_file)))
        options = dict(self.sampler or {})
        sampler = SAMPLERS[options.pop("type")](**options)
        labels, rows = self.view.image_labels, self.view.images
        return EpochStream(lambda epoch: rows[sampler.epoch(labels, seed=self.seed, epoch=epoch)])

    def _replay_entries(self, replay: ReplayIndex) -> Callable[[int], np.ndarray]:
        def entries(epoch: int) -> np.ndarray:
            image_id, label = replay.epoch(epoch)
            return np.stack([row_of(image_id, self.store.image_ids), label.astype(np.int64)], axis=1)

        return entries

    def __len__(self) -> int:
        return np.iinfo(np.int64).max

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """Return the sample at a stream position."""
        entry = self.stream[idx]
        info = self.annotated_info(int(entry if entry.ndim == 0 else entry[0]))
        info["sample_seed"] = int(self._seeds(idx)[2])
        if entry.ndim:
            info["replay_label"] = int(entry[1])
        return info

    def _seeds(self, idx: int) -> np.ndarray:
        """Return ``(3,)`` uint32: seeds of numpy and Python in the transforms, and of RoI sampling."""
        return np.random.SeedSequence([self.seed, idx]).generate_state(3)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        state = self._seeds(idx)
        np.random.seed(state[0])
        random.seed(int(state[1]))
        return super().__getitem__(idx)
