"""Calibrators without training through the stages: options chosen on images, one after another, exported, reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from ltpipe.config.checks import check_experiment
from ltpipe.config.experiment import Experiment
from ltpipe.data.calibration_rows import FeaturePlan
from ltpipe.data.holdout import load_holdout
from ltpipe.data.store import AnnotationStore
from ltpipe.errors import UserError
from ltpipe.interop.export import export_model
from ltpipe.metrics.predictions import Predictions
from ltpipe.metrics.table import flatten
from ltpipe.pipeline.paths import Paths
from tests.helpers.found_objects import annotate_with
from tests.helpers.tiny_project import experiment, rewritten, run_stages, state_of

GAMMAS = [0.0, 0.4, 0.8, 1.6]
CALIBRATORS: dict[str, dict[str, Any]] = {
    "simcal": {"type": "simcal", "head": "cls_ft", "schedule": {"iterations": 2}, "choose": {"metric": "AP50"}},
    "norcal": {"type": "norcal", "choose": {"metric": "AP50", "values": {"gamma": GAMMAS}}},
    "on_val": {
        "type": "norcal",
        "choose": {"on": "val", "metric": "AP50", "iou_type": "segm", "values": {"gamma": GAMMAS}},
    },
    "fracal": {"type": "fracal"},
    "tau_norm": {"type": "tau_norm"},
    "logn": {"type": "logn", "schedule": {"epochs": 1}, "choose": {"values": {"shrink": [0.0, 0.5]}}},
    "disalign": {"type": "disalign", "schedule": {"iterations": 3, "momentum": 0.9}},
    "both": {"type": "logit_adjustment", "after": "norcal"},
}


Changed = Callable[..., Experiment]


def changed(project: Path, dataset: dict[str, Any] | None = None, **calibrators: dict[str, Any]) -> Experiment:
    """The experiment with these calibrators, and perhaps with other annotations."""
    return experiment(
        project,
        dataset=dataset or {},
        name="chosen",
        split=None,
        lst=None,
        model={"classifier": {"type": "linear"}},
        base={"schedule": {"lr": 0.05, "iterations": 8}},
        holdout={"images_per_class": 2, "largest_share": 0.4},
        features={"level": "last", "draw": "images", "bg_ratio": None, "neg_iou_min": 0.0, "dtype": "float32"},
        calibrate={"simcal": CALIBRATORS["simcal"], **calibrators},
        evaluate={"score_threshold": 0.0},
    )


@pytest.fixture(scope="module")
def made(project: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Changed, Experiment, Paths]:
    """All calibrators, measured on objects that the detector finds, and what makes the experiment with others."""
    folder = tmp_path_factory.mktemp("chosen")
    paths = run_stages(changed(project), folder / "results", "index", "split", "base", ("evaluate", "base"))
    found = [Predictions.open(paths.predictions("base"))]

    def annotate(part: str, content: dict[str, Any]) -> None:
        if part == "val":
            annotate_with(found, content, [category["id"] for category in content["categories"]])

    make = partial(changed, project, rewritten(project, folder / "found", annotate))
    exp = make(**CALIBRATORS)
    check_experiment(exp)
    stages = [("calibrate", name) for name in CALIBRATORS]
    return make, exp, run_stages(exp, paths.results, "index", "features", *stages)


def test_nothing_is_trained_on_the_images_that_decide(made: tuple[Changed, Experiment, Paths]) -> None:
    _, exp, paths = made
    store, held = AnnotationStore.open(paths.store("train")), load_holdout(paths.holdout)
    assert 0 < len(held) < 0.4 * len(store.image_ids)
    plan = FeaturePlan.load(paths.plan)
    assert not np.isin(store.image_ids[plan.image_row], held).any()
    assert "holdout.npz" in paths.config("base").read_text()
    notes = json.loads(paths.record("calibrate", "norcal").read_text())
    assert notes["chosen_on"] == f"{len(held)} images: training images that nothing was trained on"


@pytest.mark.parametrize("name", ["norcal", "logn", "simcal", "on_val"])
def test_the_best_value_is_kept(made: tuple[Changed, Experiment, Paths], name: str) -> None:
    _, exp, paths = made
    table, choose = pd.read_csv(paths.choice(name)), exp.calibrate[name].choose
    assert choose is not None
    option = next(iter(choose.values), "threshold")
    best = table.sort_values(choose.metric, ascending=False, kind="stable").iloc[0]
    chosen = table[table["configured"]].iloc[0]
    assert chosen[choose.metric] == best[choose.metric] and len(table) == table[option].nunique() > 1
    assert name != "on_val" or table["AP50"].nunique() > 1
    assert set(table["images"]) == {"val" if name == "on_val" else "holdout"}
    notes = json.loads(paths.record("calibrate", name).read_text())
    assert notes["chosen"] == {option: chosen[option]}
    if name == "norcal":
        offset = state_of(paths.model(name))["roi_head.bbox_head.loss_cls.offset"]
        images = pd.read_csv(paths.statistics("train")).sort_values("instance_count", kind="stable")["image_count"]
        expected = np.sort(-chosen[option] * np.log(images))
        np.testing.assert_allclose(np.sort(offset.numpy()), expected, rtol=1e-5, atol=1e-7)


def test_values_from_one_run_equal_runs_of_their_own(
    made: tuple[Changed, Experiment, Paths],
) -> None:
    """Masks as well; the value that was chosen, and another one."""
    make, _, paths = made
    table = pd.read_csv(paths.choice("on_val")).set_index("gamma")
    chosen = float(table.index[table["configured"]][0])
    other = next(gamma for gamma in GAMMAS if gamma != chosen)
    exp = make(on_val=CALIBRATORS["on_val"], fixed={"type": "norcal", "gamma": other})
    run_stages(exp, paths.results, ("calibrate", "fixed"), ("evaluate", "on_val"), ("evaluate", "fixed"))
    for name, gamma in (("on_val", chosen), ("fixed", other)):
        expected = flatten(json.loads(paths.metrics(name).read_text())["segm"])
        shared = [key for key in expected if key in table]
        assert {"AP", "AP50", "APr", "APc", "APf", "bAP"} <= set(shared)
        for key in shared:
            value, found = expected[key], table.loc[gamma, key]
            assert (value is None and np.isnan(found)) or found == pytest.approx(value, abs=1e-9), key


def test_one_after_another_and_to_mmdet(made: tuple[Changed, Experiment, Paths], tmp_path: Path) -> None:
    _, exp, paths = made
    offsets = {name: state_of(paths.model(name)) for name in ("norcal", "both")}
    inner = "roi_head.bbox_head.loss_cls.loss.offset"
    assert torch.equal(offsets["both"][inner], offsets["norcal"]["roi_head.bbox_head.loss_cls.offset"])
    for name in ("both", "logn", "tau_norm", "fracal"):
        assert "plain mmdet" in export_model(exp, paths, name, tmp_path / name, plain=True)
    with pytest.raises(UserError, match="mmdet alone cannot run"):
        export_model(exp, paths, "disalign", tmp_path / "disalign", plain=True)


def test_the_report_says_what_was_chosen_and_where(made: tuple[Changed, Experiment, Paths]) -> None:
    make, _, paths = made
    exp = make(norcal=CALIBRATORS["norcal"], on_val=CALIBRATORS["on_val"])
    stages = [("evaluate", name) for name in ("base", "simcal", "norcal", "on_val")]
    run_stages(exp, paths.results, *stages, "report")
    text = paths.report.read_text(encoding="utf-8")
    assert "What was chosen, and on which images" in text and "(chosen)" in text
    assert "on training images that nothing was trained on" in text and "its numbers are too good" in text
    marked = pd.read_csv(paths.summary).set_index("checkpoint")["chosen_here"]
    assert marked["on_val"].all() and not marked.drop("on_val").any()
    assert "on_val \u2020</t" in text and "norcal \u2020" not in text
    assert (paths.figures / "choice_chosen_norcal_bbox.png").is_file()


@pytest.mark.parametrize(
    ("calibrator", "words"),
    [
        ({"type": "crt", "choose": {}}, "cannot be chosen from one run"),
        ({"type": "norcal", "choose": {"values": {"beta": [0.1, 0.2]}}}, "cannot be chosen from one run"),
        ({"type": "norcal", "choose": {"values": {"gamma": [0.1]}}}, "nothing to choose from"),
        ({"type": "logn", "after": "first"}, "only a calibrator that is computed"),
        ({"type": "norcal", "after": "second"}, "they name each other"),
        ({"type": "norcal", "after": "simcal"}, "not one classifier"),
    ],
)
def test_what_cannot_be_chosen(project: Path, calibrator: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_experiment(changed(project, first={"type": "norcal"}, second=calibrator))
