"""``validate`` reads a few images of the data set before any job does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from tiny_project import experiment, rewritten, run_stages

from ltpipe.errors import UserError

if TYPE_CHECKING:
    from conftest import Chain

Change = Callable[[str, dict[str, Any]], Any]


def validated(chain: Chain, target: Path, change: Change, images: Path | None = None) -> dict[str, Any]:
    """Validate the tiny experiment on changed annotations; return the record of the stage."""
    parts = rewritten(chain.folder, target, change)
    if images is not None:
        parts["train"]["images"] = str(images)
    exp = experiment(chain.folder, dataset={"name": "other", **parts})
    paths = run_stages(exp, target / "results", "validate")
    return json.loads((paths.folder("validate") / "stage.json").read_text())


def test_a_sample_of_both_parts_is_read(chain: Chain, tmp_path: Path) -> None:
    found = validated(chain, tmp_path, lambda part, content: None)
    assert found["images"] == {
        "train": {"sampled": 24, "turned": 0, "as_stored": 0, "unclear": 0},
        "val": {"sampled": 6, "turned": 0, "as_stored": 0, "unclear": 0},
    }
    assert found["remarks"] == []


def test_an_image_of_another_size_is_named(chain: Chain, tmp_path: Path) -> None:
    def wider(part: str, content: dict[str, Any]) -> None:
        content["images"][3]["width"] += part == "val"

    with pytest.raises(UserError, match="another size than the annotation file") as raised:
        validated(chain, tmp_path, wider)
    name = json.loads((tmp_path / "val.json").read_text())["images"][3]["file_name"]
    assert str(chain.folder / "data" / "val" / name) in str(raised.value)


def test_missing_and_damaged_images_are_named(chain: Chain, tmp_path: Path) -> None:
    images = Path(shutil.copytree(chain.folder / "data" / "train", tmp_path / "images"))
    file = sorted(images.iterdir())[5]
    for content, words in ((b"\x89PNG cut", "unreadable image"), (None, "image files are missing")):
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(UserError, match=words) as raised:
            validated(chain, tmp_path, lambda part, content: None, images)
        assert file.name in str(raised.value)


def test_orientations_are_remarked(chain: Chain, tmp_path: Path) -> None:
    images = Path(shutil.copytree(chain.folder / "data" / "train", tmp_path / "images"))
    exif = Image.Exif()
    exif[274] = 3
    file = sorted(images.iterdir())[5]
    with Image.open(file) as image:
        image.load()
        image.save(file, exif=exif.tobytes())
    found = validated(chain, tmp_path, lambda part, content: None, images)
    assert found["images"]["train"]["unclear"] == 1
    assert len(found["remarks"]) == 1 and found["remarks"][0].startswith("dataset.train: of 24 sampled images")
