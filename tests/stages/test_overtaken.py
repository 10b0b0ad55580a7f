"""Split brain: a training that its cluster has lost goes on, while the next attempt makes the same results."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ltpipe.engine.hooks import StepSeedHook
from ltpipe.errors import UserError
from ltpipe.pipeline.paths import Paths
from ltpipe.run.files import Overtaken, sha256_file
from tests.helpers.tiny_project import assert_same_state, ended, in_child, run_stages

if TYPE_CHECKING:
    from conftest import Chain

SQUEUE = '#!/bin/sh\n[ "$2" = --jobs=13 ] && echo 0 && exit 0\ncat {folder}/job12 2>/dev/null\n'


class Lost:
    """A training in a process of its own that waits before its third iteration."""

    def __init__(self, chain: Chain, paths: Paths, folder: Path, **environment: str) -> None:
        self.waits, self.goes_on = folder / "waits", folder / "goes_on"
        os.mkfifo(self.waits)
        os.mkfifo(self.goes_on)

        def work() -> None:
            seed = StepSeedHook.before_train_iter

            def before(hook, runner, *rest, **more):
                if runner.iter == 2:
                    self.waits.write_text("x")
                    self.goes_on.read_text()
                seed(hook, runner, *rest, **more)

            StepSeedHook.before_train_iter = before
            with pytest.raises(Overtaken):
                run_stages(chain.exp, paths.results, "base")

        self.child = in_child(work, **environment)
        self.waits.read_text()

    def ends_overtaken(self) -> bool:
        """Let it go on; whether it notices."""
        self.goes_on.write_text("x")
        return ended(self.child) == 0


def finished(paths: Paths, chain: Chain) -> dict[str, str]:
    """Checksums of the finished stage."""
    record = json.loads(paths.record("base").read_text())
    found = {name: sha256_file(paths.folder("base") / name) for name in record["outputs"]}
    assert found == record["outputs"] and not paths.work("base").exists()
    assert_same_state(paths.model("base"), chain.paths.model("base"))
    return found


def test_without_locks_the_later_attempt_wins(chain: Chain, tmp_path: Path) -> None:
    """As after a lease that ran out, or on a file system whose locks end at the host."""
    paths = chain.copy(tmp_path / "results")
    lost = Lost(chain, paths, tmp_path)
    (paths.folder("base") / ".lock").unlink()
    run_stages(chain.exp, paths.results, "base")
    before = finished(paths, chain)
    assert lost.ends_overtaken()
    assert finished(paths, chain) == before


def test_a_job_that_slurm_has_lost_is_replaced(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = chain.copy(tmp_path / "results")
    program = tmp_path / "bin" / "squeue"
    program.parent.mkdir()
    program.write_text(SQUEUE.format(folder=tmp_path))
    program.chmod(0o755)
    (tmp_path / "job12").write_text("0\n")
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    lost = Lost(chain, paths, tmp_path, SLURM_JOB_ID="12")
    with pytest.raises(UserError, match="Slurm job 12"):
        run_stages(chain.exp, paths.results, "base")
    monkeypatch.setenv("SLURM_JOB_ID", "13")
    with pytest.raises(UserError, match="Slurm job 12"):
        run_stages(chain.exp, paths.results, "base")
    (tmp_path / "job12").write_text("")
    run_stages(chain.exp, paths.results, "base")
    before = finished(paths, chain)
    assert lost.ends_overtaken()
    assert finished(paths, chain) == before
