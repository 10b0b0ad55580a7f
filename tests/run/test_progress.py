"""What is told of stages that are not done: running, failed, queued."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ltpipe.errors import UserError
from ltpipe.pipeline.running import Teller
from ltpipe.run.log_progress import describe, failure, holder, rate, submitted_jobs

HOLD = """
import sys, time
from pathlib import Path
from ltpipe.run.stage_lock import exclusive
with exclusive(Path(sys.argv[1]), "base"):
    print("held", flush=True)
    time.sleep(60)
"""
LINE = (
    "2026/11/21 16:40:00 - mmengine - INFO - Iter(train) [ 50/450]  base_lr: 1.0000e-02 lr: 1.0000e-02  "
    "eta: {eta}  time: 0.5012  data_time: 0.01  loss: 2.5\n"
)


def test_a_held_lock_names_its_holder(tmp_path: Path) -> None:
    from ltpipe.run.stage_lock import exclusive

    assert holder(tmp_path) is None
    environment = {**os.environ, "SLURM_JOB_ID": "12"}
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        who = holder(tmp_path)
        assert who is not None and who["pid"] == process.pid and who["slurm"]["job"] == "12"
        with pytest.raises(UserError, match=f"pid {process.pid}, Slurm job 12, since "):
            with exclusive(tmp_path, "base"):
                pass
        assert holder(tmp_path) == who, "a refused process leaves the holder's note as it was"
        process.kill()
    assert holder(tmp_path) is None, "the lock of a killed process is free"
    with exclusive(tmp_path, "base"):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_rate(tmp_path: Path) -> None:
    log = tmp_path / "base.log"
    assert rate(log) is None
    log.write_text(LINE.format(eta="0:03:20") + "saved\n")
    assert rate(log) == "iteration 50 of 450, 0.50 s each, 0:03:20 left, loss 2.5"
    log.write_text(LINE.format(eta="1 day, 2:00:00"))
    assert rate(log) == "iteration 50 of 450, 0.50 s each, 1 day, 2:00:00 left, loss 2.5"
    log.write_text("images\n 10%|# | 1/10\r 20%|## | 2/10\r")
    assert rate(log) == " 20%|## | 2/10"


def test_snakemake_tells_of_running_stages(tmp_path: Path) -> None:
    """Once for every change of a stage that somebody holds; nothing of stages that nobody runs."""
    logs = {tmp_path / name: tmp_path / f"{name}.log" for name in ("base", "lst")}
    for log in logs.values():
        log.write_text(LINE.format(eta="0:03:20"))
    teller = Teller(logs)
    # A process does not see its own lock.
    command = [sys.executable, "-c", HOLD, str(tmp_path / "lst")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        (line,) = teller.lines()
        assert line.endswith("lst.log: iteration 50 of 450, 0.50 s each, 0:03:20 left, loss 2.5")
        assert list(teller.lines()) == []
        logs[tmp_path / "lst"].write_text(LINE.format(eta="0:01:00"))
        assert len(list(teller.lines())) == 1
        process.kill()
    assert list(teller.lines()) == []


def test_failure(tmp_path: Path) -> None:
    log = tmp_path / "base.log"
    log.write_text("line\nltpipe base: missing input of stage base\n  where:   a.json\n")
    assert failure(log) == f"ltpipe base: missing input of stage base\nwhere:   a.json\nsee {log}"
    log.write_text("Traceback (most recent call last):\n  File a\nRuntimeError: out of memory\n")
    assert str(failure(log)).startswith("RuntimeError: out of memory")
    log.write_text("ltpipe base: time is up after iteration 5 of 9; the next attempt continues\n")
    assert failure(log) is None
    assert failure(tmp_path / "none.log") is None


def test_submitted_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert submitted_jobs(tmp_path) == {}
    (tmp_path / "12.json").write_text(json.dumps({"number": "12", "outputs": ["m.pth", "stage.json"]}))
    (tmp_path / "13.json").write_text("{cut off")
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\necho '12|PENDING, (Resources)'\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert submitted_jobs(tmp_path)["stage.json"] == "Slurm job 12: PENDING, (Resources)"
    squeue.write_text("#!/bin/sh\nexit 1\n")
    assert submitted_jobs(tmp_path)["m.pth"] == "Slurm job 12: unknown to squeue"


def test_describe() -> None:
    who = {"host": "n1", "pid": 7, "slurm": {"job": "3"}, "since": "now"}
    assert describe(who) == "n1, pid 7, Slurm job 3, since now"
    assert describe({}) == "unknown host, pid ?"
