"""The table of methods and kinds of detectors says what the checks say, and stands in the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ltpipe.config import catalogue
from ltpipe.config.families import FAMILIES, as_text, refusal

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "detectors.md"
BLOCK = re.compile(r"(<!-- methods and detectors -->\n)(.*?)(<!-- end of methods and detectors -->)", re.DOTALL)


def generated() -> str:
    """The table, a line for all methods of a slot that work with the same detectors."""
    rows, reasons = as_text()
    merged: dict[tuple[str, ...], list[str]] = {}
    for slot, name, *cells in rows[1:]:
        merged.setdefault((slot, *cells), []).append(f"`{name}`")
    lines = ["", f"| slot | methods | {' | '.join(FAMILIES)} |", "|---" * (len(FAMILIES) + 2) + "|"]
    lines += [f"| {slot} | {', '.join(names)} | {' | '.join(cells)} |" for (slot, *cells), names in merged.items()]
    lines += ["", *(f"- no {number}: {reason}." for number, reason in enumerate(reasons, 1)), "", ""]
    return "\n".join(lines)


def test_the_table_in_the_guide_is_what_the_checks_say(request: pytest.FixtureRequest) -> None:
    text, table = GUIDE.read_text(encoding="utf-8"), generated()
    found = BLOCK.search(text)
    assert found is not None
    if request.config.getoption("--fix"):
        GUIDE.write_text(text.replace(found[0], found[1] + table + found[3]), encoding="utf-8")
        return
    assert found[2] == table, "pytest tests/config/test_families.py --fix writes it anew"
    assert all(f"`{name}`" in table for name in catalogue.names("loss"))


def test_what_is_known() -> None:
    assert refusal("loss", "eql", "RetinaNet") is None and refusal("sampler", "repeat_factor", "DINO") is None
    assert "background" in str(refusal("loss", "seesaw", "RetinaNet"))
    assert "one output for all" in str(refusal("part", "crat", "cascade"))
    assert "RoI head" in str(refusal("calibrator", "simcal", "RTMDet-Ins"))
