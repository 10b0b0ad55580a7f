"""Calibration of the chain's last phase: what is stored, seeds side by side, modes and thresholds from one run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch

from ltpipe.config.experiment import Experiment
from ltpipe.data.calibration_rows import FeaturePlan
from ltpipe.engine import features
from ltpipe.engine.frozen_detector import FrozenDetector
from ltpipe.errors import UserError
from ltpipe.metrics.predictions import Predictions
from ltpipe.metrics.table import flatten
from ltpipe.pipeline.paths import Paths
from tests.helpers.tiny_project import experiment, run_stages, state_of

if TYPE_CHECKING:
    from conftest import Chain

SCHEDULE = {"iterations": 6, "lr": 0.02}


@pytest.mark.parametrize(("level", "head", "width"), [("fc1", "3fc_ft_freeze1", 24), ("last", "cls_ft", 24)])
def test_activations_can_be_stored_instead(chain: Chain, tmp_path: Path, level: str, head: str, width: int) -> None:
    """The classifier is cosine, which reads the last layer before its ReLU."""
    weights = []
    for stored in ("roi", level):
        calibrate = {"simcal": {"type": "simcal", "head": head, "threshold": 6, "schedule": SCHEDULE}}
        exp = experiment(chain.folder, features={"level": stored, "dtype": "float32"}, calibrate=calibrate)
        paths = chain.copy(tmp_path / stored, exp)
        run_stages(exp, paths.results, "features", ("calibrate", "simcal"))
        shape = np.load(paths.features, mmap_mode="r").shape
        assert shape[1:] == ((16, 7, 7) if stored == "roi" else (width,))
        weights.append(state_of(paths.model("simcal")))
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-4, atol=1e-5)


def test_a_full_disk_is_noticed_before_the_proposals(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = chain.copy(tmp_path)
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    monkeypatch.setattr(FrozenDetector, "proposals", lambda *_: pytest.fail("the detector ran"))
    with pytest.raises(UserError, match="do not fit on the disk"):
        run_stages(chain.exp, paths.results, "features")
    assert " to " in capsys.readouterr().out


def test_bags_in_both_scopes_on_ordinary_mini_batches(chain: Chain, tmp_path: Path) -> None:
    """Images are drawn instead of classes; live and stored features train the same box head; the rest stays."""
    scopes = {"classifier": {}, "head": {"trained": "box_head"}}
    calibrate = {name: {"type": "bags", "schedule": SCHEDULE, **own} for name, own in scopes.items()}
    states = {}
    for storage in ("cached", "none"):
        plan = {"draw": "images", "bg_ratio": None, "neg_iou_min": 0.0, "storage": storage, "dtype": "float32"}
        exp = experiment(chain.folder, features=plan, calibrate=calibrate)
        paths = chain.copy(tmp_path / storage, exp)
        run_stages(exp, paths.results, "features", ("calibrate", "classifier"), ("calibrate", "head"))
        states[storage] = {name: state_of(paths.model(name)) for name in scopes}
    drawn, before = FeaturePlan.load(paths.plan), state_of(paths.model("phase2"))
    assert len(drawn.samples) == 4 * 3 <= len(drawn.rows) and len(set(drawn.labels.tolist())) > 4
    for name, trained in (
        ("classifier", ("fc_cls", "loss_cls")),
        ("head", ("shared_fcs", "fc_reg", "fc_cls", "loss_cls")),
    ):
        state = states["cached"][name]
        changed = {
            k for k in before.keys() | state if k not in before or k not in state or not same(state[k], before[k])
        }
        assert {key.removeprefix("roi_head.bbox_head.").split(".")[0] for key in changed} == set(trained)
        for key, value in states["none"][name].items():
            torch.testing.assert_close(state[key], value, rtol=1e-4, atol=1e-5)
    run_stages(exp, paths.results, ("evaluate", "head"))


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.shape == second.shape and torch.equal(first, second)


def test_seeds_and_rates_side_by_side(chain: Chain, tmp_path: Path) -> None:
    """Three heads from the same features; equal settings give equal heads, the experiment's seed is 0."""
    settings: dict[str, dict[str, Any]] = {"simcal": {"seed": 0}, "same": {}, "other": {"seed": 1}}
    settings["fast"] = {"schedule": {"iterations": 6, "lr": 0.5}}
    common = {"type": "simcal", "head": "3fc_rand", "threshold": 6, "schedule": SCHEDULE}
    exp = experiment(chain.folder, calibrate={name: {**common, **own} for name, own in settings.items()})
    paths = chain.copy(tmp_path, exp)
    run_stages(exp, paths.results, *(("calibrate", name) for name in settings))
    heads = {name: state_of(paths.model(name))["roi_head.calibrator.fc1.weight"] for name in settings}
    assert torch.equal(heads["simcal"], heads["same"])
    assert not torch.allclose(heads["simcal"], heads["other"], atol=1e-2)
    assert not torch.equal(heads["simcal"], heads["fast"])
    assert json.loads(paths.record("calibrate", "other").read_text())["seed"] == 1


@pytest.fixture
def swept(chain: Chain, tmp_path: Path) -> tuple[Experiment, Paths]:
    """A head far from the detector, evaluated in several ways."""
    calibrate = {"simcal": {"head": "3fc_rand", "schedule": {"iterations": 6, "lr": 0.2}}}
    exp = experiment(
        chain.folder,
        calibrate=calibrate,
        evaluate={"modes": ["base", "cal"], "thresholds": [0, 6, 10**6], "score_threshold": 0.0},
    )
    paths = chain.copy(tmp_path, exp)
    run_stages(exp, paths.results, ("calibrate", "simcal"), ("evaluate", "phase2"), ("evaluate", "simcal"))
    return exp, paths


def test_modes_from_one_run_equal_runs_of_their_own(swept: tuple[Experiment, Paths], chain: Chain) -> None:
    exp, paths = swept
    table = pd.read_csv(paths.sweep("simcal"))
    assert len(table) == 2 * 5 and not paths.sweep("phase2").exists()
    assert set(json.loads(paths.record("evaluate", "simcal").read_text())["outputs"]) >= {"sweep.csv", "metrics.json"}
    rows = {(m, t): part for (m, t), part in table.fillna({"threshold": -1}).groupby(["mode", "threshold"])}
    same_numbers(rows["base", -1], paths.metrics("phase2"))
    same_numbers(rows["dual", 0], paths.metrics("phase2"))
    same_numbers(rows["dual", 6], paths.metrics("simcal"))
    assert rows["dual", 6]["configured"].all() and not rows["cal", -1]["configured"].any()
    # Alone, in another mode, and without the sweep.
    together = Predictions.open(paths.predictions("simcal"))
    for options, row in (({"mode": "cal"}, ("cal", -1)), ({}, ("dual", 6))):
        head = {"head": "3fc_rand", "schedule": {"iterations": 6, "lr": 0.2}, **options}
        alone = experiment(chain.folder, calibrate={"simcal": head}, evaluate={"score_threshold": 0.0})
        run_stages(alone, paths.results, ("calibrate", "simcal"), ("evaluate", "simcal"))
        same_numbers(rows[row], paths.metrics("simcal"))
        assert not paths.sweep("simcal").exists()
    found = Predictions.open(paths.predictions("simcal"))
    for name in ("image_ids", "category_ids", "scores", "boxes"):
        assert np.array_equal(getattr(found, name), getattr(together, name)), name


def same_numbers(rows: pd.DataFrame, metrics: Path) -> None:
    """Compare rows of a sweep with ``metrics.json``."""
    expected = json.loads(metrics.read_text())
    assert set(rows["iou_type"]) == set(expected) == {"bbox", "segm"}
    for row in rows.to_dict("records"):
        for name, value in flatten(expected[row["iou_type"]]).items():
            assert (np.isnan(row[name]) and value is None) or row[name] == pytest.approx(value, abs=1e-12), name


def test_the_report_shows_the_sweep(swept: tuple[Experiment, Paths]) -> None:
    exp, paths = swept
    only = exp.model_copy(update={"evaluate": exp.evaluate.model_copy(update={"checkpoints": ("phase2", "simcal")})})
    run_stages(only, paths.results, "report")
    text = paths.report.read_text(encoding="utf-8")
    assert "cal: calibrated head alone" in text and "dual: both, by instance count (in use)" in text
    assert (paths.figures / "sweep_tiny_simcal_bbox.png").is_file()


def test_labels_of_the_ground_truth(chain: Chain, tmp_path: Path) -> None:
    """Every detection has score 1, and its class is that of an object in the image."""
    exp = experiment(chain.folder, evaluate={"oracle_labels": True})
    paths = chain.copy(tmp_path, exp)
    run_stages(exp, paths.results, ("evaluate", "phase2"))
    found = Predictions.open(paths.predictions("phase2"))
    assert len(found) > 0 and set(np.unique(found.scores)) == {1.0}
    truth = json.loads((chain.folder / "data" / "val.json").read_text())
    present = {(a["image_id"], a["category_id"]) for a in truth["annotations"]}
    assert set(zip(found.image_ids.tolist(), found.category_ids.tolist(), strict=True)) <= present
