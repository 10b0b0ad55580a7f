"""Checks of annotation records that look across records, and their columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltpipe.data.findings import Findings
from ltpipe.data.id_rows import row_of
from ltpipe.data.readers import Records
from ltpipe.data.readers.coco_records import CategoryRecord, ImageRecord
from ltpipe.data.segments import FARTHEST, read_masks
from ltpipe.errors import UserError

Ids = NDArray[np.int64]
Rows = NDArray[np.intp]
BATCH = 16384
FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")


@dataclass(frozen=True)
class CheckedColumns:
    """The records of an annotation file that can be used, linked.

    Attributes:
        images: ``I`` images, file order.
        categories: ``C`` categories, file order.
        image_rows: ``(I,)`` their rows in :class:`~ltpipe.data.readers.Records`.
        image_sizes: ``(I, 2) int32``, height and width in pixels.
        category_ids: ``(C,) int64``.
        lists: By key of :data:`FEDERATED`: category ids of every image.
        annotations: Columns of ``annotations.arrow``, sorted by image row, stable.
        rows: ``(A,)`` row of every annotation in ``Records``.
    """

    images: list[ImageRecord]
    categories: list[CategoryRecord]
    image_rows: Rows
    image_sizes: NDArray[np.int32]
    category_ids: Ids
    lists: dict[str, list[list[int]]]
    annotations: dict[str, NDArray[Any]]
    rows: Rows


def checked_columns(records: Records, findings: Findings) -> CheckedColumns:
    """Link the records, leave out those that cannot be used or say the same as others, and give every object a box.

    Args:
        records: What a reader found.
        findings: Told what is left out and what was mended.

    Raises:
        UserError: The file has no images or no categories.
    """
    for section in ("images", "categories"):
        if not getattr(records, section):
            faults = "".join(f"; left out: {sentence}" for sentence in findings.fault_sentences())
            raise UserError(f"no {section}", where=records.path, got=f'"{section}" is an empty list{faults}')
    image_rows = _usable_images(records, findings)
    category_rows = _usable_categories(records, findings)
    images = [records.images[row] for row in image_rows.tolist()]
    sizes = np.array([(image.height, image.width) for image in images], np.int64).reshape(-1, 2).astype(np.int32)
    category_ids = _ids([records.categories[row] for row in category_rows.tolist()])
    image, category, kept = _links(records, _ids(images), category_ids, findings)
    ids, kept = _own_ids(records, kept, findings)
    order = kept[np.argsort(image[kept], kind="stable")]
    columns: dict[str, NDArray[Any]] = {
        "id": ids[order],
        "image": image[order].astype(np.int32),
        "category": category[order].astype(np.int32),
        "bbox": records.boxes[order],
        "area": records.areas[order],
        "iscrowd": records.crowd[order],
        "ignore": records.ignore[order],
        "order": records.positions["annotations"][order],
    }
    keep = _boxes(records, columns, order, sizes, findings)
    return CheckedColumns(
        images=images,
        categories=[records.categories[row] for row in category_rows.tolist()],
        image_rows=image_rows,
        image_sizes=sizes,
        category_ids=category_ids,
        lists={key: _federated(records, key, images, image_rows, category_ids, findings) for key in FEDERATED},
        annotations={key: values[keep] for key, values in columns.items()},
        rows=order[keep],
    )


def _ids(records: Sequence[Any]) -> Ids:
    return np.fromiter((record.id for record in records), np.int64, len(records))


def _usable_images(records: Records, findings: Findings) -> Rows:
    """Return the rows of the images that have an id of their own and an extent; equal ones once."""

    def same(row: int) -> object:
        image = records.images[row]
        return image.file_name, image.coco_url, image.height, image.width

    rows = _one_of_each(records, "images", same, findings)
    flat = [row for row in rows.tolist() if min(records.images[row].height, records.images[row].width) <= 0]
    if flat:
        used = np.isin(_ids([records.images[row] for row in flat]), records.image_ids)

        def name(row: int) -> str:
            image = records.images[row]
            return f"{records.name('images', row)}: width {image.width}, height {image.height}"

        findings.remark_rows(
            "images without width or height and without objects: left out", np.array(flat)[~used], name
        )
        findings.fault_rows("images without width or height", np.array(flat)[used], name)
    return rows[~np.isin(rows, flat)]


def _usable_categories(records: Records, findings: Findings) -> Rows:
    """Return the rows of the categories that have an id of their own; equal ones once."""
    rows = _one_of_each(records, "categories", lambda row: records.categories[row].name, findings)
    seen: dict[str, int] = {}
    twice = [row for row in rows.tolist() if seen.setdefault(records.categories[row].name, row) != row]

    def name(row: int) -> str:
        return f"{records.name('categories', row)}: {records.categories[row].name!r}"

    findings.remark_rows("classes with the name of another one", np.array(twice, np.intp), name)
    return rows


def _one_of_each(records: Records, section: str, same: Callable[[int], object], findings: Findings) -> Rows:
    """Return the rows of a list without repetitions, and without ids that stand for different things."""
    ids = _ids(getattr(records, section))
    again, first = _repeated(ids)
    if not len(again):
        return np.arange(len(ids))
    differs = np.array([same(row) != same(other) for row, other in zip(again.tolist(), first.tolist(), strict=True)])

    def name(row: int) -> str:
        other = int(first[again == row][0])
        return f"{records.name(section, row)}, as {section}[{records.positions[section][other]}]"

    findings.remark_rows(f"{section} that are listed more than once: read once", again[~differs], name)
    findings.fault_rows(f"{section} with the id of another one", again[differs], name)
    unclear = np.isin(ids, ids[again[differs]])
    return np.setdiff1d(np.flatnonzero(~unclear), again)


def _repeated(ids: Ids) -> tuple[Rows, Rows]:
    """Return the rows whose id occurred before, and where it did first."""
    order = np.argsort(ids, kind="stable")
    starts = np.flatnonzero(np.append(True, ids[order[1:]] != ids[order[:-1]])) if len(ids) else np.zeros(0, np.intp)
    first = np.repeat(order[starts], np.diff(np.append(starts, len(ids))))
    rows = np.flatnonzero(order != first)
    rows = rows[np.argsort(order[rows], kind="stable")]
    return order[rows], first[rows]


def _links(
    records: Records, image_ids: Ids, category_ids: Ids, findings: Findings
) -> tuple[NDArray[np.int64], NDArray[np.int64], Rows]:
    """Return image and category rows of all annotations, -1 where there is none, and the annotations that have both."""
    places = []
    for section, key, known, used in (
        ("images", "image_id", image_ids, records.image_ids),
        ("categories", "category_id", category_ids, records.category_ids),
    ):
        place = row_of(used, known)
        lost = np.flatnonzero(place < 0)
        listed = np.isin(used[lost], _ids(getattr(records, section)))

        def name(row: int, section: str = section, key: str = key, used: Ids = used) -> str:
            return f"{records.name('annotations', row, key)}: {records.shown(section, int(used[row]))}"

        findings.fault_rows(f"annotations whose {key} is not in {section}", lost[~listed], name)
        findings.fault_rows(f"annotations of {section} that cannot be used", lost[listed], name)
        places.append(place)
    return places[0], places[1], np.flatnonzero((places[0] >= 0) & (places[1] >= 0))


def _own_ids(records: Records, kept: Rows, findings: Findings) -> tuple[Ids, Rows]:
    """Return the ids of all annotations, made different for different objects, and the rows without repetitions."""
    again, first = _repeated(records.ids[kept])
    if not len(again):
        return records.ids, kept
    again, first = kept[again], kept[first]

    def same(row: int, other: int) -> bool:
        numbers = (records.image_ids, records.category_ids, records.crowd, records.ignore)
        return (
            all(column[row] == column[other] for column in numbers)
            and np.array_equal(records.boxes[row], records.boxes[other], equal_nan=True)
            and _text(records.masks[row]) == _text(records.masks[other])
        )

    equal = np.array([same(row, other) for row, other in zip(again.tolist(), first.tolist(), strict=True)])

    def name(row: int) -> str:
        other = int(first[again == row][0])
        return f"{records.name('annotations', row)}, as annotations[{records.positions['annotations'][other]}]"

    findings.remark_rows("annotations that are listed more than once: read once", again[equal], name)
    findings.fault_rows("annotations with the id of another object", again[~equal], name)
    ids = records.ids.copy()
    free = np.setdiff1d(np.arange(1, len(ids) + 1), ids)
    ids[again[~equal]] = free[: int((~equal).sum())]
    return ids, np.setdiff1d(kept, again[equal])


def _text(mask: Any) -> object:
    return mask if isinstance(mask, list | dict) or mask is None else bytes(mask)


def _boxes(
    records: Records, columns: dict[str, NDArray[Any]], rows: Rows, sizes: NDArray[np.int32], findings: Findings
) -> NDArray[np.bool_]:
    """Fill in boxes and areas that are missing, from masks; return which annotations have a box that can be used."""
    has_box = records.has_box[rows]
    box, area = columns["bbox"], columns["area"]

    def name(place: int) -> str:
        return f"{records.name('annotations', int(rows[place]), 'bbox')}: {records.boxes[rows[place]].tolist()}"

    known = np.isfinite(box).all(axis=1)
    finite = known & (np.abs(np.where(known[:, None], box, 0)) <= FARTHEST).all(axis=1)
    negative = finite & (box[:, 2:] < 0).any(axis=1)
    findings.fault_rows("boxes that are not finite", np.flatnonzero(has_box & ~known), name)
    findings.fault_rows("boxes beyond a million pixels", np.flatnonzero(has_box & known & ~finite), name)
    findings.fault_rows("boxes of negative width or height", np.flatnonzero(negative), name)
    keep: NDArray[np.bool_] = ~(has_box & (~finite | negative))
    no_area = ~(np.isfinite(area) & (area >= 0))
    asked = np.flatnonzero(keep & (~has_box | no_area))
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        own = sizes[columns["image"][part]]
        masks = read_masks([records.masks[row] for row in rows[part].tolist()], own, Findings(), str)
        bounds, boxless = masks.bounds, ~has_box[part]
        box[part[boxless]] = np.concatenate([bounds[:, :2], bounds[:, 2:] - bounds[:, :2]], axis=1)[boxless]
        pixels = masks.areas(own)
        sides = box[part, 2] * box[part, 3]
        wanted = no_area[part]
        area[part[wanted]] = np.where(np.isnan(pixels), sides, pixels)[wanted]
        records.release()
    lost = ~has_box & np.isnan(box[:, 0])

    def plain(place: int) -> str:
        return records.name("annotations", int(rows[place]))

    findings.fault_rows("objects with neither box nor mask", np.flatnonzero(lost), plain)
    findings.remark_rows("objects without a box: their mask's is taken", np.flatnonzero(~has_box & ~lost), plain)
    keep &= ~lost
    mended = np.flatnonzero(no_area & keep)
    findings.remark_rows("objects without an area: that of the mask, else of the box, is taken", mended, plain)
    return keep


def _federated(
    records: Records,
    key: str,
    images: Sequence[ImageRecord],
    rows: Rows,
    category_ids: Ids,
    findings: Findings,
) -> list[list[int]]:
    """Return the category ids listed by every image, without unknown ones."""
    if not records.federated:
        return [[] for _ in images]
    known = set(category_ids.tolist())
    lists = []
    for row, image in zip(rows.tolist(), images, strict=True):
        listed = getattr(image, key)
        strange = [number for number in listed if number not in known]
        if strange:
            text = f"{records.name('images', row, key)}: {records.shown('categories', strange[0])}"
            findings.fault(f"ids of {key} that are not in categories", text, len(strange))
            listed = [number for number in listed if number in known]
        lists.append(listed)
    return lists
