"""Passes over images by one, two or three processes: the same bytes, also when one of them is cut short."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltpipe.engine import shards
from ltpipe.engine.frozen_detector import FrozenDetector
from ltpipe.pipeline.paths import Paths
from tests.helpers.tiny_project import command_line, ended, in_child, kill_here, run_stages, together, torchrun
from tests.stages.conftest import Chain

STAGES = [("distill", 1), ("features", None), ("evaluate", "phase2")]
MADE = {".npz", ".npy", ".arrow", ".csv"}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SIZE", 2)


def run(paths: Paths, chain: Chain, stage: str, key: object) -> None:
    run_stages(chain.exp, paths.results, stage if key is None else (stage, key))


def made(paths: Paths, stage: str, key: object) -> dict[str, bytes]:
    folder = paths.folder(stage, key)
    found = {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.suffix in MADE}
    assert not paths.work(stage, key).exists()
    return found


@pytest.mark.parametrize(("stage", "key"), STAGES)
def test_any_number_of_processes_makes_the_same_bytes(chain: Chain, tmp_path: Path, stage: str, key: object) -> None:
    found = []
    for processes in (1, 2, 3):
        paths = chain.copy(tmp_path / str(processes))
        together(lambda paths=paths: run(paths, chain, stage, key), processes)
        found.append(made(paths, stage, key))
    assert found[0] and found[0] == found[1] == found[2]


def test_a_pass_cut_short_is_continued_by_another_number_of_processes(chain: Chain, tmp_path: Path) -> None:
    """One of three is killed; what all have finished by then is not done again by two."""
    whole, cut = (chain.copy(tmp_path / name) for name in ("whole", "cut"))
    run(whole, chain, "features", None)
    log = tmp_path / "pooled"

    def pass_of(kill: bool, environment: dict[str, str]) -> None:
        pool, done = FrozenDetector.pool, []

        def counted(self, row, flip, *rest):
            if kill and environment["RANK"] == "1" and len(done) == 3:
                kill_here()
            done.append(row)
            with open(log, "a") as file:
                file.write(f"{row} {flip}\n")
            return pool(self, row, flip, *rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FrozenDetector, "pool", counted)
            run(cut, chain, "features", None)

    for processes, kill in ((3, True), (2, False)):
        children = [in_child(lambda e=e, kill=kill: pass_of(kill, e), **e) for e in torchrun(processes)]
        codes = [ended(child) for child in children]
        assert codes[1] == -9 if kill else codes == [0, 0]
        counts = len(log.read_text().splitlines())
        log.rename(tmp_path / f"pooled{processes}")
        assert counts
    first, again = ((tmp_path / f"pooled{n}").read_text().splitlines() for n in (3, 2))
    assert set(first) | set(again) >= set(again) and len(again) < len(set(first) | set(again))
    assert made(cut, "features", None) == made(whole, "features", None)


def test_the_command_line_starts_them(chain: Chain, tmp_path: Path, forked_python: None) -> None:
    paths = chain.copy(tmp_path)
    file = chain.exp.file
    code, error = command_line("evaluate", file, "--results", paths.results, "--checkpoint", "base", "--processes", 2)
    assert code == 0, error
    assert '"processes": 2' in paths.record("evaluate", "base").read_text()
