"""Where things lie, and what ``ltpipe status`` makes of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ltpipe.config.experiment import Experiment
from ltpipe.pipeline.digests import slice_digest, stage_slice
from ltpipe.pipeline.paths import Paths
from ltpipe.pipeline.stages import stage_keys
from ltpipe.run.files import sha256_file
from ltpipe.run.records import location
from ltpipe.run.status import status
from tests.helpers.small_project import Load


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
    assert len(set(records)) == len(records) == 6 + 2 * 3 + 2 + 4


def finish(exp: Experiment, paths: Paths) -> None:
    """Write the results and records of all stages as if they had run."""
    for stage, key in stage_keys(exp):
        record = paths.record(stage, key)
        record.parent.mkdir(parents=True, exist_ok=True)
        for name in ("model.pth", "split.json"):
            (record.parent / name).write_text(f"{name} of {stage} {key}")
    inputs = {"base": [paths.split], "lst": [paths.model("base")], "evaluate": [paths.model("base")]}
    for stage, key in stage_keys(exp):
        record = paths.record(stage, key)
        content = {
            "digest": slice_digest(stage_slice(exp, stage, key)),
            "settings": stage_slice(exp, stage, key),
            "inputs": {str(path): sha256_file(path) for path in inputs.get(stage, [])},
            "outputs": {name: sha256_file(record.parent / name) for name in ("model.pth", "split.json")},
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
    paths.model("base").write_text("another")
    record = json.loads(paths.record("base").read_text())
    record["outputs"]["model.pth"] = sha256_file(paths.model("base"))
    paths.record("base").write_text(json.dumps(record))
    found = states(exp, paths)
    assert found["base"] == "done" and found["lst phase1"] == "stale" and found["features"] == "done"


def test_an_edited_result_is_told_of_where_it_is_made_and_where_it_is_read(load: Load) -> None:
    exp = load()
    paths = Paths("out", exp)
    finish(exp, paths)
    stat, text = paths.model("base").stat(), paths.model("base").read_text()
    paths.model("base").write_text(text.swapcase())
    os.utime(paths.model("base"), ns=(stat.st_atime_ns, stat.st_mtime_ns))
    found = reasons(exp)
    assert found["base"] == f"its result {paths.model('base')} has been changed"
    assert found["lst phase1"].startswith(f"its input {paths.model('base')} is not as its stage wrote it")
    paths.model("base").unlink()
    assert reasons(exp)["base"] == f"its result {paths.model('base')} is gone"


def test_results_and_projects_that_were_moved_are_done(load: Load, tmp_path: Path) -> None:
    """Records made under one name of the folder are read under another."""
    exp = load()
    here = Paths(Path("out").absolute(), exp)
    finish(exp, here)
    for stage, key in stage_keys(exp):
        record = json.loads(here.record(stage, key).read_text())
        here.record(stage, key).write_text(json.dumps(record | {"place": location(here)}))
    assert set(states(exp, Paths("out", exp)).values()) == {"done"}
    Path("out").rename("elsewhere")
    assert set(states(exp, Paths("elsewhere", exp)).values()) == {"done"}


def reasons(exp: Experiment) -> dict[str, str]:
    """What is told of the stages that are stale."""
    return {row.label: row.reason for row in status(exp, Paths("out", exp)) if row.state == "stale"}


def test_stale_stages_name_the_settings_that_changed(load: Load) -> None:
    finish(load(), Paths("out", load()))
    edits = [("{epochs: 2}", "{epochs: 3}"), ("type: cosine", "type: cosine, scale: 9")]
    edits += [("{iterations: 20}", "{iterations: 20, lr: 0.5}"), ("step: 3", "step: 2")]
    exp = load(*(text for edit in edits for text in edit))
    found = reasons(exp)
    assert found["base"].splitlines() == [
        "model.classifier.scale: 10.0 -> 9.0",
        "split.step: 3 -> 2",
        "base.schedule.epochs: 2.0 -> 3.0",
        "out/small/split is not up to date",
    ]
    assert found["calibrate head"] == "calibrate.head.schedule.lr: 0.01 -> 0.5"
    assert found["split"] == "split.step: 3 -> 2"
    assert found["lst phase1"].splitlines() == [
        "model.classifier.scale: 10.0 -> 9.0",
        "out/small/base is not up to date",
    ]


def test_a_phase_names_its_own_iterations(load: Load) -> None:
    phases = "{iterations: 10}\n  iterations_per_phase: [%d, %d]"
    finish(load("{iterations: 10}", phases % (5, 6)), Paths("out", load()))
    found = reasons(load("{iterations: 10}", phases % (5, 7)))
    assert found["lst phase2"].startswith("lst.iterations_per_phase.2: 6 -> 7")
    assert "lst phase1" not in found


def test_stale_stages_name_the_detector_file(load: Load) -> None:
    finish(load(), Paths("out", load()))
    Path("detector.py").write_text(Path("detector.py").read_text().replace("(64, 64)", "(96, 64)"))
    assert reasons(load())["base"].splitlines() == ["detector.resolved.train_pipeline.0.scale: [64, 64] -> [96, 64]"]


def test_many_changes_are_counted(load: Load) -> None:
    finish(load(), Paths("out", load()))
    schedule = "{epochs: 3, lr: 0.5, batch_size: 4, momentum: 0.1, weight_decay: 0.1, warmup_iterations: 3, gamma: 0.3}"
    lines = reasons(load("{epochs: 2}", schedule))["base"].splitlines()
    assert len(lines) == 6 and lines[-1] == "and 2 more"


def test_files_that_no_stage_made_are_compared_by_content(load: Load) -> None:
    exp = load()
    paths, data = Paths("out", exp), Path("data/val.json")
    finish(exp, paths)
    record = json.loads(paths.record("index").read_text())
    paths.record("index").write_text(json.dumps(record | {"inputs": {str(data): sha256_file(data)}}))
    before, text = data.stat(), data.read_text()
    os.utime(data, (2e9, 2e9))
    assert "index" not in reasons(exp), "touched only"
    for when in (1e18, before.st_mtime_ns, 2e18):
        other = data.with_name("other.json")
        other.write_text(text.swapcase())
        os.utime(other, ns=(int(when), int(when)))
        other.rename(data)
        assert reasons(exp)["index"] == f"its input {data} has changed", "whatever its time"
        data.write_text(text)
        assert "index" not in reasons(exp), "put back"
    data.unlink()
    assert reasons(exp)["index"] == f"its input {data} is gone"


def test_records_without_settings_and_damaged_ones(load: Load) -> None:
    paths = Paths("out", load())
    finish(load(), paths)
    record = json.loads(paths.record("base").read_text())
    del record["settings"]
    paths.record("base").write_text(json.dumps(record))
    paths.record("split").write_text("{cut off")
    exp = load("{epochs: 2}", "{epochs: 3}")
    assert reasons(exp)["base"].startswith("its part of the experiment has changed")
    assert states(exp, paths)["split"] == "waiting"


def test_a_stopped_stage_says_so(load: Load) -> None:
    exp = load()
    paths = Paths("out", exp)
    paths.work("base").mkdir(parents=True)
    (paths.work("base") / "iter_10.pth").touch()
    assert states(exp, paths)["base"] == "stopped"
