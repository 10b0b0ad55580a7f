"""Published numbers: the tables in ``configs/published``, one row per experiment, checkpoint and metric."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

from pydantic import ValidationError

from ltpipe.config.blocks import Expected
from ltpipe.errors import UserError

FOLDER = Path("configs") / "published"


def published(name: str, folder: Path = FOLDER) -> tuple[Expected, ...]:
    """Return the published numbers of an experiment, in the order of the tables.

    Args:
        name: Name of the experiment.
        folder: Folder of CSV files with the columns ``experiment`` and those of
            :class:`~ltpipe.config.blocks.Expected`.

    Raises:
        UserError: A table lacks a column, or a row does not say a number.
    """
    files = tuple((file, file.stat().st_mtime_ns) for file in sorted(folder.glob("*.csv")))
    return _tables(files).get(name, ())


@cache
def _tables(files: tuple[tuple[Path, int], ...]) -> dict[str, tuple[Expected, ...]]:
    found: dict[str, tuple[Expected, ...]] = {}
    wanted = ["experiment", *Expected.model_fields]
    for file, _ in files:
        with open(file, newline="", encoding="utf-8") as handle:
            rows = csv.DictReader(handle)
            if sorted(rows.fieldnames or ()) != sorted(wanted):
                raise UserError("wrong columns", where=file, got=rows.fieldnames, allowed=wanted)
            for row in rows:
                if None in row:
                    raise UserError(
                        "too many columns", where=f"{file}:{rows.line_num}", got=row[None], fix="quote commas"
                    )
                name = row.pop("experiment")
                try:
                    number = Expected.model_validate(row)
                except ValidationError as error:
                    wrong = error.errors()[0]
                    here = f"{file}:{rows.line_num}: {wrong['loc'][0]}"
                    raise UserError("not a published number", where=here, got=wrong["input"]) from error
                found[name] = (*found.get(name, ()), number)
    return found
