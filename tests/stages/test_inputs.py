"""What a stage reads is what its maker wrote, and what its own experiment names."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ltpipe.errors import UserError
from ltpipe.pipeline.paths import Paths
from ltpipe.pipeline.stages import stage_inputs, stage_keys
from ltpipe.run import checksums
from ltpipe.run.files import sha256_file
from tests.helpers.tiny_project import command_line, experiment, rewritten, run_stages

if TYPE_CHECKING:
    from conftest import Chain


def one_object_less(part: str, content: dict[str, Any]) -> None:
    content["annotations"].pop()


def test_records_name_every_file_that_is_read(chain: Chain) -> None:
    """A file that a stage opens is among its inputs, or was made by that stage."""
    for stage, key in stage_keys(chain.exp):
        record = chain.paths.record(stage, key)
        if record.is_file():
            inputs = stage_inputs(chain.exp, chain.paths, stage, key)
            assert json.loads(record.read_text())["inputs"] == {str(p): sha256_file(p) for p in inputs.values()}
    assert chain.paths.features in stage_inputs(chain.exp, chain.paths, "calibrate", "simcal").values()


def test_the_report_refuses_edited_numbers(chain: Chain, tmp_path: Path) -> None:
    exp = experiment(chain.folder, evaluate={"checkpoints": ["base"]})
    paths = chain.copy(tmp_path, exp)
    run_stages(exp, paths.results, ("evaluate", "base"), "report")
    record = paths.record("report").read_bytes()
    for file in ("per_class.csv", "metrics.json"):
        edited = paths.folder("evaluate", "base") / file
        text, before = edited.read_text(), edited.stat()
        edited.write_text(text.replace("0", "1"))
        os.utime(edited, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(UserError) as error:
            run_stages(exp, paths.results, "report")
        told = str(error.value)
        assert str(edited) in told and "-R evaluate" in told
        assert "ltpipe evaluate --experiment tiny --checkpoint base" in told
        assert paths.record("report").read_bytes() == record
        edited.write_text(text)
    run_stages(exp, paths.results, "report")


@pytest.mark.parametrize("way", ["in place", "older", "other files", "other format"])
def test_a_store_of_other_annotations_is_refused(chain: Chain, tmp_path: Path, way: str) -> None:
    """The data set has the same name; its annotations are others, or have been replaced since."""
    own = {
        p: {"annotations": str(tmp_path / f"{p}.json"), "images": f"{chain.folder}/data/{p}"} for p in ("train", "val")
    }
    for part in ("train", "val"):
        (tmp_path / f"{part}.json").write_bytes((chain.folder / "data" / f"{part}.json").read_bytes())
    exp = experiment(chain.folder, dataset=own)
    paths = chain.copy(tmp_path, exp)
    run_stages(exp, paths.results, "index", "split")
    file = tmp_path / "train.json"
    before = file.stat()
    reader = exp
    if way == "other files":
        reader = experiment(
            chain.folder, name="second", dataset=rewritten(chain.folder, tmp_path / "b", one_object_less)
        )
    elif way == "other format":
        reader = experiment(chain.folder, name="second", dataset={**own, "format": "coco"})
    else:
        content = json.loads(file.read_text())
        one_object_less("train", content)
        file.write_text(json.dumps(content))
        shift = 10**12 if way == "older" else 0
        os.utime(file, ns=(before.st_atime_ns - shift, before.st_mtime_ns - shift))
    target = Paths(paths.results, reader)
    with pytest.raises(UserError, match="annotations that are not those of the experiment") as error:
        run_stages(reader, target.results, "split")
    told = str(error.value)
    named = reader.dataset.train.annotations
    assert str(paths.store("train")) in told and str(named) in told and "made by tiny" in told
    assert ("another dataset.name" in told) == (
        reader is not exp
    ) and f"ltpipe index --experiment {reader.name}" in told


def test_annotations_that_are_gone_stop_nothing(chain: Chain, tmp_path: Path) -> None:
    parts = rewritten(chain.folder, tmp_path / "data", lambda part, content: None)
    exp = experiment(chain.folder, dataset=parts)
    paths = chain.copy(tmp_path, exp)
    run_stages(exp, paths.results, "index")
    for part in parts.values():
        Path(part["annotations"]).unlink()
    run_stages(exp, paths.results, "split")


def test_large_inputs_are_read_once(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counted(path: Path) -> str:
        read.append(Path(path).name)
        return sha256_file(path)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checksums, "SMALL", 0)
    monkeypatch.setattr(checksums, "sha256_file", counted)
    paths = chain.copy(tmp_path)
    run_stages(chain.exp, paths.results, "split")
    assert {"segments.arrow", "train.json"} <= set(read)
    read.clear()
    run_stages(chain.exp, paths.results, "split")
    assert set(read) <= {"stage.json", "split.json", "replay.npz"}, "only what was written meanwhile"


def test_export_refuses_what_was_edited(chain: Chain, tmp_path: Path) -> None:
    paths = chain.copy(tmp_path)
    paths.split.write_text(paths.split.read_text() + "\n")
    code, told = command_line(
        "export", chain.exp.file, "--results", paths.results, "--checkpoint", "base", "--output", tmp_path / "out"
    )
    assert code == 2 and str(paths.split) in told and not (tmp_path / "out").exists()


def test_an_input_of_other_settings_is_told_of(chain: Chain, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    paths = chain.copy(tmp_path)
    run_stages(chain.exp, paths.results, ("split", 1))
    assert "used as it is" not in capfd.readouterr().out
    changed = experiment(chain.folder, split={"boundaries": [4, 7, 9]})
    run_stages(changed, paths.results, ("split", 1))
    told = f"{paths.folder('split')} is used as it is, although split.boundaries: [5, 7, 9] -> [4, 7, 9]"
    assert told in capfd.readouterr().out
