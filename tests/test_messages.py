"""Messages that were found wanting: early, short, and about what is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from ltpipe import cli
from ltpipe.checkpoints.torch_files import load_plain
from ltpipe.config.fields import printable
from ltpipe.config.loading import find_experiment, load_experiment
from ltpipe.config.schedules import Schedule
from ltpipe.errors import FEW, NEAREST, UserError, unknown_name
from ltpipe.pipeline.paths import Paths
from ltpipe.pipeline.recipes import recipes
from ltpipe.run.log_progress import rate
from ltpipe.run.resume import state_of
from ltpipe.stage_command import _check_processes
from ltpipe.stages.validate_summary import _schedule, summary
from tests.helpers.workspace import ROOT

EXPERIMENT = """
dataset: {name: d, train: {annotations: t.json, images: t}, val: {annotations: v.json, images: v}}
detector: {config: configs/detectors/mask_rcnn_toy.py}
"""


@pytest.fixture
def in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_processes_that_cannot_share_a_batch_are_refused_before_they_start(
    in_root: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["base", "toy_joint", "--results", str(tmp_path), "--processes", "3"]
    assert cli.main(command) == 2
    text = capsys.readouterr().err
    assert "3 processes for 8 images per pass" in text and "1, 2, 4, 8" in text and text.count("\n") < 8
    with pytest.raises(UserError, match="1 and more"):
        _check_processes(0, 8, 1)
    with pytest.raises(UserError, match=r"(?s)on each of 2 nodes.*1, 2, 4"):
        _check_processes(8, 8, 2)
    for processes, batch, nodes in ((4, 8, 2), (3, None, 1), (1, 7, 1)):
        _check_processes(processes, batch, nodes)


def test_an_address_is_shown_as_it_was_written(in_root: None, tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text(EXPERIMENT + "base: {checkpoint: 'https://host.org/a/x.pth'}\n")
    with pytest.raises(UserError, match=r"https://host.org/a/x.pth is an address: download it"):
        load_experiment(file)
    assert printable(Path("C/x:y")) == Path("C/x:y") and printable(Path("/a/b")) == Path("/a/b")


def test_addresses_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["score", "--annotations", "https://host.org/val.json", "found.json"])
    assert "https://host.org/val.json is an address" in capsys.readouterr().err


def test_of_many_names_the_nearest_are_listed(in_root: None) -> None:
    with pytest.raises(UserError) as raised:
        find_experiment("toy_join")
    assert raised.value.allowed is not None and raised.value.allowed.startswith("toy_joint, ")
    assert raised.value.allowed.count(",") <= NEAREST and re.search(r"\(\d+ in all\)$", raised.value.allowed)
    few = [f"name{number}" for number in range(FEW)]
    assert unknown_name("thing", "x", few).allowed == ", ".join(sorted(few))
    assert unknown_name("thing", "qqq", [*few, "more"]).allowed == f"{FEW + 1} names, none of them alike"


def test_recipes_leave_out_what_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "configs" / "experiments"
    folder.mkdir(parents=True)
    (folder / "broken.yaml").write_text("extends: nothing.yaml\n")
    expected = "report: {expected: [{checkpoint: base, iou_type: bbox, metric: AP, value: 1, tolerance: 1, source: s}]}"
    (folder / "mine.yaml").write_text(EXPERIMENT + expected)
    detector = tmp_path / "configs" / "detectors" / "mask_rcnn_toy.py"
    detector.parent.mkdir()
    detector.write_text((ROOT / "configs" / "detectors" / "mask_rcnn_toy.py").read_text())
    found = recipes(figures={"detectors": {}, "datasets": {}})
    assert [recipe.name for recipe in found] == ["mine"]
    assert "broken is left out: the parent experiment does not exist" in capsys.readouterr().err


def test_a_warning_is_no_progress(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("reading\n/lib/x.py:3: UserWarning: old\n  warnings.warn(\n")
    assert rate(log) == "reading"
    log.write_text("/lib/x.py:3: DeprecationWarning: old\n  f()\n")
    assert rate(log) is None


def test_what_did_not_save_a_state_starts_anew(in_root: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exp = load_experiment("toy_joint")
    paths = Paths(tmp_path, exp)
    work = paths.work("base")
    work.mkdir(parents=True)
    (work / "curves.csv").write_text("")
    monkeypatch.setattr("ltpipe.run.resume.stage_inputs", lambda *_: {})
    monkeypatch.setattr("ltpipe.run.resume.why_discarded", lambda *_: [])
    assert state_of(exp, paths, "base", None) == "starts anew: it was stopped before it saved a state"
    (work / "iter_5.pth").write_bytes(b"")
    assert state_of(exp, paths, "base", None) == "continues from its last checkpoint"


def test_torchs_advice_to_run_what_is_in_a_file_is_not_passed_on(tmp_path: Path) -> None:
    file = tmp_path / "x.pth"
    for content in (b"no checkpoint", b"\x80\x02cos\nsystem\n.", b"\x80\x04\x95\xff.", b""):
        file.write_bytes(content)
        with pytest.raises(UserError) as raised:
            load_plain(file)
        assert "weights_only" not in str(raised.value)
    torch.save({"f": torch.nn.Linear(1, 1)}, file)
    with pytest.raises(UserError) as raised:
        load_plain(file)
    assert "weights_only" not in str(raised.value) and "nothing of it was run" in str(raised.value)


def test_the_summary_of_validate(in_root: None, tmp_path: Path) -> None:
    exp = load_experiment("lvis_v1_lst")
    lines = list(summary(exp, Paths(tmp_path, exp), {}))
    assert "1203 classes (337 rare, 461 common, 405 frequent)" in lines[0] and "not there yet" in lines[0]
    assert lines[2].startswith("phases: 6, each ")
    assert lines[-1].startswith("compared: base, phase1, ") and "at most 300 detections" in lines[-1]
    joint = load_experiment("toy_joint")
    data, base, compared = summary(joint, Paths(tmp_path, joint), {"train": 1000, "val": 240})
    assert "1000 images in train, 240 images in val, 36 classes" in data
    assert base == (
        "base: 750 iterations (6.0 epochs) of 8 images, sgd with lr 0.02 (usual for this batch: 0.01); sampler random"
    )
    assert compared == "compared: base, simcal on bbox and segm, at most 60 detections per image"
    assert _schedule(Schedule(epochs=12, optimizer="adamw", lr=1e-4), 1600) == (
        "12 epochs (1200 iterations) of 16 images, adamw with lr 0.0001"
    )
