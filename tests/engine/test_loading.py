"""Loader processes: whom they obey, and what the training says when one of them is lost."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import popen_fork
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.dataset import pseudo_collate
from torch.utils.data import DataLoader, Dataset

from ltpipe.engine.loaders import outlive_sigterm
from ltpipe.errors import UserError
from ltpipe.run.cores import VARIABLE, cores
from ltpipe.run.loader_errors import from_loader
from tests.helpers.tiny_project import ended, in_child

pytestmark = pytest.mark.timeout(120)


class Images(Dataset):
    """Four images; something happens where the second one is read."""

    def __init__(self, happens: Callable[[], object] = lambda: None) -> None:
        self.happens = happens

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 1:
            self.happens()
        return torch.full((1000,), index)


def loader(happens: Callable[[], object] = lambda: None, workers: int = 1) -> DataLoader:
    return DataLoader(
        Images(happens),
        num_workers=workers,
        persistent_workers=True,
        collate_fn=pseudo_collate,
        worker_init_fn=outlive_sigterm,
    )


def lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def gone(pid: int) -> bool:
    """Whether a process ends within seconds."""
    end = time.monotonic() + 60
    while lives(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not lives(pid)


def test_sigterm_of_others_is_survived_and_that_of_the_parent_obeyed() -> None:
    running = iter(loader())
    (process,) = running._workers
    next(running)
    stranger = in_child(lambda: os.kill(process.pid, signal.SIGTERM))
    assert ended(stranger) == 0
    assert [int(image[0][0]) for image in running] == [1, 2, 3]
    assert process.is_alive()
    process.terminate()  # what multiprocessing does at the exit of every program, before it waits for ever
    process.join(60)
    assert process.exitcode == 0


def test_they_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    note = tmp_path / "pids"

    def work() -> None:
        running = iter(loader(workers=2))
        next(running)
        note.write_text(" ".join(str(process.pid) for process in running._workers))
        os.kill(os.getpid(), signal.SIGKILL)

    assert ended(in_child(work)) == -signal.SIGKILL
    assert all(gone(int(pid)) for pid in note.read_text().split())


def raised_by(happens: Callable[[], object]) -> Exception:
    with pytest.raises(RuntimeError) as error:
        list(loader(happens))
    return error.value


@pytest.mark.parametrize(
    ("number", "advice"), [("SIGKILL", "memory ran out"), ("SIGSEGV", "its own words"), ("SIGBUS", "--shm-size")]
)
def test_a_killed_one_is_told_of_by_its_signal(number: str, advice: str) -> None:
    error = from_loader(raised_by(lambda: os.kill(os.getpid(), signal.Signals[number])))
    assert isinstance(error, UserError)
    assert error.what == "a loader process was killed" and error.got == number
    assert error.fix is not None and advice in error.fix and VARIABLE in error.fix and "continues" in error.fix


def test_one_that_ends_by_itself_is_told_of_by_its_exit_code() -> None:
    error = from_loader(raised_by(lambda: os._exit(7)))
    assert error is not None and error.got == "exit code 7"


def test_one_whose_end_torch_did_not_see_is_told_of_as_well() -> None:
    lost = multiprocessing.get_context("fork").Process(target=lambda: os.kill(os.getpid(), signal.SIGKILL))
    lost.start()
    lost.join(60)
    error = from_loader(RuntimeError(f"DataLoader worker (pid(s) {lost.pid}) exited unexpectedly"))
    assert error is not None and error.got == "SIGKILL"


@pytest.mark.parametrize(("left", "told"), [(ConnectionResetError("in the middle"), False), (ValueError("own"), True)])
def test_a_batch_that_is_no_longer_wanted_is_nothing_to_tell_of(
    capfd: pytest.CaptureFixture[str], left: Exception, told: bool
) -> None:
    """multiprocessing tells so of a parent that goes while a tensor is handed over."""

    def hook() -> None:
        sys.excepthook(type(left), left, None)

    list(loader(hook))
    assert (str(left) in capfd.readouterr().err) == told


def test_a_batch_that_cannot_be_sent_is_an_error() -> None:
    def full(*_: object) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2>: No space left on device (28)")

    def fill() -> None:
        torch.UntypedStorage._share_fd_cpu_ = full  # type: ignore[method-assign,assignment]

    error = from_loader(raised_by(fill))
    assert error is not None and error.where == "/dev/shm" and "No space left on device; " in str(error.got)


def test_other_errors_are_left_alone() -> None:
    with pytest.raises(ZeroDivisionError) as error:
        list(loader(lambda: 1 / 0))
    assert from_loader(error.value) is None
    assert from_loader(RuntimeError("No space left on device")) is None
    assert from_loader(UserError("missing checkpoint")) is None


def test_cores_are_those_of_this_process_or_as_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 3, 5})
    assert cores() == 3
    monkeypatch.setenv(VARIABLE, "12")
    assert cores() == 12
    for wrong in ("0", "-1", "many", "", "1.5"):
        monkeypatch.setenv(VARIABLE, wrong)
        with pytest.raises(UserError, match=VARIABLE):
            cores()


def test_loader_processes_are_started_with_sigterm_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM for all of a job ended a loader process that was just starting, and with it the training."""
    seen: list[bool] = []
    launch = popen_fork.Popen._launch

    def watched(self: Any, process: Any) -> None:
        seen.append(signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        launch(self, process)

    monkeypatch.setattr(popen_fork.Popen, "_launch", watched)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    for init, blocked in ((outlive_sigterm, True), (partial(outlive_sigterm), True), (None, False)):
        seen.clear()
        assert list(DataLoader([1, 2], num_workers=1, worker_init_fn=init, batch_size=None)) == [1, 2]
        assert seen == [blocked]
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
