"""Second stages: what they need, and trainings that start from the result of another experiment."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from ltpipe.config.checks import check_experiment
from ltpipe.config.loading import load_experiment
from ltpipe.config.start_weights import starting_experiment
from ltpipe.errors import UserError
from ltpipe.pipeline.rules import Pipeline
from tests.helpers.small_project import Load

SECOND = """\
extends: small.yaml
detector: {load_from: START}
base:
  trained: [fc_cls]
  fresh: [fc_cls]
  sampler: {type: class_aware}
"""


def write(text: str, name: str = "second") -> str:
    Path(f"configs/experiments/{name}.yaml").write_text(text, encoding="utf-8")
    return name


def message(text: str) -> str:
    with pytest.raises(UserError) as error:
        check_experiment(load_experiment(write(text)), ["small", "second"])
    return str(error.value)


def test_the_other_experiment_joins_the_pipeline(project: Path) -> None:
    start = "results/small/lst/phase1/model.pth"
    write(SECOND.replace("START", start))
    write("extends: second.yaml\ndetector: {load_from: results/second/base/model.pth}\n", "third")
    pipeline = Pipeline("third")
    assert list(pipeline.experiments) == ["third", "second", "small"] and len(pipeline.active) == 1
    inputs = {
        name: [
            file for file in pipeline.inputs("base", None, SimpleNamespace(experiment=name)) if file.endswith(".pth")
        ]
        for name in pipeline.experiments
    }
    assert inputs == {"third": ["results/second/base/model.pth"], "second": [start], "small": []}
    exp = load_experiment("second")
    assert check_experiment(exp, ["small", "second"]) == [], "the checkpoint need not be there yet"
    assert starting_experiment(exp).name == "small"


@pytest.mark.parametrize("start", ["coco.pth", "results/elsewhere/base/model.pth", "results"])
def test_files_from_elsewhere_are_nobodys(project: Path, start: str) -> None:
    write(SECOND.replace("START", start))
    assert starting_experiment(load_experiment("second")) is None
    assert start not in Pipeline("second").inputs("base", None, SimpleNamespace(experiment="second"))


def test_wrong_starts(project: Path) -> None:
    assert "did you mean 'results/small/base/model.pth'" in message(
        SECOND.replace("START", "results/small/base/model.pht")
    )
    assert "from its own result" in message(SECOND.replace("START", "results/second/base/model.pth"))


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        ([("{load_from: START}", "{}")], "base.trained"),
        ([("{load_from: START}", "{}"), ("  trained: [fc_cls]\n", "")], "base.fresh"),
        ([("trained: [fc_cls]", "trained: [fc_reg]")], "never be trained"),
        ([("trained: [fc_cls]", "trained: []")], "base.trained"),
        ([("trained: [fc_cls]", "trained: [fc_cls, neck]")], "conv_logits"),
        (
            [
                ("trained: [fc_cls]", "trained: [conv_logits, fc_cls]"),
                ("base:", "model: {mask: {type: weight_transfer}}\nbase:"),
            ],
            "no mask predictor",
        ),
    ],
)
def test_what_a_second_stage_needs(project: Path, edits: list[tuple[str, str]], words: str) -> None:
    text = SECOND
    for old, new in [*edits, ("START", "results/small/base/model.pth")]:
        text = text.replace(old, new)
    assert words in message(text)


def test_scaled_rows_need_rows(load: Load) -> None:
    with pytest.raises(UserError, match="trained detector to start from") as error:
        check_experiment(
            load("type: cosine}", "type: scaled_linear}", "lst:\n", "lst:\n  distill: {teacher: none}\n"), ["small"]
        )
    assert "model.classifier" in str(error.value)
