"""A training that stops before its time limit or at SIGTERM, and the attempt that continues it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ltpipe.cli import STOPPED, main
from ltpipe.config.experiment import Experiment
from ltpipe.engine import hooks
from ltpipe.engine.hooks import StopBeforeLimitHook, saved_states
from ltpipe.pipeline.paths import Paths
from ltpipe.run.time_limit import VARIABLE, Stopped
from ltpipe.stages import base, index, split
from tests.helpers.method_project import tiny_experiment, write_project


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Experiment, dict[str, torch.Tensor]]]:
    """The experiment in its folder, which is the working directory, and the weights of an undisturbed run."""
    folder = tmp_path_factory.mktemp("project")
    write_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        schedule = {"iterations": 8, "batch_size": 4, "lr": 0.01, "warmup_iterations": 0}
        exp = tiny_experiment(folder, "limit", base={"schedule": schedule})
        paths = Paths("whole", exp)
        index.run(exp, paths)
        split.run(exp, paths)
        base.run(exp, paths)
        yield exp, weights(paths)


def weights(paths: Paths) -> dict[str, torch.Tensor]:
    content: dict[str, Any] = torch.load(paths.model("base"), weights_only=True)
    return content["state_dict"]  # type: ignore[no-any-return]


def prepared(exp: Experiment, results: str) -> Paths:
    paths = Paths(results, exp)
    index.run(exp, paths)
    split.run(exp, paths)
    return paths


def test_time_is_up(
    undisturbed: tuple[Experiment, dict[str, torch.Tensor]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    exp, expected = undisturbed
    paths = prepared(exp, "limited")
    monkeypatch.setenv(VARIABLE, str(time.time()))
    for attempt in (1, 2):
        assert main(["base", str(exp.file), "--results", "limited"]) == STOPPED
        text = f"ltpipe base: time is up after iteration {attempt} of 8; the next attempt continues"
        assert text in capsys.readouterr().err
        assert not paths.model("base").exists() and saved_states(paths.work("base"))
    monkeypatch.delenv(VARIABLE)
    assert main(["base", str(exp.file), "--results", "limited"]) == 0
    found = weights(paths)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_no_process_begins_before_all_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM in the first iteration of one ended another that did not listen yet, and with it the training."""
    listened: list[object] = []
    monkeypatch.setattr(hooks, "barrier", lambda: listened.append(signal.getsignal(signal.SIGTERM)))
    hook, before = StopBeforeLimitHook(), signal.getsignal(signal.SIGTERM)
    hook.before_train(None)  # type: ignore[arg-type]
    hook.after_train(None)  # type: ignore[arg-type]
    assert listened == [hook._note] and signal.getsignal(signal.SIGTERM) == before


def test_sigterm(undisturbed: tuple[Experiment, dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch) -> None:
    exp, expected = undisturbed
    paths = prepared(exp, "terminated")
    begin = StopBeforeLimitHook.before_train_iter

    def terminate_in_the_fourth(hook: StopBeforeLimitHook, runner: Any, *args: Any, **kwargs: Any) -> None:
        begin(hook, runner, *args, **kwargs)
        if runner.iter == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(StopBeforeLimitHook, "before_train_iter", terminate_in_the_fourth)
        with pytest.raises(Stopped, match="asked to stop after iteration 4 of 8"):
            base.run(exp, paths)
    base.run(exp, paths)
    assert signal.getsignal(signal.SIGTERM) == before
    found = weights(paths)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_enough_time(undisturbed: tuple[Experiment, dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch) -> None:
    exp, _ = undisturbed
    paths = prepared(exp, "ample")
    monkeypatch.setenv(VARIABLE, str(time.time() + 3600))
    base.run(exp, paths)
    assert Path(paths.model("base")).exists()


def test_two_processes(
    undisturbed: tuple[Experiment, dict[str, torch.Tensor]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    forked_python: None,
) -> None:
    exp, _ = undisturbed
    paths = prepared(exp, "two")
    monkeypatch.setenv(VARIABLE, str(time.time()))
    monkeypatch.setenv("LTPIPE_CORES", "6")  # a loader process each
    assert main(["base", str(exp.file), "--results", "two", "--processes", "2"]) == STOPPED
    said = capfd.readouterr().err
    assert "time is up after iteration 1 of 8" in said and "Traceback" not in said
    assert [state.name for state in saved_states(paths.work("base"))] == ["iter_1.pth"]
