"""Experiments with several seeds: their runs, what these share, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltpipe.cli import main
from ltpipe.config.experiment import Experiment
from ltpipe.config.loading import load_experiment
from ltpipe.errors import UserError
from ltpipe.pipeline.digests import stage_digest
from ltpipe.pipeline.paths import Paths
from ltpipe.pipeline.rules import Pipeline
from ltpipe.pipeline.stages import stage_keys
from ltpipe.run.status import print_all
from tests.helpers.small_project import Load


def written(name: str, text: str) -> Experiment:
    """An experiment that extends the small one."""
    Path(f"configs/experiments/{name}.yaml").write_text(f"extends: small.yaml\n{text}", encoding="utf-8")
    return load_experiment(name)


def test_each_seed_is_a_run(load: Load) -> None:
    small, many = load(), written("many", "seeds: [3, 0]\n")
    assert stage_keys(many) == [("validate", None), ("report", None)]
    first, second = many.runs()
    assert [(one.name, one.seed, one.run_of, one.seeds) for one in (first, second)] == [
        ("many.seed3", 3, "many", ()), ("many.seed0", 0, "many", ()),
    ]  # fmt: skip
    for again in (load_experiment("many.seed0"), load_experiment(second.reference), many.beside("many.seed0")):
        assert again == second and again.owners == second.owners
    # A run is the experiment with this seed: the same stages with the same digests, and the check is that of all seeds.
    assert stage_keys(second) == [one for one in stage_keys(small) if one[0] != "validate"]
    unlike = {one for one in stage_keys(second) if stage_digest(small, *one) != stage_digest(second, *one)}
    assert unlike == {("report", None), ("pictures", None)}, "their slices have the name"
    assert first.owners == {} and second.owners == {("split", None): "many.seed3"}
    assert Paths("results", second).split == Path("results/many.seed3/split/split.json")
    assert Paths("results", second).model("base") == Path("results/many.seed0/base/model.pth")


def test_runs_are_with_runs_of_the_same_seed(load: Load) -> None:
    load()
    written("many", "seeds: [0, 1]\n")
    others = "share: many\nreport: {compare: [many, small]}\n"
    start = Path("results/many/base/model.pth")
    run = written("other", f"seeds: [0, 1]\n{others}detector: {{load_from: {start}}}\n").runs()[1]
    assert (run.share, run.report.compare) == ("many.seed1", ("many.seed1", "small"))
    assert str(run.detector.load_from) == "results/many.seed1/base/model.pth"
    alike = written("alike", "seeds: [0, 1]\nfeatures: {tau: 0.5}\nshare: many\n").runs()[1]
    assert alike.owners["base", None] == "many.seed1" and alike.owners["split", None] == "many.seed0"
    assert ("features", None) not in alike.owners
    pipeline = Pipeline(["alike"])
    runs = {f"{name}.seed{seed}" for name in ("alike", "many") for seed in (0, 1)}
    assert set(pipeline.experiments) == {*runs, "alike"}
    wanted = pipeline.targets["phase_1"]
    assert "results/many.seed1/lst/phase1/stage.json" in wanted and "results/many.seed0/lst/phase1/stage.json" in wanted


def test_what_is_refused(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    load()
    for seeds in ("[1]", "[1, 1]"):
        with pytest.raises(UserError, match="at least two that differ"):
            written("many", f"seeds: {seeds}\n")
    written("many", "seeds: [0, 1]\n")
    for name in ("many.seed2", "small.seed0"):
        with pytest.raises(UserError, match="not run for this seed"):
            load_experiment(name)
    with pytest.raises(UserError, match="no such experiment"):
        load_experiment("none.seed0")
    for command in (["base", "many"], ["export", "many", "--checkpoint", "base", "--output", "x"]):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert "several seeds" in said and "many.seed0, many.seed1" in said


def test_status_knows_seeds(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    load()
    written("many", "seeds: [0, 1]\n")
    assert main(["status", "many"]) == 0
    said = capsys.readouterr().out
    assert said.count("lst phase1") == 2 and "many.seed1:" in said and "of many.seed0; no results" in said
    assert main(["status", "many.seed1"]) == 0
    assert capsys.readouterr().out.count("lst phase1") == 1
    Path("results/many.seed1").mkdir(parents=True)
    print_all(Path("results"))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("many")]
    total = sum(len(stage_keys(one)) for one in (*load_experiment("many").runs(), load_experiment("many")))
    assert f"0 of {total} done" in line
