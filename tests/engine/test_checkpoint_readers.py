"""Checkpoints that mmengine reads: through our readers for every address, and as data."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import load_checkpoint

import ltpipe.engine  # noqa: F401  registers the readers
from ltpipe.checkpoints.torch_files import Refused
from ltpipe.config.weight_files import cached_file
from ltpipe.errors import UserError
from ltpipe.interop.safe_reading import read_foreign


class Harmful:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


class Getattr:
    """Looks an attribute up when it is unpickled."""

    def __reduce__(self) -> Any:
        return getattr, (torch.Tensor, "numpy")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of downloaded files; nothing can be downloaded, and torchvision is not installed."""

    def no_network(url: str, *_: object, **options: object) -> None:
        raise URLError("no route to host")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    folder = tmp_path / "torch/hub/checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_downloads_lie_where_torch_keeps_them(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in (("TORCH_HOME", "/a"), ("XDG_CACHE_HOME", "/b"), ("HOME", "/c")):
        for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(variable, value)
        assert cached_file("https://x.y/z.pth?a=1") == Path(torch.hub.get_dir()) / "checkpoints" / "z.pth"


def test_no_reader_of_mmengine_is_left() -> None:
    readers = {reader.__module__ for reader in CheckpointLoader._schemes.values()}
    assert readers == {"ltpipe.engine.checkpoint_readers"}


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("start.pth", "start.pth"),
        ("torchvision://resnet50", "resnet50-0676ba61.pth"),
        ("open-mmlab://resnext101_64x4d", "resnext101_64x4d-ee2c6f71.pth"),
        ("https://x.y/weights.pth", "weights.pth"),
    ],
)
def test_files_are_read_as_data(home: Path, name: str, file: str) -> None:
    place = Path(file) if name == file else home / file
    model, trained = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    torch.save(trained.state_dict(), place)
    load_checkpoint(model, name)
    assert torch.equal(model.weight, trained.weight)
    torch.save({"state_dict": trained.state_dict(), "meta": Harmful()}, place)
    with pytest.raises(Refused, match="mkdir") as caught:
        load_checkpoint(model, name)
    assert Path(str(caught.value.where)).name == place.name
    assert not Path("executed").exists()


def test_checkpoints_of_mmdets_own_runs_are_read_with_their_histories(home: Path) -> None:
    """mmengine's CheckpointHook stores one ``HistoryBuffer`` for every logged value; a run continues from it."""
    weights = torch.nn.Linear(2, 1).state_dict()
    logged = HistoryBuffer([3.0, 2.0, 1.0], [1, 1, 1])
    torch.save({"state_dict": weights, "message_hub": {"log_scalars": {"train/loss": logged}}}, "epoch_1.pth")
    kept = CheckpointLoader.load_checkpoint("epoch_1.pth", "cpu")["message_hub"]["log_scalars"]["train/loss"]
    assert isinstance(kept, HistoryBuffer) and kept.data[0].tolist() == [3, 2, 1] and kept.mean(2) == 1.5
    assert read_foreign(Path("epoch_1.pth")).state.keys() == weights.keys()
    torch.save({"state_dict": weights, "meta": Getattr()}, "harmful.pth")
    with pytest.raises(Refused, match="getattr"):
        CheckpointLoader.load_checkpoint("harmful.pth", "cpu")
    del logged._count_history
    torch.save({"state_dict": weights, "message_hub": {"log_scalars": {"train/loss": logged}}}, "epoch_1.pth")
    with pytest.raises(UserError, match="history of logged values is damaged"):
        CheckpointLoader.load_checkpoint("epoch_1.pth", "cpu")
    assert read_foreign(Path("epoch_1.pth")).state.keys() == weights.keys()


def test_weights_of_mmcls_lose_their_prefix(home: Path) -> None:
    state = {"backbone.weight": torch.ones(1, 2), "backbone.bias": torch.ones(1), "head.weight": torch.ones(3)}
    torch.save({"state_dict": state}, home / "resnet50_8xb32_in1k_20210831-ea4938fc.pth")
    model = torch.nn.Linear(2, 1)
    load_checkpoint(model, "mmcls://resnet50", strict=True)
    assert torch.equal(model.weight, torch.ones(1, 2))


def test_without_network_the_error_says_where_the_file_goes(home: Path) -> None:
    with pytest.raises(UserError, match="cannot be downloaded") as caught:
        load_checkpoint(torch.nn.Linear(2, 1), "torchvision://resnet50")
    words = ("torchvision://resnet50", "no route to host", "https://", str(home / "resnet50-0676ba61.pth"))
    assert all(word in str(caught.value) for word in words)


def test_a_missing_file_is_downloaded_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(url: str, target: str, progress: bool) -> None:
        asked.append(url)
        shutil.copy("remote.pth", target)

    trained = torch.nn.Linear(2, 1)
    torch.save(trained.state_dict(), "remote.pth")
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        model = torch.nn.Linear(2, 1)
        load_checkpoint(model, "torchvision://resnet50")
        assert torch.equal(model.weight, trained.weight)
    assert len(asked) == 1 and asked[0].endswith("/resnet50-0676ba61.pth")
