"""Whose classes the rows of another repository's checkpoint are: those it names itself, else by the repository's rule.

mmdetection (all versions) and maskrcnn-benchmark count labels in the order of ``categories`` in the annotation file,
detectron2 by ascending id, LST by falling number of instances; torchvision's row ``k`` is category ``k``. mmdetection
stores the class names in label order beside the weights, ltpipe the category ids too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltpipe.categories import SHOWN, Categories, labels_in, stored_names
from ltpipe.convert.layout import Layout
from ltpipe.data.tables import read_csv
from ltpipe.errors import UserError
from ltpipe.spec.classes import read_class_list

# mmdetection's own table of LVIS corrects a name that the annotation files, v0.5 and v1, misspell.
SPELLINGS = {"speaker_(stereo_equipment)": "speaker_(stero_equipment)"}
RULES = {
    "file": "order of the class list",
    "id": "ascending category id",
    "count": "falling instance count",
    "row": "row k is category k",
}


def read_classes(path: Path) -> list[dict[str, Any]]:
    """Return ``id``, ``name`` and ``instance_count`` of the classes in file order.

    Args:
        path: A class list (JSON), or ``statistics.csv`` of ``ltpipe index``.

    Raises:
        UserError: The file is neither, or lists an id twice.
    """
    if path.suffix != ".csv":
        rows = [(c["id"], c["name"], c["instance_count"]) for c in read_class_list(path)]
    else:
        table = read_csv(path)
        columns = ("category_id", "name", "instance_count")
        if not set(columns) <= set(table.columns):
            raise UserError(
                "not the class statistics of `ltpipe index`", where=path, got=f"columns {', '.join(table.columns)}",
                allowed=columns,
            )  # fmt: skip
        rows = list(table[list(columns)].itertuples(index=False, name=None))
    try:
        classes = [{"id": int(i), "name": str(name), "instance_count": int(count)} for i, name, count in rows]
    except (TypeError, ValueError) as error:
        raise UserError("an id or a count of the class list is no whole number", where=path, got=error) from error
    ids = [c["id"] for c in classes]
    twice = [i for i, count in Counter(ids).items() if count > 1]
    if twice:
        raise UserError("the class list names an id twice", where=path, got=twice[:SHOWN])
    return classes


def label_order(
    layout: Layout,
    meta: Mapping[str, Any],
    classes: Sequence[Mapping[str, Any]],
    known: int,
    path: Path | None,
    *,
    ignore_names: bool = False,
) -> tuple[Categories, str]:
    """Return the classes of a checkpoint in the order of its labels, and where that order is known from.

    Args:
        layout: Its layout.
        meta: What is stored beside the weights.
        classes: The class list of its training data, see :func:`read_classes`.
        known: Classes its heads have rows for.
        path: The class list, for messages.
        ignore_names: Do not look at the stored names.

    Raises:
        UserError: The list does not fit the rows, or lists other classes than the file names.
    """
    listed = Categories.of_records(classes, "the class list")
    names = None if ignore_names or layout.labels == "row" else stored_names(meta)
    own = None if names is None else Categories.of_checkpoint(meta, "the checkpoint")
    if own is not None:
        labels_in(listed, own, where=path, fix="give the class list of the data set it was trained on", part=True)
        chosen, source = own, "category ids and names in the file"
    elif names is not None:
        chosen, source = _by_name(names, listed, path), "class names in the file"
    else:
        chosen, source = _by_rule(layout, classes, listed, known), RULES[layout.labels]
    fits = max(chosen.ids) <= known if layout.labels == "row" else len(chosen.ids) == known
    if not fits:
        raise UserError(
            "the class list does not fit the checkpoint", where=path, got=f"{len(chosen.ids)} classes ({source})",
            allowed=f"{known}, the classes of its heads", fix="give the class list of the data set it was trained on",
        )  # fmt: skip
    return chosen, source


def _by_rule(layout: Layout, classes: Sequence[Mapping[str, Any]], listed: Categories, known: int) -> Categories:
    ids = list(listed.ids)
    if layout.labels == "count":
        counts = np.array([c["instance_count"] for c in classes])
        ids = [ids[i] for i in np.argsort(-counts, kind="stable")][:known]
    elif layout.labels == "id":
        ids = sorted(ids)
    return listed.take(ids, "the checkpoint")


def _by_name(names: Sequence[str], listed: Categories, path: Path | None) -> Categories:
    """Return the listed classes that a file names, in its order."""
    if tuple(names) == listed.names:
        return listed
    ids = dict(zip(listed.names, listed.ids, strict=True))
    called = {name: next((n for n in _spellings(name) if n in ids), None) for name in names}
    other = [name for name, found in called.items() if found is None]
    twice = len(set(called.values())) < len(names) or len(ids) < len(listed.ids)
    if other or twice:
        got = f"{len(other)} of {len(names)} not in the list: {', '.join(map(repr, other[:SHOWN]))}"
        raise UserError(
            "the class names in the checkpoint are not those of the class list", where=path,
            got=got if other else "several classes of one name",
            allowed=f"{', '.join(map(repr, listed.names[:SHOWN]))}, ... ({len(listed.ids)} classes)",
            fix="give the class list of its training data; --ignore-names takes the list's order instead, if the names "
            "in the file are wrong (mmdetection 1.x stores those of COCO unless told otherwise)",
        )  # fmt: skip
    return listed.take([ids[str(called[name])] for name in names], "the checkpoint")


def _spellings(name: str) -> tuple[str, ...]:
    """Return the ways in which a class list may write a name; mmdetection 1.x has underscores for COCO's spaces."""
    return (name, SPELLINGS.get(name, name), name.replace("_", " "))
