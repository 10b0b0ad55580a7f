"""Files from somebody else: whichever a command reads, nothing in it runs, and one error says what it asked for."""

from __future__ import annotations

import json
import os
import pickle
import re
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import ltpipe
from ltpipe.checkpoints.torch_files import Refused, load_plain
from ltpipe.errors import UserError
from ltpipe.interop.export import export_detections, export_model
from ltpipe.metrics.predictions import Predictions
from ltpipe.pipeline.paths import Paths
from ltpipe.run.files import sha256_file
from tests.helpers.configs import assert_described
from tests.helpers.tiny_project import assert_same_state, command_line, experiment, kill_here, run_stages
from tests.helpers.trainings import cut_short

if TYPE_CHECKING:
    from conftest import Chain


class Harmful:
    """Makes a folder when it is unpickled.

    Args:
        marker: The folder.
    """

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def assert_harmful(file: Path, marker: Path) -> None:
    """Show that an ordinary reader does run the file."""
    torch.load(file, weights_only=False)
    marker.rmdir()


# ---- states of killed runs -------------------------------------------------------------------------------------------


def killed(chain: Chain, folder: Path, stage: str, key: int | None) -> Paths:
    """Return results in which a training was killed before its third iteration."""
    paths = chain.copy(folder)
    assert cut_short(chain.exp, paths, stage, key, 2, kill_here) == -9
    return paths


@pytest.mark.parametrize(("stage", "key"), [("base", None), ("lst", 1)])
def test_the_state_of_a_training(chain: Chain, tmp_path: Path, stage: str, key: int | None) -> None:
    paths, marker = killed(chain, tmp_path, stage, key), tmp_path / "executed"
    for file in paths.work(stage, key).glob("iter_*.pth"):
        state = load_plain(file)
        state["meta"]["harmful"] = Harmful(marker)
        torch.save(state, file)
        assert_harmful(file, marker)
    with pytest.raises(Refused, match=r"mkdir") as caught:
        run_stages(chain.exp, paths.results, stage if key is None else (stage, key))
    assert not marker.exists() and str(caught.value.where).endswith("iter_2.pth")
    options = [] if key is None else ["--phase", key]
    code, text = command_line(stage, chain.exp.file, *options, "--results", paths.results)
    assert code == 2 and "mkdir" in text and "--fresh" in text and "Traceback" not in text
    assert not marker.exists()


def test_the_text_of_a_config_in_a_state_is_not_run(chain: Chain, tmp_path: Path) -> None:
    """mmengine runs what a state calls its config."""
    paths, marker = killed(chain, tmp_path, "base", None), tmp_path / "executed"
    for file in paths.work("base").glob("iter_*.pth"):
        state = load_plain(file)
        state["meta"]["config"] = f"import os\nos.mkdir({str(marker)!r})\n"
        torch.save(state, file)
    run_stages(chain.exp, paths.results, "base")
    assert not marker.exists()
    assert_same_state(paths.model("base"), chain.paths.model("base"))


def test_the_state_of_a_calibration(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, marker = chain.copy(tmp_path), tmp_path / "executed"
    monkeypatch.setattr("ltpipe.stages.calibrate.write_checkpoint", fail)
    with pytest.raises(ArithmeticError):
        run_stages(chain.exp, paths.results, ("calibrate", "simcal"))
    file = paths.work("calibrate", "simcal") / "head.pth"
    torch.save(load_plain(file) | {"harmful": Harmful(marker)}, file)
    assert_harmful(file, marker)
    with pytest.raises(Refused, match="mkdir"):
        run_stages(chain.exp, paths.results, ("calibrate", "simcal"))
    assert not marker.exists()


def fail(*_: object, **options: object) -> None:
    raise ArithmeticError("a defect")


# ---- configs of results ----------------------------------------------------------------------------------------------


def measure_and_report(exp: Any, paths: Paths, folder: Path) -> None:
    """Whatever reads results to tell numbers."""
    run_stages(exp, paths.results, ("calibrate", "simcal"))
    measured = [("evaluate", checkpoint) for checkpoint in exp.evaluated_checkpoints()]
    assert measured[-1] == ("evaluate", "simcal")
    run_stages(exp, paths.results, *measured, "report")
    for command in (("status",), ("validate",)):
        code, text = command_line(*command, exp.file, "--results", paths.results)
        assert code == 0, text
    export_detections(exp, paths, "phase1", folder / "found.json", "bbox")
    for checkpoint in ("phase1", "simcal"):
        options = ["--score", 0, "--output", folder / checkpoint, "--results", paths.results]
        code, text = command_line("predict", exp.file, "--checkpoint", checkpoint, exp.dataset.val.images, *options)
        assert code == 0, text
    code, text = command_line("predict", paths.folder("lst", 1), exp.dataset.val.images, "--output", folder / "none")
    assert code == 2 and "whose config.py is not read" in text


USES: dict[str, Any] = {
    "evaluate": measure_and_report,
    "base": lambda exp, paths, _: run_stages(exp, paths.results, "base"),
    "features": lambda exp, paths, _: run_stages(exp, paths.results, "features"),
    "calibrate": lambda exp, paths, _: run_stages(exp, paths.results, ("calibrate", "simcal"), ("evaluate", "simcal")),
    "distill": lambda exp, paths, _: run_stages(exp, paths.results, ("distill", 2)),
    "lst": lambda exp, paths, _: run_stages(exp, paths.results, ("lst", 1)),
    "export": lambda exp, paths, folder: export_model(exp, paths, "phase2", folder / "out"),
}


@pytest.mark.parametrize(("command", "teacher"), [*((name, "cached") for name in USES), ("lst", "online")])
def test_the_config_of_results_is_never_run(chain: Chain, tmp_path: Path, command: str, teacher: str) -> None:
    checkpoints = ["phase1", "simcal"]
    exp = experiment(chain.folder, lst={"distill": {"teacher": teacher}}, evaluate={"checkpoints": checkpoints})
    paths, marker = chain.copy(tmp_path, exp), tmp_path / "executed"
    for config in paths.root.rglob("config.py"):
        config.write_text(f"import os\nos.makedirs({str(marker)!r})\n")
        record = config.parent / "stage.json"
        told = json.loads(record.read_text())
        told["outputs"]["config.py"] = sha256_file(config)
        record.write_text(json.dumps(told))
    USES[command](exp, paths, tmp_path)
    assert not marker.exists()


def test_only_detector_files_are_run() -> None:
    """Whoever reads a config of mmengine runs it."""
    package = Path(ltpipe.__file__).parent
    readers = re.compile(r"Config\.from(file|string)|(?<![.\w])(exec|eval)\(|import_custom_modules=True")
    found = {str(f.relative_to(package)) for f in package.rglob("*.py") if readers.search(f.read_text("utf-8"))}
    assert found == {"config/detector.py"}


def test_results_without_a_config_are_used(chain: Chain, tmp_path: Path) -> None:
    paths = chain.copy(tmp_path)
    for config in paths.root.rglob("config.py"):
        config.unlink()
    run_stages(chain.exp, paths.results, ("evaluate", "phase2"))
    assert paths.metrics("phase2").is_file()


def test_the_experiment_describes_what_was_trained(chain: Chain) -> None:
    for checkpoint in ("base", "phase1", "phase2"):
        assert_described(chain.exp, chain.paths, checkpoint)


def test_the_experiment_describes_what_was_calibrated(chain: Chain, tmp_path: Path) -> None:
    short = {"schedule": {"iterations": 2, "lr": 0.01}}
    names = {"simcal": short, "crt": short, "lws": short, "bags": short, "iif": {}, "iif_retrain": short}
    exp = experiment(
        chain.folder,
        model={"classifier": {"type": "linear"}},
        split=None,
        lst=None,
        calibrate={name: {"type": name, **more} for name, more in names.items()},
    )
    paths = run_stages(exp, tmp_path / "results", "index", "split", "base", "features")
    for name in names:
        run_stages(exp, paths.results, ("calibrate", name))
        assert_described(exp, paths, name)


def test_a_detector_file_that_changed_after_the_training_is_an_error(chain: Chain, tmp_path: Path) -> None:
    """Weights of the same shapes would measure something else without a word."""
    changed = tmp_path / "changed.py"
    text = (chain.folder / "detector.py").read_text()
    changed.write_text(f"{text}model['test_cfg'] = dict(rpn=dict(nms_pre=3))\n")
    exp = experiment(chain.folder, detector={"config": str(changed)})
    paths = chain.copy(tmp_path, exp)
    for command in (("evaluate", "phase2"), ("calibrate", "simcal"), ("distill", 1)):
        with pytest.raises(UserError, match="another detector") as caught:
            run_stages(exp, paths.results, command)
        assert "test_cfg.rpn.nms_pre" in str(caught.value) and "-> 3" in str(caught.value)
    with pytest.raises(UserError, match="another detector"):
        export_model(exp, paths, "base", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def harmful_checkpoint(source: Path, file: Path, marker: Path) -> None:
    """Write a checkpoint that runs something beside its good weights."""
    torch.save(load_plain(source) | {"optimizer": Harmful(marker)}, file)
    assert_harmful(file, marker)


def fits_its_record(file: Path) -> None:
    """Make the record of a stage say that the stage wrote this file."""
    record = file.parent / "stage.json"
    told = json.loads(record.read_text())
    told["outputs"][file.name] = sha256_file(file)
    record.write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("evaluate", "base/model.pth"),
        ("features", "lst/phase2/model.pth"),
        ("calibrate", "lst/phase2/model.pth"),
        ("distill", "lst/phase1/model.pth"),
        ("lst", "base/model.pth"),
        ("export", "lst/phase2/model.pth"),
    ],
)
def test_a_checkpoint_of_results(chain: Chain, tmp_path: Path, command: str, file: str) -> None:
    paths, marker = chain.copy(tmp_path), tmp_path / "executed"
    harmful_checkpoint(paths.root / file, paths.root / file, marker)
    fits_its_record(paths.root / file)
    with pytest.raises(Refused, match="mkdir") as caught:
        USES[command](chain.exp, paths, tmp_path)
    assert caught.value.where == paths.root / file and not marker.exists()


GIVEN: dict[str, tuple[str, dict[str, Any]]] = {
    "detector.load_from": ("base", {"detector": {"load_from": "FILE"}}),
    "base.checkpoint": ("base", {"base": {"checkpoint": "FILE"}, "split": None, "lst": None}),
    "calibrate.simcal.checkpoint": ("calibrate", {"calibrate": {"simcal": {"type": "simcal", "checkpoint": "FILE"}}}),
}


@pytest.mark.parametrize("key", GIVEN)
def test_a_checkpoint_that_an_experiment_names(chain: Chain, tmp_path: Path, key: str) -> None:
    marker, file = tmp_path / "executed", tmp_path / "given.pth"
    harmful_checkpoint(chain.paths.model("base"), file, marker)
    command, changes = GIVEN[key]
    exp = experiment(chain.folder, **json.loads(json.dumps(changes).replace("FILE", str(file))))
    results = chain.copy(tmp_path, exp).results
    if key == "base.checkpoint":
        run_stages(exp, results, "split")
    options = ["--name", "simcal"] if command == "calibrate" else []
    code, text = command_line(command, exp.file, *options, "--results", results)
    assert code == 2 and "mkdir" in text and str(file) in text and "Traceback" not in text
    assert not marker.exists()


@pytest.mark.parametrize("block", ["model", "model['backbone']"])
@pytest.mark.parametrize("prefix", ["", "prefix='backbone.', "])
def test_start_weights_that_a_detector_file_names(chain: Chain, tmp_path: Path, block: str, prefix: str) -> None:
    marker, file, detector = tmp_path / "executed", tmp_path / "start.pth", tmp_path / "detector.py"
    harmful_checkpoint(chain.paths.model("base"), file, marker)
    start = f"dict(type='Pretrained', {prefix}checkpoint={str(file)!r})"
    text = (chain.folder / "detector.py").read_text()
    detector.write_text(f"{text}{block}['init_cfg'] = {start}\n")
    exp = experiment(chain.folder, detector={"config": str(detector)})
    code, text = command_line("base", exp.file, "--results", chain.copy(tmp_path, exp).results)
    assert code == 2 and "mkdir" in text and str(file) in text and "Traceback" not in text
    assert not marker.exists()


# ---- arrays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "file"),
    [
        (("lst", 2), "split/phase2/replay.npz"),
        (("lst", 1), "distill/phase1/teacher.npz"),
        (("calibrate", "simcal"), "features/plan.npz"),
        (("calibrate", "simcal"), "features/features.npy"),
    ],
)
def test_arrays_of_results(chain: Chain, tmp_path: Path, stage: tuple[str, Any], file: str) -> None:
    """Numpy keeps objects as pickles."""
    paths, marker = chain.copy(tmp_path), tmp_path / "executed"
    target = paths.root / file
    objects = np.empty(1, object)
    objects[0] = Harmful(marker)
    with np.load(target, allow_pickle=False) if target.suffix == ".npz" else nullcontext() as whole:
        names = whole.files if whole else ()
    np.savez(target, **dict.fromkeys(names, objects)) if names else np.save(target, objects)
    fits_its_record(target)
    with pytest.raises(UserError) as caught:
        run_stages(chain.exp, paths.results, stage)
    assert str(target) in str(caught.value) and not marker.exists()


@pytest.mark.parametrize(("stage", "suffix"), [(("distill", 1), "rows.npz"), (("features",), "boxes.npz")])
def test_arrays_of_killed_passes(chain: Chain, tmp_path: Path, stage: tuple[Any, ...], suffix: str) -> None:
    paths, marker = chain.copy(tmp_path), tmp_path / "executed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltpipe.stages.distill.TeacherLogits.collect", fail)
        patch.setattr("ltpipe.stages.features.plan_features", fail)
        with pytest.raises(ArithmeticError):
            run_stages(chain.exp, paths.results, stage if len(stage) > 1 else stage[0])
    (shard,) = paths.work(*stage).glob(f"*.{suffix}")
    objects = np.empty(1, object)
    objects[0] = Harmful(marker)
    with np.load(shard) as saved:
        np.savez(shard, **dict.fromkeys(saved.files, objects))
    notes = shard.with_name(f"{suffix}.shards.json")
    notes.write_text(json.dumps({shard.name: sha256_file(shard)}))
    with pytest.raises(UserError, match="killed run") as caught:
        run_stages(chain.exp, paths.results, stage if len(stage) > 1 else stage[0])
    assert "--fresh" in str(caught.value) and not marker.exists()


def test_extensions_in_arrow_files_are_not_run(tmp_path: Path) -> None:
    """Arrow names classes of other programs in its metadata; pyarrow once unpickled them."""
    marker = tmp_path / "executed"
    told = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Harmful(marker)),
    }
    schema = pa.schema([pa.field("id", pa.int64(), metadata=told)])
    with pa.OSFile(str(tmp_path / "images.arrow"), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(pa.table({"id": [1]}, schema=schema))
    with suppress(UserError):
        Predictions.open(tmp_path / "images.arrow")
    with pa.memory_map(str(tmp_path / "images.arrow")) as source:
        assert pa.ipc.open_file(source).read_all()["id"].to_pylist() == [1]
    assert not marker.exists()
