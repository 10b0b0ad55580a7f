"""Annotation files as people have them, with what their owner would call right.

``pytest tests/data --annotation-cases DIR`` checks every file of ``DIR`` that ``DIR/expected.json`` names. An entry has

* ``outcome``: ``accept``, ``refuse`` (one message, exit code 2) or ``either`` (never anything but a clear message);
* ``objects``, ``masks``: how many annotations are read, and how many of them have a mask;
* ``remark``: whether something is said of the file;
* ``objects_with_drop``: how many are read with ``faults: drop``; ``drops``: at least so many records are then left out;
* ``needs``: a condition; here image files lie where the names in the file say, or below their last part.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from ltpipe.data.findings import Findings
from ltpipe.data.readers import READERS
from ltpipe.data.record_checks import checked_columns
from ltpipe.data.store import AnnotationStore
from ltpipe.data.store_writer import build_store
from ltpipe.data.summary import lines
from ltpipe.errors import UserError

DEFAULT = Path(__file__).with_name("cases")
CASES = ("variants", "exports", "more")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        given: Path | None = metafunc.config.getoption("--annotation-cases")
        folders = [given] if given is not None else [DEFAULT / name for name in CASES]
        found = [
            pytest.param(folder / name, entry, id=f"{folder.name}/{name}")
            for folder in folders
            for name, entry in json.loads((folder / "expected.json").read_text(encoding="utf-8")).items()
        ]
        assert found
        metafunc.parametrize(("case", "expected"), found)


def write_images(folder: Path, source: Path) -> Path:
    """Write empty image files where the names in an annotation file say, or below their last part."""
    folder.mkdir()
    try:
        images = READERS["coco"](source, Findings()).images
    except UserError:
        images = []
    for image in images:
        written = (image.file_name or image.coco_url or "").replace("\\", "/")
        elsewhere = "://" in written or written.startswith("/") or written[1:2] == ":"
        file = folder / (unquote(written.split("?")[0].rsplit("/", 1)[-1]) if elsewhere else written)
        if written:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    return folder


def read(source: Path, target: Path, faults: Any = "refuse") -> AnnotationStore:
    """Index a file, with images where there are names."""
    images = target.parent / "images"
    if not images.exists():
        write_images(images, source)
    build_store(source, target, fmt="coco", image_folder=images, faults=faults, progress=False)
    return AnnotationStore.open(target)


def masks_of(store: AnnotationStore) -> int:
    return sum(bool(store.segmentation(row)) for row in range(len(store.ann_ids)))


def test_case(case: Path, expected: dict[str, Any], tmp_path: Path) -> None:
    outcome = expected["outcome"]
    assert case.is_file() and outcome in ("accept", "refuse", "either")
    try:
        store = read(case, tmp_path / "store")
    except UserError as error:
        assert outcome in ("refuse", "either"), f"refused: {error}"
        assert str(case) in str(error)
        assert not (tmp_path / "store").exists()
        if outcome == "refuse":
            check_dropping(case, expected, tmp_path)
        return
    assert outcome in ("accept", "either"), "read without a word"
    info = store.info
    assert info["counts"]["annotations"] == len(store.ann_ids)
    assert info["counts"]["without_mask"] == len(store.ann_ids) - masks_of(store)
    assert len(store.ann_ids) == expected.get("objects", len(store.ann_ids))
    assert masks_of(store) == expected.get("masks", masks_of(store))
    if "remark" in expected:
        assert bool(info["remarks"]) is expected["remark"], info["remarks"]
    for kind, entry in info["remarks"].items():
        assert sum(f"{entry['count']} {kind}" in line for line in lines("train", info)) == 1
    assert not info["dropped"]


def check_dropping(case: Path, expected: dict[str, Any], tmp_path: Path) -> None:
    """Read a refused file without its faulty records."""
    if "objects_with_drop" in expected:
        store = read(case, tmp_path / "store", faults="drop")
        assert len(store.ann_ids) == expected["objects_with_drop"]
        assert store.info["dropped"] and any("left out: " in line for line in lines("train", store.info))
    if "drops" in expected:
        findings = Findings()
        checked_columns(READERS["coco"](case, findings), findings)
        assert sum(fault.count for fault in findings.faults.values()) >= expected["drops"]


def test_the_cases_are_all_named() -> None:
    for name in CASES:
        files = {path.name for path in (DEFAULT / name).iterdir()} - {"expected.json"}
        assert files == set(json.loads((DEFAULT / name / "expected.json").read_text(encoding="utf-8")))
