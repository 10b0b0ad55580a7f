"""Write detections image by image, in bounded memory, into one Arrow file that appears only when it is complete."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ltpipe.errors import UserError
from ltpipe.metrics.predictions import FORMAT_KEY, FORMAT_VERSION, MaskColumn, Predictions, concatenate, join_text
from ltpipe.run.files import atomic_path

ROWS_PER_BATCH = 65536


class PredictionWriter:
    """Collect detections and write them in record batches; memory stays at one batch.

    Use as a context manager: the file appears under its name only when the block ends without an exception.

    Args:
        path: The file to write.
        boxes: Whether detections carry boxes.
        masks: Whether detections carry masks.
        dtype: Precision of scores and boxes; float32 holds everything a float32 model says.

    Attributes:
        rows: Detections taken so far.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        boxes: bool = True,
        masks: bool = False,
        dtype: Literal["float32", "float64"] = "float32",
    ) -> None:
        self.rows = 0
        self._path, self._dtype, self._stack = Path(path), np.dtype(dtype), ExitStack()
        self._schema = _schema(pa.from_numpy_dtype(self._dtype), boxes, masks)
        self._pending: list[Predictions] = []
        self._pending_rows = 0

    def __enter__(self) -> Self:
        """Open the temporary file."""
        temporary = self._stack.enter_context(atomic_path(self._path))
        self._file = self._stack.enter_context(pa.ipc.new_file(str(temporary), self._schema))
        self._stack.push(self._flush_if_fine)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the remaining rows and rename the file; after an exception leave nothing behind."""
        self._stack.__exit__(kind, error, trace)

    def append(
        self,
        image_id: int,
        category_ids: NDArray[np.int64],
        scores: NDArray[np.floating],
        boxes: NDArray[np.floating] | None = None,
        mask_counts: Sequence[bytes] | None = None,
        mask_size: tuple[int, int] | None = None,
    ) -> None:
        """Add the detections of one image.

        Args:
            image_id: Id of the image in the annotation file.
            category_ids: ``(n,)`` category ids.
            scores: ``(n,)`` scores.
            boxes: ``(n, 4)`` xywh, absolute pixels.
            mask_counts: ``n`` compressed run-length strings.
            mask_size: ``(height, width)`` of the image; needed with masks.

        Raises:
            UserError: Something is not finite, of the wrong length, or a mask is malformed.
        """
        masks = None
        if mask_counts is not None:
            assert mask_size is not None, "masks need the size of their image"
            masks = MaskColumn.from_list(mask_counts, np.tile(np.array(mask_size, np.int32), (len(mask_counts), 1)))
        self.extend(
            Predictions(
                np.full(len(category_ids), image_id, np.int64),
                np.asarray(category_ids, np.int64),
                np.asarray(scores, self._dtype),
                None if boxes is None else np.asarray(boxes, self._dtype).reshape(-1, 4),
                masks,
                str(self._path),
            )
        )

    def extend(self, predictions: Predictions) -> None:
        """Add a block of detections.

        Raises:
            UserError: As :meth:`append`.
        """
        for column, name in ((predictions.boxes, "bbox"), (predictions.masks, "mask_counts")):
            assert (column is None) == (name not in self._schema.names), f"{name}: not what the writer was opened for"
        self._pending.append(predictions.checked())
        self.rows += len(predictions)
        self._pending_rows += len(predictions)
        if self._pending_rows >= ROWS_PER_BATCH:
            self._flush()

    def _flush_if_fine(self, kind: type[BaseException] | None, error: object, trace: object) -> bool:
        if kind is None:
            self._flush()
        return False

    def _flush(self) -> None:
        if self._pending:
            block = concatenate(self._pending)
            for start in range(0, len(block), ROWS_PER_BATCH):
                rows = np.arange(start, min(start + ROWS_PER_BATCH, len(block)))
                self._file.write_batch(_record_batch(block, rows, self._schema))
        self._pending, self._pending_rows = [], 0


def merge_predictions(parts: Sequence[str | Path], path: str | Path) -> None:
    """Join the files of several processes into one, batch by batch; the parts stay.

    Raises:
        UserError: A part is unreadable, or the parts hold different columns.
    """
    readers = []
    for part in parts:
        try:
            readers.append(pa.ipc.open_file(pa.memory_map(str(part))))
        except (OSError, pa.ArrowException) as error:
            raise UserError("cannot read a part of the predictions", where=part, got=error) from error
    if any(not reader.schema.equals(readers[0].schema, check_metadata=True) for reader in readers):
        raise UserError("parts of the predictions with different columns", where=", ".join(map(str, parts)))
    with atomic_path(path) as temporary, pa.ipc.new_file(str(temporary), readers[0].schema) as out:
        for reader in readers:
            for index in range(reader.num_record_batches):
                out.write_batch(reader.get_batch(index))


def _schema(number: pa.DataType, boxes: bool, masks: bool) -> pa.Schema:
    fields = [pa.field("image_id", pa.int64()), pa.field("category_id", pa.int64()), pa.field("score", number)]
    if boxes:
        fields.append(pa.field("bbox", pa.list_(number, 4)))
    if masks:
        fields += [pa.field("mask_counts", pa.binary()), pa.field("mask_size", pa.list_(pa.int32(), 2))]
        fields.append(pa.field("mask_area", pa.int64()))
    return pa.schema(fields, metadata={FORMAT_KEY: FORMAT_VERSION})


def _record_batch(block: Predictions, rows: NDArray[np.int64], schema: pa.Schema) -> pa.RecordBatch:
    number = pa.from_numpy_dtype(schema.field("score").type.to_pandas_dtype())
    arrays = [pa.array(block.image_ids[rows]), pa.array(block.category_ids[rows])]
    arrays.append(pa.array(block.scores[rows], number))
    if block.boxes is not None:
        arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(block.boxes[rows].ravel(), number), 4))
    if block.masks is not None:
        offsets, text = join_text(block.masks.counts(rows))
        buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(text)]
        arrays.append(pa.BinaryArray.from_buffers(pa.binary(), len(rows), buffers))
        arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(block.masks.sizes[rows].ravel()), 2))
        assert block.masks.areas is not None
        arrays.append(pa.array(block.masks.areas[rows]))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
