"""The report: complete, self-contained, and right about its numbers."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ltpipe.errors import UserError
from ltpipe.metrics import table as table_module
from ltpipe.metrics.error_names import KINDS
from ltpipe.metrics.sweeps import sweep_rows, write_sweep
from ltpipe.metrics.table import METRICS, Metric
from ltpipe.report import html
from ltpipe.report.build import Expectation, ExperimentCard, Sweep, build_report
from ltpipe.report.plots import plot_class_curve, plot_forgetting, plot_group_bars
from tests.helpers.reports import K, evaluation


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
        if tag not in ("meta", "img", "input"):
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
    """Well-formed, nothing loaded from elsewhere, scripts neither; names are escaped."""
    text = (written / "report.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert not {"link", "iframe"} & tags.seen
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


def words(section: str) -> str:
    """Return the text of a part of a page."""
    return " ".join(re.sub("<[^>]+>", " ", section).split())


def of_page(text: str, anchor: str) -> str:
    """Return one section of a page."""
    return text[text.index(f'<section id="{anchor}"') :].split("</section>")[0]


def test_first_sentences(written: Path) -> None:
    """The best checkpoint, and what phases and calibration gained or cost, in numbers that are in the tables."""
    brief = words(of_page((written / "report.html").read_text(encoding="utf-8"), "brief"))
    assert "simcal of steps reaches 28.0 AP on masks (APr 28.0, APc 28.0, APf 28.0), 3.0 more than phase2" in brief
    assert "the best of 3 that know all 12 classes" in brief
    assert "After phase1: base classes −10.0 to 20.0; its new classes reach 20.0." in brief
    assert "After phase2: base classes +5.0 to 25.0, classes of t1 +5.0 to 25.0; its new classes reach 25.0." in brief
    assert "steps: simcal gains +3.0 AP (APr +3.0, APc +3.0, APf +3.0) over phase2." in brief
    assert "1 of 12 classes have no objects in the validation set" in brief
    assert "joint has no calibrated checkpoint" in brief


def test_what_to_do_next(tmp_path: Path) -> None:
    """Too few passes, groups that the limits leave empty; and nothing of the kind where all is well."""
    shown = [evaluation("one", "base", 0.2), evaluation("one", "simcal", 0.3)]
    few = [ExperimentCard("one", epochs=2.5, iterations=100)]
    for item in shown:
        item.per_class["frequency"] = "f"
    brief = words(of_page(build_report(tmp_path, shown, title="one", cards=few)[0].read_text("utf-8"), "brief"))
    assert "sees each training image 2.5 times" in brief and "iterations: 480" in brief
    assert "No class is rare or common" in brief and "dataset: {frequency_limits: [" in brief
    enough = [ExperimentCard("one", epochs=12.0, iterations=480)]
    shown = [evaluation("one", "base", 0.2), evaluation("one", "simcal", 0.3)]
    brief = words(of_page(build_report(tmp_path, shown, title="one", cards=enough)[0].read_text("utf-8"), "brief"))
    assert "training image" not in brief and "No class is" not in brief and "calibrated checkpoint" not in brief


def test_zero_is_no_achievement(tmp_path: Path) -> None:
    """Where nothing is detected no checkpoint is called the best, in words or in bold."""
    shown = [evaluation("one", "base", 0.0), evaluation("one", "simcal", 0.0)]
    text = build_report(tmp_path, shown, title="one")[0].read_text("utf-8")
    assert "No checkpoint detects anything worth the name yet: the best AP on masks is 0.0" in words(text)
    assert html.show(-0.0004, "percent") == "0.0" and html.show(-0.001, "percent") == "-0.1"
    assert "the best of" not in words(of_page(text, "brief")) and "number best" not in text


def test_costs_of_errors_are_drawn(tmp_path: Path) -> None:
    """A part of a bar for each kind, for every group of which something is known."""
    item = evaluation("one", "base", 0.3)
    costs = {f"dAP_{kind}": 0.01 * place for place, kind in enumerate(KINDS, 1)}
    rare = {f"dAP_{kind}_r": 0.1 for kind in KINDS}
    empty = {f"dAP_{kind}{suffix}": None for kind in KINDS for suffix in ("_c", "_f")}
    measured = replace(item, metrics=item.metrics | costs | rare | empty)
    page, *files = build_report(tmp_path, [measured], title="one")
    assert tmp_path / "figures" / "errors_segm.svg" in files and "do not add up" in page.read_text("utf-8")
    drawn = (tmp_path / "figures" / "errors_segm.svg").read_text("utf-8")
    assert all(f">{kind}: {what}<" in drawn for kind, what in KINDS.items())
    assert ">all classes<" in drawn and ">rare<" in drawn and ">common<" not in drawn and ">10.0<" in drawn


def test_every_class_can_be_sorted_and_searched(written: Path) -> None:
    """All complete checkpoints side by side; the change is that of calibration."""
    table = of_page((written / "report.html").read_text(encoding="utf-8"), "classes")
    assert 'data-table="per-class"' in table and 'class="sortable" id="per-class"' in table
    heads = re.findall(r"<th[^>]*>([^<]*)</th>", table)
    assert heads[:4] == ["class", "group", "images", "instances"]
    assert heads[4:] == ["AP steps: phase2", "AP steps: simcal", "AP joint: base"]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)[1:]]
    assert len(rows) == K and rows[0] == ["thing &lt;0&gt; &amp; co", "f", "2,000", "4,000", "25.0", "28.0", "22.0"]
    assert rows[-1][-3:] == ["–", "–", "–"]


def test_changes_are_those_of_calibration(written: Path) -> None:
    text = of_page((written / "report.html").read_text(encoding="utf-8"), "changes")
    assert "phase2 to simcal" in text and "base to" not in text


def test_versions_are_told_once(tmp_path: Path) -> None:
    """And in the rows of stages that ran with others."""
    stages = [
        {"stage": name, "versions": {"torch": "2.1", "numpy": "1.26"}} for name in ("base", "features", "evaluate")
    ]
    stages[1]["versions"] = {"torch": "2.0", "numpy": "1.26"}
    card = ExperimentCard("one", stages=stages)
    page = build_report(tmp_path, [evaluation("one", "base", 0.3)], title="one", cards=[card])[0]
    text = of_page(page.read_text(encoding="utf-8"), "provenance")
    assert "Versions: torch 2.1, numpy 1.26." in text and text.count("torch") == 2 and text.count("torch 2.0") == 1


def test_columns_without_values_and_zeros() -> None:
    """The former are not shown, the latter are not the best of anything."""
    columns = [html.Column("a", "A", best=True), html.Column("b", "B", best=True), html.Column("c", "C", best=True)]
    rows = [{"a": 0.0, "b": None, "c": 0.25}, {"a": 0.0, "b": float("nan"), "c": 0.5}]
    text = html.table(columns, rows)
    assert ">A<" in text and ">B<" not in text and text.count(" best") == 1 and 'best">50.0' in text


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
