"""The report: complete, self-contained, and right about its numbers."""

from __future__ import annotations

import csv
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ltpipe.errors import UserError
from ltpipe.metrics import table as table_module
from ltpipe.metrics.fusion_sweep import sweep_rows, write_sweep
from ltpipe.metrics.table import METRICS, Metric, per_class_table, summarize
from ltpipe.metrics.tensors import TensorInfo, Tensors
from ltpipe.report.build import Evaluation, Expectation, ExperimentCard, Sweep, build_report
from ltpipe.report.plots import plot_class_curve, plot_forgetting, plot_group_bars

K = 12
CLASSES = pd.DataFrame(
    {
        "category_id": np.arange(K),
        "name": [f"thing <{i}> & co" for i in range(K)],
        "image_count": 2000 // (1 + np.arange(K)) ** 2,
        "instance_count": 4000 // (1 + np.arange(K)) ** 2,
        "frequency": list("ffffccccrrrr"),
        "phase": np.arange(K) // 4,
    }
)


def evaluation(experiment: str, checkpoint: str, level: float, iou_type: str = "segm", known: int = K) -> Evaluation:
    """Return a checkpoint whose AP is ``level`` for every class but the last, which has no ground truth."""
    precision, recall = np.full((10, 101, known, 4), level), np.full((10, known, 4), level)
    if known == K:
        precision[:, :, -1], recall[:, -1] = -1, -1
    counts = {"detections": 12345, "evaluated": 9, "gt": 4}
    info = TensorInfo(iou_type, "lvis", 300, "hotcoco 1.3.0", counts, 0.02 if iou_type == "boundary" else None)
    tensors = Tensors(precision, recall, np.arange(known), info)
    phase = {"base": 0, "phase1": 1, "phase2": 2}.get(checkpoint)
    return Evaluation(
        experiment, checkpoint, summarize(tensors, CLASSES, phase=phase), per_class_table(tensors, CLASSES)
    )


class Tags(HTMLParser):
    """Check that tags close in order and collect names and links."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember an opened tag."""
        self.seen.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """A tag closes the one opened last."""
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report over two experiments."""
    folder = tmp_path_factory.mktemp("report")
    evaluations = [
        evaluation("steps", "base", 0.30, known=4),
        evaluation("steps", "phase1", 0.20, known=8),
        evaluation("steps", "phase2", 0.25),
        evaluation("steps", "simcal", 0.28),
        evaluation("steps", "simcal", 0.27, "bbox"),
        evaluation("joint", "base", 0.22),
    ]
    stage = {"stage": "base", "seed": 7, "seconds": 4000.0, "peak_memory_mib": 2048, "device": "cpu (2 cores)"}
    cards = [
        ExperimentCard(
            "steps", "Two phases <b>bold</b>.", {"loss": "seesaw"}, [{"stage": "base", "lr": 0.01}], [stage]
        ),
        ExperimentCard("joint"),
    ]
    expectations = [
        Expectation("steps", "simcal", "segm", "AP", 28.4, 0.5, "table 1"),
        Expectation("steps", "simcal", "segm", "APr", 20.0, 0.5, "table 2"),
        Expectation("steps", "phase2", "segm", "bAP", 30.0, 0.5, "table 3"),
        Expectation("steps", "missing", "segm", "AP", 30.0, 0.5, "table 4"),
    ]
    files = build_report(folder, evaluations, title="A & B", cards=cards, expectations=expectations)
    assert all(file.is_file() for file in files)
    assert {file for file in folder.rglob("*") if file.is_file()} == set(files)
    return folder


def test_page_is_self_contained(written: Path) -> None:
    """Well-formed, no scripts, nothing loaded from elsewhere; names are escaped."""
    text = (written / "report.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert not {"script", "link", "iframe"} & tags.seen
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in tags.links)
    anchors = set(re.findall(r'<section id="([^"]+)"', text))
    assert {link[1:] for link in tags.links if link.startswith("#")} == anchors
    assert "http" not in re.sub(r'src="[^"]*"', "", text)
    assert "A &amp; B" in text and "&lt;b&gt;bold" in text and "thing &lt;" in text and "thing <" not in text


def test_page_says_what_was_measured(written: Path) -> None:
    """Published numbers are judged, incomplete checkpoints are grey, forgetting is signed, provenance is there."""
    text = (written / "report.html").read_text(encoding="utf-8")
    published = text[text.index('id="published"') : text.index('id="bins"')]
    verdicts = [re.sub("<[^>]+>", "", row.split("</td>")[7]) for row in re.split("<tr[^>]*>", published)[2:]]
    assert verdicts == ["within tolerance", "above", "below", "–"]
    assert text.count('class="pale"') == 2
    phases = text[text.index('id="phases"') : text.index('id="changes"')]
    assert "−10.0" in phases and "−5.0" in phases
    for phrase in ("1 h 07 min", "2.0 GiB", "cpu (2 cores)", "seesaw", "12,345"):
        assert phrase in text, phrase


def test_summary_is_complete(written: Path) -> None:
    """One row per evaluation, fractions, empty where there is nothing."""
    with open(written / "summary.csv", newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert [(row["experiment"], row["checkpoint"], row["iou_type"]) for row in rows][3:] == [
        ("steps", "simcal", "segm"),
        ("steps", "simcal", "bbox"),
        ("joint", "base", "segm"),
    ]
    assert float(rows[3]["AP"]) == pytest.approx(0.28)
    assert rows[0]["APr"] == "" and float(rows[3]["APr"]) == pytest.approx(0.28)
    assert float(rows[1]["group/t1"]) == pytest.approx(0.2) and float(rows[3]["bin/10-100"]) == pytest.approx(0.28)


def test_figures(written: Path) -> None:
    """PNG and SVG of every figure."""
    names = {"groups_segm", "classes_segm", "groups_bbox", "classes_bbox", "phases_steps_segm"}
    for name in names:
        assert (written / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (written / "figures" / f"{name}.svg").read_text(encoding="utf-8")
    assert {file.stem for file in (written / "figures").glob("*.png")} == names


def test_smallest_report(tmp_path: Path) -> None:
    """One checkpoint, nothing known about it."""
    build_report(tmp_path, [evaluation("one", "base", 0.0)], title="one")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'id="overview"' in text
    for absent in ("published", "phases", "changes", "methods", "provenance"):
        assert f'id="{absent}"' not in text


def test_boundaries(tmp_path: Path) -> None:
    """Boundary AP has its own section, and the page tells the width of the band."""
    kinds = [evaluation("one", "base", level, kind) for level, kind in ((0.3, "segm"), (0.2, "boundary"))]
    text = build_report(tmp_path, kinds, title="one")[0].read_text(encoding="utf-8")
    assert "Boundaries" in text and "band of 0.02 of the image" in text
    assert (tmp_path / "figures" / "groups_boundary.png").is_file()


def test_a_number_is_one_row_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new row is in all files and on the page, whatever its name begins with."""
    row = Metric(
        "hit_rate",
        "found",
        "Share of classes of which anything is found.",
        lambda measured: float((measured.ap > 0).mean()),
        lambda measured: (measured.ap > 0).astype(float),
        ("overview",),
        iou_types=("segm",),
    )
    monkeypatch.setattr(table_module, "METRICS", (*METRICS, row))
    shown = [evaluation("one", "base", 0.3), evaluation("one", "base", 0.3, "bbox")]
    wanted = Expectation("one", "base", "segm", "hit_rate", 50.0, 0.5, "table 1")
    files = build_report(tmp_path, shown, title="one", expectations=[wanted])
    assert shown[0].metrics["hit_rate"] == pytest.approx(11 / 12) and "hit_rate" not in shown[1].metrics
    assert shown[0].per_class["hit_rate"].tolist() == [1.0] * 11 + [0.0] and "hit_rate" not in shown[1].per_class
    summary = pd.read_csv(tmp_path / "summary.csv")
    assert summary["hit_rate"].round(4).tolist()[:1] == [0.9167] and pd.isna(summary["hit_rate"][1])
    text = files[0].read_text(encoding="utf-8")
    assert '<th class="number">hit_rate</th>' in text and ">91.7</td>" in text
    assert "<dt>hit_rate</dt><dd>Share of classes" in text and "<dt>AP50, AP75</dt>" in text


def test_unknown_expected_metric(tmp_path: Path) -> None:
    """A misspelt metric is an error, not a dash."""
    wanted = Expectation("one", "base", "segm", "APR", 1.0, 0.5, "table 1")
    with pytest.raises(UserError, match="unknown metric"):
        build_report(tmp_path, [evaluation("one", "base", 0.1)], title="one", expectations=[wanted])


def test_figures_without_values(tmp_path: Path) -> None:
    """Nothing evaluated at all still draws."""
    empty = pd.DataFrame({"category_id": [1], "train_instances": [5], "AP": [np.nan]})
    none: dict[str, float | None] = {"AP": None, "APr": None, "APc": None, "APf": None}
    assert plot_class_curve({"a": empty}, tmp_path / "c", title="t").is_file()
    assert plot_group_bars({"a": none}, tmp_path / "g", title="t").is_file()
    assert plot_forgetting({"b0": [None, None]}, ["base", "phase1"], tmp_path / "f", title="t").is_file()


def test_figures_are_reproducible(tmp_path: Path) -> None:
    """The same numbers give the same bytes."""
    for name in ("a", "b"):
        plot_forgetting({"b0": [0.3, 0.2]}, ["base", "phase1"], tmp_path / name, title="t")
    for suffix in ("png", "svg"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_sweep(tmp_path: Path) -> None:
    """Rows of one choice share their numbers; the page and the figure show modes and thresholds."""
    levels = {("dual", 100.0): 0.3, ("base", None): 0.2, ("dual", 10.0): 0.25}
    rows: list[dict[str, object]] = []
    for (mode, threshold), level in levels.items():
        names = [(mode, threshold), ("cal", None)] if threshold == 10 else [(mode, threshold)]
        metrics = {"segm": evaluation("one", "simcal", level).metrics}
        rows += sweep_rows(names, {0.3: 7, 0.2: 0, 0.25: 12}[level], metrics, ("dual", 100.0))
    write_sweep(tmp_path / "sweep.csv", rows)
    table = pd.read_csv(tmp_path / "sweep.csv")
    assert len(table) == 4 and table["configured"].tolist() == [True, False, False, False]
    assert table.loc[table["mode"] == "cal", "AP"].item() == pytest.approx(0.25)
    assert {"APr", "APc", "APf", "bAP", "AP50", "bin/10-100"} <= set(table)

    one = Sweep("one", "simcal", table)
    assert one.of("segm")["mode"].tolist() == ["base", "cal", "dual", "dual"]
    assert one.of("bbox").empty
    files = build_report(tmp_path / "report", [evaluation("one", "simcal", 0.3)], title="A", sweeps=[one])
    assert tmp_path / "report" / "figures" / "sweep_one_simcal_segm.png" in files
    text = files[0].read_text(encoding="utf-8")
    assert "dual: both, by instance count (in use)" in text and "base: detector alone" in text
    assert "AP of the mode dual against its threshold" in text
