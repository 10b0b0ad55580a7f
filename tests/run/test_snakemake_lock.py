"""Notes of dead Snakemakes vanish, those of living ones stay."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from getpass import getuser
from pathlib import Path

import pytest

from ltpipe.errors import UserError
from ltpipe.run.snakemake_lock import hold_run_lock

HOLD = """
import sys
from pathlib import Path
from ltpipe.run.snakemake_lock import hold_run_lock
lock = hold_run_lock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def living(folder: Path) -> Iterator[None]:
    """A Snakemake that runs in this folder and is killed in the end."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield
        process.kill()


def note(folder: Path) -> Path:
    file = folder / "locks" / "0.output.lock"
    file.parent.mkdir(exist_ok=True)
    file.write_text("results/tiny/base/model.pth\n")
    return file


def test_notes_of_the_dead_vanish(tmp_path: Path) -> None:
    with living(tmp_path):
        left = note(tmp_path)
    lock = hold_run_lock(tmp_path)
    assert lock is not None and not left.exists()
    lock.close()


def test_notes_stay_while_any_snakemake_lives(tmp_path: Path) -> None:
    with living(tmp_path):
        with living(tmp_path):
            left = note(tmp_path)
        # The second one has ended, the first one has not.
        lock = hold_run_lock(tmp_path)
        assert lock is not None and left.exists()
        lock.close()


def test_without_a_folder(tmp_path: Path) -> None:
    lock = hold_run_lock(tmp_path / ".snakemake")
    assert lock is not None
    lock.close()


def test_the_second_one_is_told_of_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with living(tmp_path):
        lock = hold_run_lock(tmp_path)
    said = capsys.readouterr().err
    assert "Another Snakemake works in this folder" in said and f"{getuser()} on {platform.node()}, pid " in said
    assert lock is not None
    lock.close()
    alone = hold_run_lock(tmp_path)
    assert alone is not None and capsys.readouterr().err == ""
    alone.close()


def test_a_folder_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ltpipe.lock").touch()

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(UserError, match=f"another user\n.*\n.*the owner is {getuser()}\n.*clone of your own"):
        hold_run_lock(tmp_path)
