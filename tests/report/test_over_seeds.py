"""Means, intervals and paired differences over seeds, and their page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ltpipe.report.over_seeds import Measurement, mean_of, means_table, numbers_table, paired_table
from ltpipe.report.seeds_page import build_seeds_page


def measured(
    experiment: str, checkpoint: str, values: dict[int, float], classes: int = 9, **more: Any
) -> list[Measurement]:
    return [
        Measurement(
            experiment, seed, checkpoint, "val", "bbox", {"AP": ap, "APr": None, "evaluated_classes": classes}, **more
        )
        for seed, ap in values.items()
    ]


BASE, HEAD = {0: 0.20, 1: 0.24, 2: 0.22}, {0: 0.23, 1: 0.26, 2: 0.26}


def test_mean_and_interval_are_those_of_a_t_test() -> None:
    found = mean_of(list(BASE.values()))
    expected = stats.ttest_1samp(list(BASE.values()), 0).confidence_interval(0.95)
    assert (found.seeds, found.mean) == (3, pytest.approx(0.22)) and found.sd == pytest.approx(0.02)
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    alone = mean_of([0.5])
    assert alone[:2] == (1, 0.5) and all(np.isnan(alone[2:]))


def test_differences_are_paired_by_seed() -> None:
    numbers = numbers_table([*measured("toy", "base", BASE), *measured("toy", "head", HEAD)])
    (row,) = paired_table(numbers, ["AP", "APr"]).to_dict("records")
    expected = stats.ttest_rel(list(HEAD.values()), list(BASE.values()))
    assert (row["from"], row["to"], row["metric"], row["seeds"], row["in_favour"]) == ("base", "head", "AP", 3, 3)
    assert row["mean"] == pytest.approx(0.03)
    interval = expected.confidence_interval(0.95)
    assert (row["low"], row["high"]) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert row["verdict"] == "gain" and expected.pvalue < 0.05
    # Not paired the same numbers are no difference: the seeds spread more than the two differ.
    turned = numbers_table([*measured("toy", "base", BASE), *measured("toy", "head", {0: 0.26, 1: 0.23, 2: 0.26})])
    (row,) = paired_table(turned, ["AP"]).to_dict("records")
    assert row["verdict"] == "within its interval" and row["in_favour"] == 2


def test_what_is_compared() -> None:
    """Checkpoints that know all classes; across experiments those of one name, by the seeds that both have."""
    items = [*measured("toy", "base", BASE, classes=5), *measured("toy", "phase1", HEAD)]
    items += [*measured("other", "phase1", {1: 0.2, 2: 0.2, 7: 0.9}), *measured("single", "phase1", {0: 0.1})]
    found = paired_table(numbers_table(items), ["AP"])
    assert found[["from", "to", "seeds"]].to_numpy().tolist() == [["toy: phase1", "other: phase1", 2]]
    assert found["mean"].tolist() == [pytest.approx(-0.06)]
    means = means_table(numbers_table(items)).set_index(["experiment", "checkpoint"])
    assert means["seeds"].to_dict() == {
        ("toy", "base"): 3, ("toy", "phase1"): 3, ("other", "phase1"): 3, ("single", "phase1"): 1,
    }  # fmt: skip


def test_the_page(tmp_path: Path) -> None:
    items = [*measured("toy", "base", BASE), *measured("toy", "head", HEAD, chosen_here=True)]
    stages = [("toy.seed0", {"device": "cpu (2 cores)", "versions": {"torch": "2.9"}})]
    runs = {"toy.seed0": "../../toy.seed0/report/report.html"}
    files = build_seeds_page(tmp_path, items, title="toy", subtitle="", runs=runs, stages=stages)
    assert all(file.is_file() for file in files) and tmp_path / "figures" / "seeds_bbox.png" in files
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    half = stats.t.ppf(0.975, 2) * 2 / 3**0.5
    assert f"22.0 ± {half:.1f}" in page and "head †" in page and "3 of 3" in page and runs["toy.seed0"] in page
    assert "cpu (2 cores)" in page and "torch 2.9" in page
    assert pd.read_csv(tmp_path / "summary.csv")["mean"].tolist() == [pytest.approx(0.22), pytest.approx(0.25)]
