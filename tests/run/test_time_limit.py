"""Time limits: Slurm's durations, what is left, and where the limit comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltpipe.run.time_limit import VARIABLE, parse_duration, seconds_left, set_deadline, slurm_seconds_left


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("59", 59), ("1:00", 60), ("2:03:04", 7384), ("1-00:00:01", 86401), ("UNLIMITED", None), ("", None), ("1:", None)],
)
def test_durations(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == seconds


def test_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.delenv(VARIABLE)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    set_deadline(None)
    assert seconds_left() is None, "no limit outside a job"
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\ntest $2 = --jobs=12 && echo 10:00\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "13")
    assert slurm_seconds_left() is None
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    set_deadline(None)
    left = seconds_left()
    assert left is not None and 590 < left <= 600
    set_deadline(1.0)
    assert seconds_left() > 500, "processes of a launch keep the launcher's limit"  # type: ignore[operator]
    monkeypatch.delenv(VARIABLE)
    set_deadline(1.0)
    assert 50 < seconds_left() <= 60  # type: ignore[operator]
