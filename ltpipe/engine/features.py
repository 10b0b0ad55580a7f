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
from mmengine.dist import get_rank
from numpy.typing import NDArray
from tqdm import tqdm

from ltpipe.checkpoints.torch_files import AFRESH, BROKEN_FILE
from ltpipe.data.arrays import load_arrays, save_arrays
from ltpipe.engine.distributed import wait_for_all
from ltpipe.engine.frozen_detector import FrozenDetector
from ltpipe.engine.shards import in_shards
from ltpipe.errors import UserError
from ltpipe.methods.box_layers import Level
from ltpipe.run.files import atomic_path, move

_FILLED = "filled"


@dataclass(frozen=True)
class SampleBoxes:
    """Boxes of every sample (image, flip), in pixels of the network input, xyxy.

    Attributes:
        gt_ptr: ``(U + 1,) int64``.
        gt_boxes: ``(G, 4) float32`` ground truths of all known classes.
        gt_labels: ``(G,) int64``.
        ptr: ``(U + 1,) int64``.
        proposals: ``(S, P, 4) float32``; in a cascade those of stage k are refined k times.
    """

    gt_ptr: NDArray[np.int64]
    gt_boxes: NDArray[np.float32]
    gt_labels: NDArray[np.int64]
    ptr: NDArray[np.int64]
    proposals: NDArray[np.float32]

    def of(self, sample: int) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
        """Return ground-truth boxes, their labels, and the proposals ``(S, p, 4)`` of a sample."""
        gt = slice(self.gt_ptr[sample], self.gt_ptr[sample + 1])
        return self.gt_boxes[gt], self.gt_labels[gt], self.proposals[:, self.ptr[sample] : self.ptr[sample + 1]]


def collect_boxes(detector: FrozenDetector, samples: Sequence[tuple[int, bool]], work: Path) -> SampleBoxes:
    """Run backbone and RPN once per sample.

    Args:
        detector: The frozen detector.
        samples: (store row, flip).
        work: Folder for the state of a killed run.
    """

    def boxes_of(first: int, stop: int) -> Iterator[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]:
        some = samples[first:stop]
        for sample in tqdm(some, desc="proposals", unit="image", initial=first, total=len(samples), mininterval=5):
            yield detector.proposals(*sample)

    (files,) = in_shards(work, ["boxes.npz"], len(samples), boxes_of, _write_boxes)
    parts: dict[str, list[NDArray[Any]]] = {}
    for file in files:
        for name, saved in load_arrays(file, kind="state of a killed run", fix=AFRESH)[0].items():
            parts.setdefault(name, []).append(saved)
    joined = {name: np.concatenate(part, axis=int(name == "proposals")) for name, part in parts.items()}
    gt_ptr, ptr = (np.concatenate([[0], np.cumsum(joined[name])]) for name in ("gt_sizes", "sizes"))
    return SampleBoxes(gt_ptr, joined["gt_boxes"], joined["gt_labels"], ptr, joined["proposals"])


def _write_boxes(files: list[Path], found: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]) -> None:
    """Write ground-truth boxes, labels and proposals of a shard of samples."""
    gt_boxes, gt_labels, proposals = zip(*found, strict=True)
    arrays: dict[str, NDArray[Any]] = {
        "gt_boxes": np.concatenate(gt_boxes).astype(np.float32),
        "gt_labels": np.concatenate(gt_labels).astype(np.int64),
        "proposals": np.concatenate(proposals, axis=1).astype(np.float32),
        "gt_sizes": np.array([len(one) for one in gt_boxes]),
        "sizes": np.array([one.shape[1] for one in proposals]),
    }
    save_arrays(files[0], arrays)


def write_features(
    detector: FrozenDetector,
    samples: Sequence[tuple[int, bool]],
    boxes: Sequence[Sequence[NDArray[np.float32]]],
    paths: Sequence[Path],
    dtype: str,
    work: Path,
    level: Level = "roi",
) -> None:
    """Pool the boxes of all samples, in their order, into one array ``(rows, c, h, w)``, or ``(rows, d)``, per stage.

    Args:
        detector: The frozen detector.
        samples: (store row, flip).
        boxes: Per stage and sample ``(n, 4)``, xyxy in pixels of the network input.
        paths: The ``.npy`` file of every stage.
        dtype: ``float16`` or ``float32``.
        work: Folder for the state of a killed run.
        level: What is stored; see :func:`~ltpipe.methods.box_layers.stored_features`.

    Raises:
        UserError: The features do not fit on the disk.
    """
    starts = [np.concatenate([[0], np.cumsum([len(b) for b in of_stage])]) for of_stage in boxes]
    rows, shape = [int(ends[-1]) for ends in starts], detector.shape_at(level)
    partial = [work / path.name for path in paths]
    if get_rank() == 0:
        check_space(paths[0].parent, (sum(rows), sum(rows)), shape, dtype, reserved=partial)
        _prepare_partial(partial, [(count, *shape) for count in rows], dtype, work)
    wait_for_all()
    _fill(detector, samples, boxes, starts, partial, work, level)
    if get_rank() == 0:
        for file, path in zip(partial, paths, strict=True):
            move(file, path)


def _fill(
    detector: FrozenDetector,
    samples: Sequence[tuple[int, bool]],
    boxes: Sequence[Sequence[NDArray[np.float32]]],
    starts: Sequence[NDArray[np.int64]],
    files: Sequence[Path],
    work: Path,
    level: Level,
) -> None:
    """Pool the boxes of all samples into the files, whose rows they start at; every process fills in its own part."""
    arrays = [np.load(file, mmap_mode="r+") for file in files]

    def pooled(first: int, stop: int) -> Iterator[int]:
        """Fill in the rows of samples; what is noted of each is nothing but its number."""
        for sample in tqdm(range(first, stop), desc="features", unit="image", mininterval=5):
            wanted = {stage: of_stage[sample] for stage, of_stage in enumerate(boxes) if len(of_stage[sample])}
            if wanted:
                row, flip = samples[sample]
                for stage, found in detector.pool(row, flip, wanted, level).items():
                    arrays[stage][starts[stage][sample] : starts[stage][sample + 1]] = found.cpu().numpy()
            yield sample

    def flush(notes: list[Path], done: list[int]) -> None:
        for array in arrays:
            array.flush()
        with atomic_path(notes[0]) as temporary:
            temporary.write_text(f"{done[0]} to {done[-1]}")

    in_shards(work, [_FILLED], len(samples), pooled, flush)


def _prepare_partial(files: Sequence[Path], shapes: Sequence[tuple[int, ...]], dtype: str, work: Path) -> None:
    """Make the arrays to fill, unless a killed run has left them; then nothing counts as filled."""
    with suppress(*BROKEN_FILE):
        if all(np.load(file, mmap_mode="r").shape == shape for file, shape in zip(files, shapes, strict=True)):
            return
    for note in work.glob(f"*{_FILLED}*"):
        note.unlink()
    for file, shape in zip(files, shapes, strict=True):
        np.lib.format.open_memmap(file, "w+", dtype=np.dtype(dtype), shape=shape)
        with open(file, "r+b") as handle:
            # Reserves the space: a full disk is an error here, but kills a process that writes to mapped memory.
            os.posix_fallocate(handle.fileno(), 0, file.stat().st_size)


def check_space(
    folder: Path, rows: tuple[int, int], shape: tuple[int, ...], dtype: str, reserved: Sequence[Path] = ()
) -> None:
    """Say how large the features will be, and refuse if the disk is too small; a twentieth of it stays free.

    Args:
        folder: Where they go.
        rows: Fewest and most boxes; equal once they are known.
        shape: Shape of one row.
        dtype: ``float16`` or ``float32``.
        reserved: Files of a killed run whose space will be used.

    Raises:
        UserError: Not even the fewest fit.
    """
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    free = shutil.disk_usage(folder).free
    free += sum(512 * file.stat().st_blocks for file in reserved if file.is_file())
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
