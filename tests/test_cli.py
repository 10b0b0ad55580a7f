"""The command line: help, errors, exit codes, laziness."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from ltpipe import cli
from ltpipe.config.loading import load_experiment
from ltpipe.errors import UserError
from ltpipe.pipeline.stages import TABLE

ROOT = Path(__file__).parents[1]


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in the repository's root."""
    monkeypatch.chdir(ROOT)


def test_every_stage_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in [
        *TABLE,
        "status",
        "toy-data",
        "schema",
        "methods",
        "convert",
        "export",
        "recipes",
        "score",
        "import",
        "make-split",
    ]:
        with pytest.raises(SystemExit) as stop:
            cli.main([verb, "--help"])
        assert stop.value.code == 0
        assert "usage: ltpipe" in capsys.readouterr().out


def test_every_stage_has_a_module_that_runs() -> None:
    import ast

    keys = {stage.name: stage.option.name for stage in TABLE.values() if stage.option is not None}
    for stage in TABLE:
        tree = ast.parse((ROOT / "ltpipe" / "stages" / f"{stage}.py").read_text(encoding="utf-8"))
        run = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run")
        assert [a.arg for a in run.args.args] == ["exp", "paths", *([keys[stage]] if stage in keys else [])]


def test_a_user_error_is_one_paragraph(root: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["validate", "toi"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("ltpipe validate: no such experiment")
    assert "did you mean 'toy'?" in message and "\n\n" not in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lst", "toy", "--phase", "9"], ["--phase", "1 to"]),
        (["lst", "toy_joint", "--phase", "1"], ["none: the experiment is one-shot"]),
        (["calibrate", "toy", "--name", "simcl"], ["unknown calibrator", "'simcal'"]),
        (["evaluate", "toy", "--checkpoint", "phase7"], ["unknown checkpoint", "base"]),
        (["split", "toy", "--phase", "-1"], ["no such phase"]),
        (["toy-data", "--experiment", "camvid_lt"], ["data of its own"]),
    ],
)
def test_keys_that_do_not_exist(
    root: None, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    assert cli.main(arguments) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words)


def test_interrupts_and_defects(root: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_stage", stop)
    assert cli.main(["validate", "toy"]) == 130

    def fail(*arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "run_stage", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["validate", "toy"])


def test_validate_writes_lock_and_record(tmp_path: Path, root: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["validate", "lvis_v1_lst", "--results", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "phase6" in captured.out and "class list only" in captured.err
    lock = tmp_path / "lvis_v1_lst" / "experiment.lock.yaml"
    split = yaml.safe_load(lock.read_text())["split"]
    assert split == {"base_classes": 270, "step": 160, "boundaries": None, "ignore_future_gt": False}
    assert load_experiment(lock).model_dump() == load_experiment("lvis_v1_lst").model_dump()
    record = json.loads((tmp_path / "lvis_v1_lst" / "validate" / "stage.json").read_text())
    assert record["stage"] == "validate" and len(record["remarks"]) == 2


def test_a_refused_experiment_keeps_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    broken = tmp_path / "broken.yaml"
    broken.write_text(
        f"extends: {ROOT}/configs/experiments/lvis_v1/lst/lvis_v1_lst.yaml\nmodel: {{classifier: {{type: linear}}}}\n"
    )
    assert cli.main(["validate", str(broken), "--results", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out" / "broken" / "experiment.lock.yaml").exists()
    assert not (tmp_path / "out" / "broken" / "validate" / "stage.json").exists()


def test_status(tmp_path: Path, root: None, capsys: pytest.CaptureFixture[str]) -> None:
    results = ["--results", str(tmp_path)]
    assert cli.main(["validate", "lvis_v1_lst", *results]) == 0
    capsys.readouterr()
    assert cli.main(["status", "lvis_v1_lst", *results]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["validate", "done"]
    assert any(line.split()[:3] == ["lst", "phase6", "waiting"] for line in lines)
    (tmp_path / "mine").mkdir()
    assert cli.main(["status", *results]) == 0
    first, second, others = capsys.readouterr().out.splitlines()
    assert first.startswith("lvis_v1_lst  1 of ") and first.endswith(" waiting")
    assert second.split(maxsplit=1) == ["mine", "no experiment of this name in configs/experiments"]
    assert others.endswith("experiments without results in configs/experiments")


def test_methods_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["methods"]) == 0
    text = capsys.readouterr().out
    assert "cosine" in text and "scale = 10.0" in text and "repeat_factor" in text


def test_toy_data_needs_a_target(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["toy-data"])
    assert "one of the arguments" in capsys.readouterr().err


def test_errors_say_all_they_know() -> None:
    error = UserError("fault", where="file: key", got=3, allowed=["a", "b"], fix="mend it")
    lines = str(error).splitlines()
    assert lines[0] == "fault" and [line.split()[0] for line in lines[1:]] == ["where:", "got:", "allowed:", "fix:"]


def test_cross_check_needs_an_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", "lvis_v1_lst", "--checkpoint", "phase1", "--cross-check", "--results", str(tmp_path)]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert "no file of precision and recall tensors" in error and "evaluate the checkpoint again" in error
