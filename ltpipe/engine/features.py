"""Frozen RoI features, by plan: each distinct box of each distinct (image, flip) is pooled once.

Passes of the ``features`` stage: proposals of every (image, flip) that the plan draws; which boxes each step uses
(plain numpy, elsewhere); features of exactly these boxes. Both detector passes continue where a killed job stopped.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.structures.bbox import bbox2roi
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from ltpipe.engine import shards
from ltpipe.engine.shards import in_shards
from ltpipe.engine.train import BROKEN_FILE
from ltpipe.errors import UserError
from ltpipe.files import atomic_path, move
from ltpipe.methods.base import Level, shared_layers, stored_features


@dataclass(frozen=True)
class UnitBoxes:
    """Boxes of every unit (image, flip), in pixels of the network input, xyxy.

    Attributes:
        gt_ptr: ``(U + 1,) int64``.
        gt_boxes: ``(G, 4) float32`` ground truths of all known classes.
        gt_labels: ``(G,) int64``.
        ptr: ``(U + 1,) int64``.
        proposals: ``(P, 4) float32``.
    """

    gt_ptr: NDArray[np.int64]
    gt_boxes: NDArray[np.float32]
    gt_labels: NDArray[np.int64]
    ptr: NDArray[np.int64]
    proposals: NDArray[np.float32]

    def of(self, unit: int) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
        """Return ground-truth boxes, their labels, and the proposals of a unit."""
        gt = slice(self.gt_ptr[unit], self.gt_ptr[unit + 1])
        return self.gt_boxes[gt], self.gt_labels[gt], self.proposals[self.ptr[unit] : self.ptr[unit + 1]]


class FrozenDetector:
    """A detector in evaluation mode and the images it is run on.

    Args:
        model: Two-stage detector on its device.
        dataset: :class:`ltpipe.engine.dataset.AnnotatedDataset`.
    """

    def __init__(self, model: nn.Module, dataset: Any) -> None:
        self.model: Any = model.eval()
        self.dataset = dataset

    def sample(self, row: int, flip: bool) -> dict[str, Any]:
        """Return the preprocessed batch of one image."""
        item = self.dataset[(row, flip)]
        batch = {"inputs": [item["inputs"]], "data_samples": [item["data_samples"]]}
        return self.model.data_preprocessor(batch, False)

    @torch.no_grad()
    def proposals(self, row: int, flip: bool) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return ground-truth boxes ``(G, 4)``, labels ``(G,)`` and proposals ``(P, 4)`` with the training settings."""
        batch = self.sample(row, flip)
        samples = batch["data_samples"]
        outputs = self.model.rpn_head(self.model.extract_feat(batch["inputs"]))
        found = self.model.rpn_head.predict_by_feat(
            *outputs,
            batch_img_metas=[s.metainfo for s in samples],
            cfg=self.model.train_cfg.rpn_proposal,
            rescale=False,
        )[0]
        gt = samples[0].gt_instances
        return tuple(t.cpu().numpy() for t in (getattr(gt.bboxes, "tensor", gt.bboxes), gt.labels, found.bboxes))  # type: ignore[return-value]

    @torch.no_grad()
    def pool(self, row: int, flip: bool, boxes: NDArray[np.float32], level: Level = "roi") -> Tensor:
        """Return features ``(n, *shape_at(level))`` of boxes ``(n, 4)`` xyxy in pixels of the network input."""
        batch = self.sample(row, flip)
        feats = self.model.extract_feat(batch["inputs"])
        rois = bbox2roi([torch.from_numpy(boxes).to(feats[0].device)])
        extractor = self.model.roi_head.bbox_roi_extractor
        pooled = extractor(feats[: extractor.num_inputs], rois)
        return stored_features(self.model.roi_head.bbox_head, pooled, level)

    @property
    def max_proposals(self) -> int:
        """Most proposals of one image."""
        most: int = self.model.train_cfg.rpn_proposal.max_per_img
        return most

    def shape_at(self, level: Level) -> tuple[int, ...]:
        """Return the shape of one row: ``(c, h, w)`` of pooled features, ``(d,)`` of a hidden layer."""
        if level == "roi":
            extractor = self.model.roi_head.bbox_roi_extractor
            return (extractor.out_channels, *extractor.roi_layers[0].output_size)
        layers = shared_layers(self.model.roi_head.bbox_head)
        return (layers[0 if level == "fc1" else -1].out_features,)


def collect_boxes(detector: FrozenDetector, units: Sequence[tuple[int, bool]], work: Path) -> UnitBoxes:
    """Run backbone and RPN once per unit.

    Args:
        detector: The frozen detector.
        units: (store row, flip).
        work: Folder for the state of a killed run.
    """

    def boxes_from(first: int) -> Iterator[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]:
        rest = units[first:]
        for unit in tqdm(rest, desc="proposals", unit="image", initial=first, total=len(units), mininterval=5):
            yield detector.proposals(*unit)

    (files,) = in_shards(work, ["boxes.npz"], len(units), boxes_from, _write_boxes)
    parts: dict[str, list[NDArray[Any]]] = {}
    for file in files:
        with np.load(file) as saved:
            for name in saved.files:
                parts.setdefault(name, []).append(saved[name])
    joined = {name: np.concatenate(part) for name, part in parts.items()}
    gt_ptr, ptr = (np.concatenate([[0], np.cumsum(joined[name])]) for name in ("gt_sizes", "sizes"))
    return UnitBoxes(gt_ptr, joined["gt_boxes"], joined["gt_labels"], ptr, joined["proposals"])


def _write_boxes(files: list[Path], found: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]) -> None:
    """Write ground-truth boxes, labels and proposals of a shard of units."""
    gt_boxes, gt_labels, proposals = zip(*found, strict=True)
    with atomic_path(files[0]) as temporary:
        np.savez(
            temporary,
            gt_boxes=np.concatenate(gt_boxes).astype(np.float32),
            gt_labels=np.concatenate(gt_labels).astype(np.int64),
            proposals=np.concatenate(proposals).astype(np.float32),
            gt_sizes=np.array([len(one) for one in gt_boxes]),
            sizes=np.array([len(one) for one in proposals]),
        )


def write_features(
    detector: FrozenDetector,
    units: Sequence[tuple[int, bool]],
    boxes: Sequence[NDArray[np.float32]],
    path: Path,
    dtype: str,
    work: Path,
    level: Level = "roi",
) -> None:
    """Pool the boxes of every unit into one array ``(rows, c, h, w)``, or ``(rows, d)``, unit after unit.

    Args:
        detector: The frozen detector.
        units: (store row, flip).
        boxes: ``(n, 4)`` per unit, xyxy in pixels of the network input.
        path: The ``.npy`` file.
        dtype: ``float16`` or ``float32``.
        work: Folder for the state of a killed run.
        level: What is stored; see :func:`~ltpipe.methods.base.stored_features`.

    Raises:
        UserError: The features do not fit on the disk.
    """
    starts = np.concatenate([[0], np.cumsum([len(b) for b in boxes])])
    rows, shape = int(starts[-1]), detector.shape_at(level)
    partial, marker = work / "features.npy", work / "features_done"
    check_space(path.parent, (rows, rows), shape, dtype, reserved=partial)
    array, done = _open_partial(partial, marker, (rows, *shape), dtype)
    for unit in tqdm(range(done, len(units)), desc="features", unit="image", mininterval=5):
        if len(boxes[unit]):
            array[starts[unit] : starts[unit + 1]] = detector.pool(*units[unit], boxes[unit], level).cpu().numpy()
        if (unit + 1) % shards.SIZE == 0 or unit + 1 == len(units):
            array.flush()
            with atomic_path(marker) as temporary:
                temporary.write_text(str(unit + 1))
    del array
    move(partial, path)


def _open_partial(path: Path, marker: Path, shape: tuple[int, ...], dtype: str) -> tuple[NDArray[Any], int]:
    """Return the array to fill and the number of units that a killed run has filled."""
    with suppress(*BROKEN_FILE):
        return np.load(path, mmap_mode="r+"), int(marker.read_text())
    marker.unlink(missing_ok=True)
    array = np.lib.format.open_memmap(path, "w+", dtype=np.dtype(dtype), shape=shape)
    with open(path, "r+b") as handle:
        # Reserves the space: a full disk is an error here, but kills a process that writes to mapped memory.
        os.posix_fallocate(handle.fileno(), 0, path.stat().st_size)
    return array, 0


def check_space(
    folder: Path, rows: tuple[int, int], shape: tuple[int, ...], dtype: str, reserved: Path | None = None
) -> None:
    """Say how large the features will be, and refuse if the disk is too small; a twentieth of it stays free.

    Args:
        folder: Where they go.
        rows: Fewest and most boxes; equal once they are known.
        shape: Shape of one row.
        dtype: ``float16`` or ``float32``.
        reserved: File of a killed run whose space will be used.

    Raises:
        UserError: Not even the fewest fit.
    """
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    free = shutil.disk_usage(folder).free
    if reserved is not None and reserved.is_file():
        free += 512 * reserved.stat().st_blocks
    fewest, most = (count * size for count in rows)
    number, need = str(rows[0]), _gib(fewest)
    if rows[0] < rows[1]:
        number, need = f"{rows[0]} to {rows[1]}", f"{_gib(fewest)} to {_gib(most)}"
    print(f"features: {number} boxes, {need} as {dtype} ({_gib(free)} free)", flush=True)
    if fewest <= 0.95 * free < most:
        print("features: they may not fit; the size is certain, and checked again, after the proposals", flush=True)
    if fewest > 0.95 * free:
        raise UserError(
            "the features do not fit on the disk",
            where=folder,
            got=f"{need} needed, {_gib(free)} free",
            fix="free space, use features.dtype: float16, fewer features.steps, a higher features.level "
            "(where the calibrators allow it), or features.storage: none",
        )


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


class StoredRows:
    """Mini-batches read from stored features.

    Args:
        path: The ``.npy`` file of :func:`write_features`.
        step_ptr: ``(steps + 1,) int64``.
        rows: ``(R,) int64`` row of the feature array, step after step.
        labels: ``(R,) int64``, background last.

    Raises:
        UserError: The file is damaged, or belongs to another plan.
    """

    def __init__(
        self, path: Path, step_ptr: NDArray[np.int64], rows: NDArray[np.int64], labels: NDArray[np.int64]
    ) -> None:
        self._ptr, self._rows, self._labels = step_ptr, rows, labels
        try:
            self._features = np.load(path, mmap_mode="r")
        except BROKEN_FILE as error:
            raise UserError("unreadable features", where=path, got=error, fix="run the features stage again") from error
        if len(self._features) != rows.max(initial=-1) + 1:
            raise UserError(
                "the features belong to another plan",
                where=path,
                got=f"{len(self._features)} rows",
                allowed=f"{rows.max(initial=-1) + 1} rows",
                fix="run the features stage again",
            )

    def __len__(self) -> int:
        """Number of steps."""
        return len(self._ptr) - 1

    def step(self, index: int) -> tuple[Tensor, Tensor]:
        """Return features ``(R, c, h, w)`` or ``(R, d)`` in the stored precision, and labels ``(R,)`` of a step."""
        part = slice(self._ptr[index], self._ptr[index + 1])
        return torch.from_numpy(np.asarray(self._features[self._rows[part]])), torch.from_numpy(self._labels[part])


class LiveRows:
    """The same mini-batches with features computed anew in every step.

    Args:
        detector: The frozen detector.
        units: (store row, flip).
        boxes: ``(n, 4)`` per unit.
        step_ptr: As :class:`StoredRows`.
        rows: As :class:`StoredRows`.
        labels: As :class:`StoredRows`.
    """

    def __init__(
        self,
        detector: FrozenDetector,
        units: Sequence[tuple[int, bool]],
        boxes: Sequence[NDArray[np.float32]],
        step_ptr: NDArray[np.int64],
        rows: NDArray[np.int64],
        labels: NDArray[np.int64],
    ) -> None:
        self._detector, self._units, self._boxes = detector, units, boxes
        self._starts = np.concatenate([[0], np.cumsum([len(b) for b in boxes])])
        self._ptr, self._rows, self._labels = step_ptr, rows, labels

    def __len__(self) -> int:
        """Number of steps."""
        return len(self._ptr) - 1

    def _pooled(self, rows: NDArray[np.int64]) -> Iterator[Tensor]:
        unit_of = np.searchsorted(self._starts, rows, side="right") - 1
        for unit in np.unique(unit_of):
            local = rows[unit_of == unit] - self._starts[unit]
            yield self._detector.pool(*self._units[unit], self._boxes[unit][local])

    def step(self, index: int) -> tuple[Tensor, Tensor]:
        """Return features ``(R, c, h, w)`` float32 and labels ``(R,)`` of a step."""
        part = slice(self._ptr[index], self._ptr[index + 1])
        wanted, inverse = np.unique(self._rows[part], return_inverse=True)
        pooled = torch.cat(list(self._pooled(wanted))) if len(wanted) else torch.zeros(0)
        return pooled.cpu().float()[torch.from_numpy(inverse)], torch.from_numpy(self._labels[part])
