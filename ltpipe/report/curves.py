"""The curves of trainings: losses, learning rate, gradient norm, and AP where it was measured on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ltpipe.report import html
from ltpipe.report.plots import COLOURS, STYLE, save

POINTS = 400
LOSSES = 6


@dataclass(frozen=True, eq=False)
class Curve:
    """One training.

    Attributes:
        experiment: Name of the experiment.
        checkpoint: ``base`` or ``phase<k>``.
        training: A row per iteration: ``iteration``, ``lr``, ``loss``, its terms, ``grad_norm``.
        validation: A row per validation: ``iteration`` and numbers such as ``segm/APr`` as fractions; or None.
    """

    experiment: str
    checkpoint: str
    training: pd.DataFrame
    validation: pd.DataFrame | None = None

    @property
    def key(self) -> str:
        """Name of the figure."""
        return f"curve.{self.experiment}.{self.checkpoint}"


def draw_curves(folder: Path, curves: Sequence[Curve]) -> dict[str, Path]:
    """Draw every training: ``curve.<experiment>.<checkpoint>``."""
    return {one.key: plot_curve(one, folder / f"curve_{one.experiment}_{one.checkpoint}") for one in curves}


def plot_curve(curve: Curve, path: Path) -> Path:
    """Draw losses, learning rate with gradient norm, and AP below each other; many iterations as running means.

    Args:
        curve: The training.
        path: File without suffix; ``.png`` and ``.svg`` are written.

    Returns:
        The PNG file.
    """
    validated = curve.validation is not None and len(curve.validation) > 0
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 6.4 if validated else 4.8), layout="constrained")
        FigureCanvasAgg(figure)
        heights = [2.2, 1, *([1.6] if validated else [])]
        panels = figure.subplots(len(heights), sharex=True, height_ratios=heights, squeeze=False)[:, 0]
        panels[0].set_title(f"{curve.experiment}, {curve.checkpoint}")
        table = curve.training.rolling(max(1, len(curve.training) // POINTS), min_periods=1).mean()
        table = table.iloc[:: max(1, len(table) // POINTS)]
        terms = [name for name in table if "loss" in name and name != "loss"]
        terms = sorted(terms, key=lambda name: -float(table[name].mean()))[:LOSSES]
        _lines(panels[0], table, {"loss": "loss", **{name: name for name in terms}}, "loss")
        _lines(panels[1], table, {"lr": "learning rate", "grad_norm": "gradient norm"}, "log scale")
        panels[1].set_yscale("log", nonpositive="mask")
        if validated:
            assert curve.validation is not None
            numbers = curve.validation.set_index("iteration").mul(100).reset_index()
            numbers["iteration"] = curve.validation["iteration"]
            _lines(panels[2], numbers, {name: name for name in _shown(numbers)}, "AP (%)", marker="o")
            panels[2].set_ylim(bottom=0)
        panels[-1].set_xlabel("iteration")
        return save(figure, path)


def _shown(numbers: pd.DataFrame) -> list[str]:
    """Return AP and that of the frequency groups, of masks where there are any."""
    kind = "segm" if any(name.startswith("segm/") for name in numbers) else "bbox"
    return [name for name in (f"{kind}/{metric}" for metric in ("AP", "APr", "APc", "APf")) if name in numbers]


def _lines(axes: Axes, table: pd.DataFrame, names: Mapping[str, str], up: str, marker: str | None = None) -> None:
    for index, (name, label) in enumerate(names.items()):
        if name in table:
            colour = COLOURS[index % len(COLOURS)]
            width = 2.0 if index == 0 else 1.2
            axes.plot(table["iteration"], table[name], color=colour, linewidth=width, label=label, marker=marker)
    axes.set_ylabel(up)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)


def curve_section(curves: Sequence[Curve], figures: Mapping[str, Path]) -> list[str]:
    """Return the pictures of all trainings, with the last values in words.

    Args:
        curves: The trainings.
        figures: PNG files under the names of :func:`draw_curves`.
    """
    if not curves:
        return []
    parts = [
        html.note(
            "Means over neighbouring iterations where there are many. The tables, iteration by iteration, are "
            "history/training.csv and history/validation.csv beside each checkpoint."
        )
    ]
    for one in curves:
        parts.append(html.heading(f"{one.experiment}: {one.checkpoint}"))
        last = one.training.iloc[-1]
        text = f"{int(last['iteration'])} iterations; loss {one.training['loss'].tail(50).mean():.3f} at the end."
        parts.append(html.figure(figures[one.key], text))
    return parts
