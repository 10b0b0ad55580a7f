"""Annotation JSON -> store: streams a file, checks every record, writes the columns.

Memory holds the images, about 200 bytes for each annotation, and one block of text and coordinates at a time.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ltpipe.data.checks import CheckedColumns, checked_columns, existing_files
from ltpipe.data.progress_bar import Progress
from ltpipe.data.records import CategoryRecord, Format, ImageRecord, RecordNames
from ltpipe.data.segments import BadSegment, encode_segments
from ltpipe.data.statistics import count_classes
from ltpipe.data.store import SCHEMAS, STORE_VERSION
from ltpipe.data.stream import AnnotationStream
from ltpipe.errors import UserError
from ltpipe.frequency import frequency_groups
from ltpipe.run.files import atomic_path, sha256_file, write_json

SEGMENT_ROWS = 16384


def build_store(
    json_path: str | os.PathLike[str],
    out_folder: str | os.PathLike[str],
    *,
    fmt: Format,
    image_folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> None:
    """Convert a COCO- or LVIS-format annotation file into an :class:`~ltpipe.data.store.AnnotationStore`.

    The folder appears complete or not at all; an older store there is replaced.

    Args:
        json_path: The annotation file.
        out_folder: Folder of the store.
        fmt: ``"lvis"`` (federated, v0.5 or v1) or ``"coco"``.
        image_folder: Where the images are; every image file is looked up there. ``None`` skips the check.
        progress: Show on the error stream how far it is: a bar on a terminal, a line now and then in a log.

    Raises:
        UserError: The file cannot be read, or a record is wrong: names the file, the record and the key.
    """
    source, target = Path(json_path), Path(out_folder)
    if target.exists() and os.listdir(target) and not (target / "info.json").exists():
        raise UserError("the output folder holds other files", where=target, fix="name a new folder for the store")
    stream = AnnotationStream.open(source, fmt)
    bar = Progress(source.name, 2 * len(stream.spans), shown=progress)
    columns, name = checked_columns(stream, bar.advance)
    files = existing_files(stream.images, image_folder, name)
    frequency, frequency_from = _frequency(stream.categories, columns)
    with atomic_path(target) as folder:
        folder.mkdir()
        _write_images(folder, stream.images, columns, files)
        names = pa.array([category.name for category in stream.categories])
        _write(folder, "categories", [pa.array(columns.category_ids), names, pa.array(frequency)])
        _write(folder, "annotations", [_column(columns.annotations[key]) for key in SCHEMAS["annotations"].names])
        num_rle = _write_segments(folder, stream, columns, name, bar)
        info = {
            "store_version": STORE_VERSION,
            "format": fmt,
            "federated": fmt == "lvis",
            "file": source.name,
            "bytes": source.stat().st_size,
            "sha256": sha256_file(source),
            "frequency_from": frequency_from,
            "segment_rows": SEGMENT_ROWS,
            "counts": _counts(columns) | {"rle": num_rle},
        }
        write_json(folder / "info.json", info)
        if target.exists():
            shutil.rmtree(target)


def _frequency(categories: Sequence[CategoryRecord], columns: CheckedColumns) -> tuple[list[str], str]:
    """Return the frequency group of each category and where it comes from: ``file`` or ``counts``."""
    given = [category.frequency for category in categories]
    if None not in given:
        return [str(letter) for letter in given], "file"
    used = (columns.annotations["iscrowd"] | columns.annotations["ignore"]) == 0
    image, category = columns.annotations["image"][used], columns.annotations["category"][used]
    return frequency_groups(count_classes(image, category, len(given))[0]), "counts"


def _counts(columns: CheckedColumns) -> dict[str, int]:
    annotations = columns.annotations
    return {
        "images": len(columns.image_ids),
        "categories": len(columns.category_ids),
        "annotations": len(annotations["id"]),
        "images_without_annotations": len(columns.image_ids) - len(np.unique(annotations["image"])),
        "categories_without_annotations": len(columns.category_ids) - len(np.unique(annotations["category"])),
        "degenerate_boxes": int((annotations["bbox"][:, 2:] <= 1).any(axis=1).sum()),
        "crowd": int(annotations["iscrowd"].sum()),
        "ignored": int(annotations["ignore"].sum()),
    }


def _write_images(folder: Path, images: Sequence[ImageRecord], columns: CheckedColumns, files: Sequence[str]) -> None:
    per_image = np.bincount(columns.annotations["image"], minlength=len(files))
    federated = [
        _id_lists([getattr(image, key) or () for image in images])
        for key in ("neg_category_ids", "not_exhaustive_category_ids")
    ]
    fixed = [_column(values) for values in (columns.image_ids, columns.image_sizes)]
    _write(folder, "images", [*fixed, pa.array(files, pa.string()), _column(np.cumsum(per_image)), *federated])


def _write_segments(
    folder: Path, stream: AnnotationStream, columns: CheckedColumns, name: RecordNames, bar: Progress
) -> int:
    """Write the masks, one batch of coordinates in memory at a time; return the number of RLE masks."""
    order, image = columns.annotations["order"], columns.annotations["image"]
    num_rle = 0
    with _writer(folder, "segments") as writer:
        for start in range(0, len(order), SEGMENT_ROWS):
            rows = order[start : start + SEGMENT_ROWS]
            sizes = columns.image_sizes[image[start : start + SEGMENT_ROWS]]
            try:
                batch = encode_segments(stream.text(), stream.spans[rows], sizes)
            except BadSegment as error:
                where = name("annotations", int(rows[error.row]), "segmentation")
                allowed = "polygons [[x, y, x, y, x, y, ...], ...] or an RLE of the image's size"
                raise UserError("malformed mask", where=where, got=error, allowed=allowed) from error
            writer.write_batch(batch)
            stream.release()
            num_rle += int(np.count_nonzero(pc.binary_length(batch["rle"])))
            bar.advance(len(rows))
    bar.close()
    return num_rle


def _write(folder: Path, name: str, arrays: list[pa.Array]) -> None:
    with _writer(folder, name) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=SCHEMAS[name]))


@contextmanager
def _writer(folder: Path, name: str) -> Iterator[pa.ipc.RecordBatchFileWriter]:
    with open(folder / f"{name}.arrow", "wb") as sink:
        with pa.ipc.new_file(sink, SCHEMAS[name]) as writer:
            yield writer
        sink.flush()
        os.fsync(sink.fileno())


def _column(values: NDArray[Any]) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def _id_lists(lists: list[Sequence[int]]) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in lists])]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(chain.from_iterable(lists), pa.int64()))
