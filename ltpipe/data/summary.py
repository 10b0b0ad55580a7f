"""What a person wants to know of a data set: how much there is, what looks odd, and how long the tail is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltpipe.data.findings import Finding, Findings
from ltpipe.data.statistics import class_statistics, count_classes
from ltpipe.data.store import AnnotationStore
from ltpipe.errors import UserError
from ltpipe.frequency import frequency_groups

RAREST = 10
BORDER = 1.0  # pixels by which a box may reach over the border before that is told
# What is said of the counts of :func:`annotation_counts`, in this order.
WORDS = {
    "images": "images",
    "images_without_annotations": "of them without annotations",
    "annotations": "annotations",
    "crowd": "of them crowd regions",
    "ignored": "of them ignored",
    "objects": "objects",
    "without_mask": "without a mask",
    "degenerate_boxes": "with a degenerate box (a pixel or less wide or high)",
    "outside": "with a box outside their image",
    "categories": "classes",
    "categories_without_annotations": "of them without objects",
}


def used(columns: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
    """Return which annotations ``(A,)`` are objects: no crowd region and not ignored."""
    found: NDArray[np.bool_] = (columns["iscrowd"] | columns["ignore"]) == 0
    return found


def box_facts(
    columns: Mapping[str, NDArray[Any]], sizes: NDArray[np.int32]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which boxes ``(A,)`` are degenerate, outside of their image, and reach over its border.

    Args:
        columns: ``bbox`` ``(A, 4)`` xywh in absolute pixels and ``image`` ``(A,)`` rows of ``sizes``.
        sizes: ``(I, 2)`` height and width.
    """
    x, y, w, h = columns["bbox"].T
    height, width = sizes[columns["image"]].T
    outside = (np.minimum(x + w, width) <= np.maximum(x, 0)) | (np.minimum(y + h, height) <= np.maximum(y, 0))
    over = (x < -BORDER) | (y < -BORDER) | (x + w > width + BORDER) | (y + h > height + BORDER)
    return (w <= 1) | (h <= 1), outside, over & ~outside


def check_usable(path: Path, columns: Mapping[str, NDArray[Any]], sizes: NDArray[np.int32], findings: Findings) -> None:
    """Refuse a file without a single object that could be trained or measured.

    Args:
        path: The annotation file.
        columns: The annotations that can be used.
        sizes: ``(I, 2)`` height and width of the images.
        findings: Of the others.

    Raises:
        UserError: There is none; says why.
    """
    single = used(columns)
    degenerate, outside, _ = box_facts(columns, sizes)
    if (single & ~degenerate & ~outside).any():
        return
    reasons = {
        "crowd regions or ignored": ~single,
        "a pixel or less wide or high": single & degenerate,
        "outside their image": single & ~degenerate & outside,
    }
    got = [f"{int(rows.sum())} {text}" for text, rows in reasons.items() if rows.any()]
    got += [f"left out: {sentence}" for sentence in findings.fault_sentences()]
    normalised = single.any() and bool((columns["bbox"][single][:, 2:] <= 1).all())
    raise UserError(
        "the file has no object that could be trained or measured",
        where=path,
        got=f"{len(single)} annotations that can be read{': ' if got else ''}{'; '.join(got)}",
        allowed="boxes [x, y, width, height] in pixels, wider and higher than one",
        fix="multiply boxes and polygons by the size of the image: they look like fractions of it"
        if normalised
        else None,
    )


def check_measurable(iou_types: Sequence[str], annotations: Path, masked: bool) -> None:
    """Refuse to measure masks alone where no object has one.

    Args:
        iou_types: What is to be measured.
        annotations: The validation annotations.
        masked: Whether any of their objects has a mask.

    Raises:
        UserError: Nothing can be measured.
    """
    if not masked and "bbox" not in iou_types:
        raise UserError(
            "nothing can be measured",
            where="evaluate.iou_types",
            got=f"{', '.join(iou_types)}, and no object of {annotations} has a mask",
            fix="iou_types: [bbox]",
        )


def annotation_counts(
    columns: Mapping[str, NDArray[Any]], sizes: NDArray[np.int32], num_categories: int
) -> dict[str, int]:
    """Return the numbers of ``info.json`` that do not need the masks."""
    degenerate, outside, _ = box_facts(columns, sizes)
    single = used(columns)
    return {
        "images": len(sizes),
        "categories": num_categories,
        "annotations": len(single),
        "objects": int(single.sum()),
        "images_without_annotations": len(sizes) - len(np.unique(columns["image"])),
        "categories_without_annotations": num_categories - len(np.unique(columns["category"][single])),
        "degenerate_boxes": int(degenerate.sum()),
        "outside": int(outside.sum()),
        "crowd": int(columns["iscrowd"].sum()),
        "ignored": int(columns["ignore"].sum()),
    }


def summary_groups(
    category_ids: NDArray[np.int64],
    columns: Mapping[str, NDArray[Any]],
    frequency: Sequence[str],
    train: AnnotationStore | None,
    limits: Sequence[int] | None,
) -> list[str]:
    """Return the frequency group of every class, as everything after ``index`` has it: by its training images.

    Args:
        category_ids: ``(C,) int64``.
        columns: The annotations.
        frequency: ``r``, ``c`` or ``f`` by row, of this part.
        train: Store of the training part; None: this is it.
        limits: Most training images of a rare and of a common class; None: the groups of the training part's file.
    """
    if train is not None:
        known = class_statistics(train, limits)
        letters = dict(zip(known["category_id"].tolist(), known["frequency"].tolist(), strict=True))
        return [letters[number] for number in category_ids.tolist()]
    if limits is None:
        return list(frequency)
    single = used(columns)
    images, _ = count_classes(columns["image"][single], columns["category"][single], len(category_ids))
    return frequency_groups(images, limits)


def rarest(columns: Mapping[str, NDArray[Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rarest classes that have objects.

    Args:
        columns: ``image`` and ``category`` rows of the annotations.
        names: Class names by row.
    """
    single = used(columns)
    images, instances = count_classes(columns["image"][single], columns["category"][single], len(names))
    order = np.lexsort((np.arange(len(names)), instances, images))
    return [
        {"name": names[row], "images": int(images[row]), "objects": int(instances[row])}
        for row in order[images[order] > 0][:RAREST].tolist()
    ]


def remark_oddities(
    columns: Mapping[str, NDArray[Any]], sizes: NDArray[np.int32], counts: Mapping[str, int], findings: Findings
) -> None:
    """Note boxes that are not as they should be, crowds only, and classes without objects."""
    degenerate, outside, over = box_facts(columns, sizes)

    def name(row: int) -> str:
        return f"id {columns['id'][row]}: {columns['bbox'][row].tolist()}"

    for text, rows in (
        ("degenerate boxes (a pixel or less wide or high): not trained", degenerate),
        ("boxes outside their image: not trained", outside),
        ("boxes that reach over the border of their image", over),
    ):
        findings.remark_rows(text, np.flatnonzero(rows), name)
    findings.remark("classes without objects", count=counts["categories_without_annotations"])


def sentences(info: Mapping[str, Any]) -> list[str]:
    """Return the summary of a part of a data set: how much there is, the tail, what was mended, odd or left out.

    Args:
        info: Content of ``info.json``.
    """
    counts, groups = info["counts"], info["frequencies"]
    known = {key: counts.get(key, 0) for key in WORDS}  # an earlier version did not count all of them
    facts = [f"{known[key]} {text}" for key, text in WORDS.items() if known[key] or key in ("images", "annotations")]
    facts.append("rare, common, frequent: " + ", ".join(str(groups[letter]) for letter in "rcf"))
    rarest = ", ".join(f"{item['name']} {item['images']}/{item['objects']}" for item in info["rarest"])
    found = ["; ".join(facts), f"rarest classes (images/objects): {rarest}"]
    for what, table in (("", info["remarks"]), ("left out: ", info["dropped"])):
        for kind, entry in table.items():
            found.append(what + Finding(entry["count"], entry["examples"]).sentence(kind))
    return found


def lines(title: str, info: Mapping[str, Any]) -> list[str]:
    """Return :func:`sentences`, each behind a title, e.g. ``train``."""
    return [f"{title}: {sentence}" for sentence in sentences(info)]
