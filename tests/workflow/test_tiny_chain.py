"""One chain through Snakemake with the real stages, on images of 64 pixels."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

from tests.helpers.workspace import Workspace

CHECKPOINTS = ["base", "phase1", "phase2", "simcal"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The finished chain of the experiment ``tiny``."""
    workspace = Workspace(tmp_path_factory.mktemp("tiny"), stub=False)
    workspace.snakemake("all", "--profile", "workflow/profiles/ci", "--config", "experiments=tiny")
    return workspace


def record(workspace: Workspace, stage: str) -> dict[str, object]:
    """Record of a stage."""
    content: dict[str, object] = json.loads((workspace.folder / "results/tiny" / stage / "stage.json").read_text())
    return content


@pytest.mark.timeout(1200)
def test_every_stage_is_recorded(tiny: Workspace) -> None:
    stages = [
        "validate",
        "split",
        "split/phase1",
        "base",
        "distill/phase1",
        "lst/phase2",
        "features",
        "calibrate/simcal",
    ]
    for stage in [*stages, *(f"evaluate/{checkpoint}" for checkpoint in CHECKPOINTS), "report"]:
        found = record(tiny, stage)
        assert {"digest", "inputs", "outputs", "seed", "versions", "device", "seconds"} <= set(found), stage
        folder = tiny.folder / "results/tiny" / stage
        assert all((folder / name).exists() for name in found["outputs"]), stage  # type: ignore[attr-defined]
        assert not (folder / "work").exists(), f"{stage} left its resume state"
    assert not list((tiny.folder / "results").rglob("*.part*"))


def test_nothing_is_left_to_do(tiny: Workspace) -> None:
    assert tiny.dry_run("all", "--config", "experiments=tiny") == {}


def test_the_lock_is_the_experiment(tiny: Workspace) -> None:
    lock = yaml.safe_load((tiny.folder / "results/tiny/experiment.lock.yaml").read_text())
    assert lock["calibrate"]["simcal"]["head"] == "3fc_ft" and lock["dataset"]["generate"]["num_classes"] == 9


def test_metrics_and_tables(tiny: Workspace) -> None:
    for checkpoint, classes in zip(CHECKPOINTS, (3, 6, 9, 9), strict=True):
        folder = tiny.folder / "results/tiny/evaluate" / checkpoint
        metrics = json.loads((folder / "metrics.json").read_text())
        assert set(metrics) == {"bbox", "segm"}
        for numbers in metrics.values():
            assert {"AP", "AP50", "AP75", "APr", "APc", "APf"} <= set(numbers)
        with open(folder / "per_class.csv", newline="", encoding="utf-8") as handle:
            rows = list(csv.DictReader(handle))
        assert len(rows) == 2 * classes, "boxes and masks of the classes that are known"
    report = tiny.folder / "results/tiny/report"
    assert "phase2" in (report / "report.html").read_text(encoding="utf-8")
    assert list((report / "figures").glob("*.png"))


def test_logs_show_progress(tiny: Workspace) -> None:
    log = (tiny.folder / "logs/tiny/base.log").read_text()
    assert "loss" in log and "eta" in log.lower()


def test_a_corrupt_checkpoint_is_one_clear_error(tiny: Workspace) -> None:
    model: Path = tiny.folder / "results/tiny/lst/phase2/model.pth"
    content = model.read_bytes()
    model.write_bytes(content[: len(content) // 2])
    try:
        text = tiny.ltpipe("evaluate", "--experiment", "tiny", "--checkpoint", "phase2", code=2)
    finally:
        model.write_bytes(content)
    assert "model.pth" in text and "Traceback" not in text
    assert (tiny.folder / "results/tiny/evaluate/phase1/metrics.json").exists()
