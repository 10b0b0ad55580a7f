"""Names that mean something to a shell: what they hold is never run, and jobs get them as they are."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from ltpipe.config.loading import load_experiment
from ltpipe.errors import UserError
from tests.helpers.workspace import ROOT, Workspace

STEMS = ["x$(touch RUN)", "`touch RUN`  &touch RUN&", "a;touch RUN;'\"\\", "{a} {{b}}*[ab]?~ # > RUN", "Größe ½ 長尾"]
# Slurm as a few shell scripts: sbatch runs the job at once, srun runs the step.
SLURM = {
    "sbatch": 'for word; do case "$word" in --wrap=*) job="${word#--wrap=}";; esac; done\n'
    'echo x >> "$HOME/jobs"; n=$(wc -l < "$HOME/jobs")\n'
    'SLURM_JOB_ID=$n sh -c "$job" > "$HOME/$n.log" 2>&1 && s=COMPLETED || s=FAILED\n'
    'echo "$n|$s|None" >> "$HOME/states"; echo $n\n',
    "squeue": 'cat "$HOME/states"\n',
    "scontrol": 'echo "Slurmctld(primary) is UP"\n',
    "sacct": "exit 1\n",
    "srun": 'while [ "${1#-}" != "$1" ]; do shift; done\nexec "$@"\n',
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace in a folder whose own name is no better."""
    return Workspace(tmp_path_factory.mktemp("names") / "a b $(touch RUN)")


def add(workspace: Workspace, stem: str, name: str, **changes: object) -> str:
    """Write an experiment; return how ``--config`` names it."""
    file = workspace.folder / "configs" / "experiments" / f"{stem}.yaml"
    file.write_text(yaml.safe_dump({"extends": "joint.yaml", "name": name, **changes}), encoding="utf-8")
    return f"experiments=configs/experiments/{stem}.yaml"


def was_run(workspace: Workspace) -> list[Path]:
    """Files that only a name could have made."""
    return [file for file in workspace.folder.parent.rglob("RUN*") if file.name.strip(";") == "RUN"]


def test_experiment_files(workspace: Workspace) -> None:
    """The command of a job gets the file's very name."""
    names = []
    for number, stem in enumerate(STEMS):
        add(workspace, stem, f"e{number}")
        names.append(f"configs/experiments/{stem}.yaml")
    (workspace.folder / "configs" / "pipeline.yaml").write_text(yaml.safe_dump({"experiments": names}))
    assert workspace.dry_run("all")["base"] == len(STEMS)
    workspace.snakemake("all_validate", "--cores", "2")
    assert was_run(workspace) == []
    for number, stem in enumerate(STEMS):
        assert (workspace.folder / f"results/e{number}/validate/stage.json").is_file(), stem


def test_inputs(workspace: Workspace) -> None:
    """Annotations and checkpoints of the user."""
    folder = 'Größe $(touch RUN) quo\'te "x" \\; touch RUN'
    (workspace.folder / folder).mkdir()
    for file in ("train.json", "val.json", "x.pth"):
        (workspace.folder / folder / file).write_text('{"categories": []}')
    parts = {p: {"annotations": f"{folder}/{p}.json", "images": folder} for p in ("train", "val")}
    changes = {"dataset": {"name": "own", "generate": None, **parts}, "detector": {"load_from": f"{folder}/x.pth"}}
    workspace.snakemake("all_base", "--cores", "2", "--config", add(workspace, "own", "own", **changes))
    assert was_run(workspace) == [] and (workspace.folder / "results/own/base/model.pth").is_file()


def test_braces_in_inputs_are_refused(workspace: Workspace) -> None:
    folder = workspace.folder / "a{b}"
    folder.mkdir()
    parts = {p: {"annotations": f"a{{b}}/{p}.json", "images": "a"} for p in ("train", "val")}
    (folder / "val.json").write_text("{}")
    config = add(workspace, "braces", "braces", dataset={"name": "braces", "generate": None, **parts})
    text = workspace.snakemake("-n", "all_index", "--config", config, ok=False)
    assert "Snakemake takes braces in a path for a pattern" in text and "dataset.val.annotations" in text
    assert "Traceback" not in text


def test_names_of_two_lines_are_refused(tmp_path: Path) -> None:
    for stem in ("two\nlines", "tab\tx", "bell\a", "\udc80"):
        file = tmp_path / f"{stem}.yaml"
        file.write_text(f"extends: {ROOT}/configs/experiments/toy.yaml\nname: x\n")
        with pytest.raises(UserError, match="line break, another control character"):
            load_experiment(file)
    file = tmp_path / "plain.yaml"
    for text, key in (
        ('dataset: {train: {annotations: "a\\nb.json"}}', "dataset.train.annotations"),
        ('dataset: {class_list: "a\\tb.json"}', "dataset.class_list"),
        ('detector: {load_from: "a\\u2028b.pth"}', "detector.load_from"),
        ('calibrate: {simcal: {type: simcal, checkpoint: "a\\rb.pth"}}', "calibrate.simcal.checkpoint"),
    ):
        file.write_text(f"extends: {ROOT}/configs/experiments/coco_lt/coco_lt_simcal_ag.yaml\n{text}\n")
        with pytest.raises(UserError, match=f"plain.yaml:2: {re.escape(key)}") as caught:
            load_experiment(file)
        assert "line break" in str(caught.value)


@pytest.mark.parametrize("name", ["x$(touch y)", "a b", "a;b", "a\n", "-a", "a/b", "{a}", "ä", ""])
def test_names_of_results_are_plain(tmp_path: Path, name: str) -> None:
    """Experiments, data sets and calibrators name folders and jobs."""
    base = {"extends": str(ROOT / "configs/experiments/toy_joint.yaml")}
    for block in ({"name": name}, {"dataset": {"name": name}}, {"calibrate": {name: {"type": "simcal"}}}):
        (tmp_path / "x.yaml").write_text(yaml.safe_dump(base | block))
        with pytest.raises(UserError):
            load_experiment(tmp_path / "x.yaml")


def on_slurm(workspace: Workspace, config: str, monkeypatch: pytest.MonkeyPatch, *, ok: bool = True) -> str:
    """Run a job through the profile ``slurm`` and the scripts above."""
    home = workspace.folder.parent / "home"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name, text in SLURM.items():
        program = workspace.folder / "bin" / name
        program.write_text(f"#!/bin/sh\n{text}")
        program.chmod(0o755)
    options = ("--ltslurm-init-seconds-before-status-checks", "1", "--retries", "0", "--latency-wait", "5")
    return workspace.snakemake(
        "results/datasets/toy/toy_data.json", "--profile", "slurm", "--config", config, *options, ok=ok
    )


def test_jobs_on_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(tmp_path / "a b $(touch RUN)`touch RUN`")
    on_slurm(workspace, add(workspace, "x $(touch RUN)`touch RUN`", "one"), monkeypatch)
    assert (workspace.folder / "results/datasets/toy/toy_data.json").is_file()
    assert was_run(workspace) == []


def test_what_snakemake_does_not_quote_is_not_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(tmp_path / "w")
    text = on_slurm(workspace, add(workspace, "it's $(touch RUN)", "two"), monkeypatch, ok=False)
    assert "Slurm jobs cannot be given one of these names safely" in text and was_run(workspace) == []
    assert not (tmp_path / "home" / "jobs").exists()


def test_make_run(tmp_path: Path) -> None:
    """The Makefile's own commands, with a stand-in for Snakemake."""
    folder = tmp_path / "a b $(touch RUN) &|'\""
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / "envs").mkdir()
    for file in ("Makefile", "pyproject.toml", "envs/constraints.txt"):
        shutil.copy(ROOT / file, folder / file)
    for file in (".created", ".torch", ".mmcv", ".installed"):
        (folder / ".venv" / file).touch()
    command = folder / ".venv" / "bin" / "snakemake"
    command.write_text('#!/bin/sh\necho "$PWD" "$@"\n')
    command.chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run(["make", "run"], cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"{folder} --profile workflow/profiles/ci --cores " in done.stdout
    assert not list(tmp_path.rglob("RUN"))
