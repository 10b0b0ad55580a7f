"""Stages that are killed, stopped or repeated: what continues, what starts anew, and that results are the same bits."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from ltpipe.checkpoints.torch_files import load_plain
from ltpipe.config.experiment import Experiment
from ltpipe.engine import shards
from ltpipe.engine.calibrator_training import train_head
from ltpipe.engine.frozen_detector import FrozenDetector
from ltpipe.errors import UserError
from ltpipe.pipeline.paths import Paths
from ltpipe.run.changes import is_current
from ltpipe.run.earlier_results import keep, put_back
from ltpipe.run.files import ATTEMPT
from ltpipe.run.stage_lock import exclusive
from ltpipe.run.status import status
from tests.helpers.tiny_project import (
    assert_same_state,
    command_line,
    ended,
    experiment,
    in_child,
    kill_here,
    run_stages,
)
from tests.helpers.trainings import cut_short, iterations_of

if TYPE_CHECKING:
    from conftest import Chain

TRAININGS = [("base", None), ("lst", 2)]


def fail() -> None:
    """An error of the training itself."""
    raise ArithmeticError("a defect")


def model_of(paths: Paths, stage: str, key: int | None) -> Path:
    return paths.folder(stage, key) / "model.pth"


@pytest.mark.parametrize(("stage", "key"), TRAININGS)
@pytest.mark.parametrize(("end", "code"), [(kill_here, -9), (fail, 1)])
def test_a_training_cut_short_continues_to_the_same_bits(
    chain: Chain, tmp_path: Path, stage: str, key: int | None, end: Callable[[], None], code: int
) -> None:
    paths, at = chain.copy(tmp_path), 2
    record = paths.record(stage, key).read_bytes()
    assert cut_short(chain.exp, paths, stage, key, at, end) == code
    assert paths.record(stage, key).read_bytes() == record, "the earlier result stays complete"
    assert iterations_of(chain.exp, paths, stage, key)[0] == at
    assert_same_state(model_of(paths, stage, key), model_of(chain.paths, stage, key))
    assert paths.record(stage, key).read_bytes() != record and not paths.work(stage, key).exists()


def test_a_training_keeps_its_number_of_threads(chain: Chain, tmp_path: Path) -> None:
    """Begun with two threads, killed, continued where there is one: the bits are those of two threads."""
    paths, whole = chain.copy(tmp_path / "cut"), chain.copy(tmp_path / "whole")

    def with_two(work: Callable[[], object]) -> int:
        def both() -> None:
            torch.set_num_threads(2)
            work()

        return ended(in_child(both))

    assert with_two(lambda: run_stages(chain.exp, whole.results, "base")) == 0
    assert with_two(lambda: os._exit(-cut_short(chain.exp, paths, "base", None, 2, kill_here))) == 9
    # Not in this process: a process with OpenMP's threads cannot be forked into one that uses them.
    assert ended(in_child(lambda: run_stages(chain.exp, paths.results, "base"))) == 0
    assert json.loads(paths.record("base").read_text())["threads"] == 2
    assert json.loads(chain.paths.record("base").read_text())["threads"] == 1
    assert_same_state(paths.model("base"), whole.model("base"))


def test_a_training_killed_while_it_saves_its_state(chain: Chain, tmp_path: Path) -> None:
    from mmengine.fileio import LocalBackend

    paths = chain.copy(tmp_path)

    def work() -> None:
        put = LocalBackend.put

        def half(self, content, path):
            if "iter_3" in str(path):
                put(self, content[: len(content) // 2], path)
                kill_here()
            put(self, content, path)

        LocalBackend.put = half
        run_stages(chain.exp, paths.results, "base")

    assert ended(in_child(work)) == -9
    assert sorted(file.name for file in paths.work("base").glob("iter_*")) == ["iter_1.pth", "iter_2.pth"]
    assert iterations_of(chain.exp, paths, "base") == [2, 3]
    assert_same_state(paths.model("base"), chain.paths.model("base"))


def test_a_training_killed_before_it_publishes(chain: Chain, tmp_path: Path) -> None:
    paths = chain.copy(tmp_path)

    def work() -> None:
        import ltpipe.engine.training

        ltpipe.engine.training.write_checkpoint = lambda *_: kill_here()
        run_stages(chain.exp, paths.results, "base")

    assert ended(in_child(work)) == -9
    assert iterations_of(chain.exp, paths, "base") == []
    assert_same_state(paths.model("base"), chain.paths.model("base"))


@pytest.mark.parametrize("damaged", [1, 2])
def test_damaged_states_are_passed_over(chain: Chain, tmp_path: Path, damaged: int) -> None:
    paths = chain.copy(tmp_path)
    assert cut_short(chain.exp, paths, "base", None, 3, kill_here) == -9
    for name in ["iter_3.pth", "iter_2.pth"][:damaged]:
        file = paths.work("base") / name
        os.truncate(file, file.stat().st_size // 2)
    assert iterations_of(chain.exp, paths, "base")[0] == (2 if damaged == 1 else 0)
    assert_same_state(paths.model("base"), chain.paths.model("base"))


def test_a_finished_training_starts_anew(chain: Chain, tmp_path: Path) -> None:
    paths = chain.copy(tmp_path)
    assert iterations_of(chain.exp, paths, "base") == [0, 1, 2, 3]
    # Killed after its record was written, before its resume state was removed.
    (paths.work("base")).mkdir()
    (paths.work("base") / "iter_4.pth").write_bytes(b"")
    assert iterations_of(chain.exp, paths, "base") == [0, 1, 2, 3]


def of_status(exp: Experiment, paths: Paths, label: str) -> tuple[str, str]:
    """State and reason of a stage."""
    return next((row.state, row.reason) for row in status(exp, paths) if row.label == label)


def test_another_experiment_does_not_continue(chain: Chain, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What will be discarded, and why, is told by status and by the stage before it is."""
    paths = chain.copy(tmp_path)
    paths.record("base").unlink()
    assert cut_short(chain.exp, paths, "base", None, 2, kill_here) == -9
    assert of_status(chain.exp, paths, "base") == ("stopped", "continues from its last checkpoint")
    changed = experiment(chain.folder, base={"schedule": {"lr": 0.02}})
    why = "the state of iteration 2 would be discarded:\nbase.schedule.lr: 0.01 -> 0.02"
    assert of_status(changed, paths, "base") == ("stopped", why)
    assert list(paths.work("base").glob("iter_2.pth")), "looking changes nothing"
    assert iterations_of(changed, paths, "base") == [0, 1, 2, 3]
    said = (
        "stage base: the state of iteration 2 is discarded, this run starts afresh:\n  base.schedule.lr: 0.01 -> 0.02"
    )
    assert said in capfd.readouterr().out


def test_another_input_does_not_continue(chain: Chain, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    paths = chain.copy(tmp_path)
    paths.record("base").unlink()
    assert cut_short(chain.exp, paths, "base", None, 2, kill_here) == -9
    paths.split.write_text(paths.split.read_text() + "\n")
    paths.record("split").unlink()
    assert "would be discarded:\nits input split has changed" in of_status(chain.exp, paths, "base")[1]
    assert iterations_of(chain.exp, paths, "base") == [0, 1, 2, 3]
    assert "is discarded, this run starts afresh:\n  its input split has changed" in capfd.readouterr().out


@pytest.mark.parametrize("way", ["absolute", "link", "moved", "project moved"])
def test_state_does_not_depend_on_what_its_folder_is_called(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    copied = chain.copy(project)
    copied.record("base").unlink()
    assert cut_short(chain.exp, Paths("results", chain.exp), "base", None, 2, kill_here) == -9
    again = {
        "absolute": project / "results",
        "link": Path("link"),
        "moved": tmp_path / "other",
        "project moved": "results",
    }
    if way == "link":
        Path("link").symlink_to("results")
    elif way == "moved":
        (project / "results").rename(tmp_path / "other")
    elif way == "project moved":
        project.rename(tmp_path / "renamed")
        monkeypatch.chdir(tmp_path / "renamed")
    paths = Paths(again[way], chain.exp)
    assert of_status(chain.exp, paths, "base") == ("stopped", "continues from its last checkpoint")
    assert iterations_of(chain.exp, paths, "base") == [2, 3]
    assert_same_state(paths.model("base"), chain.paths.model("base"))
    assert of_status(chain.exp, paths, "base")[0] == of_status(chain.exp, paths, "split")[0] == "done"


def test_state_outlives_that_earlier_results_are_put_back(chain: Chain, tmp_path: Path) -> None:
    """Snakemake removes them before the stage starts; when it is interrupted they return, and the state is of later."""
    paths = chain.copy(tmp_path)
    folder, outputs = paths.folder("base"), [paths.model("base"), paths.config("base"), paths.record("base")]
    before = [file.read_bytes() for file in outputs]
    changed = experiment(chain.folder, base={"schedule": {"lr": 0.02}})
    for _ in range(2):
        assert keep(folder, outputs, asked=False)
        for file in outputs:
            file.unlink()
        assert cut_short(changed, paths, "base", None, 2, kill_here) == -9
        assert put_back(folder) and [file.read_bytes() for file in outputs] == before
        why = "base.schedule.lr: 0.01 -> 0.02\na later run was stopped: continues from its last checkpoint"
        assert of_status(changed, paths, "base") == ("stale", why)
        assert of_status(chain.exp, paths, "base")[0] == "done"
    assert iterations_of(changed, paths, "base") == [2, 3]
    assert sorted(file.name for file in folder.iterdir() if file.name != "history") == [
        ".lock", "config.py", "model.pth", "stage.json",
    ]  # fmt: skip


def test_fresh_starts_anew(chain: Chain, tmp_path: Path) -> None:
    paths = chain.copy(tmp_path)
    assert cut_short(chain.exp, paths, "base", None, 2, kill_here) == -9
    before = set(paths.work("base").glob("iter_*"))
    code, error = command_line("base", chain.exp.file, "--results", paths.results, "--processes", 1, "--fresh")
    assert code == 0 and before, error
    assert not paths.work("base").exists()
    assert_same_state(paths.model("base"), chain.paths.model("base"))


def test_fresh_is_refused_while_the_stage_runs(chain: Chain, tmp_path: Path) -> None:
    paths = chain.copy(tmp_path)
    holder = holding_the_lock(paths.folder("base"), tmp_path / "held")
    try:
        code, error = command_line("base", chain.exp.file, "--results", paths.results, "--fresh")
        assert code == 2 and "already running" in error
    finally:
        os.kill(holder, 9)
        ended(holder)


def holding_the_lock(folder: Path, flag: Path, then: Callable[[], None] = lambda: None) -> int:
    """Start a process that holds a stage's lock; return its id."""

    def work() -> None:
        with exclusive(folder, "base"):
            then()
            flag.touch()
            time.sleep(60)

    child = in_child(work)
    while not flag.exists():
        time.sleep(0.01)
    return child


def test_a_stage_runs_once_at_a_time(chain: Chain, tmp_path: Path) -> None:
    paths = chain.copy(tmp_path)
    holder = holding_the_lock(paths.folder("base"), tmp_path / "held")
    try:
        with pytest.raises(UserError, match="already running"):
            run_stages(chain.exp, paths.results, "base")
        assert paths.record("base").is_file(), "a refused run changes nothing"
    finally:
        os.kill(holder, 9)
        ended(holder)
    run_stages(chain.exp, paths.results, "base")


@pytest.mark.parametrize("outcome", ["finished", "killed", "with other inputs", "damaged"])
def test_a_second_command_waits_for_the_first(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: str
) -> None:
    """As after a kill of Snakemake, whose stage goes on: its results count if they are what would be made now."""
    from ltpipe.run import stage_lock as _lock

    paths = chain.copy(tmp_path)
    record = paths.record("base").read_bytes()
    paths.record("base").unlink()
    holder = holding_the_lock(paths.folder("base"), tmp_path / "held")

    describe, waiting = _lock.describe, tmp_path / "waiting"

    def told(who: dict[str, object]) -> str:
        waiting.touch()
        return describe(who)

    monkeypatch.setattr(_lock, "describe", told)

    def end() -> None:
        while not waiting.exists():
            time.sleep(0.01)
        if outcome != "killed":
            paths.record("base").write_bytes(record)
        if outcome == "with other inputs":
            content = json.loads(record)
            content["inputs"][str(paths.split)] = "0"
            paths.record("base").write_text(json.dumps(content))
        elif outcome == "damaged":
            os.truncate(paths.model("base"), 100)
        os.kill(holder, 9)

    ending = in_child(end)
    before = paths.model("base").stat().st_mtime_ns
    code, error = command_line("base", chain.exp.file, "--results", paths.results, "--processes", 1)
    assert (code, ended(holder), ended(ending)) == (0, -9, 0), error
    assert (paths.model("base").stat().st_mtime_ns == before) == (outcome == "finished")
    assert_same_state(paths.model("base"), chain.paths.model("base"))


def test_of_two_commands_at_the_same_moment_one_waits(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one has not seen the first one's lock when it looked."""
    from ltpipe.run import stage_lock as _lock
    from ltpipe.stages import split

    paths = chain.copy(tmp_path)
    written, first = paths.split.read_bytes(), [True]
    run = split.run

    def race(*arguments: object, **options: object) -> None:
        if first:
            first.clear()
            raise _lock.AlreadyRunning("stage split is already running")
        run(*arguments, **options)

    monkeypatch.setattr(split, "run", race)
    code, error = command_line("split", chain.exp.file, "--results", paths.results, "--phase", 0)
    assert code == 0, error
    assert paths.split.read_bytes() == written and paths.record("split").is_file()


def test_loader_processes_that_outlive_a_killed_stage_do_not_hold_its_lock(chain: Chain, tmp_path: Path) -> None:
    paths, pid = chain.copy(tmp_path), tmp_path / "pid"

    def start_loader() -> None:
        pid.write_text(str(in_child(lambda: time.sleep(60))))

    holder = holding_the_lock(paths.folder("base"), tmp_path / "held", start_loader)
    os.kill(holder, 9)
    ended(holder)
    try:
        run_stages(chain.exp, paths.results, "base")
    finally:
        os.kill(int(pid.read_text()), 9)


def test_leftovers_of_a_kill_are_cleared_away(chain: Chain, tmp_path: Path) -> None:
    paths = chain.copy(tmp_path)
    for folder in (paths.folder("base"), paths.dataset):
        (folder / f"{ATTEMPT}killed" / "half.part").mkdir(parents=True)
    run_stages(chain.exp, paths.results, "index", "base")
    assert not list(paths.results.rglob(f"{ATTEMPT}*")) and not list(paths.results.rglob("*.part*"))


@pytest.mark.parametrize("during", ["proposals", "pool"])
def test_features_cut_short_continue_to_the_same_bytes(chain: Chain, tmp_path: Path, during: str) -> None:
    paths = chain.copy(tmp_path)

    def calls(end_at: int | None) -> list[int]:
        """Run the stage, ending it before a unit; return the units it worked on."""
        done: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shards, "SIZE", 2)
            original = getattr(FrozenDetector, during)

            def counted(self, *arguments):
                if len(done) == end_at:
                    kill_here()
                done.append(len(done))
                return original(self, *arguments)

            patch.setattr(FrozenDetector, during, counted)
            run_stages(chain.exp, paths.results, "features")
        return done

    assert ended(in_child(lambda: calls(5))) == -9
    assert is_current(chain.exp, paths, "features", None), "the earlier result stays complete"
    again = len(calls(None))
    # Units without a drawn box are not pooled.
    assert again == len(chain_units(chain)) - 4 if during == "proposals" else 0 < again < len(chain_units(chain)) - 3
    for name in ("plan.npz", "features.npy"):
        folder, other = paths.folder("features"), chain.paths.folder("features")
        assert (folder / name).read_bytes() == (other / name).read_bytes()


def chain_units(chain: Chain) -> list[tuple[int, bool]]:
    from ltpipe.data.calibration_rows import FeaturePlan

    return FeaturePlan.load(chain.paths.plan).samples


@pytest.mark.parametrize(
    ("stage", "unit", "damage", "again"),
    [
        (("distill", 1), "ltpipe.stages.distill._rows", None, slice(4, None)),
        (("distill", 1), "ltpipe.stages.distill._rows", "00000002.rows.npz", slice(2, None)),
        (("evaluate", "phase2"), "ltpipe.engine.inference.of_image", None, slice(4, None)),
        (("evaluate", "phase2"), "ltpipe.engine.inference.of_image", "00000002.set0.arrow", slice(2, None)),
        (("evaluate", "phase2"), "ltpipe.engine.inference.of_image", "set0.arrow.shards.json", slice(0, None)),
    ],
)
def test_a_pass_over_images_cut_short_continues_to_the_same_bytes(
    chain: Chain, tmp_path: Path, stage: tuple, unit: str, damage: str | None, again: slice
) -> None:
    runs = {name: chain.copy(tmp_path / name) for name in ("whole", "cut")}

    def images(paths: Paths, end_at: int | None) -> list[int]:
        """Run the stage, ending it at an image; return the ids of the images it worked on."""
        done: list[int] = []
        module, name = unit.rsplit(".", 1)
        original = getattr(import_module(module), name)

        def counted(*arguments):
            if len(done) == end_at:
                kill_here()
            found = original(*arguments)
            done.append(found["image_id"] if isinstance(found, dict) else found[0])
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shards, "SIZE", 2)
            patch.setattr(unit, counted)
            run_stages(chain.exp, paths.results, stage)
        return done

    everything = images(runs["whole"], None)
    assert len(everything) > 5
    assert ended(in_child(lambda: images(runs["cut"], 5))) == -9
    if damage:
        file = runs["cut"].work(*stage) / damage
        os.truncate(file, file.stat().st_size * 2 // 3)
    assert images(runs["cut"], None) == everything[again]
    one, other = (
        {file.name: file.read_bytes() for file in paths.folder(*stage).iterdir() if file.suffix not in (".json", "")}
        for paths in runs.values()
    )
    assert one == other and len(one) == (1 if stage[0] == "distill" else 5)
    assert not runs["cut"].work(*stage).exists()


@pytest.mark.parametrize(
    ("options", "damage"),
    [
        ({"type": "simcal", "threshold": 6}, None),
        ({"type": "simcal", "threshold": 6}, "head.pth"),
        ({"type": "simcal", "head": "2fc_ncm"}, None),
        ({"type": "bags"}, None),
        ({"type": "crt"}, None),
        ({"type": "iif_retrain"}, None),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value,
)
def test_a_calibration_cut_short_continues_to_the_same_bits(
    chain: Chain, tmp_path: Path, options: dict, damage: str | None
) -> None:
    schedule = {"iterations": 6, "lr": 0.02, "momentum": 0.9}
    exp = experiment(chain.folder, calibrate={"simcal": None, "head": {**options, "schedule": schedule}})
    runs = {name: chain.copy(tmp_path / name, exp) for name in ("whole", "cut")}

    def calibrate(paths: Paths, end_at: int | None) -> list[int]:
        done: list[int] = []

        def counted(batches):
            def rows(first: int):
                for step, batch in enumerate(batches(first), first):
                    if step == end_at:
                        kill_here()
                    done.append(step)
                    yield batch

            return rows

        def training(calibrator, batches, *arguments, **options):
            return train_head(calibrator, counted(batches), *arguments, **options, save_every=2)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ltpipe.stages.calibrate.train_head", training)
            run_stages(exp, paths.results, ("calibrate", "head"))
        return done

    assert calibrate(runs["whole"], None) == [0, 1, 2, 3, 4, 5]
    assert ended(in_child(lambda: calibrate(runs["cut"], 5))) == -9
    assert not runs["cut"].model("head").exists()
    if damage:
        os.truncate(runs["cut"].work("calibrate", "head") / damage, 1000)
    assert calibrate(runs["cut"], None) == ([4, 5] if damage is None else [0, 1, 2, 3, 4, 5])
    assert_same_state(runs["whole"].model("head"), runs["cut"].model("head"))


def test_states_hold_what_a_training_needs(chain: Chain, tmp_path: Path) -> None:
    paths = chain.copy(tmp_path)
    assert cut_short(chain.exp, paths, "base", None, 3, kill_here) == -9
    state = load_plain(paths.work("base") / "iter_3.pth")
    assert state["meta"]["iter"] == 3 and {"state_dict", "optimizer", "param_schedulers"} <= state.keys()
