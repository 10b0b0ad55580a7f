"""Pieces of a self-contained HTML page: nothing is loaded from outside the file."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from ltpipe.report.style import CSS, SCRIPT

NOTHING = "–"
TALL = 20
"""Rows from which on a table to search scrolls by itself."""


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
    name: str | None = None,
) -> str:
    """Return an HTML table without the columns that hold nothing.

    Args:
        columns: What to show.
        rows: The values; None shows as a dash. A ``Markup`` value is not escaped.
        group: Key whose change of value draws a line between rows.
        pale: Key that is true in rows to print in grey; they take no part in the choice of the best.
        name: Unique name of a table that can be sorted and searched in the page; None: it stays as it is.
    """
    judged = [row for row in rows if not (pale and row.get(pale))]
    columns = [column for column in columns if not rows or any(not _is_nothing(row.get(column.key)) for row in rows)]
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
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    if name is None:
        return f'<div class="scroll"><table>{body}'
    field = f'<input type="search" data-table="{name}" aria-label="search the rows" placeholder="search the rows">'
    tall = " tall" if len(rows) > TALL else ""
    find = f'<div class="find">{field}<output></output></div>'
    return f'{find}<div class="scroll{tall}"><table class="sortable" id="{name}">{body}'


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


def subheading(text: str) -> str:
    """Return a heading below that."""
    return f"<h4>{escape(text)}</h4>"


def tag(text: str, kind: str = "") -> Markup:
    """Return a word in a frame; ``kind`` is a frequency group, for its colour."""
    return Markup(f'<span class="tag {escape(kind, quote=True)}">{escape(text)}</span>')


def link(text: str, target: str) -> Markup:
    """Return a link to an anchor or a file beside the page."""
    return Markup(f'<a href="{escape(target, quote=True)}">{escape(text)}</a>')


def plain(text: str) -> Markup:
    """Return text as HTML."""
    return Markup(escape(text))


def lead(text: str) -> str:
    """Return the first paragraph of a page; ``Markup`` is not escaped."""
    return f'<p class="lead">{text if isinstance(text, Markup) else escape(text)}</p>'


def step(text: str, command: str | None = None) -> Markup:
    """Return one thing to do, and what to type or write for it."""
    return Markup(escape(text) + (f" <code>{escape(command)}</code>" if command is not None else ""))


def steps(items: Iterable[Markup]) -> str:
    """Return a list of things to do."""
    return f'<ul class="next">{"".join(f"<li>{item}</li>" for item in items)}</ul>'


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
        sections: Link to title, for the row of links: anchors with their ``#``, or files beside the page.
        bodies: The sections.
        footer: Last line.
    """
    links = "".join(f'<a href="{escape(link, quote=True)}">{escape(name)}</a>' for link, name in sections.items())
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{CSS}</style></head><body>'
        f'<header><div class="wrap"><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></div></header>'
        f'<nav><div class="wrap">{links}</div></nav><main class="wrap">{"".join(bodies)}</main>'
        f'<footer><div class="wrap">{escape(footer)}</div></footer><script>{SCRIPT}</script></body></html>\n'
    )


def show(value: object, kind: str) -> str:
    """Return a value as text: see :class:`Column`."""
    if _is_nothing(value):
        return NOTHING
    if kind == "percent":
        text = f"{100 * float(str(value)):.1f}"
        return "0.0" if float(text) == 0 else text
    if kind == "points":
        text = f"{100 * float(str(value)):+.1f}"
        return "0.0" if float(text) == 0 else text.replace("-", "−")
    return f"{value:,}" if kind == "count" else str(value)


def _is_nothing(value: object) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _cell(column: Column, value: object, top: float | None) -> str:
    text = value if isinstance(value, Markup) else escape(show(value, column.kind))
    best = " best" if top is not None and value == top else ""
    return f'<td class="{_side(column)}{best}">{text}</td>'


def _side(column: Column) -> str:
    return {"text": "text", "long": "text long"}.get(column.kind, "number")


def _largest(rows: Sequence[Mapping[str, object]], key: str) -> float | None:
    """Return the best value, if there are several to choose from; nothing is no achievement."""
    values = [value for row in rows if isinstance(value := row.get(key), float) and value == value]
    return max(values) if len(values) > 1 and max(values) > 0 else None
