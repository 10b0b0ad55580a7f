"""Every command that writes where the user says leaves the user's files alone, and its own inputs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from ltpipe.cli import main
from ltpipe.config.json_schema import schema_text, write_schema
from ltpipe.errors import UserError
from ltpipe.run.outputs import NotOurs
from tests.helpers.tiny_project import experiment, run_stages

IMPORT = ["import", "a.json", "--output"]
MAKE_SPLIT = ["make-split", "--annotations", "a.json", "--fraction", "0.5", "--output"]
MAKE_LT = ["make-lt", "--annotations", "a.json", "--counts", "counts.json", "--output"]
SCORE = ["score", "--annotations", "a.json", "found.json"]
CONVERT = ["convert", "x.pth", "--classes", "counts.json", "--output"]
CLASS_INDEX = ["convert", "--source", "class_index", "index.pt", "--annotations", "a.json", "--output"]
IS_INPUT, OF_OTHERS, FOLDER = "the output is an input", "ltpipe did not make", "the folder holds other files"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files of the user, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    categories = [{"id": 1, "name": "one"}]
    images = [{"id": number, "file_name": f"{number}.png", "height": 9, "width": 9} for number in (1, 2)]
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 3, 3], "area": 9, "iscrowd": 0}
    document = {"images": images, "annotations": [box], "categories": categories}
    Path("a.json").write_text(json.dumps(document))
    Path("counts.json").write_text(json.dumps([{"id": 1, "name": "one", "instance_count": 1, "image_count": 1}]))
    Path("found.json").write_text(json.dumps([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 3, 3], "score": 0.5}]))
    Path("mine.json").write_text('{"mine": 1}')
    for name in ("x.pth", "index.pt", "labels.pt"):
        torch.save({"a": torch.zeros(1)}, name)
    Path("mine/train").mkdir(parents=True)
    for name in ("train.json", "train/000001.png", "report.html", "config.py", "model.pth"):
        Path("mine", name).write_text("mine")
    Path("link.json").symlink_to("a.json")
    os.link("a.json", "hard.json")
    return tmp_path


def snapshot(folder: Path) -> dict[str, tuple[object, ...]]:
    """Content, inode and time of everything in a folder."""
    stats = {path: path.lstat() for path in sorted(folder.rglob("*"))}
    return {
        str(path.relative_to(folder)): (path.is_file() and path.read_bytes(), stat.st_ino, stat.st_mtime_ns)
        for path, stat in stats.items()
        if not path.is_dir()
    }


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["toy-data", "--folder", "mine"], FOLDER),
        (["toy-data", "--folder", "mine/"], FOLDER),
        ([*MAKE_LT, "a.json"], IS_INPUT),
        ([*MAKE_LT, "./mine/../a.json"], IS_INPUT),
        ([*MAKE_LT, "link.json"], IS_INPUT),
        ([*MAKE_LT, "hard.json"], IS_INPUT),
        ([*MAKE_LT, "counts.json"], IS_INPUT),
        ([*MAKE_LT, "mine.json"], OF_OTHERS),
        ([*MAKE_LT, "mine"], "a folder lies where a file"),
        ([*IMPORT, "mine"], FOLDER),
        ([*IMPORT, "a.json"], IS_INPUT),
        ([*IMPORT, "mine.json"], "a file lies where a folder"),
        ([*MAKE_SPLIT, "mine"], FOLDER),
        ([*MAKE_SPLIT, "a.json"], IS_INPUT),
        ([*MAKE_SPLIT, "mine.json"], "a file lies where a folder"),
        ([*CONVERT, "x.pth"], IS_INPUT),
        ([*CONVERT, "counts.json"], IS_INPUT),
        ([*CONVERT, "mine/model.pth"], OF_OTHERS),
        (["convert", "x.pth", "--groups", "labels.pt", "--output", "labels.pt"], IS_INPUT),
        ([*CLASS_INDEX, "index.pt"], IS_INPUT),
        ([*CLASS_INDEX, "a.json"], IS_INPUT),
        ([*CLASS_INDEX, "mine.json"], OF_OTHERS),
        ([*SCORE, "--json", "a.json"], IS_INPUT),
        ([*SCORE, "--json", "found.json"], IS_INPUT),
        ([*SCORE, "--json", "mine.json"], OF_OTHERS),
        ([*SCORE, "--train", "counts.json", "--json", "counts.json"], IS_INPUT),
        ([*SCORE, "--output", "mine"], FOLDER),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_refused(files: Path, capsys: pytest.CaptureFixture[str], command: list[str], words: str) -> None:
    before = snapshot(files)
    assert main(command) == 2
    message = capsys.readouterr().err
    assert words in message and "fix:" in message and "Traceback" not in message
    assert snapshot(files) == before


@pytest.mark.parametrize(
    "command",
    [[*MAKE_LT, "new/lt.json"], [*MAKE_SPLIT, "new/split"], [*SCORE, "--json", "new/s.json", "--output", "new/s"]],
    ids=" ".join,
)
def test_made_again(files: Path, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    """Twice the same, and not over an edit."""
    assert main(command) == 0
    made = snapshot(files / "new")
    assert main(command) == 0
    assert {name: found[0] for name, found in snapshot(files / "new").items()} == {n: f[0] for n, f in made.items()}
    edited = next(file for file in sorted((files / "new").rglob("*.json")) if "record" not in file.name)
    edited.write_text("edited")
    before = snapshot(files)
    assert main(command) == 2
    assert "has changed since ltpipe made it" in capsys.readouterr().err
    assert snapshot(files) == before


def test_a_schema_that_was_edited(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    for _ in range(2):
        write_schema(file)
    assert file.read_text() == schema_text()
    file.write_text(schema_text() + " ")
    with pytest.raises(NotOurs, match="has changed"):
        write_schema(file)
    (tmp_path / "schema.json.record.json").unlink()
    with pytest.raises(NotOurs, match="did not make"):
        write_schema(file)
    file.write_text(schema_text())
    write_schema(file)


def test_inputs_among_the_results_of_their_stage(files: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "datasets" / "tiny" / "train"
    folder.mkdir(parents=True)
    (tmp_path / "a.json").rename(folder / "a.json")
    (tmp_path / "there").symlink_to(folder)
    parts = {part: {"annotations": str(tmp_path / "there" / "a.json"), "images": "x"} for part in ("train", "val")}
    before = snapshot(tmp_path / "results")
    with pytest.raises(UserError, match="lies among the results that it replaces"):
        run_stages(experiment(tmp_path, dataset=parts), tmp_path / "results", "index")
    assert snapshot(tmp_path / "results") == before


def test_toy_data_of_an_experiment_over_own_data(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("data").mkdir()
    Path("mine").rename("data/my")
    parts = {p: {"annotations": f"data/my/{p}.json", "images": f"data/my/{p}"} for p in ("train", "val")}
    exp = experiment(tmp_path, dataset={"name": "my", "generate": {"seed": 0}, **parts})
    before = snapshot(tmp_path)
    assert main(["toy-data", "--experiment", str(exp.file)]) == 2
    message = capsys.readouterr().err
    assert FOLDER in message and "generate: null" in message and snapshot(tmp_path) == before
