"""Start checkpoints that are downloaded: once, checked, and never over a file of another origin."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ltpipe.config.checkpoint_addresses import downloaded, published_checkpoint
from ltpipe.config.checks import check_experiment
from ltpipe.errors import UserError
from ltpipe.pipeline.stage_files import base_inputs
from ltpipe.run.downloads import fetch
from ltpipe.run.files import sha256_file
from tests.helpers.tiny_project import assert_same_state, experiment, run_stages

if TYPE_CHECKING:
    from conftest import Chain


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str, list[str]]]:
    """A folder, the address that it is served at, and what has been asked for."""
    folder, asked = tmp_path / "served", list[str]()
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_a_training_starts_from_an_address(
    chain: Chain, tmp_path: Path, served: tuple[Path, str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address, asked = served
    shutil.copy(chain.paths.model("base"), folder / "start.pth")
    monkeypatch.chdir(tmp_path)
    detector = {"load_from": f"{address}/start.pth?download=1"}
    exp = experiment(chain.folder, detector=detector, split=None, lst=None, calibrate={})
    assert any("downloads" in remark and "no network" in remark for remark in check_experiment(exp))
    paths = run_stages(exp, tmp_path / "results", "index", "split", "base")
    assert asked == ["/start.pth?download=1"]
    file = tmp_path / "checkpoints" / "start.pth"
    note = json.loads(file.with_name("start.pth.json").read_text())
    assert note == {"address": detector["load_from"], "sha256": sha256_file(file), "bytes": file.stat().st_size}
    assert check_experiment(exp) == [] and not any(
        name == "detector.load_from" for name, _ in base_inputs(exp, paths, None)
    )
    plain = experiment(chain.folder, detector={"load_from": str(file)}, split=None, lst=None, calibrate={})
    other = run_stages(plain, tmp_path / "other", "index", "split", "base")
    assert_same_state(paths.model("base"), other.model("base"))
    assert len(asked) == 1, "once"


def test_what_is_downloaded_is_checked(tmp_path: Path, served: tuple[Path, str, list[str]]) -> None:
    folder, address, asked = served
    (folder / "a.pth").write_bytes(b"content")
    right = sha256_file(folder / "a.pth")[:8]
    for name in (f"a-{right}.pth", "a-00000000.pth"):
        shutil.copy(folder / "a.pth", folder / name)
    fetch(f"{address}/a-{right}.pth", tmp_path / "c" / f"a-{right}.pth")
    with pytest.raises(UserError, match="not the one that its name says"):
        fetch(f"{address}/a-00000000.pth", tmp_path / "c" / "a-00000000.pth")
    assert [file.name for file in sorted((tmp_path / "c").iterdir())] == [f"a-{right}.pth", f"a-{right}.pth.json"]
    with pytest.raises(UserError, match="cannot be downloaded") as caught:
        fetch(f"{address}/none.pth", tmp_path / "c" / "none.pth")
    assert "404" in str(caught.value) and str(tmp_path / "c" / "none.pth") in str(caught.value)
    file = tmp_path / "c" / "a.pth"
    fetch(f"{address}/a.pth", file)
    with pytest.raises(UserError, match="from another address"):
        fetch(f"{address}/b/a.pth", file)
    file.write_bytes(b"changed")
    with pytest.raises(UserError, match="has changed"):
        fetch(f"{address}/a.pth", file)
    own = tmp_path / "c" / "mine.pth"
    own.write_bytes(b"put there")
    fetch("http://127.0.0.1:9/mine.pth", own)
    assert own.read_bytes() == b"put there", "a file that is there is taken as it is"


def test_mmdets_model_index_says_where() -> None:
    found = published_checkpoint("mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py")
    assert found.startswith("https://") and found.endswith("mask_rcnn_r50_fpn_1x_coco_20200205-d4b0c5d6.pth")
    assert downloaded(found) == Path("checkpoints/mask_rcnn_r50_fpn_1x_coco_20200205-d4b0c5d6.pth")
    for config, words in (
        ("configs/detectors/mask_rcnn_toy.py", "only configs of mmdet"),
        ("mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x-wandb_coco.py", "publishes no checkpoint"),
        ("mmdet::nothing/nothing.py", "publishes no checkpoint"),
    ):
        with pytest.raises(UserError, match=words):
            published_checkpoint(config)


def test_the_published_checkpoint_of_a_config(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"
    exp = experiment(
        project,
        detector={"config": config, "load_from": "mmdet"},
        model={"classifier": {"type": "linear"}},
        lst=None,
        split=None,
        calibrate={},
    )
    assert exp.detector.start == Path("checkpoints/mask_rcnn_r50_fpn_1x_coco_20200205-d4b0c5d6.pth")
    assert any("mask_rcnn_r50_fpn_1x_coco_20200205-d4b0c5d6.pth" in remark for remark in check_experiment(exp))


@pytest.mark.parametrize("text", ["", "[]", '{"address": 1, "sha256": "a"}', '{"address": "http://x/a.pth"}'])
def test_a_damaged_note_of_a_download_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.pth").write_bytes(b"a")
    (tmp_path / "a.pth.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="the note of a download") as caught:
        fetch("http://x/a.pth", tmp_path / "a.pth")
    assert str(tmp_path / "a.pth.json") in str(caught.value)
