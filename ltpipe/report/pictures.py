"""The pages of pictures: what the data look like, and what detectors get right and wrong in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd

from ltpipe.data.odd_objects import WORDS, odd_objects
from ltpipe.data.store import AnnotationStore
from ltpipe.frequency import FREQUENCY_NAMES
from ltpipe.metrics.error_kinds import Errors
from ltpipe.metrics.predictions import Predictions
from ltpipe.report import html
from ltpipe.report.captioned import LEGEND, Shot
from ltpipe.report.class_ranking import by_importance, by_rarity
from ltpipe.report.detection_pictures import DetectionPictures
from ltpipe.report.highlights import DOZEN, Highlight, write_highlights
from ltpipe.report.html import Column
from ltpipe.report.picture_pages import Budget, Pages, shots, write_page
from ltpipe.report.plot_classes import plot_long_tail
from ltpipe.report.shots import Shelf

EXAMPLES, ODD_SHOWN = 6, 24
HIGHLIGHTS = "highlights.json"
"""What a report shows of the pages, see :mod:`~ltpipe.report.highlights`."""
MEGABYTES = 100.0
FOR_EXAMPLES = 0.35
"""Share of the limit that is kept for the examples of the data where there are detections as well."""


@dataclass(frozen=True)
class Detected:
    """One set of detections.

    Attributes:
        name: A checkpoint, or a file.
        shelf: The images it was made on, with their objects.
        predictions: The detections.
        errors: What became of each.
        per_class: ``category_id`` and ``AP``.
    """

    name: str
    shelf: Shelf
    predictions: Predictions
    errors: Errors
    per_class: pd.DataFrame


@dataclass(frozen=True)
class Album:
    """What pages are made of.

    Attributes:
        title: Heading of the first page.
        shelf: Images and objects whose examples are shown.
        classes: ``category_id``, ``name``, ``train_images``, ``train_instances``, ``frequency``, perhaps ``phase``.
        counted: What ``train_instances`` counts.
        remarks: Sentences on the data.
        detected: Sets of detections, in the order in which they are compared.
        augmented: Title and parts of a page on what training sees; empty: none.
        megabytes: Limit of all pages together.
    """

    title: str
    shelf: Shelf
    classes: pd.DataFrame
    counted: str
    remarks: Sequence[str] = ()
    detected: Sequence[Detected] = ()
    augmented: Sequence[str] = field(default_factory=tuple)
    megabytes: float = MEGABYTES


def write_album(folder: Path, album: Album) -> list[Path]:
    """Write ``index.html``, the pages it links to, and ``highlights.json``; return all files, the first page first."""
    budget = Budget(album.megabytes)
    rest = budget.part(FOR_EXAMPLES) if album.detected else budget
    more, files = dict[str, str](), list[Path]()
    for name, title, parts in (
        ("augmented.html", "What training sees", list(album.augmented)),
        ("broken.html", "Objects that look broken", list(_odd(album.shelf))),
    ):
        if parts and budget.take(sum(map(len, parts))):
            links = {f"#{anchor}": anchor for anchor in re.findall(r'<section id="([^"]+)"', "".join(parts))}
            write_page(folder / name, title, album.title, {"index.html": "all classes", **links}, parts)
            more[name] = title
            files.append(folder / name)
    tables = []
    before: pd.DataFrame | None = None
    for one in album.detected:
        tables.append(_compared(album.classes, one, before))
        before = one.per_class
    # The last set is looked at first: it may take all there is.
    found: dict[str, dict[str, str]] = {}
    highlights: list[Highlight] = []
    for one, table in reversed(list(zip(album.detected, tables, strict=True))):
        found[one.name], worst = _detected(folder, album, one, table, budget, files)
        highlights = highlights or worst
    write_highlights(folder / HIGHLIGHTS, highlights)
    examples = _examples(folder, album, rest, files)
    left_out = budget.full or rest.full
    body = _index(album, tables, examples, found, more, left_out)
    figure = plot_long_tail(
        album.classes, folder / "figures" / "long_tail", title="The long tail", counted=album.counted
    )
    caption = "Objects of every class on a logarithmic scale, by frequency group."
    page = [f'<section id="data">{"".join([*_summary(album), html.figure(figure, caption)])}</section>', *body]
    unread = album.shelf.unreadable | {k: v for one in album.detected for k, v in one.shelf.unreadable.items()}
    if unread:
        rows = [{"name": name, "why": why} for name, why in sorted(unread.items())]
        columns = [Column("name", "image", "text"), Column("why", "why it cannot be shown", "long")]
        page.append(html.section("unread", "Images that cannot be read", html.table(columns, rows)))
    subtitle = f"Pictures of all pages together: at most {album.megabytes:g} MB."
    write_page(folder / "index.html", album.title, subtitle, {"#data": "data", "#classes": "classes", **more}, page)
    return [folder / "index.html", *files, figure, figure.with_suffix(".svg"), folder / HIGHLIGHTS]


def safe_name(name: str) -> str:
    """Return what stands for the name of a set of detections in the names of its pages."""
    return re.sub(r"[^-\w]+", "_", name)


def _summary(album: Album) -> Iterator[str]:
    counts = album.shelf.store.info["counts"]
    yield html.cards(
        [
            (f"{counts['images']:,}", "images"),
            (f"{counts['objects']:,}", "objects"),
            (f"{counts['categories']:,}", "classes"),
            (f"{int((album.classes['train_instances'] == 0).sum()):,}", "classes without objects"),
        ]
    )
    yield from (html.note(f"{remark}.") for remark in album.remarks)


def _compared(classes: pd.DataFrame, one: Detected, before: pd.DataFrame | None) -> pd.DataFrame:
    """Return the classes that a set of detections knows, with its AP, confusions and the change from the set before."""
    ids = pd.Index(one.errors.category_ids)
    ap = one.per_class.set_index("category_id")["AP"].reindex(ids)
    past = pd.Series(np.nan, ids) if before is None else before.set_index("category_id")["AP"].reindex(ids)
    table = classes.set_index("category_id").reindex(ids).reset_index(names="category_id")
    confused = DetectionPictures(one.shelf, one.predictions, one.errors).confusions()
    return table.assign(AP=ap.to_numpy(), change=(ap - past).to_numpy(), confused=confused, place=np.arange(len(ids)))


def _heading(row: pd.Series, why: str = "") -> str:
    letter = row["frequency"] if isinstance(row["frequency"], str) else ""
    parts = [escape(str(row["name"]))]
    parts += [html.tag(FREQUENCY_NAMES[letter], letter)] if letter in FREQUENCY_NAMES else []
    parts += [html.tag(why)] if why else []
    return "".join(parts)


def _facts(row: pd.Series, counted: str) -> str:
    text = f"{row['train_instances']:,.0f} {counted} in {row['train_images']:,.0f} images"
    if "AP" in row and row["AP"] == row["AP"]:
        text += f"; AP {100 * row['AP']:.1f}"
    return html.note(f"{text}.")


def _detected(
    folder: Path, album: Album, one: Detected, table: pd.DataFrame, budget: Budget, files: list[Path]
) -> tuple[dict[str, str], list[Highlight]]:
    """Write the pages of a set of detections; return the link of each class by category id, and a dozen pictures."""
    pictures = DetectionPictures(one.shelf, one.predictions, one.errors)
    pages = Pages(folder, f"detected_{safe_name(one.name)}", f"{one.name}: right and wrong", LEGEND, budget)
    highlights: list[Highlight] = []
    for place, why in by_importance(table):
        row = table.loc[place]
        key, name, parts = int(row["category_id"]), str(row["name"]), list(pictures.of_class(int(row["place"])))
        if not parts:
            continue
        if not pages.add(key, name, _heading(row, why), _facts(row, album.counted), *parts):
            break
        if len(highlights) < DOZEN:
            worst = pictures.worst(int(row["place"]))
            highlights += [Highlight(name, why, shot, pages.links[str(key)]) for shot in worst]
    files += pages.write()
    return pages.links, highlights


def _examples(folder: Path, album: Album, budget: Budget, files: list[Path]) -> dict[str, str]:
    """Write examples of every class, the rarest first; return their links by category id."""
    store = album.shelf.store
    subtitle = f"Up to {EXAMPLES} objects of each class, from the largest to the smallest."
    pages = Pages(folder, "examples", "Examples of every class", subtitle, budget)
    used = np.flatnonzero(~(store.ann_iscrowd | store.ann_ignore))
    place = {int(number): row for row, number in enumerate(store.category_ids)}
    for index, _ in by_rarity(album.classes):
        row = album.classes.loc[index]
        own = used[store.ann_category[used] == place.get(int(row["category_id"]), -1)]
        own = own[np.argsort(-store.ann_area[own], kind="stable")]
        chosen = own[np.unique(np.linspace(0, len(own) - 1, min(EXAMPLES, len(own))).round().astype(int))]
        pictures = [shot for number in chosen.tolist() for shot in _example(album.shelf, number)]
        parts = (_facts(row, album.counted), shots(pictures))
        if pictures and not pages.add(int(row["category_id"]), str(row["name"]), _heading(row), *parts):
            break
    files += pages.write()
    return pages.links


def _example(shelf: Shelf, row: int) -> Iterator[Shot]:
    image = int(shelf.store.ann_image[row])
    yield from shelf.cut(image, [shelf.object(row)], shelf.store.image_file(image))


def _odd(shelf: Shelf) -> Iterator[str]:
    """Yield a section for every way in which objects look broken."""
    store: AnnotationStore = shelf.store
    for kind, rows in odd_objects(store).items():
        chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(ODD_SHOWN, len(rows))).round().astype(int))]
        pictures = []
        for row in chosen.tolist():
            image, name = int(store.ann_image[row]), store.category_names[int(store.ann_category[row])]
            caption = f"{name}, annotation {store.ann_ids[row]} · {store.image_file(image)}"
            pictures += list(shelf.cut(image, [shelf.object(row)], caption))
        if pictures:
            yield html.section(
                kind.replace(" ", "-"), f"{kind} ({len(rows):,})", html.note(f"{WORDS[kind]}."), shots(pictures)
            )


def _index(
    album: Album,
    tables: Sequence[pd.DataFrame],
    examples: dict[str, str],
    links: dict[str, dict[str, str]],
    more: dict[str, str],
    left_out: bool,
) -> Iterator[str]:
    """Yield links to the other pages and the table of all classes, those that matter most first."""
    if more:
        yield html.note("Further pages:")
        yield f"<p>{' · '.join(html.link(title, name) for name, title in more.items())}</p>"
    columns = [Column(key, title, "text") for key, title in (("name", "class"), ("frequency", "group"))]
    columns.append(Column("why", "why first", "text"))
    columns += [Column("train_images", "images", "count"), Column("train_instances", album.counted, "count")]
    columns += [Column("phase", "phase", "count")] if "phase" in album.classes else []
    columns.append(Column("examples", "examples", "text"))
    order = by_rarity(album.classes)
    rows = {int(row["category_id"]): dict(row) | {"why": None} for _, row in album.classes.iterrows()}
    ids = [int(album.classes.loc[index, "category_id"]) for index, _ in order]
    for one, table in zip(album.detected, tables, strict=True):
        columns += [Column(f"AP {one.name}", f"AP {one.name}"), Column(f"see {one.name}", "right and wrong", "text")]
        for _, row in table.iterrows():
            target = links[one.name].get(str(row["category_id"]))
            link = html.link("look", target) if target else None
            rows[int(row["category_id"])] |= {f"AP {one.name}": row["AP"], f"see {one.name}": link}
    if tables:
        last = by_importance(tables[-1])
        first = [int(tables[-1].loc[index, "category_id"]) for index, _ in last]
        ids = first + [number for number in ids if number not in set(first)]
        for (_, why), number in zip(last, first, strict=True):
            rows[number]["why"] = why or None
    for number in ids:
        target = examples.get(str(number))
        row = rows[number]
        row["examples"] = html.link("look", target) if target else None
        row |= {key: _whole(row.get(key)) for key in ("train_images", "train_instances", "phase")}
    text = "The rarest first." if not tables else f"Those that matter most for {album.detected[-1].name} first."
    if left_out:
        text += (
            f" The limit of {album.megabytes:g} MB is reached: classes without a link have no pictures; a larger "
            "--megabytes shows them."
        )
    yield html.section("classes", "Classes", html.note(text), html.table(columns, [rows[i] for i in ids], name="table"))


def _whole(value: object) -> int | None:
    return None if value is None or value != value else int(float(str(value)))
