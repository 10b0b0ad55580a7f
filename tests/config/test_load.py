"""Loading: parents, defaults, and the errors a user sees."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ltpipe.config.loading import find_experiment, load_experiment, merge
from ltpipe.errors import UserError
from tests.helpers.small_project import EXPERIMENT, Load

# What is edited, by what, and words of the message: the key, the fault, what to do instead.
MISTAKES = [
    ("step: 3", "steps: 3", ["small.yaml:8: split.steps", "unknown key", "did you mean 'step'?"]),
    ("name: small", "nam: small", ["small.yaml:2: dataset.nam", "did you mean 'name'?"]),
    ("type: repeat_factor", "type: repeat_facter", ["base.sampler.type", "unknown sampler", "'repeat_factor'?"]),
    ("type: cosine", "type: cosin", ["model.classifier.type", "unknown classifier", "did you mean 'cosine'?"]),
    ("threshold: 0.01", "treshold: 0.01", ["base.sampler.treshold", "of sampler repeat_factor", "'threshold'?"]),
    ("threshold: 0.01", "threshold: much", ["base.sampler.threshold", "'much'", "a valid number"]),
    ("type: simcal,", "type: simcal, thresh: 3,", ["calibrate.head.thresh", "did you mean 'threshold'?"]),
    (
        "type: simcal,",
        "type: simcal, mode: duel,",
        ["calibrate.head.mode", "'duel'", "dual, cal", "did you mean 'dual'?"],
    ),
    ("type: simcal, ", "", ["calibrate.head.type", "missing", "add 'type'"]),
    ("{epochs: 2}", "{epochs: 2, iterations: 5}", ["base.schedule", "epochs or iterations, not both"]),
    ("{epochs: 2}", "{epochs: 0}", ["base.schedule.epochs", "greater than 0"]),
    ("{epochs: 2}", "{drops: [0.8, 0.6]}", ["base.schedule.drops", "ascend"]),
    ("{epochs: 2}", "{drops: [0.5, 100]}", ["base.schedule.drops", "all fractions below 1, or all iterations"]),
    ("{epochs: 2}", "{optimizer: sgdd}", ["base.schedule.optimizer", "'sgdd'", "did you mean 'sgd'?"]),
    (
        "{base_classes: 2, step: 3}",
        "{base_classes: 2}",
        ["small.yaml:8: split", "base_classes and step, or boundaries"],
    ),
    ("step: 3}", "step: 3, boundaries: [2, 6]}", ["split", "not both"]),
    ("{base_classes: 2, step: 3}", "{boundaries: [4, 4, 6]}", ["split", "no phase is empty"]),
    ("lst:\n  schedule: {iterations: 10}\n", "", ["split and lst belong together"]),
    ("  head:", "  phase3:", ["phase3", "clash with a checkpoint"]),
    ("value: 20", "value: high", ["report.expected[0].value", "'high'", "a valid number"]),
    ("value: 20, ", "", ["report.expected[0].value", "missing"]),
    ("iou_type: segm", "iou_type: mask", ["report.expected[0].iou_type", "'mask'", "bbox, segm"]),
    ("name: small", "name: small\n  name: large", ["small.yaml:3: dataset.name", "given twice", "small.yaml:2"]),
    ("name: small", f"name: {'a' * 30}", ["dataset.name", "ends with twenty equal parts"]),
    ("name: small", f"name: {'long-' * 18}{'name' * 9}", ["dataset.name", "at most 100 characters"]),
    ("{epochs: 2}", "{epochs: 2", ["small.yaml", "not valid YAML"]),
    ("name: small", "name: small\n  generate: {seeds: 1}", ["data/small", "train.json beside"]),
    ("name: small", "name: small\n  frequency_limits: [100, 10]", ["dataset.frequency_limits", "must ascend"]),
]


@pytest.mark.parametrize(("old", "new", "words"), MISTAKES, ids=[m[1].strip()[:40] or m[2][0] for m in MISTAKES])
def test_mistakes_are_explained(load: Load, old: str, new: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load(old, new)
    for word in words:
        assert word in str(caught.value)


def test_defaults_and_options_are_complete(load: Load) -> None:
    exp = load()
    assert exp.name == "small"
    assert exp.base.sampler.options["threshold"] == 0.01
    assert "rounding" in exp.base.sampler.options
    assert exp.model.classifier.options == {"scale": 10.0}
    assert exp.lst is not None and exp.lst.schedule.lr == 0.005 and exp.lst.schedule.warmup_iterations == 0
    calibration = exp.calibrate["head"].schedule
    assert (calibration.momentum, calibration.weight_decay, calibration.lr) == (0, 0, 0.01)


def test_the_lock_is_an_experiment(load: Load, project: Path) -> None:
    exp = load()
    lock = project / "lock.yaml"
    lock.write_text(yaml.safe_dump(exp.model_dump(mode="json")), encoding="utf-8")
    assert load_experiment(lock).model_dump() == exp.model_dump()


def test_a_parent_in_the_chain_is_named_in_errors(project: Path) -> None:
    parent = project / "configs/experiments/small.yaml"
    parent.write_text(EXPERIMENT.replace("step: 3", "stepp: 3"), encoding="utf-8")
    child = project / "configs/experiments/child.yaml"
    child.write_text("extends: small.yaml\nseed: 3\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"small.yaml:8: split.stepp"):
        load_experiment("child")


def test_extends(load: Load, project: Path) -> None:
    load()
    child = project / "configs/experiments/child.yaml"
    text = """
    extends: small.yaml
    base: {sampler: {type: random}, schedule: {iterations: 7}}
    split: null
    lst: null
    calibrate: {head: null, other: {type: simcal}}
    report: {expected: []}
    """
    child.write_text(text, encoding="utf-8")
    exp = load_experiment("child")
    assert exp.name == "child" and exp.num_phases() == 0
    assert exp.base.sampler.type == "random" and "threshold" not in exp.base.sampler.options
    assert exp.base.schedule.iterations == 7 and exp.base.schedule.epochs is None
    assert list(exp.calibrate) == ["other"]
    assert exp.dataset.name == "small"


@pytest.mark.parametrize(
    ("parent", "child", "merged"),
    [
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}, {"a": {"b": 3, "c": 2}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"type": "x", "p": 1}, {"type": "y"}, {"type": "y"}),
        ({"type": "x", "p": 1}, {"type": "x", "q": 2}, {"type": "x", "p": 1, "q": 2}),
        ({"epochs": 1, "lr": 2}, {"iterations": 3}, {"iterations": 3, "lr": 2}),
        ({"base_classes": 1, "step": 2}, {"boundaries": [1, 3]}, {"boundaries": [1, 3]}),
        ({"boundaries": [1, 3]}, {"step": 2, "base_classes": 1}, {"base_classes": 1, "step": 2}),
    ],
)
def test_merge(parent: dict[str, object], child: dict[str, object], merged: dict[str, object]) -> None:
    assert merge(parent, child) == merged


def test_circles_and_missing_parents(load: Load, project: Path) -> None:
    load()
    folder = project / "configs/experiments"
    (folder / "a.yaml").write_text("extends: b.yaml", encoding="utf-8")
    (folder / "b.yaml").write_text("extends: a.yaml", encoding="utf-8")
    with pytest.raises(UserError, match="circle"):
        load_experiment("a")
    (folder / "a.yaml").write_text("extends: smal.yaml", encoding="utf-8")
    with pytest.raises(UserError, match=r"(?s)a.yaml:1: extends.*did you mean 'small.yaml'"):
        load_experiment("a")


def test_unknown_experiment_names_the_nearest(project: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'small'"):
        find_experiment("smal")


def test_variables_in_paths(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    edit = ("data/train.json", "'${PICTURES:-data}/train.json'")
    monkeypatch.delenv("PICTURES", raising=False)
    assert load(*edit).dataset.train.annotations == Path("data/train.json")
    monkeypatch.setenv("PICTURES", "/far")
    assert load(*edit).dataset.train.annotations == Path("/far/train.json")


def test_scientific_notation_is_a_number(load: Load) -> None:
    assert load("{epochs: 2}", "{epochs: 2, lr: 1e-3}").base.schedule.lr == 1e-3


def test_the_small_experiment_is_what_the_tests_think() -> None:
    assert EXPERIMENT.splitlines()[7].startswith("split")
