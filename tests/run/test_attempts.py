"""Attempts that overlap: whatever an earlier one still does, the results are those of the later one."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ltpipe.errors import UserError
from ltpipe.run import files
from ltpipe.run.files import ATTEMPT, Overtaken, atomic_path, attempt, discard, move
from ltpipe.run.slurm import execution, is_over, squeue
from tests.helpers.tiny_project import ended, in_child

LATER = "of the later attempt"


class Pause:
    """A point at which a child process waits until its parent lets it go on."""

    def __init__(self) -> None:
        self.reached, self.release = os.pipe(), os.pipe()

    def here(self) -> None:
        os.write(self.reached[1], b"x")
        os.read(self.release[0], 1)

    def until_reached(self) -> None:
        os.read(self.reached[0], 1)

    def go_on(self) -> None:
        os.write(self.release[1], b"x")


def write(folder: Path, pause: Pause) -> None:
    with atomic_path(folder / "model.pth") as temporary:
        temporary.write_text("of the earlier attempt")
        pause.here()


def write_afterwards(folder: Path, pause: Pause) -> None:
    pause.here()
    with atomic_path(folder / "model.pth") as temporary:
        temporary.write_text("of the earlier attempt")


def write_below(folder: Path, pause: Pause) -> None:
    pause.here()
    with atomic_path(folder / "work" / "iter_1.pth") as temporary:
        temporary.write_text("of the earlier attempt")


def remove(folder: Path, pause: Pause) -> None:
    pause.here()
    discard(folder / "model.pth")


def move_there(folder: Path, pause: Pause) -> None:
    (folder / "part").write_text("of the earlier attempt")
    pause.here()
    move(folder / "part", folder / "model.pth")


@pytest.mark.parametrize("change", [write, write_afterwards, write_below, remove, move_there])
@pytest.mark.parametrize("finished", [True, False], ids=["later one ended", "later one runs"])
def test_an_overtaken_attempt_changes_nothing(
    tmp_path: Path, change: Callable[[Path, Pause], None], finished: bool
) -> None:
    pause = Pause()

    def earlier() -> None:
        with pytest.raises(Overtaken, match="can no longer change the results"), attempt(tmp_path):
            change(tmp_path, pause)

    child = in_child(earlier)
    pause.until_reached()
    with attempt(tmp_path) as own:
        with atomic_path(tmp_path / "model.pth") as temporary:
            temporary.write_text(LATER)
        if not finished:
            pause.go_on()
            assert ended(child) == 0
            assert own.is_dir()
    if finished:
        pause.go_on()
        assert ended(child) == 0
    assert (tmp_path / "model.pth").read_text() == LATER
    assert not list(tmp_path.rglob("iter_1.pth")) and not list(tmp_path.glob(f"{ATTEMPT}*"))


def test_requests_by_handle_come_too_late(tmp_path: Path) -> None:
    """As from another host, which addresses folders by handle and may repeat a request after hours."""
    earlier = tmp_path / f"{ATTEMPT}other-host"
    earlier.mkdir()
    (earlier / "model.pth").write_text("of the earlier attempt")
    handle = os.open(earlier, os.O_RDONLY)
    with attempt(tmp_path):
        with pytest.raises(FileNotFoundError):
            os.rename("model.pth", tmp_path / "model.pth", src_dir_fd=handle)
        with pytest.raises(FileNotFoundError):
            os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=handle)
    os.close(handle)


def test_an_attempt_that_goes_on_writing_is_shut_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice a file comes between the last one of the folder and the folder: as fast as that no real attempt writes."""
    earlier, pause = tmp_path / f"{ATTEMPT}other-host", Pause()
    earlier.mkdir()
    handle = os.open(earlier, os.O_RDONLY)
    remove_folder, refused = os.rmdir, []

    def write_on() -> None:
        for number in range(3):
            os.close(os.open(f"file{number}", os.O_CREAT | os.O_WRONLY, dir_fd=handle))
            pause.here()
        with pytest.raises(FileNotFoundError):
            os.open("file3", os.O_CREAT | os.O_WRONLY, dir_fd=handle)

    def overtaken_by_a_file(path: str, **options: int) -> None:
        if len(refused) < 2:
            pause.go_on()
            pause.until_reached()
        try:
            remove_folder(path, **options)
        except OSError as error:
            refused.append(error.errno)
            raise

    child = in_child(write_on)
    pause.until_reached()
    monkeypatch.setattr(os, "rmdir", overtaken_by_a_file)
    with attempt(tmp_path):
        if refused != [errno.ENOTEMPTY] * 2:
            os.kill(child, signal.SIGKILL)  # it waits
            raise AssertionError(refused)
        pause.go_on()
        assert ended(child) == 0
    os.close(handle)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_removed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{ATTEMPT}stuck").mkdir()
    monkeypatch.setattr(files, "_FENCE_SECONDS", 0.05)
    monkeypatch.setattr(files.shutil, "rmtree", lambda *_, **__: None)
    with pytest.raises(UserError, match="an earlier attempt still writes here"), attempt(tmp_path):
        raise AssertionError("must not begin")


def test_other_folders_and_errors_are_left_alone(tmp_path: Path) -> None:
    with attempt(tmp_path / "a") as own:
        with atomic_path(tmp_path / "b" / "x.txt") as temporary:
            assert temporary.parent == tmp_path / "b"
            temporary.write_text("x")
        with atomic_path(tmp_path / "a" / "deep" / "x.npz") as temporary:
            assert temporary.parent == own and temporary.suffix == ".npz"
            temporary.write_text("x")
        discard(tmp_path / "a" / "missing")
        (tmp_path / "a" / "deep" / "y").mkdir()
        move(tmp_path / "b", tmp_path / "a" / "deep")
    assert sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*")) == ["a", "a/deep", "a/deep/x.txt"]
    with pytest.raises(KeyError), attempt(tmp_path / "a"):
        raise KeyError("an error of its own")


# ---- what Slurm says about the other one -----------------------------------------------------------------------------


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A squeue that prints the content of the file named like the job in this folder; this process is in job 13."""
    program = tmp_path / "squeue"
    program.write_text(
        f"#!/bin/sh\ncd {tmp_path}; j=${{2#--jobs=}}; [ -e down ] && exit 1\n[ -e $j ] && exec cat $j\n"
        "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "13")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "c")
    (tmp_path / "13").write_text("  1  \n")
    yield tmp_path


def test_executions(jobs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert execution() == {"cluster": "c", "job": "13", "restarts": "1"}
    other = {"cluster": "c", "job": "12", "restarts": "0"}
    assert is_over(other), "Slurm has forgotten it"
    (jobs / "12").write_text("")
    assert squeue("12") == "" and is_over(other), "it is over"
    (jobs / "12").write_text("0\n")
    assert not is_over(other), "it runs"
    (jobs / "12").write_text("1\n")
    assert is_over(other), "it was requeued"
    assert not is_over({**other, "restarts": ""}), "it may be this execution"
    assert not is_over({**other, "cluster": "d"}), "another cluster's squeue would know"
    assert is_over({"cluster": "c", "job": "13", "restarts": "0"}), "this job, before it was requeued"
    assert not is_over({"cluster": "c", "job": "13", "restarts": "1"}), "this job now"
    (jobs / "down").touch()
    assert squeue("12") is None and not is_over(other), "no answer"
    assert execution() == {"cluster": "c", "job": "13", "restarts": ""}
    monkeypatch.delenv("SLURM_JOB_ID")
    assert execution() is None and not is_over(other)
