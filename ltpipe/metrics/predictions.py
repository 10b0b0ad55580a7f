"""Detections as columns: memory-mapped from disk and checked before anything else sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ltpipe.data import rle
from ltpipe.errors import UserError
from ltpipe.metrics.kernels import copy_spans

FORMAT_KEY = b"ltpipe.predictions"
FORMAT_VERSION = b"1"
Floats = NDArray[np.float32] | NDArray[np.float64]
TextBlock = tuple[int, NDArray[np.int64], NDArray[np.uint8]]


@dataclass(frozen=True)
class MaskColumn:
    """Compressed run-length masks of ``N`` detections.

    Attributes:
        sizes: ``(N, 2) int32`` ``[height, width]`` in pixels.
        blocks: The text as consecutive ``(first row, offsets, text)``: row ``first + i`` is
            ``text[offsets[i]:offsets[i + 1]]``.
        areas: ``(N,) int64`` foreground pixels; None until the text has been decoded and found well formed.
    """

    sizes: NDArray[np.int32]
    blocks: tuple[TextBlock, ...]
    areas: NDArray[np.int64] | None = None

    @classmethod
    def from_list(cls, counts: Sequence[bytes], sizes: NDArray[np.int32]) -> MaskColumn:
        """Build a column from ``N`` strings and ``(N, 2) int32`` sizes."""
        return cls(np.asarray(sizes, np.int32).reshape(-1, 2), ((0, *join_text(counts)),))

    def __len__(self) -> int:
        """Return the number of masks."""
        return len(self.sizes)

    def counts(self, rows: NDArray[np.int64]) -> list[bytes]:
        """Return the compressed strings of the given rows, in the order given."""
        out: list[bytes] = [b""] * len(rows)
        block_of = np.searchsorted([first for first, _, _ in self.blocks], rows, side="right") - 1
        for block in np.unique(block_of):
            first, offsets, text = self.blocks[block]
            where = np.flatnonzero(block_of == block)
            local, view = rows[where] - first, memoryview(text)
            spans = zip(where.tolist(), offsets[local].tolist(), offsets[local + 1].tolist(), strict=True)
            for place, start, stop in spans:
                out[place] = bytes(view[start:stop])
        return out

    def packed(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Return ``(n + 1,) int64`` offsets and the text of the given rows, laid back to back in the order given."""
        block_of = np.searchsorted([first for first, _, _ in self.blocks], rows, side="right") - 1
        length = np.zeros(len(rows), np.int64)
        spans = []
        for block in np.unique(block_of):
            first, offsets, text = self.blocks[block]
            where = np.flatnonzero(block_of == block)
            local = rows[where] - first
            starts, stops = offsets[local], offsets[local + 1]
            length[where] = stops - starts
            spans.append((where, text, starts, stops))
        pointer: NDArray[np.int64] = np.concatenate([[0], np.cumsum(length)])
        out = np.empty(int(pointer[-1]), np.uint8)
        for where, text, starts, stops in spans:
            copy_spans(text, starts, stops, out, pointer[where])
        return pointer, out

    def take(self, rows: NDArray[np.int64]) -> MaskColumn:
        """Return the given rows, in the order given."""
        areas = None if self.areas is None else self.areas[rows]
        return MaskColumn(self.sizes[rows], ((0, *self.packed(rows)),), areas)

    def checked(self, where: object) -> MaskColumn:
        """Return the column with its areas, after decoding every mask that has not been decoded before.

        Args:
            where: Named in errors.

        Raises:
            UserError: A string is malformed or its runs do not sum to ``h * w``.
        """
        if self.areas is not None:
            return self
        areas = np.zeros(len(self), np.int64)
        for first, offsets, text in self.blocks:
            rows = slice(first, first + len(offsets) - 1)
            areas[rows], problem = rle.measure(text, offsets, self.sizes[rows].astype(np.int64).prod(axis=1))
            bad = np.flatnonzero(problem)
            if len(bad):
                raise UserError(
                    f"a mask {rle.PROBLEMS[problem[bad[0]]]}",
                    where=f"{where}: detection {first + bad[0]}",
                    got=f"{len(bad)} faulty masks",
                    allowed="compressed run-length strings whose runs sum to height * width",
                    fix="the file is damaged or its masks were encoded for another size; write it again",
                )
        return replace(self, areas=areas)


@dataclass(frozen=True)
class Predictions:
    """Detections of one model on one image set; row order is the order in which they were written.

    Attributes:
        image_ids: ``(N,) int64`` image ids of the annotation file.
        category_ids: ``(N,) int64`` category ids of the annotation file (not labels).
        scores: ``(N,) float32`` or ``float64``.
        boxes: ``(N, 4)`` of the scores' dtype, xywh, absolute pixels; None in mask-only results.
        masks: The masks, or None.
        source: Named in errors.
    """

    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    scores: Floats
    boxes: Floats | None = None
    masks: MaskColumn | None = None
    source: str = "predictions"

    def __len__(self) -> int:
        """Return the number of detections."""
        return len(self.image_ids)

    @classmethod
    def open(cls, path: str | Path) -> Predictions:
        """Memory-map a file of :class:`~ltpipe.metrics.predictions_writer.PredictionWriter`, which checked the masks.

        Raises:
            UserError: There is no such file, or it is cut off or something else.
        """
        table = _read_table(path)
        columns = set(table.column_names)
        boxes = _numbers(table["bbox"]).reshape(-1, 4) if "bbox" in columns else None
        masks = None
        if "mask_counts" in columns:
            sizes, areas = _numbers(table["mask_size"]).reshape(-1, 2), _numbers(table["mask_area"])
            masks = MaskColumn(sizes, _text_blocks(table["mask_counts"]), areas)
        ids, categories, scores = (_numbers(table[name]) for name in ("image_id", "category_id", "score"))
        return cls(ids, categories, scores, boxes, masks, str(path))

    def take(self, rows: NDArray[np.int64]) -> Predictions:
        """Return the given rows, in the order given."""
        boxes = None if self.boxes is None else self.boxes[rows]
        masks = None if self.masks is None else self.masks.take(rows)
        return Predictions(self.image_ids[rows], self.category_ids[rows], self.scores[rows], boxes, masks, self.source)

    def checked(self) -> Predictions:
        """Return the predictions if an evaluator may see them, with the areas of their masks.

        Raises:
            UserError: Columns of different lengths, a score or box that is not finite, or a malformed mask.
        """
        if self.boxes is None and self.masks is None:
            raise UserError("detections with neither boxes nor masks", where=self.source)
        for name in ("category_ids", "scores", "boxes", "masks"):
            column = getattr(self, name)
            if column is not None and len(column) != len(self):
                raise UserError(
                    "columns of different lengths",
                    where=self.source,
                    got=f"{len(column)} {name} for {len(self)} image ids",
                )
        self._refuse("a score is not finite", ~np.isfinite(self.scores), self.scores)
        if self.boxes is not None:
            self._refuse("a box is not finite", ~np.isfinite(self.boxes).all(axis=1), self.boxes)
        return self if self.masks is None else replace(self, masks=self.masks.checked(self.source))

    def _refuse(self, what: str, bad: Any, values: Floats) -> None:
        rows = np.flatnonzero(bad)
        if len(rows):
            place = f"{self.source}: detection {rows[0]} (image {self.image_ids[rows[0]]})"
            got = f"{values[rows[0]].tolist()}; {len(rows)} of {len(self)} detections are affected"
            raise UserError(what, where=place, got=got, fix="the model diverged or the file is damaged; evaluate again")


def concatenate(parts: Sequence[Predictions]) -> Predictions:
    """Join blocks of detections that have the same columns, in order; at least one block."""
    masks = None
    if all(part.masks is not None for part in parts):
        columns = [part.masks for part in parts if part.masks is not None]
        starts = np.cumsum([0] + [len(column) for column in columns])
        blocks = [
            (int(start) + first, offsets, text)
            for start, column in zip(starts, columns, strict=False)
            for first, offsets, text in column.blocks
        ]
        areas = [column.areas for column in columns if column.areas is not None]
        known = np.concatenate(areas) if len(areas) == len(columns) else None
        masks = MaskColumn(np.concatenate([column.sizes for column in columns]), tuple(blocks), known)
    boxes: list[NDArray[Any]] = [part.boxes for part in parts if part.boxes is not None]
    return Predictions(
        np.concatenate([part.image_ids for part in parts]),
        np.concatenate([part.category_ids for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate(boxes) if boxes else None,
        masks,
        parts[0].source,
    )


def join_text(counts: Sequence[bytes]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Return ``(N + 1,) int64`` offsets and the ``uint8`` text of strings laid back to back."""
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum([len(text) for text in counts], out=offsets[1:])
    return offsets, np.frombuffer(b"".join(counts), np.uint8)


def _read_table(path: str | Path) -> pa.Table:
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate(full=True)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            "cannot read the predictions",
            where=path,
            got=error,
            allowed="a complete Arrow file written by the evaluate stage",
            fix="delete the file and evaluate the checkpoint again",
        ) from error
    if (table.schema.metadata or {}).get(FORMAT_KEY) != FORMAT_VERSION:
        raise UserError("not a predictions file of this version", where=path, fix="evaluate the checkpoint again")
    return table


def _numbers(column: pa.ChunkedArray) -> NDArray[Any]:
    """Return a numeric column as one array, without a copy when it is one chunk."""
    chunks = [chunk.flatten() if pa.types.is_fixed_size_list(chunk.type) else chunk for chunk in column.chunks]
    arrays: list[NDArray[Any]] = [chunk.to_numpy(zero_copy_only=True) for chunk in chunks]
    if len(arrays) == 1:
        return arrays[0]
    kind = column.type.value_type if pa.types.is_fixed_size_list(column.type) else column.type
    return np.concatenate(arrays) if arrays else np.zeros(0, kind.to_pandas_dtype())


def _text_blocks(column: pa.ChunkedArray) -> tuple[TextBlock, ...]:
    """Return views of the text of a binary column, chunk by chunk."""
    blocks = []
    first = 0
    for chunk in column.chunks:
        _, offsets, data = chunk.buffers()
        part = np.frombuffer(offsets, np.int32, len(chunk) + 1, 4 * chunk.offset).astype(np.int64)
        text = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
        blocks.append((first, part - part[0], text[part[0] : part[-1]]))
        first += len(chunk)
    return tuple(blocks)
