"""Class names that look like something else travel unchanged through the real commands."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
import torch
from mmengine.config import Config
from tiny_project import experiment, rewritten, run_stages

from ltpipe.cli import main
from ltpipe.errors import UserError
from ltpipe.evaluation.report import Evaluation
from ltpipe.stages import report

if TYPE_CHECKING:
    from conftest import Chain

NAMES = ["None", "NA", "null", "01", "1e3", "nan", "True", '-, "x"', "  lead"]


AFTER = [("calibrate", "simcal"), ("evaluate", "base"), ("evaluate", "simcal")]


def test_names_that_look_like_something_else(chain: Chain, tmp_path: Path) -> None:
    def rename(part: str, content: dict[str, Any]) -> None:
        for category, name in zip(content["categories"], NAMES, strict=True):
            category["name"] = name

    exp = experiment(
        chain.folder,
        name="named",
        dataset={"name": "named", **rewritten(chain.folder, tmp_path / "data", rename)},
        split=None,
        lst=None,
        model={"classifier": {"type": "linear"}, "loss": {"type": "iif"}},
    )
    results = tmp_path / "results"
    paths = run_stages(exp, results, "index", "split", "base", "features", *AFTER, "report")
    for file, column in ((paths.statistics(), "name"), (paths.per_class("base"), "name")):
        with file.open(encoding="utf-8", newline="") as handle:
            assert {row[column] for row in csv.DictReader(handle)} == set(NAMES)
    arguments = ["--results", str(results), "--checkpoint", "base", "--output", str(tmp_path / "out")]
    assert main(["export", str(exp.file), *arguments]) == 0
    meta = torch.load(tmp_path / "out" / "model.pth", weights_only=True)["meta"]
    assert list(meta["dataset_meta"]["classes"]) == NAMES
    config = Config.fromfile(str(tmp_path / "out" / "config.py"))
    assert list(config.test_dataloader.dataset.metainfo.classes) == NAMES
    # An untrained detector gains and loses nothing, so the page lists no class; this is what it is made from.
    assert [set(one.per_class["name"]) for one in report.evaluations(exp, paths)] == [set(NAMES)] * 4


def test_a_report_compares_the_same_classes_only(chain: Chain) -> None:
    def evaluated(experiment: str, ids: list[int], names: list[str]) -> Evaluation:
        return Evaluation(experiment, "base", {}, pd.DataFrame({"category_id": ids, "name": names, "AP": 0.5}))

    whole = evaluated("one", [3, 7, 9], ["None", "01", "cat"])
    # Phases know fewer classes; tables are in the order of the ids.
    report.same_classes(chain.exp, [evaluated("one", [7, 9], ["01", "cat"]), whole])
    report.same_classes(chain.exp, [])
    for ids, names, words in (
        ([3, 7, 9], ["None", "cat", "01"], "id 7 is '01' in one/base, 'cat' in two/base"),
        ([1, 2], ["None", "01"], "'None' has id 3 in one/base, 1 in two/base"),
        ([100, 101], ["a", "b"], r"'a' \(id 100\) is not in one/base"),
    ):
        with pytest.raises(UserError, match=words):
            report.same_classes(chain.exp, [whole, evaluated("two", ids, names)])
