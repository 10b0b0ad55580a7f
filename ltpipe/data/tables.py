"""CSV tables with class names. Names are text: ``None``, ``NA``, ``01`` or ``1e3`` are names like any other."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd

from ltpipe.errors import UserError
from ltpipe.run.files import atomic_path

TEXT = ("name", "names", "neighbour", "experiment", "checkpoint", "meant", "taken_for", "from", "to")
"""Columns that are read as they stand; in all others an empty cell is a missing value."""


def read_csv(path: str | Path, **types: str) -> pd.DataFrame:
    """Read a table.

    Args:
        path: The file.
        **types: pandas types of columns whose values do not show them.

    Raises:
        UserError: It is missing or no table.
    """
    try:
        columns = pd.read_csv(path, nrows=0).columns
        text = {column: "str" for column in columns if column in TEXT}
        missing = {column: [""] for column in columns if column not in TEXT}
        return pd.read_csv(path, dtype={**types, **text}, keep_default_na=False, na_values=missing)
    except (OSError, ValueError) as error:
        raise UserError("cannot read the table", where=path, got=error, allowed="a CSV file with a header") from error


def write_csv(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table without its index, atomically."""
    # A carriage return is not quoted by itself, and ends a line when it is read.
    returns = any(table[column].astype(str).str.contains("\r").any() for column in table.columns if column in TEXT)
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, quoting=csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL)
