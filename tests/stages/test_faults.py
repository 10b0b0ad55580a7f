"""Full disks, damaged files and unreadable images: one clear error, no half results, earlier results stay."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from ltpipe.data.store import AnnotationStore
from ltpipe.errors import EXIT_CODE, UserError
from ltpipe.pipeline.paths import Paths
from ltpipe.run.changes import damages
from ltpipe.run.cores import VARIABLE
from ltpipe.run.files import sha256_file
from tests.helpers.tiny_project import command_line, experiment, run_stages

if TYPE_CHECKING:
    from conftest import Chain


def snapshot(folder: Path) -> dict[str, str]:
    """Checksums of all files but locks, logs and resume states."""
    files = (file for file in folder.rglob("*") if file.is_file() and "work" not in file.parts and file.name != ".lock")
    return {str(file.relative_to(folder)): sha256_file(file) for file in files}


def refused(paths: Paths, exp: Any, *stage: Any) -> str:
    """Return the text of the error with which a stage ends; it must leave all results alone."""
    name, *key = stage
    before = snapshot(paths.results)
    with pytest.raises(UserError) as error:
        run_stages(exp, paths.results, stage if key else name)
    assert snapshot(paths.results) == before
    return str(error.value)


def one_paragraph(text: str) -> bool:
    """Whether the error stream ends with one paragraph of ours and shows no traceback."""
    return (
        text.count("ltpipe ") >= 1 and "Traceback" not in text and "\n\n" not in text[text.index("ltpipe ") :].strip()
    )


# ---- full disks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stage", [("base",), ("lst", 1), ("distill", 1), ("calibrate", "simcal"), ("evaluate", "base")]
)
def test_no_space_for_the_result(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: tuple) -> None:
    paths = chain.copy(tmp_path)
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).suffix in (".pth", ".npz", ".arrow") and "work" not in Path(target).parts:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    message = refused(paths, chain.exp, *stage)
    assert (
        "No space left on device" in message and str(paths.folder(*stage)) in message and "earlier results" in message
    )


@pytest.mark.parametrize("method", ["put", "put_text"])
def test_no_space_for_what_mmengine_writes(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    from mmengine.visualization import LocalVisBackend

    paths = chain.copy(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if method == "put":
        monkeypatch.setattr("mmengine.fileio.LocalBackend.put", full)
    else:
        monkeypatch.setattr(LocalVisBackend, "add_scalars", full)
    message = refused(paths, chain.exp, "base")
    assert "No space left on device" in message and str(paths.folder("base")) in message
    assert not list(paths.work("base").glob(".*"))


@pytest.mark.timeout(120)
def test_shared_memory_that_is_full(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader process that cannot send a batch: the training must not wait for it."""

    def full(*_: Any) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2>: No space left on device (28)")

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full)
    monkeypatch.setenv(VARIABLE, "3")
    message = refused(chain.copy(tmp_path), chain.exp, "base")
    assert "shared memory" in message and "/dev/shm" in message and "--shm-size" in message


@pytest.mark.parametrize(
    ("stage", "limit"),
    [
        ("index", 3000),
        ("base", 12000),
        ("base", 3000),
        ("features", 12000),
        ("calibrate --name simcal", 12000),
        ("evaluate --checkpoint base", 12000),
    ],
)
def test_a_file_that_cannot_grow(chain: Chain, tmp_path: Path, stage: str, limit: int) -> None:
    """A limit of the kernel on file sizes fails where a full disk would, also in numpy, Arrow and torch."""
    paths = chain.copy(tmp_path)
    before = snapshot(paths.results)
    # The processes started below inherit it.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        code, text = command_line(*stage.split(), "--experiment", chain.exp.file, "--results", paths.results)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == EXIT_CODE, text
    assert one_paragraph(text) and "File too large" in text and "fix:" in text
    after = snapshot(paths.results)
    lost = {name for name in before if after.get(name) != before[name]}
    assert all(name.endswith("stage.json") for name in lost) and not after.keys() - before.keys()
    assert stage == "features" or not lost


def test_results_that_are_read_only(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "somewhere/.lock")

    monkeypatch.setattr("ltpipe.run.stage_lock.open", refuse, raising=False)
    message = refused(chain.copy(tmp_path), chain.exp, "base")
    assert "Permission denied" in message and "somewhere/.lock" in message


# ---- damaged files ---------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip_a_bit])
@pytest.mark.parametrize(
    ("stage", "file", "maker"),
    [
        (("lst", 1), "base/model.pth", "ltpipe base"),
        (("lst", 2), "split/phase2/replay.npz", "ltpipe split"),
        (("lst", 1), "distill/phase1/teacher.npz", "ltpipe distill"),
        (("distill", 2), "lst/phase1/model.pth", "ltpipe lst"),
        (("features",), "lst/phase2/model.pth", "ltpipe lst"),
        (("calibrate", "simcal"), "features/plan.npz", "ltpipe features"),
        (("calibrate", "simcal"), "features/features.npy", "ltpipe features"),
        (("base",), "split/split.json", "ltpipe split"),
        (("split",), "../datasets/tiny/train/statistics.csv", "ltpipe index"),
        (("base",), "../datasets/tiny/train/statistics.csv", "ltpipe index"),
        (("evaluate", "base"), "../datasets/tiny/train/statistics.csv", "ltpipe index"),
        (("evaluate", "base"), "../datasets/tiny/val/annotations.arrow", "ltpipe index"),
        (("lst", 1), "../datasets/tiny/train/segments.arrow", "ltpipe index"),
        (("distill", 1), "../datasets/tiny/train/statistics.csv", "ltpipe index"),
        (("features",), "../datasets/tiny/train/statistics.csv", "ltpipe index"),
        (("evaluate", "base"), "base/model.pth", "ltpipe base"),
    ],
)
def test_a_damaged_result_is_named(
    chain: Chain, tmp_path: Path, damage: Any, stage: tuple, file: str, maker: str
) -> None:
    paths = chain.copy(tmp_path)
    damaged = Path(os.path.normpath(paths.root / file))
    before = damaged.stat()
    damage(damaged)
    os.utime(damaged, ns=(before.st_atime_ns, before.st_mtime_ns))
    message = refused(paths, chain.exp, *stage)
    assert message.startswith("damaged input") and str(damaged) in message and maker in message
    assert "allowed:" in message and "snakemake" in message


@pytest.mark.parametrize(
    ("stage", "file"),
    [
        (("lst", 1), "tiny/base/model.pth"),
        (("lst", 2), "tiny/split/phase2/replay.npz"),
        (("lst", 1), "tiny/distill/phase1/teacher.npz"),
        (("distill", 1), "tiny/base/model.pth"),
        (("features",), "tiny/lst/phase2/model.pth"),
        (("calibrate", "simcal"), "tiny/features/plan.npz"),
        (("calibrate", "simcal"), "tiny/features/features.npy"),
        (("base",), "tiny/split/split.json"),
        (("base",), "datasets/tiny/train/annotations.arrow"),
        (("base",), "datasets/tiny/train/segments.arrow"),
        (("evaluate", "base"), "datasets/tiny/val/images.arrow"),
        (("evaluate", "base"), "tiny/base/model.pth"),
    ],
)
def test_a_damaged_file_without_a_record_is_named(chain: Chain, tmp_path: Path, stage: tuple, file: str) -> None:
    paths = chain.copy(tmp_path)
    damaged = paths.results / file
    cut(damaged)
    for folder in (damaged.parent, damaged.parent.parent):
        (folder / "stage.json").unlink(missing_ok=True)
    message = refused(paths, chain.exp, *stage)
    assert str(damaged) in message or str(damaged.parent) in message
    assert "fix:" in message


def test_features_of_another_plan_are_refused(chain: Chain, tmp_path: Path) -> None:
    import numpy as np

    paths = chain.copy(tmp_path)
    np.save(paths.features, np.load(paths.features)[:-1])
    assert str(paths.features) in refused(paths, chain.exp, "calibrate", "simcal")
    paths.record("features").unlink()
    assert "another plan" in refused(paths, chain.exp, "calibrate", "simcal")


def test_a_pretrained_detector_that_cannot_be_read(chain: Chain, tmp_path: Path) -> None:
    start = tmp_path / "start.pth"
    start.write_bytes(chain.paths.model("base").read_bytes()[:5000])
    exp = experiment(chain.folder, detector={"load_from": str(start)})
    message = refused(chain.copy(tmp_path, exp), exp, "base")
    assert "unreadable checkpoint" in message and str(start) in message


def test_a_pretrained_start_keeps_all_but_the_layers_of_its_classes(chain: Chain, tmp_path: Path) -> None:
    source = tmp_path / "pretrained.pth"
    pretrained = torch.load(chain.paths.model("phase2"), weights_only=True)["state_dict"]
    torch.save({"state_dict": pretrained}, source)
    exp = experiment(chain.folder, detector={"load_from": str(source)})
    paths = chain.copy(tmp_path, exp)
    run_stages(exp, paths.results, "base")
    start = paths.folder("base") / "start.pth"
    kept = torch.load(start, weights_only=True)["state_dict"]
    assert not any("fc_cls" in key for key in kept)
    assert all(torch.equal(value, pretrained[key]) for key, value in kept.items())
    assert {key for key in pretrained if key.startswith(("backbone.", "neck.", "rpn_head."))} <= kept.keys()
    assert f"load_from='{start}'" in paths.config("base").read_text()
    assert "start.pth" in json.loads(paths.record("base").read_text())["outputs"]


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_corrupt_annotation_file_leaves_the_earlier_stores(chain: Chain, tmp_path: Path, part: str) -> None:
    paths = chain.copy(tmp_path)
    stores = snapshot(paths.dataset)
    data = {p: json.loads((chain.folder / f"data/{p}.json").read_text()) for p in ("train", "val")}
    data["train"]["images"] = data["train"]["images"][:-1]
    kept = {image["id"] for image in data["train"]["images"]}
    data["train"]["annotations"] = [a for a in data["train"]["annotations"] if a["image_id"] in kept]
    files = {p: tmp_path / f"{p}.json" for p in data}
    for p, content in data.items():
        files[p].write_text(json.dumps(content))
    cut(files[part])
    exp = experiment(
        chain.folder,
        dataset={p: {"annotations": str(file), "images": f"{chain.folder}/data/{p}"} for p, file in files.items()},
    )
    message = refused(paths, exp, "index")
    assert str(files[part]) in message
    assert snapshot(paths.dataset) == stores
    assert len(AnnotationStore.open(paths.store("train")).image_ids) == 24
    files[part].write_text(json.dumps(data[part]))
    run_stages(exp, paths.results, "index")
    assert len(AnnotationStore.open(paths.store("train")).image_ids) == 23


# ---- unreadable images -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("damage", "workers"), [("empty", 0), ("text", 1), ("missing", 0)])
def test_an_unreadable_image_is_one_paragraph(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, workers: int
) -> None:
    images = Path(shutil.copytree(chain.folder / "data" / "train", tmp_path / "train"))
    store = AnnotationStore.open(chain.paths.store("train"))
    for file in images.iterdir():
        if damage == "missing":
            file.unlink()
        else:
            file.write_bytes(b"" if damage == "empty" else b"no image")
    exp = experiment(chain.folder, dataset={"train": {"images": str(images)}})
    paths = chain.copy(tmp_path, exp)
    monkeypatch.setenv(VARIABLE, str(2 + workers))
    # Only indexing looks the files up; the chain's store knows them.
    code, text = command_line("base", exp.file, "--results", paths.results, "--processes", 1)
    assert code == EXIT_CODE, text
    error = text[text.index("ltpipe base:") :]
    assert one_paragraph(text) and error.startswith("ltpipe base: unreadable image\n")
    named = [i for i in range(len(store.image_ids)) if str(images / store.image_file(i)) in error]
    assert len(named) == 1 and f"image id {store.image_ids[named[0]]}" in error
    assert not damages(paths, "base", None), "the earlier result stays complete"
