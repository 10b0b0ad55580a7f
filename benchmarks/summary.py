"""Writes the table of ``docs/speed.md`` from the results of all benchmarks.

python benchmarks/summary.py [--write]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "speed.md", ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- table: benchmarks/summary.py -->", "<!-- end of the table -->"
HEAD = "| work | ours | theirs | ratio | aim | reached | command |\n|---|---|---|---|---|---|---|\n"
ORDER = (
    "annotations",
    "annotations_v3det",
    "split_replay",
    "evaluation",
    "further_numbers",
    "distillation_logits",
    "workflow",
    "slurm_detection",
)


def table() -> str:
    """Return the table and the notes below it."""
    lines, notes = [], []
    for name in ORDER:
        file = RESULTS / f"{name}.json"
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"rows": []}
        for row in content["rows"]:
            lines.append(line(row, content["command"]))
            if row["note"]:
                notes.append(f"- {row['work']}: {row['note']}")
    last = (
        ("calibration_steps", calibration),
        ("detector_step", detector),
        ("training_step", head),
        ("training_step_mask", head),
    )
    for name, convert in last:
        content = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        lines.append(line(convert(content), content["command"]))
    return HEAD + "".join(lines) + "\n" + "\n".join(notes) + "\n"


def line(row: dict[str, Any], command: str) -> str:
    """Return one line of the table."""
    ratio = "" if row["ratio"] is None else f"{row['ratio']:.3g}"
    reached = {True: "yes", False: "no", None: ""}[row["reached"]]
    cells = (row["work"], row["ours"], row["theirs"], ratio, row["aim"], reached)
    return f"| {' | '.join(cells)} | `{command}` |\n"


def calibration(content: dict[str, Any]) -> dict[str, Any]:
    """Return the row of ``calibration_steps.json``."""
    rates = content["steps_per_second"]
    return {
        "work": f"calibration steps, {content['experiment']}, {content['calibrator']['type']}",
        "ours": f"stored features: {rates['cached']:.3g} per second",
        "theirs": f"detector in every step: {rates['none']:.3g} per second",
        "ratio": content["ratio"],
        "aim": "20 times",
        "reached": content["ratio"] >= 20,
    }


def detector(content: dict[str, Any]) -> dict[str, Any]:
    """Return the row of ``detector_step.json``."""
    found, limits = content["methods"], content["limits_percent"]
    texts = []
    for name, scene in content["scenes"].items():
        costs = [f"{item['method']} {item['overhead_percent']:+.1f} %" for item in found if item["detector"] == name]
        texts.append(f"{name} ({scene['images']} x {scene['size']} pixels): {', '.join(costs)}")
    return {
        "work": "training step of the whole detector, toy and Mask R-CNN R-50",
        "ours": "; ".join(texts),
        "theirs": "the same detector in plain mmdet",
        "ratio": None,
        "aim": "2 % slower, FASA and CRAT 5 %",
        "reached": all(item["overhead_percent"] <= limits[item["method"]] for item in found),
    }


def head(content: dict[str, Any]) -> dict[str, Any]:
    """Return the row of ``training_step.json`` or ``training_step_mask.json``."""
    costs = {item["method"]: item["overhead_percent"] for item in content["methods"] if item["method"] != "mmdet"}
    over = {name: value for name, value in costs.items() if value > 2}
    return {
        "work": f"its {content['head']} head alone, {len(costs)} methods, {content['rois']} RoIs",
        "ours": ", ".join(f"{name} {value:+.0f} %" for name, value in sorted(over.items())) + ", others below 2 %",
        "theirs": f"mmdet's own {content['head']} head",
        "ratio": None,
        "aim": "none of its own",
        "reached": None,
    }


def page(text: str) -> str:
    """Return the page with a new table."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Print the table, or put it into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(table())


if __name__ == "__main__":
    main()
