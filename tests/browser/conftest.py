"""A headless Chromium, and one folder with every kind of page."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest

import ltpipe
from ltpipe.report.build import ExperimentCard, build_report
from ltpipe.report.highlights import read_highlights
from ltpipe.stages.pictures_of_files import pictures_of_files
from tests.helpers.reports import evaluation

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ["cat", "dog <b>", "a rather long name of a class, with spaces", *(f"thing {i}" for i in range(30))]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium: the program that ``LTPIPE_CHROMIUM`` names, or ``chromium`` on the path, or playwright's own."""
    from playwright.sync_api import sync_playwright

    program = os.environ.get("LTPIPE_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every kind of page by name."""
    folder = tmp_path_factory.mktemp("pages")
    _data(folder)
    found = [folder / name for name in ("one.json", "two.json")]
    pictures_of_files(folder / "gt.json", folder / "images", found, folder / "pictures")
    ltpipe.score(folder / "gt.json", found, train=folder / "gt.json", output=folder / "score")
    shown = [
        evaluation("steps", "base", 0.30, known=4),
        evaluation("steps", "phase1", 0.20, known=8),
        evaluation("steps", "phase2", 0.25),
        evaluation("steps", "simcal", 0.28),
    ]
    card = ExperimentCard("steps", "Two phases.", {"loss": "seesaw"}, epochs=2.0, iterations=100)
    highlights = read_highlights(folder / "pictures" / "highlights.json", "../pictures")
    build_report(folder / "report", shown, title="steps", cards=[card], highlights=highlights)
    named = {f"pictures {file.stem}": file for file in sorted((folder / "pictures").glob("*.html"))}
    return {"report": folder / "report" / "report.html", "score": folder / "score" / "report.html", **named}


def _data(folder: Path) -> None:
    """Write images of noise, one object of each class in each of them, and two sets of detections."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 320, "height": 240} for i in (1, 2)]
    anns: list[dict[str, Any]] = []
    for image in images:
        cv2.imwrite(str(folder / "images" / image["file_name"]), rng.integers(0, 255, (240, 320, 3), np.uint8))
        for category in range(1, len(NAMES) + 1):
            x, y, w, h = (float(v) for v in rng.integers([0, 0, 20, 20], [250, 180, 60, 50]))
            corners = [x, y, x + w, y, x + w, y + h, x, y + h]
            ann = {"id": len(anns) + 1, "image_id": image["id"], "category_id": category, "bbox": [x, y, w, h]}
            anns.append({**ann, "segmentation": [corners], "area": w * h, "iscrowd": 0})
    categories = [{"id": i, "name": name} for i, name in enumerate(NAMES, 1)]
    (folder / "gt.json").write_text(json.dumps({"images": images, "annotations": anns, "categories": categories}))
    for name, shift in (("one", 0), ("two", 1)):
        found = [
            {
                "image_id": ann["image_id"],
                "category_id": (ann["category_id"] + (shift if place % 3 else 0)) % len(NAMES) + 1,
                "bbox": ann["bbox"],
                "score": round(float(rng.uniform(0.2, 1)), 3),
            }
            for place, ann in enumerate(anns)
        ]
        (folder / f"{name}.json").write_text(json.dumps(found))
