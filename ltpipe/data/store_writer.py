"""Annotation file -> store: reads a file, checks and links its records, writes the columns.

Memory holds the records without their masks, which stay in the mapped file, and one batch of masks at a time.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ltpipe.data.categories import ONE_LIST, Categories, labels_in
from ltpipe.data.findings import Findings, Policy
from ltpipe.data.image_names import image_files
from ltpipe.data.progress_bar import Progress
from ltpipe.data.readers import READERS, Records
from ltpipe.data.readers.coco_records import CategoryRecord
from ltpipe.data.record_checks import CheckedColumns, checked_columns
from ltpipe.data.segments import Masks, read_masks
from ltpipe.data.statistics import count_classes
from ltpipe.data.store import SCHEMAS, STORE_VERSION, AnnotationStore
from ltpipe.data.summary import annotation_counts, check_usable, rarest, remark_oddities, summary_groups, used
from ltpipe.errors import UserError
from ltpipe.frequency import frequency_groups
from ltpipe.run.files import atomic_path, sha256_file, write_json

SEGMENT_ROWS = 16384
UNLIKE = "boxes unlike their masks (x, y, x, y instead of x, y, width, height?)"
SMALLEST_OVERLAP, PIXELS = 0.5, 4.0  # of a box with the bounds of its mask; differences up to so many pixels are fine


def build_store(
    source: str | os.PathLike[str],
    out_folder: str | os.PathLike[str],
    *,
    fmt: str,
    image_folder: str | os.PathLike[str] | None = None,
    faults: Policy = "refuse",
    classes: AnnotationStore | None = None,
    limits: Sequence[int] | None = None,
    progress: bool = True,
) -> None:
    """Convert an annotation file into an :class:`~ltpipe.data.store.AnnotationStore`.

    The folder appears complete or not at all; an older store there is replaced.

    Args:
        source: The annotation file.
        out_folder: Folder of the store.
        fmt: A name in :data:`~ltpipe.data.readers.READERS`: ``lvis`` (federated, v0.5 or v1) or ``coco``.
        image_folder: Where the images are; every image file is looked up there. ``None`` skips the check.
        faults: What becomes of records that cannot be used: ``refuse`` the file, or ``drop`` and count them.
        classes: Store of the training part, whose classes the file may list a part of; the others have no objects then.
        limits: Most training images of a rare and of a common class, for the summary; None: the groups of the file.
        progress: Show on the error stream how far it is: a bar on a terminal, a line now and then in a log.

    Raises:
        UserError: The file cannot be read, has faults (all kinds are named at once), no object that can be used, or
            classes that the training part does not have.
    """
    path, target, findings = Path(source), Path(out_folder), Findings()
    if target.exists() and os.listdir(target) and not (target / "info.json").exists():
        raise UserError("the output folder holds other files", where=target, fix="name a new folder for the store")
    records = READERS[fmt](path, findings)
    bar = Progress(path.name, 2 * len(records.ids), shown=progress)
    bar.advance(len(records.ids))
    facts = {"format": fmt, "file": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
    store_records(
        records,
        target,
        findings,
        facts,
        image_folder=image_folder,
        faults=faults,
        classes=classes,
        limits=limits,
        bar=bar,
    )


def store_records(
    records: Records,
    target: Path,
    findings: Findings,
    facts: Mapping[str, Any],
    *,
    image_folder: str | os.PathLike[str] | None = None,
    faults: Policy = "refuse",
    classes: AnnotationStore | None = None,
    limits: Sequence[int] | None = None,
    usable: bool = True,
    bar: Progress | None = None,
) -> None:
    """Check records, link them, and write their store; as :func:`build_store`.

    Args:
        records: What a reader found.
        target: Folder of the store.
        findings: What the reader said of them; told of all others.
        facts: What ``info.json`` says of the source.
        image_folder: As above.
        faults: As above.
        classes: As above.
        limits: As above.
        usable: Refuse records without a single object that could be trained or measured.
        bar: Told how far it is.
    """
    checked = checked_columns(records, findings)
    table = checked if classes is None else _with_classes(checked, classes, records.path, findings)
    columns, sizes = table.annotations, table.image_sizes
    names = [category.name for category in table.categories]
    frequency, frequency_from = _frequency(table)
    with atomic_path(target) as folder:
        folder.mkdir()
        num_rle, without = _write_segments(
            folder, records, table, findings, bar or Progress(records.path.name, 0, shown=False)
        )
        findings.check(records.path, faults)
        if usable:
            check_usable(records.path, columns, sizes, findings)
        _write_tables(folder, table, _files(records, table, image_folder, findings), frequency)
        counts = annotation_counts(columns, sizes, len(names))
        remark_oddities(columns, sizes, counts, findings)
        groups = summary_groups(table.category_ids, columns, frequency, classes, limits)
        info = {
            "store_version": STORE_VERSION,
            "federated": records.federated,
            **facts,
            "frequency_from": frequency_from,
            "segment_rows": SEGMENT_ROWS,
            "counts": counts | {"rle": num_rle, "without_mask": without},
            "frequencies": {letter: groups.count(letter) for letter in "rcf"},
            "rarest": rarest(columns, names),
        }
        if records.renamed:
            write_json(folder / "ids.json", records.renamed)
        write_json(folder / "info.json", info | findings.as_json())
        if target.exists():
            shutil.rmtree(target)


def _with_classes(table: CheckedColumns, train: AnnotationStore, path: Path, findings: Findings) -> CheckedColumns:
    """Add the classes of the training part that the file does not list."""
    own = tuple(category.name for category in table.categories)
    listed = Categories(tuple(table.category_ids.tolist()), own, path.name)
    labels_in(Categories.of_store(train, "the training annotations"), listed, where=path, fix=ONE_LIST, part=True)
    columns = zip(train.category_ids.tolist(), train.category_names, train.category_frequency, strict=True)
    added = [CategoryRecord(i, name, cast("Any", letter)) for i, name, letter in columns if i not in set(listed.ids)]
    findings.remark("classes of the training part that this file does not list: not measured", count=len(added))
    categories = [*table.categories, *added]
    return replace(table, categories=categories, category_ids=np.array([c.id for c in categories], np.int64))


def _files(
    records: Records, table: CheckedColumns, folder: str | os.PathLike[str] | None, findings: Findings
) -> list[str]:
    rows = table.image_rows.tolist()
    return image_files(table.images, folder, records.path, lambda row: records.name("images", rows[row]), findings)


def _frequency(table: CheckedColumns) -> tuple[list[str], str]:
    """Return the frequency group of each category and where it comes from: ``file`` or ``counts``."""
    given = [category.frequency for category in table.categories]
    if None not in given:
        return [str(letter) for letter in given], "file"
    single = used(table.annotations)
    image, category = (table.annotations[key][single] for key in ("image", "category"))
    return frequency_groups(count_classes(image, category, len(given))[0]), "counts"


def _write_tables(folder: Path, table: CheckedColumns, files: list[str], frequency: list[str]) -> None:
    _write_images(folder, table, files)
    names = [category.name for category in table.categories]
    _write(folder, "categories", [pa.array(table.category_ids), pa.array(names), pa.array(frequency)])
    _write(folder, "annotations", [_column(table.annotations[key]) for key in SCHEMAS["annotations"].names])


def _write_images(folder: Path, table: CheckedColumns, files: Sequence[str]) -> None:
    per_image = np.bincount(table.annotations["image"], minlength=len(files))
    ids = np.fromiter((image.id for image in table.images), np.int64, len(files))
    federated = [_id_lists(lists) for lists in table.lists.values()]
    fixed = [_column(values) for values in (ids, table.image_sizes)]
    _write(folder, "images", [*fixed, pa.array(files, pa.string()), _column(np.cumsum(per_image)), *federated])


def _write_segments(
    folder: Path, records: Records, table: CheckedColumns, findings: Findings, bar: Progress
) -> tuple[int, int]:
    """Write the masks, one batch in memory at a time; return how many are run lengths, and how many there are not."""
    columns, num_rle, without = table.annotations, 0, 0
    with _writer(folder, "segments") as writer:
        for start in range(0, len(table.rows), SEGMENT_ROWS):
            rows = table.rows[start : start + SEGMENT_ROWS].tolist()
            sizes = table.image_sizes[columns["image"][start : start + SEGMENT_ROWS]]

            def name(row: int, rows: list[int] = rows) -> str:
                return records.name("annotations", rows[row], "segmentation")

            masks = read_masks([records.masks[row] for row in rows], sizes, findings, name)
            _compare(masks, columns["bbox"][start : start + SEGMENT_ROWS], findings, name)
            writer.write_batch(masks.columns())
            records.release()
            num_rle += len(rows) - masks.rle.count(b"")
            without += int((~masks.present).sum())
            bar.advance(len(rows))
    bar.close()
    return num_rle, without


def _compare(masks: Masks, boxes: NDArray[np.float64], findings: Findings, name: Any) -> None:
    """Note boxes that are not around their masks."""
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    common = np.minimum(corners[:, 2:], masks.bounds[:, 2:]) - np.maximum(corners[:, :2], masks.bounds[:, :2])
    inside = np.maximum(common, 0).prod(axis=1)
    sides = masks.bounds[:, 2:] - masks.bounds[:, :2]
    overlap = inside / np.maximum(boxes[:, 2:].prod(axis=1) + sides.prod(axis=1) - inside, 1e-9)
    apart = np.abs(corners - masks.bounds).max(axis=1) > PIXELS
    findings.remark_rows(UNLIKE, np.flatnonzero((overlap < SMALLEST_OVERLAP) & apart), name)


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


def _id_lists(lists: list[list[int]]) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in lists])]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(chain.from_iterable(lists), pa.int64()))
