"""How alike the classes of a detector are: a table of neighbours and the matrix behind it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ltpipe.data.arrays import load_arrays, save_arrays
from ltpipe.data.tables import read_csv, write_csv
from ltpipe.metrics.table import COUNTS


@dataclass(frozen=True, eq=False)
class Affinity:
    """Likeness of the classes to one checkpoint.

    Attributes:
        experiment: Name of the experiment.
        checkpoint: Name of the checkpoint.
        table: What :func:`neighbours` returns.
        cosine: ``(K, K)`` float32, by frequency group and falling number of training images.
    """

    experiment: str
    checkpoint: str
    table: pd.DataFrame
    cosine: NDArray[np.float32]


def neighbours(
    nearest: NDArray[np.int64],
    similarity: NDArray[np.float32],
    effective: NDArray[np.float32],
    category_ids: NDArray[np.int64],
    classes: pd.DataFrame,
) -> pd.DataFrame:
    """Return one row per class and neighbour, best first; one row without a neighbour for classes that have none.

    Args:
        nearest: ``(K, n)`` labels, -1 for none.
        similarity: ``(K, n)`` their cosines.
        effective: ``(K,)`` number of classes that a RoI of the class gives to.
        category_ids: ``(K,)`` in label order.
        classes: Statistics of the training classes, in any order.
    """
    table = classes.set_index("category_id").loc[category_ids].reset_index().rename(columns=COUNTS)
    table = table[["category_id", "name", "frequency", "train_images", "train_instances"]].assign(effective=effective)
    label, place = np.nonzero(nearest >= 0)
    other = nearest[label, place]
    pairs = pd.DataFrame(
        {
            "label": label,
            "rank": place + 1,
            "neighbour_id": table["category_id"].to_numpy()[other],
            "neighbour": table["name"].to_numpy()[other],
            "neighbour_frequency": table["frequency"].to_numpy()[other],
            "cosine": similarity[label, place],
        }
    ).astype({"rank": "Int64", "neighbour_id": "Int64"})
    return (
        table.merge(pairs, left_index=True, right_on="label", how="left").drop(columns="label").reset_index(drop=True)
    )


def save_affinity(
    path: Path, table: pd.DataFrame, cosine: NDArray[np.float32], category_ids: NDArray[np.int64]
) -> None:
    """Write the table as CSV, and the matrix with the categories of its rows beside it as ``.npz``."""
    write_csv(path, table)
    save_arrays(path.with_suffix(".npz"), {"cosine": cosine, "category_ids": category_ids}, compressed=True)


def load_affinity(path: Path, experiment: str, checkpoint: str) -> Affinity:
    """Read what :func:`save_affinity` wrote."""
    table = read_csv(path, rank="Int64", neighbour_id="Int64")
    table["neighbour"] = table["neighbour"].where(table["rank"].notna())
    names, fix = ("cosine", "category_ids"), "evaluate the checkpoint again"
    arrays, _ = load_arrays(path.with_suffix(".npz"), names, kind="matrix of similar classes", fix=fix)
    cosine, category_ids = (arrays[name] for name in names)
    classes = table.drop_duplicates("category_id").set_index("category_id").loc[category_ids]
    groups = classes["frequency"].map({"f": 0, "c": 1, "r": 2})
    order = np.lexsort([-classes["train_images"].to_numpy(), groups.to_numpy()])
    return Affinity(experiment, checkpoint, table, cosine[np.ix_(order, order)])
