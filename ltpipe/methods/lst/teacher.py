"""Stored similarities of the previous model on ground-truth boxes of new classes.

Paper: Learning to Segment the Tail (CVPR 2020, arXiv 2004.00900). Before phase n the model of phase n - 1 sees every
image with an object of a new class twice, never and always flipped, and for every such object ``b``

    t[flip, b, j] = cos(x_b, w_j),   j = 0 .. K_{n-1} - 1

is kept. Rows are found by annotation id, so no order has to agree. The repository JoyHuYY1412/LST_LVIS writes the same
numbers as JSON, background in column 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ltpipe.data.arrays import load_arrays, save_arrays
from ltpipe.data.id_rows import row_of
from ltpipe.errors import UserError
from ltpipe.registry import TASK_UTILS

ImageRows = tuple[int, np.ndarray, np.ndarray, np.ndarray]
ARRAYS = ("image_id", "ptr", "ann_id", "label", "logits")


@dataclass(frozen=True)
class TeacherLogits:
    """Similarities of ``B`` ground-truth boxes in ``I`` images to ``K`` old classes.

    In a cascade of ``S`` stages there are ``S * K`` columns, those of the first stage first.

    Attributes:
        image_id: ``(I,)`` int64, ascending.
        ptr: ``(I + 1,)`` int64; boxes of image ``i`` are ``ptr[i]:ptr[i + 1]``.
        ann_id: ``(B,)`` int64 annotation ids.
        label: ``(B,)`` int64 labels, all at least ``K``.
        logits: ``(2, B, K)`` float16 or float32: as stored, then horizontally flipped images.
        metadata: What the numbers were made from; JSON values.
    """

    image_id: np.ndarray
    ptr: np.ndarray
    ann_id: np.ndarray
    label: np.ndarray
    logits: np.ndarray
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse arrays that do not belong together."""
        boxes = len(self.ann_id)
        sound = (
            self.ptr.shape == (len(self.image_id) + 1,)
            and bool((np.diff(self.image_id) > 0).all())
            and bool((np.diff(self.ptr) >= 0).all())
            and (self.ptr[0], self.ptr[-1]) == (0, boxes)
            and self.label.shape == (boxes,)
            and self.logits.ndim == 3
            and self.logits.shape[:2] == (2, boxes)
        )
        if not sound:
            shapes = {name: getattr(self, name).shape for name in ARRAYS}
            raise UserError("inconsistent teacher arrays", got=shapes, fix="run the distill stage again")

    @classmethod
    def collect(
        cls,
        passes: Sequence[Iterable[ImageRows]],
        num_old: int,
        metadata: Mapping[str, Any] | None = None,
        dtype: Literal["float16", "float32"] = "float16",
    ) -> TeacherLogits:
        """Put the results of the two passes together.

        Args:
            passes: Of the unflipped and of the flipped images: ``(image id, annotation ids (b,), labels (b,),
                similarities (b, >= num_old))`` per image, in any order.
            num_old: Number of leading columns to keep, the old classes.
            metadata: What the numbers were made from; JSON values.
            dtype: Stored precision.

        Raises:
            UserError: The passes saw other images or boxes.
        """
        plain, flipped = ({row[0]: row for row in rows} for rows in passes)
        if odd := plain.keys() ^ flipped.keys():
            raise UserError("an image was seen in one of two teacher passes only", where=f"image {min(odd)}")
        image_id = np.array(sorted(plain), np.int64)
        columns: list[np.ndarray] = []
        for image in image_id.tolist():
            order = _matching_order(image, flipped[image][1], plain[image][1])
            columns.append(np.stack([plain[image][3], flipped[image][3][order]])[:, :, :num_old].astype(dtype))
        rows = [plain[image] for image in image_id.tolist()]
        return cls(
            image_id=image_id,
            ptr=np.cumsum([0, *(len(row[1]) for row in rows)], dtype=np.int64),
            ann_id=np.concatenate([np.empty(0, np.int64), *(row[1] for row in rows)]).astype(np.int64),
            label=np.concatenate([np.empty(0, np.int64), *(row[2] for row in rows)]).astype(np.int64),
            logits=np.concatenate([np.empty((2, 0, num_old), dtype), *columns], axis=1),
            metadata=dict(metadata or {}),
        )

    def save(self, path: str | Path) -> None:
        """Write an npz file, atomically; ids that fit are stored in 32 bits."""
        arrays: dict[str, Any] = {name: _narrow(getattr(self, name)) for name in ARRAYS}
        save_arrays(path, arrays, self.metadata)

    @classmethod
    def load(cls, path: str | Path) -> TeacherLogits:
        """Read a file of :meth:`save`.

        Raises:
            UserError: It is missing, damaged or not such a file.
        """
        fix = "run the distill stage of this phase"
        arrays, metadata = load_arrays(path, kind="teacher file", fix=fix)
        if absent := [name for name in ARRAYS if name not in arrays]:
            raise UserError("damaged teacher file", where=path, got=f"no {absent[0]}", fix=fix)
        return cls(**{name: _wide(arrays[name]) for name in ARRAYS}, metadata=metadata)

    def rows(self, image: int) -> slice | None:
        """Return the box rows of an image id, or None if the teacher has not seen it."""
        at = int(np.searchsorted(self.image_id, image))
        if at == len(self.image_id) or self.image_id[at] != image:
            return None
        return slice(int(self.ptr[at]), int(self.ptr[at + 1]))


def _narrow(array: np.ndarray) -> np.ndarray:
    limits = np.iinfo(np.int32)
    fits = array.dtype == np.int64 and (not array.size or (array.min() >= limits.min and array.max() <= limits.max))
    return array.astype(np.int32) if fits else array


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.int64) if array.dtype == np.int32 else array


def _matching_order(image: int, have: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Return positions in ``have`` of the ids ``want``; both must hold the same ids."""
    if len(have) != len(want) or not np.array_equal(np.sort(have), np.sort(want)):
        raise UserError(
            "teacher rows and boxes of new classes differ",
            where=f"image {image}",
            got=f"rows of annotations {np.sort(have).tolist()}, boxes of annotations {np.sort(want).tolist()}",
            fix="make the teacher file from the same annotations, split and resizing, or use teacher: online",
        )
    return row_of(want, have)


@TASK_UTILS.register_module()
class CachedTeacher:
    """Looks up stored similarities; the file is read at the first batch.

    Args:
        path: File of :meth:`TeacherLogits.save`.
        num_old: Number of old classes.
        missing: An image with boxes of new classes that the file lacks is an ``error``; ``skip`` leaves it out of the
            loss, as the original code does.
        expected: Metadata entries the file must have, e.g. checksums of the split and of the teacher's checkpoint.
        stages: Stages of the detector; the file has ``num_old`` columns for each.
    """

    def __init__(
        self,
        path: str,
        num_old: int,
        missing: Literal["error", "skip"] = "error",
        expected: Mapping[str, Any] | None = None,
        stages: int = 1,
    ) -> None:
        self.path, self.columns, self.missing, self.expected = path, stages * num_old, missing, dict(expected or {})

    @cached_property
    def store(self) -> TeacherLogits:
        """The file's content, checked against what this run expects."""
        store = TeacherLogits.load(self.path)
        wanted = {"classes": self.columns, **self.expected}
        found = {**store.metadata, "classes": store.logits.shape[2]}
        for key, value in wanted.items():
            if found.get(key) != value:
                raise UserError(
                    "the teacher file belongs to another model, split or phase",
                    where=f"{self.path}: {key}",
                    got=found.get(key),
                    allowed=str(value),
                    fix="run the distill stage of this phase",
                )
        return store

    def targets(self, samples: Sequence[Any], picked: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the stored similarities of the boxes of new classes.

        Args:
            samples: Data samples; ``img_id`` and ``flip`` in their metainfo, ``gt_instances.ann_ids``.
            picked: Per image, ``(b,)`` int64 indices of the boxes of new classes.

        Returns:
            Per image ``(b, K)`` float32 on the boxes' device, or None where nothing is distilled.

        Raises:
            UserError: Flip state unknown, or rows and boxes differ; names the image.
        """
        return [self._of_image(sample, index) for sample, index in zip(samples, picked, strict=True)]

    def _of_image(self, sample: Any, index: Tensor) -> Tensor | None:
        meta = sample.metainfo
        image = int(meta["img_id"])
        rows = self.store.rows(image)
        if rows is None:
            if len(index) == 0 or self.missing == "skip":
                return None
            rows = slice(0, 0)
        flip = meta.get("flip")
        if flip is None or (flip and meta.get("flip_direction", "horizontal") != "horizontal"):
            raise UserError(
                "stored similarities exist for images as they are and horizontally flipped ones",
                where=f"image {image}",
                got=f"flip={flip}, flip_direction={meta.get('flip_direction')}",
                fix="keep 'flip' and 'flip_direction' in the meta keys of the packing step; flip horizontally only",
            )
        ann_ids = sample.gt_instances.ann_ids[index].cpu().numpy()
        order = _matching_order(image, self.store.ann_id[rows], ann_ids)
        values = self.store.logits[int(bool(flip)), rows][order]
        return torch.from_numpy(values.astype(np.float32)).to(index.device)
