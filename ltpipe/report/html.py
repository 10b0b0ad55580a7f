"""Pieces of a self-contained HTML page: no scripts, no links to anything outside the file."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

NOTHING = "–"

CSS = """
:root { --ink: #1d2630; --soft: #5b6773; --line: #dfe4e9; --tint: #f5f7f9; --accent: #0072b2; --good: #00704f;
  --bad: #b34700; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; line-height: 1.5; font-size: 15px;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
header { background: linear-gradient(90deg, #10324a, #0d4f76); color: #fff; padding: 2.2rem 0 1.8rem; }
header h1 { margin: 0 0 .3rem; font-size: 1.75rem; letter-spacing: -.01em; }
header p { margin: 0; color: #cfe0ec; max-width: 60rem; }
.wrap { max-width: 1180px; margin: 0 auto; padding: 0 1.5rem; }
nav { border-bottom: 1px solid var(--line); background: var(--tint); }
nav .wrap { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; padding-top: .55rem; padding-bottom: .55rem; }
nav a { color: var(--accent); text-decoration: none; font-size: .9rem; }
nav a:hover { text-decoration: underline; }
section { margin: 2.4rem 0; }
h2 { font-size: 1.3rem; margin: 0 0 .4rem; padding-bottom: .3rem; border-bottom: 2px solid var(--accent); }
h3 { font-size: 1.02rem; margin: 1.5rem 0 .4rem; }
p.note { color: var(--soft); margin: .35rem 0 .9rem; max-width: 52rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; margin: .5rem 0 1rem; }
th, td { padding: .34rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; border-bottom: 2px solid #b9c3cc; background: var(--tint); }
th.text, td.text { text-align: left; }
td.long { white-space: normal; min-width: 12rem; max-width: 30rem; }
tbody tr:hover { background: #eef5fa; }
tr.first td { border-top: 2px solid #cdd5dc; }
tr.pale td { color: #7d8893; }
td.best { font-weight: 700; color: var(--accent); }
.good { color: var(--good); font-weight: 600; }
.bad { color: var(--bad); font-weight: 600; }
figure { margin: 1rem 0; }
figure img { max-width: 100%; width: 860px; height: auto; border: 1px solid var(--line); border-radius: 6px;
  padding: .8rem; }
figcaption { color: var(--soft); font-size: .88rem; max-width: 52rem; margin-top: .35rem; }
.cards { display: flex; flex-wrap: wrap; gap: .9rem; margin: 1.2rem 0; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: .7rem 1rem; min-width: 9.5rem; background: #fff; }
.card b { display: block; font-size: 1.45rem; line-height: 1.2; }
.card span { color: var(--soft); font-size: .82rem; }
.pair { display: flex; flex-wrap: wrap; gap: 0 2.5rem; }
ul.columns { columns: 22rem; padding-left: 1.2rem; font-size: .9rem; max-width: 60rem; }
td small { color: var(--soft); }
dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; font-size: .9rem; }
dl.facts dt { color: var(--soft); }
dl.facts dd { margin: 0; }
dl.terms dt { font-weight: 600; margin-top: .55rem; }
dl.terms dd { margin: 0; color: var(--soft); max-width: 52rem; }
details > summary { cursor: pointer; color: var(--accent); margin: .6rem 0; }
footer { border-top: 1px solid var(--line); color: var(--soft); font-size: .82rem; padding: 1rem 0 2rem; }
@media print { nav { display: none; } section { break-inside: avoid; } header { color: #000; background: none; }
  header p { color: #333; } }
"""


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        key: Key in the rows.
        title: Heading.
        kind: ``text``, ``long`` (wraps), ``percent`` (a fraction shown times 100), ``points`` (likewise, signed) or
            ``count``.
        best: Print the largest value in bold.
    """

    key: str
    title: str
    kind: str = "percent"
    best: bool = False


def table(
    columns: Sequence[Column],
    rows: Sequence[Mapping[str, object]],
    *,
    group: str | None = None,
    pale: str | None = None,
) -> str:
    """Return an HTML table.

    Args:
        columns: What to show.
        rows: The values; None shows as a dash. A ``Markup`` value is not escaped.
        group: Key whose change of value draws a line between rows.
        pale: Key that is true in rows to print in grey; they take no part in the choice of the best.
    """
    judged = [row for row in rows if not (pale and row.get(pale))]
    tops = {column.key: _largest(judged, column.key) for column in columns if column.best}
    head = "".join(f'<th class="{_side(column)}">{escape(column.title)}</th>' for column in columns)
    lines = []
    before: object = None
    for index, row in enumerate(rows):
        classes = ["first"] if group and index > 0 and row.get(group) != before else []
        classes += ["pale"] if pale and row.get(pale) else []
        before = row.get(group) if group else None
        best = {} if "pale" in classes else tops
        cells = "".join(_cell(column, row.get(column.key), best.get(column.key)) for column in columns)
        lines.append(f'<tr class="{" ".join(classes)}">{cells}</tr>' if classes else f"<tr>{cells}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


class Markup(str):
    """Text that is HTML already."""


def coloured(text: str, good: bool) -> Markup:
    """Return the text in green or red-brown."""
    return Markup(f'<span class="{"good" if good else "bad"}">{escape(text)}</span>')


def strong(text: object) -> Markup:
    """Return the text in bold."""
    return Markup(f"<b>{escape(str(text))}</b>")


def listed(items: Iterable[str]) -> str:
    """Return a list in columns, as many as there is room for; ``Markup`` is not escaped."""
    texts = (item if isinstance(item, Markup) else escape(item) for item in items)
    return f'<ul class="columns">{"".join(f"<li>{text}</li>" for text in texts)}</ul>'


def section(anchor: str, title: str, *parts: str) -> str:
    """Return a section with a heading and an anchor."""
    return f'<section id="{anchor}"><h2>{escape(title)}</h2>{"".join(parts)}</section>'


def heading(text: str) -> str:
    """Return a heading inside a section."""
    return f"<h3>{escape(text)}</h3>"


def note(text: str) -> str:
    """Return a paragraph of explanation."""
    return f'<p class="note">{escape(text)}</p>'


def figure(png: Path, caption: str) -> str:
    """Return an image with its bytes inside the page."""
    data = base64.b64encode(png.read_bytes()).decode("ascii")
    image = f'<img alt="{escape(caption, quote=True)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def cards(items: Iterable[tuple[str, str]]) -> str:
    """Return boxes of a large value and what it is."""
    boxes = (f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for value, name in items)
    return f'<div class="cards">{"".join(boxes)}</div>'


def definitions(items: Mapping[str, object], kind: str) -> str:
    """Return a definition list; ``kind`` is ``facts`` (two columns) or ``terms``."""
    pairs = (f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>" for name, value in items.items())
    return f'<dl class="{kind}">{"".join(pairs)}</dl>'


def folded(summary: str, *parts: str) -> str:
    """Return content that is shown on demand."""
    return f"<details><summary>{escape(summary)}</summary>{''.join(parts)}</details>"


def side_by_side(*parts: str) -> str:
    """Return parts that stand beside each other where the window is wide enough."""
    return f'<div class="pair">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def page(title: str, subtitle: str, sections: Mapping[str, str], bodies: Sequence[str], footer: str) -> str:
    """Return the whole page.

    Args:
        title: Heading and window title.
        subtitle: One sentence below it.
        sections: Anchor to title, for the row of links to the sections.
        bodies: The sections.
        footer: Last line.
    """
    links = "".join(f'<a href="#{anchor}">{escape(name)}</a>' for anchor, name in sections.items())
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{CSS}</style></head><body>'
        f'<header><div class="wrap"><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></div></header>'
        f'<nav><div class="wrap">{links}</div></nav><main class="wrap">{"".join(bodies)}</main>'
        f'<footer><div class="wrap">{escape(footer)}</div></footer></body></html>\n'
    )


def show(value: object, kind: str) -> str:
    """Return a value as text: see :class:`Column`."""
    if value is None or (isinstance(value, float) and value != value):
        return NOTHING
    if kind == "percent":
        return f"{100 * float(str(value)):.1f}"
    if kind == "points":
        return f"{100 * float(str(value)):+.1f}".replace("-", "−")
    return f"{value:,}" if kind == "count" else str(value)


def _cell(column: Column, value: object, top: float | None) -> str:
    text = value if isinstance(value, Markup) else escape(show(value, column.kind))
    best = " best" if top is not None and value == top else ""
    return f'<td class="{_side(column)}{best}">{text}</td>'


def _side(column: Column) -> str:
    return {"text": "text", "long": "text long"}.get(column.kind, "number")


def _largest(rows: Sequence[Mapping[str, object]], key: str) -> float | None:
    values = [value for row in rows if isinstance(value := row.get(key), float) and value == value]
    return max(values) if len(values) > 1 else None
