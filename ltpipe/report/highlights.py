"""A dozen pictures that say most about a set of detections: chosen where its pages are made, shown in the report."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ltpipe.report import html
from ltpipe.report.captioned import LEGEND, Shot
from ltpipe.run.files import write_json

DOZEN = 12


@dataclass(frozen=True)
class Highlight:
    """A picture that stands for a class.

    Attributes:
        name: The class.
        why: Why it is looked at before others; may be empty.
        shot: The picture.
        link: Page and anchor where there is more of the class.
    """

    name: str
    why: str
    shot: Shot
    link: str


def write_highlights(file: Path, shown: Sequence[Highlight]) -> None:
    """Write pictures with what is said of them, atomically."""
    rows = [
        {
            "name": one.name,
            "why": one.why,
            "caption": one.shot.caption,
            "link": one.link,
            "jpeg": base64.b64encode(one.shot.picture).decode("ascii"),
        }
        for one in shown
    ]
    write_json(file, rows)


def read_highlights(file: Path, folder: str) -> list[Highlight]:
    """Return what :func:`write_highlights` wrote.

    Args:
        file: The file.
        folder: Where its pages lie, seen from the page that links to them.
    """
    found = []
    for row in json.loads(file.read_text(encoding="utf-8")):
        shot = Shot(base64.b64decode(row["jpeg"]), row["caption"])
        found.append(Highlight(row["name"], row["why"], shot, f"{folder}/{row['link']}"))
    return found


def highlights_section(shown: Sequence[Highlight]) -> list[str]:
    """Return the pictures, each with a link to the pages of its class; nothing without pictures."""
    if not shown:
        return []
    text = (
        "The classes that matter most, each by its most confident mistake or, where there is none, by the largest "
        f"object that is missed. {LEGEND} A picture leads to more of its class."
    )
    said = (f"{one.name} ({one.why})" if one.why else one.name for one in shown)
    figures = "".join(
        Shot(one.shot.picture, f"{who}: {one.shot.caption}").html(one.link)
        for who, one in zip(said, shown, strict=True)
    )
    index = str(PurePosixPath(shown[0].link.partition("#")[0]).with_name("index.html"))
    more = html.link("All classes, and pictures of the data", index)
    return [html.note(text), f'<div class="shots">{figures}</div>', f"<p>{more}</p>"]
