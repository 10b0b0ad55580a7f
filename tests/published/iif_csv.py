"""Class tables of kostas1515/iif, written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ltpipe.data.tables import write_csv
from ltpipe.errors import UserError
from ltpipe.methods.iif.class_tables import COLUMNS, IMAGES, INSTANCES, ClassTable, Layout, column_name
from ltpipe.methods.iif.weights import FORMULAS, iif_weights


def table_from_counts(
    image_counts: Sequence[int],
    instance_counts: Sequence[int],
    num_images: int,
    names: Sequence[str] | None = None,
) -> ClassTable:
    """Compute a table with all 14 columns.

    Args:
        image_counts: ``(K,)`` training images per class.
        instance_counts: ``(K,)`` training instances per class.
        num_images: Images in the annotation file, annotated or not.
        names: Class names.
    """
    images, instances = np.asarray(image_counts, np.int64), np.asarray(instance_counts, np.int64)
    weights = {}
    for variant in FORMULAS:
        weights[column_name(variant, "image")] = iif_weights(images, num_images, variant)
        weights[column_name(variant, "instance")] = iif_weights(instances, int(instances.sum()), variant)
    return ClassTable(images, instances, weights, None if names is None else list(names))


def write_table(path: str | Path, table: ClassTable, layout: Layout = "lvis") -> None:
    """Write a class table, atomically.

    Args:
        path: The CSV file.
        table: The table; ``coco`` and ``elab`` write its names (or the row numbers).
        layout: See the module.

    Raises:
        UserError: The table lacks a column of the layout.
    """
    size = len(table.image_counts)
    values: dict[str, Any] = {**table.weights, IMAGES: table.image_counts, INSTANCES: table.instance_counts}
    values |= {name: np.arange(size) for name in ("class", "", "Unnamed: 0")}
    values["names"] = np.asarray(table.names if table.names is not None else np.arange(size), object)
    lacking = [name for name in COLUMNS[layout] if name not in values]
    if lacking:
        raise UserError(f"the class table cannot be written in layout {layout}", where=path, got=f"no {lacking[0]}")
    frame = pd.DataFrame({name: values[name] for name in COLUMNS[layout]})
    if layout != "elab":
        count = 0 if layout == "lvis" else 1
        first: dict[str, Any] = {**dict.fromkeys(COLUMNS[layout], 1), IMAGES: count, INSTANCES: count, "class": -1}
        frame = pd.concat([pd.DataFrame([first])[COLUMNS[layout]].astype(object), frame.astype(object)])
    write_csv(path, frame)
