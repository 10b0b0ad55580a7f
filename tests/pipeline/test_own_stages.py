"""Stages of a project's own: a module, named in one place, is all that command line, status, digests and rules need."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from ltpipe.cli import main
from ltpipe.errors import UserError
from ltpipe.pipeline.digests import stage_digest
from ltpipe.pipeline.own_stages import add_own_stages
from ltpipe.pipeline.paths import Paths
from ltpipe.pipeline.rules import Pipeline
from ltpipe.pipeline.stages import TABLE, stage_keys
from ltpipe.run.changes import is_current
from tests.helpers.small_project import Load
from tests.helpers.workspace import Workspace

MODULE = '''
"""Stages of nobody."""

from ltpipe.pipeline.stage import Alternative, Stage, reading
from ltpipe.pipeline.stages import CHECKPOINT, PHASE
from ltpipe.run.files import atomic_path
from ltpipe.run.stage_run import stage_run


def gallery_inputs(exp, paths, key):
    yield f"evaluate:{key}", paths.metrics(key)


def probe_inputs(exp, paths, key):
    yield "split:replay", paths.replay(key)


def frame_options(verb, where):
    verb.add_argument("--frame", metavar="COLOUR", help="only say what the frames look like")
    where.add_argument("--nobody", action="store_true")


STAGES = [
    Stage(
        "gallery",
        "pictures of one checkpoint",
        title="gallery of {key}",
        keys=lambda exp: exp.evaluated_checkpoints(),
        option=CHECKPOINT,
        alternative=Alternative("frame", frame_options, "frames_of_nobody"),
        reads=reading("evaluate.score_threshold"),
        inputs=gallery_inputs,
        outputs=lambda paths, key: [paths.folder("gallery", key) / "gallery.txt"],
        in_all=True,
        threads=2,
        mem_mb=1234,
    ),
    Stage(
        "probe",
        "a look at one phase",
        title="probe of phase {key}",
        keys=PHASE.allowed,
        option=PHASE,
        reads=reading("lst.replay"),
        inputs=probe_inputs,
        outputs=lambda paths, key: [paths.folder("probe", key) / "probe.txt"],
    ),
]


def run(exp, paths, checkpoint):
    """Write down what was measured."""
    with stage_run("gallery", exp, paths, checkpoint) as stage:
        with atomic_path(stage.folder / "gallery.txt") as file:
            file.write_text(paths.metrics(checkpoint).read_text())
'''


@pytest.fixture
def own(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The small project with the module above; afterwards ltpipe knows nothing of it any more."""
    table = dict(TABLE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (project / "stages_of_nobody.py").write_text(MODULE)
    (project / "frames_of_nobody.py").write_text("def run(arguments):\n    print(arguments.frame, 'frames')\n")
    (project / "configs" / "pipeline.yaml").write_text("experiments: [small]\nstages: [stages_of_nobody]\n")
    yield project
    for module in ("stages_of_nobody", "frames_of_nobody"):
        sys.modules.pop(module, None)
    TABLE.clear()
    TABLE.update(table)


def test_commands(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["--help"], ["gallery", "pictures of one checkpoint", "probe"]),
        (["gallery", "--help"], ["--checkpoint", "Pictures of one checkpoint.", "--frame COLOUR"]),
        (["probe", "--help"], ["--phase", "phase, from 1"]),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        text = capsys.readouterr().out
        assert all(word in text for word in words)
    assert main(["gallery", "--nobody", "--checkpoint", "any", "--frame", "red"]) == 0
    assert capsys.readouterr().out == "red frames\n", "no experiment is read"
    assert main(["gallery", "small", "--checkpoint", "phase7"]) == 2
    assert "unknown checkpoint" in capsys.readouterr().err


def test_status_and_a_run_by_hand(own: Path, load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    exp = load()
    paths = Paths("results", exp)
    assert main(["status", "small"]) == 0
    rows = [line.split()[:3] for line in capsys.readouterr().out.splitlines()]
    assert ["gallery", "head", "waiting"] in rows
    phase = [row[0] for row in rows if row[1] == "phase1" and row[0] not in ("evaluate", "gallery")]
    assert phase == ["split", "distill", "lst", "probe"], "phase after phase"
    assert main(["gallery", "small", "--checkpoint", "base"]) == 2
    assert "run `ltpipe evaluate --experiment small --checkpoint base` (or snakemake" in capsys.readouterr().err
    paths.metrics("base").parent.mkdir(parents=True)
    paths.metrics("base").write_text("{}")
    assert main(["gallery", "small", "--checkpoint", "base"]) == 0
    record = json.loads(Path("results/small/gallery/base/stage.json").read_text())
    assert record["digest"] == stage_digest(exp, "gallery", "base") and list(record["outputs"]) == ["gallery.txt"]
    assert is_current(exp, paths, "gallery", "base")
    assert not is_current(load("report:", "evaluate: {score_threshold: 0.2}\nreport:"), paths, "gallery", "base")


def test_digests_hold_the_code_and_others_stay(own: Path, load: Load) -> None:
    exp = load()
    others = {one: stage_digest(exp, *one) for one in stage_keys(exp)}
    add_own_stages()
    keys = stage_keys(exp)
    assert {one: stage_digest(exp, *one) for one in keys if one in others} == others
    assert [key for stage, key in keys if stage == "gallery"] == ["base", "phase1", "phase2", "head"]
    before = stage_digest(exp, "gallery", "base")
    (own / "stages_of_nobody.py").write_text(MODULE + "# better\n")
    assert stage_digest(exp, "gallery", "base") != before
    assert {one: stage_digest(exp, *one) for one in keys if one in others} == others


def test_rules_and_targets(own: Path) -> None:
    pipeline = Pipeline("small")
    rules = {one.name: one for one in pipeline.rules()}
    gallery = rules["gallery"]
    assert list(map(str, gallery.outputs)) == [
        f"results/{{experiment}}/gallery/{{checkpoint}}/{name}" for name in ("gallery.txt", "stage.json")
    ]
    assert gallery.wildcards == {"experiment": ["small"], "checkpoint": ["base", "head", "phase1", "phase2"]}
    assert str(rules["probe_phase_2"].log) == "logs/{experiment}/probe.phase2.log"
    assert "results/small/gallery/head/stage.json" in pipeline.targets["all"]
    assert "results/small/probe/phase1/stage.json" in pipeline.targets["all_probe"]
    assert "results/small/probe/phase1/stage.json" not in pipeline.targets["all"]
    words = pipeline.command("gallery", "checkpoint")(SimpleNamespace(experiment="small", checkpoint="base"), 1)
    assert words.split()[:2] == ["ltpipe", "gallery"] and words.endswith("--checkpoint base")


def test_snakemake_runs_it(tmp_path: Path) -> None:
    """Only it is real; a stub stands for the other stages."""
    workspace = Workspace(tmp_path / "w")
    (workspace.folder / "stages_of_nobody.py").write_text(MODULE)
    (workspace.folder / "configs" / "pipeline.yaml").write_text("experiments: [joint]\nstages: [stages_of_nobody]\n")
    command = workspace.folder / "bin" / "ltpipe"
    stub = command.read_text().splitlines()[1]
    command.write_text(f'#!/bin/sh\n[ "$1" = gallery ] && {stub.replace(" stub ", " ltpipe ")}\n{stub}\n')
    workspace.snakemake("all_gallery", "--cores", "2")
    results = workspace.folder / "results" / "joint"
    assert (results / "gallery/base/gallery.txt").read_text() == (results / "evaluate/base/metrics.json").read_text()
    module = workspace.folder / "stages_of_nobody.py"
    module.write_text(MODULE + "# better\n")
    assert workspace.dry_run("all") == {"gallery": 1, "report": 1}


@pytest.mark.parametrize(
    ("module", "text", "words"),
    [
        ("nowhere", None, ["cannot be found", "pipeline.yaml:2: stages[0]", "nowhere"]),
        ("stages_of_nobody", "import nothing_at_all\n", ["cannot be used", "nothing_at_all"]),
        ("stages_of_nobody", "x = 1\n", ["cannot be used", "STAGES"]),
        ("stages_of_nobody", "STAGES = ['gallery']\n", ["something else than stages", "gallery"]),
        ("stages_of_nobody", MODULE.replace('"gallery",', '"report",'), ["cannot have this name", "report"]),
        ("stages_of_nobody", MODULE.replace('"gallery",', '"all",'), ["cannot have this name", "all"]),
        ("stages_of_nobody", MODULE.replace('"gallery",', '"a b",'), ["cannot have this name", "a b"]),
        ("stages_of_nobody", MODULE.replace('"gallery",', '"status",'), ["name of a command", "status"]),
    ],
)
def test_mistakes(
    own: Path, module: str, text: str | None, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (own / "configs" / "pipeline.yaml").write_text(f"experiments: [small]\nstages: [{module}]\n")
    if text is not None:
        (own / "stages_of_nobody.py").write_text(text)
    assert main(["recipes"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ltpipe: ") and all(word in error for word in words)


def test_a_key_that_experiments_do_not_have(own: Path, load: Load) -> None:
    (own / "stages_of_nobody.py").write_text(MODULE.replace("evaluate.score_threshold", "evaluate.threshold"))
    add_own_stages()
    with pytest.raises(UserError, match="evaluate.threshold"):
        stage_digest(load(), "gallery", "base")
