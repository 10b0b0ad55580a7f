"""The same checkpoints on further test sets, and over seeds: what is measured, made anew, shown and refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from ltpipe import __version__
from ltpipe.cli import main
from ltpipe.config.checks import check_experiment, same_data
from ltpipe.config.experiment import Experiment
from ltpipe.errors import UserError
from ltpipe.metrics.predictions import Predictions
from ltpipe.pipeline.digests import stage_digest
from ltpipe.pipeline.paths import Paths
from ltpipe.pipeline.stages import stage_keys
from ltpipe.run.changes import changes
from ltpipe.run.machine import device
from ltpipe.run.status import status
from tests.helpers.tiny_project import experiment, run_stages

if TYPE_CHECKING:
    from tests.stages.conftest import Chain


def with_sets(chain: Chain, folder: Path) -> Experiment:
    """The chain with its validation part under another name, and with half of that."""
    source = chain.exp.dataset.val
    content = json.loads(source.annotations.read_text())
    content["images"] = content["images"][::2]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] in kept]
    (folder / "half.json").write_text(json.dumps(content))
    images = str(source.images)
    sets = {
        "again": {"annotations": str(source.annotations), "images": images},
        "half": {"annotations": str(folder / "half.json"), "images": images},
    }
    return experiment(chain.folder, evaluate={"checkpoints": ["phase2"], "sets": sets})


def test_checkpoints_are_measured_on_further_sets(chain: Chain, tmp_path: Path) -> None:
    plain = experiment(chain.folder, evaluate={"checkpoints": ["phase2"]})
    exp, paths = with_sets(chain, tmp_path), chain.copy(tmp_path / "w")
    check_experiment(exp)
    own = [one for one in stage_keys(exp) if one not in stage_keys(plain)]
    assert own == [("index", "again"), ("index", "half"), ("evaluate", "phase2@again"), ("evaluate", "phase2@half")]
    unread = {"validate", "report"}
    assert all(
        stage_digest(exp, *one) == stage_digest(plain, *one) for one in stage_keys(plain) if one[0] not in unread
    )
    run_stages(exp, paths.results, ("evaluate", "phase2"), *own, "report")
    assert paths.metrics("phase2@again").read_bytes() == paths.metrics("phase2").read_bytes()
    val, half = (Predictions.open(paths.predictions(name)) for name in ("phase2", "phase2@half"))
    images = {image["id"] for image in json.loads((tmp_path / "half.json").read_text())["images"]}
    assert set(half.image_ids.tolist()) <= images < set(val.image_ids.tolist())
    assert len(half) == sum(image in images for image in val.image_ids.tolist())
    table = pd.read_csv(paths.summary)
    assert table.groupby("set", sort=False).size().to_dict() == {"val": 2, "again": 2, "half": 2}
    ap = table.set_index(["set", "checkpoint", "iou_type"])["APf"]
    assert ap["val"].equals(ap["again"])
    page = paths.report.read_text()
    assert "Further test sets" in page and "half, masks" in page
    labels = {row.label: row.state for row in status(exp, paths)}
    assert {labels[name] for name in ("index half", "evaluate phase2@half", "report")} == {"done"}
    # Another file: its store is not that of today, from which its measurements follow, and nothing else.
    half = exp.evaluate.sets["half"].model_copy(update={"annotations": exp.dataset.val.annotations})
    sets = {**exp.evaluate.sets, "half": half}
    other = exp.model_copy(update={"evaluate": exp.evaluate.model_copy(update={"sets": sets})})
    assert [one for one in own if changes(other, paths, *one)] == [("index", "half")]
    command = [
        "evaluate",
        str(exp.file),
        "--results",
        str(paths.results),
        "--checkpoint",
        "phase2@half",
        "--cross-check",
    ]
    assert main(command) == 0


def test_what_is_refused(chain: Chain, tmp_path: Path) -> None:
    exp = with_sets(chain, tmp_path)
    source: dict[str, Any] = exp.evaluate.sets["half"].model_dump(mode="json")
    with pytest.raises(UserError, match=r"another name"):
        experiment(chain.folder, evaluate={"sets": {"val": source}})
    gone = experiment(chain.folder, evaluate={"sets": {"gone": {**source, "annotations": str(tmp_path / "no.json")}}})
    with pytest.raises(UserError, match=r"evaluate\.sets\.gone\.annotations"):
        check_experiment(gone)
    content = json.loads((tmp_path / "half.json").read_text())
    content["categories"][0]["name"] = "another class"
    (tmp_path / "half.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="another class"):
        check_experiment(exp)
    other = exp.evaluate.model_copy(update={"sets": {"half": exp.dataset.val}})
    with pytest.raises(UserError, match="one test set differently"):
        same_data(exp, exp.model_copy(update={"evaluate": other}), "half", "the first describes otherwise")


def test_one_report_over_seeds(chain: Chain, tmp_path: Path) -> None:
    """From what the runs have measured; here both are the chain."""
    measured: dict[str, Any] = {"evaluate": {"checkpoints": ["phase2"], "iou_types": ["bbox"]}}
    paths = run_stages(experiment(chain.folder, **measured), chain.copy(tmp_path).results, ("evaluate", "phase2"))
    exp = experiment(chain.folder, **measured, name="many", seeds=[0, 1])
    for one in exp.runs():
        shutil.copytree(paths.folder("evaluate", "phase2"), Paths(paths.results, one).folder("evaluate", "phase2"))
    made = run_stages(exp, paths.results, "report")
    table = pd.read_csv(made.summary).set_index("metric")
    expected = json.loads(paths.metrics("phase2").read_text())["bbox"]
    assert table.loc["AP", "mean"] == pytest.approx(expected["AP"]) and table.loc["AP", "sd"] == 0
    assert set(table["seeds"]) == {2} and set(table["experiment"]) == {"many"}
    assert "../../many.seed1/report/report.html" in made.report.read_text()
    assert {row.label: row.state for row in status(exp, made)}["report"] == "done"
    assert not changes(exp, made, "report", None)
    document = tmp_path / "page.md"
    marks = (
        f"before\n<!-- ltpipe table {exp.file} --iou-type bbox --metrics AP AP_fixed -->\n",
        "<!-- end of table -->\n",
    )
    document.write_text("an old table\n".join(marks))
    assert main(["table", "--into", str(document), "--results", str(paths.results)]) == 0
    text = document.read_text()
    assert text.startswith(marks[0]) and text.endswith(marks[1]) and "an old table" not in text
    shown = [f"{100 * expected[metric]:.1f} ± 0.0" for metric in ("AP", "AP_fixed")]
    assert f"| `many`: phase2 | 2 | {' | '.join(shown)} | " in text
    assert "over the seeds 0, 1;" in text and f"Made on {device()} with ltpipe {__version__}" in text
    document.write_text("no place\n")
    assert main(["table", "--into", str(document)]) == 2
    measured["evaluate"]["nms"] = 0.4
    changed = experiment(chain.folder, **measured, name="many", seeds=[0, 1])
    assert main(["table", str(changed.file), "--results", str(paths.results)]) == 2
    assert changes(experiment(chain.folder, **measured, name="many", seeds=[0, 2]), made, "report", None)
