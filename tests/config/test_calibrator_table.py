"""The generated table of calibrators in the docs is the one of today."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltpipe.config.calibrator_table import PAGE, calibrator_table, page_with_table

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_current(request: pytest.FixtureRequest) -> None:
    page = ROOT / PAGE
    text = page.read_text(encoding="utf-8")
    if request.config.getoption("--fix"):
        page.write_text(page_with_table(text), encoding="utf-8")
    assert page.read_text(encoding="utf-8") == page_with_table(text), "renew it: pytest tests/config --fix"


def test_what_it_says() -> None:
    rows = {line.split("|")[1].strip(): line for line in calibrator_table().splitlines()[2:]}
    assert rows["`norcal`"].split("|")[2:7] == [
        " a logit per class ", " images per class ", " - ", " computed ", " `gamma` ",
    ]  # fmt: skip
    assert "boxes" in rows["`fracal`"] and "one pass" in rows["`logn`"] and "SGD" in rows["`disalign`"]
    assert "softmax cross entropy" in rows["`disalign`"] and "linear classifier" in rows["`tau_norm`"]
