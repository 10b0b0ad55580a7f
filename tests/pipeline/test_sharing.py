"""Experiments that begin alike share the results of their first stages."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from ltpipe.cli import main
from ltpipe.config.loading import load_experiment
from ltpipe.errors import UserError
from ltpipe.pipeline.paths import Paths
from ltpipe.pipeline.rules import Pipeline

FIRST = [("split", None), ("base", None)]


def write(text: str, name: str = "other") -> str:
    Path(f"configs/experiments/{name}.yaml").write_text(f"extends: small.yaml\nshare: small\n{text}", encoding="utf-8")
    return name


def annotate(file: Path) -> None:
    """Put two objects of every class on two images."""
    content = json.loads(file.read_text(encoding="utf-8"))
    federated = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    size = {"height": 64, "width": 64}
    content["images"] = [{"id": i, "file_name": f"{i}.png", **size, **federated} for i in (1, 2)]
    box = {"bbox": [8, 8, 8, 8], "area": 64, "segmentation": [[8, 8, 16, 8, 16, 16, 8, 16]], "iscrowd": 0}
    pairs = [(image["id"], category["id"]) for image in content["images"] for category in content["categories"]]
    content["annotations"] = [
        {"id": i, "image_id": image, "category_id": category, **box} for i, (image, category) in enumerate(pairs, 1)
    ]
    file.write_text(json.dumps(content), encoding="utf-8")


def shared(text: str) -> list[tuple[str, object]]:
    return list(load_experiment(write(text)).owners)


def test_stages_up_to_the_first_difference(project: Path) -> None:
    whole = list(load_experiment(write("")).owners)
    assert whole[:2] == FIRST and whole[-1] == ("features", None)
    assert {"split", "base", "distill", "lst", "features"} == {stage for stage, _ in whole}
    assert shared("seed: 7\n") == [("split", None)], "the base reads the seed"
    assert shared("lst: {replay: {variant: none}}\n") == FIRST
    later = shared("features: {tau: 0.25}\n")
    assert later == whole[:-1]
    assert shared("calibrate: null\n") == whole[:-1], "without calibrators there are no features"
    assert shared("split: {base_classes: 3}\n") == []


def test_paths_and_jobs(project: Path) -> None:
    """Results are looked for, made and recorded in one place."""
    exp = load_experiment(write("lst: {distill: {weight: 0.5}}\n"))
    paths = Paths("results", exp)
    assert paths.model("base") == Path("results/small/base/model.pth")
    assert paths.split == Path("results/small/split/split.json")
    assert paths.model("phase1") == Path("results/other/lst/phase1/model.pth")
    assert paths.metrics("base") == Path("results/other/evaluate/base/metrics.json")
    assert paths.log("base") == Path("logs/small/base.log") and paths.log("lst", 1) == Path("logs/other/lst.phase1.log")
    pipeline = Pipeline("other")
    assert list(pipeline.experiments) == ["other", "small"] and [one.name for one in pipeline.active] == ["other"]
    wildcards = SimpleNamespace(experiment="other")
    read = pipeline.inputs("lst", 1, wildcards)
    assert {"results/small/base/model.pth", "results/small/split/split.json"} <= set(read)
    assert "results/small/base/config.py" not in read, "Python that belongs to results is not read"
    assert "results/other/split/phase1/replay.npz" not in read
    assert pipeline.records("base") == ["results/small/base/stage.json"]


def test_a_third_one(project: Path) -> None:
    write("lst: {distill: {weight: 0.5}}\n")
    file = Path("configs/experiments/third.yaml")
    file.write_text("extends: other.yaml\nshare: other\nfeatures: {tau: 0.25}\n", encoding="utf-8")
    owners = load_experiment("third").owners
    assert owners[("base", None)] == "small" and owners[("lst", 1)] == "other" and ("features", None) not in owners
    assert list(Pipeline("third").experiments) == ["third", "other", "small"]


@pytest.mark.parametrize(
    ("name", "words"),
    [("other", "in a circle"), ("smal", "did you mean 'small'"), ("Small/x", "share")],
)
def test_wrong_names(project: Path, name: str, words: str) -> None:
    file = Path("configs/experiments/other.yaml")
    file.write_text(f"extends: small.yaml\nshare: {name}\n", encoding="utf-8")
    with pytest.raises(UserError, match=words):
        load_experiment("other")


def test_two_that_name_each_other(project: Path) -> None:
    write("")
    small = Path("configs/experiments/small.yaml")
    small.write_text(f"share: other\n{small.read_text()}", encoding="utf-8")
    with pytest.raises(UserError, match="small -> other -> small"):
        load_experiment("small")


def test_a_stage_by_hand_runs_where_it_is_shared(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write("lst: {replay: {variant: none}}\n")
    # The detector of this project is the outline of one, which cannot be built.
    monkeypatch.setattr("ltpipe.stages.validate._inspected", lambda exp: [])
    assert main(["validate", "other"]) == 0
    assert "other: taken from small: split, base" in capsys.readouterr().out
    for part in ("train", "val"):
        annotate(Path(f"data/{part}.json"))
        for image in (1, 2):
            Path(f"data/{part}/{image}.png").touch()
    assert main(["index", "other"]) == 0
    assert main(["split", "other"]) == 2
    assert "results/small/split" in capsys.readouterr().out, "made by small, and not there yet"
    assert main(["split", "other", "--phase", "0"]) == 0
    assert "other takes this stage from small" in capsys.readouterr().out
    assert Path("results/small/split/split.json").is_file()
    assert main(["split", "other"]) == 0
    assert Path("results/other/split/phase1/replay.npz").is_file()
    assert not Path("results/other/split/split.json").exists()
    assert main(["status", "other"]) == 0
    assert "of small; took" in capsys.readouterr().out


def test_an_index_of_another_experiment_is_not_replaced(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two experiments that call different files by one name."""
    for part in ("train", "val"):
        annotate(Path(f"data/{part}.json"))
        for image in (1, 2):
            Path(f"data/{part}/{image}.png").touch()
        Path(f"data/{part}2.json").write_text(Path(f"data/{part}.json").read_text() + " ")
    other = Path("configs/experiments/other.yaml")
    files = ", ".join(f"{part}: {{annotations: data/{part}2.json}}" for part in ("train", "val"))
    other.write_text(f"extends: small.yaml\ndataset: {{{files}}}\n", encoding="utf-8")
    assert main(["index", "small"]) == 0
    before = Path("results/datasets/small/stage.json").read_bytes()
    capsys.readouterr()
    assert main(["index", "other"]) == 2
    told = capsys.readouterr().err
    assert "describe one data set differently" in told and "small has indexed" in told and "another name" in told
    assert Path("results/datasets/small/stage.json").read_bytes() == before
    assert main(["split", "other", "--phase", "0"]) == 2
    assert "data/train2.json" in capsys.readouterr().err
    small = Path("configs/experiments/small.yaml")
    other.write_text(small.read_text(encoding="utf-8").replace(".json", "2.json"), encoding="utf-8")
    small.unlink()
    assert main(["index", "other"]) == 0, "an experiment that is gone keeps nobody from its data set"
