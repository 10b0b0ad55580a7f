"""Class tables of ``kostas1515/iif``: CSV files with counts and IIF weights, one row per class. Torch-free.

| layout | file | rows | columns |
|---|---|---|---|
| ``lvis`` | ``idf_1204.csv``, ``idf_1231.csv`` | placeholder for background, then the classes | 14 weights, counts |
| ``coco`` | ``idf_91.csv`` | the same | ``class`` (-1, 0, ...), 14 weights in another order, counts, ``names`` |
| ``elab`` | ``elab_idf.csv`` | the classes only | two index columns, ``smooth``, ``raw``, ``prob``, counts, ``names`` |

Columns are ``<variant>`` (image counts) and ``<variant>_obj`` (instance counts); ``prob`` is our ``rel``. Classes
follow ascending category id. The background is first in the files and last everywhere in ltpipe.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ltpipe.data.tables import read_csv
from ltpipe.errors import UserError
from ltpipe.methods.frequency_links import Floats
from ltpipe.methods.iif.weights import OBJECT, iif_weights, parse_variant

Layout = Literal["lvis", "coco", "elab"]
IMAGES, INSTANCES = "img_freq", "instance_freq"
AGREE = 1e-6

_BLOCK = ["smooth", "raw", "prob", "normit", "gombit", "base2", "base10"]
_OBJECTS = [name + OBJECT for name in _BLOCK]
COLUMNS: dict[str, list[str]] = {
    "lvis": [*_BLOCK, *_OBJECTS, IMAGES, INSTANCES],
    "coco": ["class", *_BLOCK[:3], "gombit", "normit", *_BLOCK[5:], *_OBJECTS, INSTANCES, IMAGES, "names"],
    "elab": ["", "Unnamed: 0", "smooth", "raw", "prob", IMAGES, "names", INSTANCES],
}


@dataclass(frozen=True)
class ClassTable:
    """A class table without its placeholder row.

    Attributes:
        image_counts: ``(K,)`` int64.
        instance_counts: ``(K,)`` int64.
        weights: ``(K,)`` float64 by column name of the file.
        names: Class names, or None.
        source: Where it came from.
    """

    image_counts: NDArray[np.int64]
    instance_counts: NDArray[np.int64]
    weights: dict[str, Floats]
    names: list[str] | None = None
    source: str = ""

    @property
    def num_instances(self) -> int:
        """Number of training instances."""
        return int(self.instance_counts.sum())

    @property
    def num_images(self) -> int | None:
        """Number of training images, annotated or not, recovered from the ``raw`` column; None without it."""
        seen = self.image_counts > 0
        if "raw" not in self.weights or not seen.any():
            return None
        return round(float(np.median(self.image_counts[seen] * np.exp(self.weights["raw"][seen]))))

    def column(self, variant: str, count: str | None = None) -> Floats:
        """Return the ``(K,)`` weights of a variant and count.

        Raises:
            UserError: The table has no such column.
        """
        variant, count = parse_variant(variant, count)
        name = column_name(variant, count)
        if name not in self.weights:
            raise UserError(
                "the class table lacks an IIF column", where=self.source, got=name, allowed=sorted(self.weights)
            )
        return self.weights[name]


def column_name(variant: str, count: str) -> str:
    """Return the files' column of a public variant and count."""
    return ("prob" if variant == "rel" else variant) + (OBJECT if count == "instance" else "")


def read_table(path: str | Path) -> ClassTable:
    """Read a class table in any of the three layouts; columns are found by name.

    Raises:
        UserError: The file is missing or no such table, or a value is missing.
    """
    frame = read_csv(path)
    columns = [c for c in frame.columns if c.removesuffix(OBJECT) in _BLOCK]
    lacking = {IMAGES, INSTANCES} - set(frame.columns)
    if lacking or not columns:
        raise UserError(
            "this is no class table of IIF",
            where=path,
            got=f"columns {', '.join(map(str, frame.columns))}",
            allowed=f"{IMAGES}, {INSTANCES} and at least one of {', '.join(_BLOCK)}",
        )
    numbers = frame[[*columns, IMAGES, INSTANCES]].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    bad = np.flatnonzero(~np.isfinite(numbers).all(axis=1))
    if len(bad):
        raise UserError("a value of the class table is not a number", where=f"{path}: line {bad[0] + 2}")
    # No real class has weight 1 in two columns: they differ by a factor or an offset.
    placeholder = (numbers[:, : len(columns)] == 1).all(axis=1) & (len(columns) > 1)
    if placeholder[1:].any():
        raise UserError(
            "a background row stands inside the class table",
            where=f"{path}: line {np.flatnonzero(placeholder[1:])[0] + 3}",
            fix="keep it in the first row only",
        )
    kept = frame[~placeholder]
    return ClassTable(
        kept[IMAGES].to_numpy(np.int64),
        kept[INSTANCES].to_numpy(np.int64),
        {c: kept[c].to_numpy(np.float64) for c in columns},
        [str(n) for n in kept["names"]] if "names" in kept else None,
        str(path),
    )


def check_table(
    table: ClassTable,
    image_counts: Sequence[int],
    instance_counts: Sequence[int],
    *,
    num_images: int | None = None,
    names: Sequence[str] | None = None,
    ranks: Sequence[int] | None = None,
) -> NDArray[np.int64]:
    """Compare a table with the classes it is to be used for, and with the formulas.

    Warns when a column differs from its formula.

    Args:
        table: The table.
        image_counts: ``(K,)`` training images per class of the data set, label order.
        instance_counts: ``(K,)`` training instances.
        num_images: Number of training images; None: the table's.
        names: Class names of the data set, label order.
        ranks: Row of each class; None: all rows in label order.

    Returns:
        ``(K,)`` rows of the classes.

    Raises:
        UserError: Number, names, or counts of the classes differ: another data set or another class order.
    """
    rows = np.arange(len(image_counts)) if ranks is None else np.asarray(ranks, np.int64)
    size = len(table.image_counts)
    if size <= rows.max(initial=-1) or (ranks is None and size != len(rows)):
        raise UserError(
            "the class table belongs to another number of classes",
            where=table.source,
            got=f"{size} classes",
            allowed=f"{rows.max(initial=-1) + 1}, as in the data set (a background row in front is dropped)",
        )
    if names is not None and table.names is not None:
        _refuse_difference(table, "name", np.asarray(table.names, object)[rows], np.asarray(names, object))
    _refuse_difference(table, "image count", table.image_counts[rows], np.asarray(image_counts))
    _refuse_difference(table, "instance count", table.instance_counts[rows], np.asarray(instance_counts))
    totals = {"image": num_images or table.num_images, "instance": table.num_instances}
    counts = {"image": table.image_counts, "instance": table.instance_counts}
    for name, values in table.weights.items():
        variant, count = parse_variant(name)
        total = totals[count]
        if total is None:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = iif_weights(counts[count], total, variant)
        if not np.allclose(values, expected, rtol=AGREE, atol=AGREE):
            worst = np.abs(values - expected).max()
            warnings.warn(f"{table.source}: column {name} differs from its formula by up to {worst:.2g}", stacklevel=2)
    return rows


def _refuse_difference(table: ClassTable, what: str, got: NDArray[Any], wanted: NDArray[Any]) -> None:
    differ = np.flatnonzero(got != wanted)
    if len(differ):
        row = differ[0]
        raise UserError(
            f"the class table has another {what} than the data set",
            where=f"{table.source}: class {row}",
            got=f"{got[row]} ({len(differ)} classes differ)",
            allowed=f"{wanted[row]}",
            fix="use the table of this training file, in its class order, or leave `table` out to compute the weights",
        )
