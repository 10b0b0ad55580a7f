"""Estimates of ``ltpipe recipes`` against hand computations."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltpipe.cli import main
from ltpipe.config.detector import resolve_detector
from ltpipe.config.loading import list_experiments, load_experiment
from ltpipe.pipeline.recipes import phase_length, recipes

ROOT = Path(__file__).parents[2]
FIGURES = {
    "detectors": {"mask R-50": {"images_per_second": 10, "gpu_gb": 5, "checkpoint_gb": 2}},
    "datasets": {
        "lvis_v1": {"images": 16000, "repeated": 32000},
        "lvis_v0.5": {"images": 16000, "repeated": 32000},
    },
    "rois_per_slot": 10,
}


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in the repository's root."""
    monkeypatch.chdir(ROOT)


def test_hours_and_disk() -> None:
    plain, repeated, simcal = recipes(["lvis_v1_softmax_1x", "lvis_v1_rfs_1x", "lvis_v05_simcal"], FIGURES)
    checkpoints = load_experiment("lvis_v05_simcal").checkpoints()
    assert plain.hours == pytest.approx(12 * 16000 / 10 / 3600) and plain.disk_gb == 2
    assert repeated.hours == pytest.approx(2 * 12 * 16000 / 10 / 3600)
    assert simcal.disk_gb == pytest.approx(2 * len(checkpoints) + 12000 * 16 * 10 * 256 * 49 * 2 / 1e9)
    assert "base segm AP 16.1" in plain.published


def test_backbones_are_read_from_the_detector_files() -> None:
    names = {"mask_rcnn_r50_fpn_ms": "R-50", "mask_rcnn_r101_fpn_ms": "R-101", "mask_rcnn_x101_fpn_ms": "X-101"}
    for file, name in names.items():
        assert resolve_detector(f"configs/detectors/{file}.py").backbone == name


def test_phases_have_the_lengths_of_the_published_lists() -> None:
    """LST on LVIS v0.5: 16352 + 25150 pairs in phase 1 and so on, 263 + 1334 in phase 6."""
    exp = load_experiment("lvis_v05_lst")
    expected = [16352 + 25150, 6514 + 14109, 3283 + 9184, 1688 + 5955, 744 + 2997, 263 + 1334]
    found = [phase_length(exp, phase) for phase in range(1, 7)]
    assert found == pytest.approx(expected, rel=2e-3)


def test_every_experiment_with_numbers_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    text = capsys.readouterr().out
    for name in list_experiments():
        if load_experiment(name).report.expected:
            assert name in text
    lvis = [line for line in text.splitlines() if line.startswith(("lvis_", "coco_lt"))]
    assert lvis and not any(" ? " in line for line in lvis)
