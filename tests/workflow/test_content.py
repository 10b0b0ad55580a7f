"""Content decides what runs, and what is finished survives whatever fails. Snakemake is real, the stages are a stub."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ltpipe.run.earlier_results import keep
from tests.helpers.workspace import Workspace

MINE = """\
extends: joint.yaml
dataset:
  name: own
  generate: null
  train: {annotations: own/train.json, images: own/train}
  val: {annotations: own/val.json, images: own/val}
"""
ALL = ("all", "--cores", "2")
FILE = "configs/experiments/mine.yaml"
# What Snakemake calls inside a Slurm job.
JOB = ("--mode", "remote", "--target-jobs", "base:experiment=mine", "--allowed-rules", "base", "--force", "--no-hooks")
FROM_BASE = {"base": 1, "evaluate": 1, "report": 1}
FROM_INDEX = {"index": 1, "split": 1, **FROM_BASE}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A finished experiment on annotations of the user."""
    workspace = Workspace(tmp_path_factory.mktemp("own"))
    (workspace.folder / "configs/pipeline.yaml").write_text("experiments: [mine]\n")
    (workspace.folder / FILE).write_text(MINE)
    (workspace.folder / "own").mkdir()
    for part in ("train", "val"):
        (workspace.folder / f"own/{part}.json").write_text(f'{{"images": ["{part}"]}}')
    workspace.snakemake(*ALL)
    return workspace


@pytest.fixture
def own(made: Workspace, tmp_path: Path) -> Workspace:
    """A copy of it, whose files have other inodes and times."""
    folder = tmp_path / "w"
    shutil.copytree(made.folder, folder, symlinks=True)
    copy = Workspace.__new__(Workspace)
    copy.folder = folder
    return copy


@contextmanager
def failing(workspace: Workspace, stage: str) -> Iterator[None]:
    """A stage that leaves a file and fails."""
    command = workspace.folder / "bin" / "ltpipe"
    stub = command.read_text()
    wrong = f'if [ "$1" = {stage} ]; then echo half > results/mine/{stage}/model.pth; exit 1; fi\n'
    command.write_text(stub.replace("exec", wrong + "exec"))
    yield
    command.write_text(stub)


def snapshot(workspace: Workspace) -> dict[str, tuple[bytes, int]]:
    """Content and time of all results."""
    files = (file for file in (workspace.folder / "results").rglob("*") if file.is_file() and file.name != ".lock")
    return {str(file.relative_to(workspace.folder)): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def calls(workspace: Workspace) -> list[str]:
    """Command lines so far."""
    return (workspace.folder / "calls.txt").read_text().splitlines()


def test_copied_results_are_finished(own: Workspace) -> None:
    """Other inodes, other times, in any order, and without Snakemake's notes."""
    for number, file in enumerate(sorted((own.folder / "results").rglob("*"), key=lambda file: file.name)):
        os.utime(file, (1e9 + number, 1e9 + number))
    shutil.rmtree(own.folder / ".snakemake")
    assert own.dry_run("all") == {}
    with own.edited(FILE, "dataset:", "seed: 1\ndataset:"):
        assert own.dry_run("all") == {"validate": 1, **FROM_BASE}, "edits show without Snakemake's notes"


def test_touched_files_run_no_job(own: Workspace) -> None:
    for file in ("own/train.json", "own/val.json", "results/mine/base/model.pth", "results/datasets/own/stage.json"):
        (own.folder / file).touch()
    assert own.dry_run("all") == {}
    done = calls(own)
    own.snakemake(*ALL)
    assert calls(own) == done


def test_replaced_annotations_run_everything_whatever_their_time(own: Workspace) -> None:
    file, other = own.folder / "own/val.json", own.folder / "own/other.json"
    text, before = file.read_text(), file.stat().st_mtime_ns
    for shift in (-(10**12), 10**12, 0):
        other.write_text(text.swapcase())
        os.utime(other, ns=(before + shift, before + shift))
        other.rename(file)
        said = own.snakemake("-n", *ALL)
        assert "results/datasets/own is made again: its input own/val.json has changed" in said
    assert own.dry_run("all") == FROM_INDEX
    own.snakemake(*ALL)
    assert own.dry_run("all") == {}


@pytest.mark.parametrize(
    ("stage", "how"),
    [("index", ()), ("base", ()), ("base", ("--keep-incomplete",)), ("base", ("--profile", "workflow/profiles/ci"))],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_stage_that_fails_destroys_nothing(own: Workspace, stage: str, how: tuple[str, ...]) -> None:
    """With the identical file back, nothing is left to do; with the other one, everything."""
    before = snapshot(own)
    file, old, new = (
        ("own/train.json", "train", "train ") if stage == "index" else (FILE, "dataset:", "seed: 1\ndataset:")
    )
    with failing(own, stage), own.edited(file, old, new):
        own.snakemake(*ALL, *how, ok=False)
        assert own.dry_run("all").get(stage) == 1
    assert own.dry_run("all") == {"validate": 1} if stage == "base" else own.dry_run("all") == {}
    after = snapshot(own)
    same = {name for name in before if before[name] == after.get(name)}
    assert {name for name in before.keys() - same if "/validate/" not in name and "lock" not in name} == set()


def test_a_job_that_starts_late_removes_nothing(own: Workspace) -> None:
    """It ends before Snakemake removes its outputs, unless its stage is not finished or was asked for again."""
    base, made = own.folder / "results/mine/base", snapshot(own)

    def job() -> list[str]:
        """Stages that a job for ``base`` runs."""
        before = calls(own)
        said = own.snakemake(*JOB, "--nolock", "--ignore-incomplete", "--cores", "1")
        ran = [line.partition(" ")[0] for line in calls(own)[len(before) :]]
        assert ("nothing is left to do" in said) == (not ran)
        return ran

    assert job() == [] and snapshot(own) == made
    assert keep(base, [base / "model.pth"], asked=True)
    assert job() == ["base"]
    assert job() == []
    with own.edited(FILE, "dataset:", "seed: 1\ndataset:"):
        assert job() == ["base"]


def test_a_killed_snakemake_leaves_what_was_finished(own: Workspace) -> None:
    """Its hooks do not run; the stages put back what would be the same, each in a moment."""
    file, command = own.folder / "own/train.json", own.folder / "bin" / "ltpipe"
    text, stub = file.read_text(), command.read_text()
    kept = {name: content for name, (content, _) in snapshot(own).items()}
    command.write_text(stub.replace("exec", "kill -9 $(cat snakemake.pid)\nexit 1\nexec", 1))
    file.write_text(text.swapcase())
    shell = f'echo $$ > snakemake.pid; exec "{sys.executable}" -m snakemake {" ".join(ALL)}'
    own.program("sh", "-c", shell, code=-9)
    assert not (own.folder / "results/datasets/own/stage.json").exists()
    command.write_text(stub)
    file.write_text(text)
    own.snakemake(*ALL)
    assert own.dry_run("all") == {}
    assert {name: content for name, (content, _) in snapshot(own).items()} == kept


@pytest.mark.parametrize(
    ("file", "rule"),
    [
        ("datasets/own/train/statistics.csv", "index"),
        ("mine/split/split.json", "split"),
        ("mine/evaluate/base/per_class.csv", "evaluate"),
    ],
)
def test_an_edited_result_stops_the_run_before_anything_is_removed(own: Workspace, file: str, rule: str) -> None:
    edited = own.folder / "results" / file
    before = edited.stat()
    edited.write_text("edited " + edited.read_text())
    os.utime(edited, ns=(before.st_atime_ns, before.st_mtime_ns))
    left = snapshot(own)
    text = own.snakemake(*ALL, ok=False)
    assert f"results/{file}" in text and f"-R {rule}" in text and "Traceback" not in text
    assert snapshot(own) == left
    if rule == "evaluate":
        own.snakemake(*ALL, "-R", rule)
        assert own.dry_run("all") == {} and "edited" not in edited.read_text()


def test_another_run_that_was_asked_for_runs(own: Workspace) -> None:
    before = len(calls(own))
    own.snakemake(*ALL, "-R", "base")
    assert [line.split()[0] for line in calls(own)[before:]] == ["base", "evaluate", "report"]
    assert own.dry_run("all") == {}


def test_nothing_changes_while_rules_are_read(own: Workspace) -> None:
    """Locks of other Snakemakes and times of results, also from the future, are left alone."""
    note = own.folder / ".snakemake/locks/0.output.lock"
    note.parent.mkdir(exist_ok=True)
    note.write_text("results/elsewhere\n")
    holder = own.folder / ".snakemake/ltpipe.lock"
    holder.write_text("somebody")
    future = own.folder / "results/mine/split/split.json"
    os.utime(future, (2e9, 2e9))
    before = snapshot(own)
    for arguments in (
        ("-n", *ALL),
        ("-n", "-F", *ALL),
        ("all", "--summary"),
        ("all", "--rulegraph"),
        ("--list-rules",),
    ):
        own.snakemake(*arguments)
        assert snapshot(own) == before and note.exists() and holder.read_text() == "somebody", arguments
    own.snakemake(*ALL, "-R", "report")
    assert not note.exists() and "pid" in holder.read_text()
    assert future.stat().st_mtime < 2e9 - 1
