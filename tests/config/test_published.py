"""Published numbers come from tables; experiment files stay short."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltpipe.config.loading import FOLDER, list_experiments, load_experiment
from ltpipe.config.published import published
from ltpipe.errors import UserError
from tests.helpers.small_project import EXPERIMENT, Load

HEADER = "experiment,checkpoint,iou_type,metric,value,tolerance,source\n"


def test_every_number_belongs_to_an_experiment_and_has_a_source() -> None:
    names = set(list_experiments())
    for file in Path("configs/published").glob("*.csv"):
        for line in file.read_text().splitlines()[1:]:
            assert line.split(",")[0] in names, f"{file}: {line}"
    for name in names:
        assert all(number.source for number in published(name))


def test_experiment_files_are_short() -> None:
    for file in FOLDER.rglob("*.yaml"):
        assert len(file.read_text().splitlines()) < 40, file


def test_numbers_are_read(load: Load, project: Path) -> None:
    folder = project / "configs" / "published"
    folder.mkdir()
    (folder / "ours.csv").write_text(f'{HEADER}other,base,segm,AP,1,1,x\nsmall,phase1,segm,AP,20.5,1,"a, paper"\n')
    assert [number.value for number in load().report.expected] == [20.0], "those of the file come first"
    report = EXPERIMENT[EXPERIMENT.index("report:") :]
    (number,) = load(report, "").report.expected
    assert (number.checkpoint, number.metric, number.value, number.tolerance) == ("phase1", "AP", 20.5, 1.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("experiment,value\nsmall,1\n", "wrong columns"),
        (HEADER + "small,base,segm,AP,high,1,x\n", r"ours.csv:2: value"),
        (HEADER + "small,base,masks,AP,1,1,x\n", r"ours.csv:2: iou_type"),
        (HEADER + "small,base,segm,AP,1,1,a, paper\n", r"ours.csv:2"),
    ],
)
def test_tables_that_cannot_be_read(project: Path, text: str, words: str) -> None:
    (project / "ours.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        published("small", project)


def test_names_are_found_in_folders(load: Load, project: Path) -> None:
    load()
    folder = project / FOLDER / "deep" / "er"
    folder.mkdir(parents=True)
    (folder / "child.yaml").write_text("extends: small.yaml\nseed: 3\n")
    assert load_experiment("child").seed == 3 and list_experiments() == ["child", "small"]
    (project / FOLDER / "child.yaml").write_text("extends: small.yaml\n")
    with pytest.raises(UserError, match="several experiments have one name"):
        load_experiment("child")
