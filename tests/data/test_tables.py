"""Tables with class names: whatever a class is called, it is called the same after writing and reading."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ltpipe.data.tables import read_csv, write_csv
from ltpipe.errors import UserError

NAMES = [
    "None", "NA", "null", "nan", "NaN", "N/A", "<NA>", "", "-", "01", "1e3", "1_000", "0x10", "inf", "True", "false",
    "a,b", 'say "x"', "'q'", "  lead", "trail ", "#x", "a\nb", "a\rb", "a\r\nb", "a;b\tc", "é 漢 ß", "=1+1",
]  # fmt: skip


def frame() -> pd.DataFrame:
    n = len(NAMES)
    ap = np.linspace(0, 1, n) / 3
    ap[::3] = np.nan
    return pd.DataFrame({"category_id": np.arange(n) * 7, "name": NAMES, "neighbour": NAMES[::-1], "AP": ap})


def test_names_are_text(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", frame())
    found = read_csv(tmp_path / "t.csv")
    assert found["name"].tolist() == NAMES and found["neighbour"].tolist() == NAMES[::-1]
    assert found["category_id"].tolist() == frame()["category_id"].tolist() and found["category_id"].dtype.kind == "i"
    np.testing.assert_array_equal(found["AP"].to_numpy(float), frame()["AP"].to_numpy())


@pytest.mark.parametrize("names", [["01", "1e3"], ["True", "False"], ["NA", "NA"]])
def test_a_column_of_names_that_look_alike(tmp_path: Path, names: list[str]) -> None:
    write_csv(tmp_path / "t.csv", pd.DataFrame({"category_id": [1, 2], "name": names, "flag": [True, False]}))
    found = read_csv(tmp_path / "t.csv")
    assert found["name"].tolist() == names and found["flag"].tolist() == [True, False]


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('name,AP\n"a,1\n', encoding="utf-8")
    for file in (tmp_path / "t.csv", tmp_path / "none.csv"):
        with pytest.raises(UserError, match="cannot read the table"):
            read_csv(file)
