"""Makes the pictures of the README anew from a finished run of the toy experiment: ``make pictures``."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

FOLDER = Path(__file__).parent / "images"
SIZE = {"width": 1000, "height": 1330}
COLOURS = 128


def draw_report(page: Path, target: Path) -> None:
    """Write the first screen of a report.

    Args:
        page: The report.
        target: PNG file.
    """
    program = os.environ.get("LTPIPE_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        window = browser.new_context(viewport=SIZE, color_scheme="light").new_page()  # type: ignore[arg-type]
        window.goto(page.resolve().as_uri())
        window.screenshot(path=target)
        browser.close()
    with Image.open(target) as image:
        image.convert("RGB").quantize(COLOURS).save(target, optimize=True)


def draw_rules(target: Path) -> None:
    """Write the graph of the rules of the toy experiments.

    Args:
        target: SVG file.
    """
    command = ["snakemake", "--quiet", "all", "--rulegraph", "--config", "experiments=toy_joint,toy"]
    graph = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    graph = graph[graph.index("digraph") :]
    target.write_text(
        subprocess.run(["dot", "-Tsvg"], input=graph, check=True, stdout=subprocess.PIPE, text=True).stdout
    )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", type=Path, default=Path("results/toy/report/report.html"))
    report = parser.parse_args().report
    if not report.is_file():
        sys.exit(f"{report}: no such file; `make run` makes it")
    draw_report(report, FOLDER / "report.png")
    if shutil.which("dot") is None:
        sys.exit("docs/images/rulegraph.svg stays: Graphviz (dot) is not installed")
    draw_rules(FOLDER / "rulegraph.svg")


if __name__ == "__main__":
    main()
