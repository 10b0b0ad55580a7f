"""Data of the user where toy data are asked for, through Snakemake: it removes outputs, so the data are none.

Snakemake and `ltpipe toy-data` are real, the other stages a stub.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.helpers.workspace import Workspace

OPTIONS = {"num_classes": 9, "train_images": 9, "val_images": 3, "image_size": 64}
FILE = "configs/experiments/own.yaml"
CONFIG = ("--config", "experiments=own")
INDEX = ("all_index", "--cores", "1", *CONFIG)
FILES = ("train.json", "val.json", "train/000001.png", "train/photo.jpg", "val/000010.png")


def workspace_in(folder: Path) -> Workspace:
    """A workspace with an experiment that inherits toy data, where files of the user may lie."""
    workspace = Workspace(folder)
    command = workspace.folder / "bin" / "ltpipe"
    stub = command.read_text().splitlines()[1]
    real = stub.replace(" stub ", " ltpipe ")
    command.write_text(f'#!/bin/sh\n[ "$1" = toy-data ] && {real}\n{stub}\n')
    parts = {p: {"annotations": f"data/own/{p}.json", "images": f"data/own/{p}"} for p in ("train", "val")}
    content = {"extends": "joint.yaml", "dataset": {"name": "own", "generate": {"seed": 0, **OPTIONS}, **parts}}
    (workspace.folder / FILE).write_text(yaml.safe_dump(content))
    return workspace


def snapshot(workspace: Workspace) -> dict[str, tuple[bytes, int, int]]:
    """Content, inode and time of the data."""
    files = [file for file in (workspace.folder / "data").rglob("*") if file.is_file()]
    folder = workspace.folder / "data" / "own"
    return {
        file.relative_to(folder).as_posix(): (file.read_bytes(), file.stat().st_ino, file.stat().st_mtime_ns)
        for file in files
    }


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with files of the user."""
    workspace = workspace_in(tmp_path_factory.mktemp("mine") / "w")
    for name in FILES:
        file = workspace.folder / "data" / "own" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    return workspace


@pytest.mark.parametrize("how", [(), ("-F",), ("-R", "toy_data"), ("--rerun-incomplete",)], ids=" ".join)
@pytest.mark.parametrize("missing", [None, "val.json"])
def test_own_data_stay(mine: Workspace, how: tuple[str, ...], missing: str | None) -> None:
    file = mine.folder / "data" / "own" / str(missing)
    if missing:
        file.unlink()
    before = snapshot(mine)
    mine.snakemake(*INDEX, *how, ok=False)
    assert snapshot(mine) == before
    log = (mine.folder / "logs/datasets/own.toy_data.log").read_text()
    assert "holds other files" in log and "generate: null" in log and "Traceback" not in log
    if missing:
        file.write_text("mine")


def test_drawn_data(tmp_path: Path) -> None:
    workspace = workspace_in(tmp_path / "w")
    folder = workspace.folder / "data" / "own"
    workspace.snakemake(*INDEX)
    drawn = snapshot(workspace)
    assert len(drawn) == 9 + 3 + 2 + 1 and workspace.dry_run("all_index", *CONFIG) == {}

    # What is lost is drawn again, to the same bytes: nothing follows from it.
    (folder / "val.json").unlink()
    (folder / "note.txt").write_text("mine")
    assert workspace.dry_run("all_index", *CONFIG) == {"toy_data": 1}
    workspace.snakemake(*INDEX)
    assert workspace.dry_run("all_index", *CONFIG) == {}
    after = snapshot(workspace)
    assert after.pop("note.txt")[0] == b"mine"
    assert {name: found[0] for name, found in after.items()} == {name: found[0] for name, found in drawn.items()}
    changed = {name for name in drawn if drawn[name] != after[name]}
    assert changed == {"val.json", "record.json"}, "the others are not even touched"

    # Asked for, with other options: redrawn; the user's file stays.
    with workspace.edited(FILE, "seed: 0", "seed: 1"):
        assert workspace.dry_run("all_index", *CONFIG) == {"validate": 1, "toy_data": 1, "index": 1}
        workspace.snakemake(*INDEX)
        assert workspace.dry_run("all_index", *CONFIG) == {}
        other = snapshot(workspace)
        assert other["train.json"][0] != drawn["train.json"][0] and other["note.txt"][0] == b"mine"
        # An edit is the user's, whatever Snakemake is asked for.
        (folder / "train.json").write_text("edited")
        before = snapshot(workspace)
        for how in (("-R", "toy_data"), ("-F",)):
            workspace.snakemake(*INDEX, *how, ok=False)
            assert snapshot(workspace) == before
            assert (
                "has changed since ltpipe made it" in (workspace.folder / "logs/datasets/own.toy_data.log").read_text()
            )


def test_a_checkpoint_among_the_results(tmp_path: Path) -> None:
    """A finished detector that the user has put where base training writes is neither removed nor replaced."""
    workspace = Workspace(tmp_path / "w")
    file = workspace.folder / "results/given/base/model.pth"
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    for key in ("base: {checkpoint", "detector: {load_from"):
        given = f"extends: joint.yaml\n{key}: results/given/base/model.pth}}\n"
        (workspace.folder / "configs/experiments/given.yaml").write_text(given)
        for how in ((), ("-F",)):
            workspace.snakemake("all_base", "--cores", "1", "--config", "experiments=given", *how, ok=False)
            assert file.read_text() == "mine"
