"""mmdet datasets on the columnar annotation store.

No annotation is copied: every worker maps the same Arrow files, and a phase is a list of row numbers.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.dataset import BaseDataset

from ltpipe.data.holdout import load_holdout
from ltpipe.data.id_rows import row_of
from ltpipe.data.images import other_size
from ltpipe.data.phase import PhaseView
from ltpipe.data.replay import ReplayIndex
from ltpipe.data.samplers import SAMPLERS
from ltpipe.data.split import Split
from ltpipe.data.store import AnnotationStore
from ltpipe.engine.augmentation import cannot_handle, may_drop, run_steps
from ltpipe.engine.training_stream import EpochStream
from ltpipe.errors import UserError
from ltpipe.registry import DATASETS

# Attempts on an image that transforms drop, and on others of the epoch after it.
OF_ONE_IMAGE, ATTEMPTS = 10, 20


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

    def transformed(self, info: dict[str, Any]) -> dict[str, Any] | None:
        """Return what the transforms make of an image; None: they drop it.

        Raises:
            UserError: One of them cannot handle it; names the image.
        """
        try:
            sample: dict[str, Any] | None = self.pipeline(info)
        except (cv2.error, AssertionError) as error:
            raise cannot_handle(info, error) from error
        return sample

    def __getitem__(self, idx: int) -> dict[str, Any]:
        info = self.get_data_info(idx)
        return self.checked(idx, info, self.transformed(info))


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

    @cached_property
    def may_drop(self) -> bool:
        """Whether the transforms may take objects away or add some."""
        return may_drop(self.pipeline.transforms)

    def transformed(self, info: dict[str, Any]) -> dict[str, Any] | None:
        """Return what the transforms make of an image; None: they drop it. What is random is drawn anew each time.

        Raises:
            UserError: One of them cannot handle it; names the image.
        """
        try:
            return run_steps(self, self.pipeline.transforms, info)
        except (cv2.error, AssertionError) as error:
            raise cannot_handle(info, error) from error

    def random_row(self) -> int:
        """Draw the store row of a training image, by numpy's generator."""
        return int(self.view.images[np.random.randint(len(self.view.images))])

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
        if reached != info["counting"] and not self.may_drop:
            raise UserError(
                "fewer objects reach the losses than the annotations hold",
                where=f"{info['img_path']}, image id {info['img_id']}",
                got=f"{reached} of {info['counting']}",
                fix="leave out the step of the pipeline that drops or ignores objects",
            )
        return sample

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
    run, see the same augmented images. An image that they drop, a crop without objects for instance, is tried again;
    then another one of the epoch takes its place, as in mmdet.

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
        return self._sample(idx, self.stream[idx])

    def _sample(self, idx: int, entry: np.ndarray) -> dict[str, Any]:
        info = self.annotated_info(int(entry if entry.ndim == 0 else entry[0]))
        info["sample_seed"] = int(self._seeds(idx)[2])
        if entry.ndim:
            info["replay_label"] = int(entry[1])
        return info

    def random_row(self) -> int:
        """Draw the store row of a training image as often as the epoch at hand holds it, by numpy's generator."""
        return int(np.atleast_1d(self.stream.any_entry())[0])

    def _seeds(self, idx: int) -> np.ndarray:
        """Return ``(3,)`` uint32: seeds of numpy and Python in the transforms, and of RoI sampling."""
        return np.random.SeedSequence([self.seed, idx]).generate_state(3)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        state = self._seeds(idx)
        np.random.seed(state[0])
        random.seed(int(state[1]))
        if not self.may_drop:
            return super().__getitem__(idx)
        info = self.get_data_info(idx)
        for attempt in range(ATTEMPTS):
            fresh = info if attempt < OF_ONE_IMAGE else self._sample(idx, self.stream.any_entry())
            try:
                sample = self.transformed(copy.deepcopy(fresh))
            except UserError as error:
                if not isinstance(error.__cause__, cv2.error | AssertionError) or attempt == OF_ONE_IMAGE - 1:
                    raise
                continue
            if sample is not None:
                return self.checked(idx, fresh, sample)
        raise UserError(
            "the pipeline drops every image",
            where=info["img_path"],
            got=f"{ATTEMPTS} attempts on this image and others: nothing",
            fix="allow crops without objects (allow_negative_crop=True), or filter less (FilterAnnotations)",
        )
