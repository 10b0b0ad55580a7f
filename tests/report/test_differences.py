"""Checkpoints compared on the same draws of the images: what may be chance is called so wherever two are compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ltpipe.metrics.resamples import RESAMPLED, Resamples
from ltpipe.report.build import Evaluation, build_report
from ltpipe.report.differences import differences_table, pairs
from tests.report.test_report import evaluation

LUCK = np.linspace(-0.05, 0.05, 1000)


def drawn(experiment: str, checkpoint: str, level: float, own: float = 0.0, known: int = 12) -> Evaluation:
    """Return a checkpoint; images move all its numbers by up to 0.05, in common with others, and ``own`` times so."""
    one = evaluation(experiment, checkpoint, level, known=known)
    values = level + LUCK + own * LUCK[::-1]
    return replace(one, resamples=Resamples(dict.fromkeys(RESAMPLED, values), "images"))


def test_differences(tmp_path: Path) -> None:
    shown = [drawn("one", "base", 0.20), drawn("one", "crt", 0.22), drawn("one", "simcal", 0.23, own=2.0)]
    table = differences_table(shown).set_index(["from", "to", "metric"])
    sure, unsure = table.loc[("base", "crt", "AP")], table.loc[("base", "simcal", "AP")]
    assert sure[["difference", "low", "high", "in_favour"]].tolist() == pytest.approx([0.02, 0.02, 0.02, 1.0])
    assert (sure["verdict"], unsure["verdict"]) == ("gain", "within its interval")
    assert (unsure["low"], unsure["high"]) == pytest.approx((0.03 - 0.095, 0.03 + 0.095))
    assert 0.5 < unsure["in_favour"] < 0.9 and len(table) == 3 * len(RESAMPLED)
    text = build_report(tmp_path, shown, title="one")[0].read_text(encoding="utf-8")
    assert pd.read_csv(tmp_path / "differences.csv")["verdict"].tolist() == table["verdict"].tolist()
    section = text[text.index('id="differences"') : text.index('id="bins"')]
    assert '<span class="good">+2.0</span> <small>gain<br>+2.0 to +2.0, 100 %</small>' in section
    assert "+3.0 <small>within its interval<br>−6.5 to +12.5" in section
    brief = text[text.index('id="brief"') : text.index('id="differences"')]
    assert "crt gains +2.0 AP (APr +2.0, APc +2.0, APf +2.0) over base (95 % interval of AP +2.0 to +2.0)." in brief
    assert (
        "simcal has +3.0 AP" in brief and "(95 % interval of AP −6.5 to +12.5, within which it may be chance)." in brief
    )
    plain = build_report(
        tmp_path / "plain", [evaluation("one", "base", 0.2), evaluation("one", "crt", 0.3)], title="one"
    )
    assert 'id="differences"' not in plain[0].read_text(encoding="utf-8")
    assert not (tmp_path / "plain" / "differences.csv").exists()


def test_who_is_compared() -> None:
    """Complete checkpoints of an experiment, and across experiments those of one name."""
    first = [drawn("one", "base", 0.2, known=4), drawn("one", "phase1", 0.3), drawn("one", "crt", 0.3)]
    second = [drawn("two", "base", 0.2), drawn("two", "crt", 0.3), evaluation("two", "simcal", 0.3)]
    found = [(a.experiment, a.checkpoint, b.experiment, b.checkpoint) for a, b in pairs([*first, *second])]
    assert found == [("one", "phase1", "one", "crt"), ("two", "base", "two", "crt"), ("one", "crt", "two", "crt")]
    many = [drawn("one", f"c{number}", 0.3) for number in range(5)]
    steps = [(a.checkpoint, b.checkpoint) for a, b in pairs(many)]
    assert steps == [("c0", "c1"), ("c0", "c2"), ("c0", "c3"), ("c0", "c4"), ("c1", "c2"), ("c2", "c3"), ("c3", "c4")]
