"""Where things lie, and what ``ltpipe status`` makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_project import Load

from ltpipe.spec.digest import stage_digest
from ltpipe.spec.models import Experiment
from ltpipe.spec.paths import Paths
from ltpipe.spec.status import stage_keys, status


def test_paths(load: Load) -> None:
    paths = Paths("out", load())
    assert paths.model("base") == Path("out/small/base/model.pth")
    assert paths.model("phase2") == Path("out/small/lst/phase2/model.pth")
    assert paths.model("head") == Path("out/small/calibrate/head/model.pth")
    assert paths.record("index") == Path("out/datasets/small/stage.json")
    assert paths.statistics("val") == Path("out/datasets/small/val/statistics.csv")
    assert paths.replay(1) == Path("out/small/split/phase1/replay.npz")
    assert paths.log("lst", 2) == Path("logs/small/lst.phase2.log")
    assert paths.work("base") == Path("out/small/base/work")


def test_no_two_stages_share_a_record(load: Load) -> None:
    exp = load()
    records = [Paths("out", exp).record(stage, key) for stage, key in stage_keys(exp)]
    assert len(set(records)) == len(records) == 5 + 2 * 3 + 2 + 4


def finish(exp: Experiment, paths: Paths) -> None:
    """Write the records of all stages as if they had run."""
    inputs = {"base": [paths.split], "lst": [paths.model("base")], "evaluate": [paths.model("base")]}
    for stage, key in stage_keys(exp):
        record = paths.record(stage, key)
        record.parent.mkdir(parents=True, exist_ok=True)
        for name in ("model.pth", "split.json"):
            (record.parent / name).touch()
        content = {
            "digest": stage_digest(exp, stage, key),
            "inputs": {str(path): "1" for path in inputs.get(stage, [])},
            "outputs": {"model.pth": "1", "split.json": "1"},
            "seconds": 3,
        }
        record.write_text(json.dumps(content))


def states(exp: Experiment, paths: Paths) -> dict[str, str]:
    """State by stage."""
    return {row.label: row.state for row in status(exp, paths)}


def test_status_of_nothing_and_of_everything(load: Load) -> None:
    exp = load()
    paths = Paths("out", exp)
    assert set(states(exp, paths).values()) == {"waiting"}
    finish(exp, paths)
    assert set(states(exp, paths).values()) == {"done"}


@pytest.mark.parametrize(
    ("edit", "stale"),
    [
        (("value: 20", "value: 3"), {"validate", "report"}),
        (("{epochs: 2}", "{epochs: 3}"), {"validate", "base", "lst phase1", "lst phase2"}),
    ],
)
def test_stale_stages_and_what_follows(load: Load, edit: tuple[str, str], stale: set[str]) -> None:
    paths = Paths("out", load())
    finish(load(), paths)
    exp = load(*edit)
    found = states(exp, paths)
    evaluations = {label for label in found if label.startswith("evaluate")} if "base" in stale else set()
    assert {label for label, state in found.items() if state == "stale"} == stale | evaluations


def test_a_remade_input_makes_what_follows_stale(load: Load) -> None:
    exp = load()
    paths = Paths("out", exp)
    finish(exp, paths)
    record = json.loads(paths.record("base").read_text())
    record["outputs"]["model.pth"] = "2"
    paths.record("base").write_text(json.dumps(record))
    found = states(exp, paths)
    assert found["base"] == "done" and found["lst phase1"] == "stale" and found["features"] == "done"


def test_a_stopped_stage_says_so(load: Load) -> None:
    exp = load()
    paths = Paths("out", exp)
    paths.work("base").mkdir(parents=True)
    (paths.work("base") / "iter_10.pth").touch()
    assert states(exp, paths)["base"] == "stopped"
