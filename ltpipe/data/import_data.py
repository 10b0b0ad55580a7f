"""``ltpipe import``: a data set of another format to COCO- or LVIS-format JSON, with a report of what was done."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from ltpipe.data.annotation_json import write_dataset
from ltpipe.data.findings import Findings, Policy
from ltpipe.data.progress_bar import Progress
from ltpipe.data.readers.protocol import Part
from ltpipe.data.readers.sources import find_parts
from ltpipe.data.store import AnnotationStore
from ltpipe.data.store_writer import store_records
from ltpipe.data.summary import lines
from ltpipe.errors import UserError
from ltpipe.run.outputs import Output
from ltpipe.run.records import read_json
from ltpipe.yaml_files import dump_yaml

REPORT = "report.txt"


def import_data(source: Path, folder: Path, *, fmt: str | None = None, faults: Policy = "refuse") -> list[str]:
    """Write a JSON file per part, ``report.txt`` and ``record.json``; images stay where they are.

    Args:
        source: Folder of the data set, or a file that describes it.
        folder: Folder to write into.
        fmt: A name in :data:`~ltpipe.data.readers.sources.SOURCES`; None: the one that it is.
        faults: What becomes of records that cannot be used: ``refuse`` all, or ``drop`` and count them.

    Returns:
        The lines of the report.

    Raises:
        UserError: The source is of no known format or cannot be used, has faults (all of them at once) or no object; or
            ltpipe did not make what lies in the folder.
    """
    source, general = Path(os.path.abspath(source)), Findings()
    name, parts = find_parts(source, fmt, general)
    files = [f"{part.name}.json" for part in parts]
    output = Output(folder, "import", inputs=[source], names=[*files, REPORT])
    facts: dict[str, Any] = {"source": str(source), "format": name, "parts": {}}
    with output.write(facts) as staged:
        stores = _stores(parts, staged.parent / "stores")
        _check_faults(source, stores, faults)
        _remark_shared_images(parts, stores, general)
        for part, file in zip(parts, files, strict=True):
            write_dataset(staged / file, stores[part.name])
            info = stores[part.name].info
            kept = {key: info[key] for key in ("counts", "frequencies", "remarks", "dropped")}
            ids = read_json(stores[part.name].folder / "ids.json") or {}
            facts["parts"][part.name] = {
                "annotations": file,
                "images": os.path.abspath(part.images),
                "ids": ids,
                **kept,
            }
        facts["remarks"] = general.as_json()["remarks"]
        report = _report(name, source, folder, parts, stores, general)
        (staged / REPORT).write_text("\n".join(report) + "\n", encoding="utf-8")
    return report


def _stores(parts: Sequence[Part], folder: Path) -> dict[str, AnnotationStore]:
    """Read every part into a store; faulty records are left out and counted. All have the classes of the first."""
    found: dict[str, AnnotationStore] = {}
    first: AnnotationStore | None = None
    for part in parts:
        findings = Findings()
        records = part.read(part.path, findings)
        bar = Progress(part.name, len(records.ids))
        store_records(
            records,
            folder / part.name,
            findings,
            {"file": part.path.name},
            image_folder=part.images,
            faults="drop",
            classes=first,
            usable=first is None,
            bar=bar,
        )
        found[part.name] = AnnotationStore.open(folder / part.name)
        first = first or found[part.name]
    return found


def _check_faults(source: Path, stores: Mapping[str, AnnotationStore], policy: Policy) -> None:
    said = [line for name, store in stores.items() for line in lines(name, store.info) if ": left out: " in line]
    if said and policy == "refuse":
        raise UserError(
            "the data set has faults",
            where=source,
            got=("\n" + " " * 11).join(line.replace(": left out: ", ": ", 1) for line in said),
            fix="mend the files, or leave these records out with --faults drop; all are counted",
        )


def _remark_shared_images(parts: Sequence[Part], stores: Mapping[str, AnnotationStore], general: Findings) -> None:
    """Remark on image files that are in two parts: what is validated must not be trained."""
    files = {}
    for part in parts:
        store = stores[part.name]
        rows = range(len(store.image_ids))
        files[part.name] = {os.path.realpath(part.images / store.image_file(row)) for row in rows}
    for one, other in combinations(files, 2):
        shared = sorted(files[one] & files[other])
        general.remark(f"images that are both in {one} and in {other}", shared[0] if shared else "", len(shared))


def _report(
    name: str,
    source: Path,
    folder: Path,
    parts: Sequence[Part],
    stores: Mapping[str, AnnotationStore],
    general: Findings,
) -> list[str]:
    """Say what was read, how, and how an experiment names it."""
    found = [f"{source}: {name}; {', '.join(part.name for part in parts)}", *general.sentences()]
    for part in parts:
        found += lines(part.name, stores[part.name].info)
    block: dict[str, Any] = {"name": folder.resolve().name, "format": "coco"}
    if any(store.federated for store in stores.values()):
        block["format"] = "lvis"
    for part in parts:
        place = {"annotations": str(folder / f"{part.name}.json"), "images": str(part.images)}
        found.append(f"{part.name}: {place['annotations']}, images in {place['images']}")
        if part.name in ("train", "val"):
            block[part.name] = place
    if {"train", "val"} <= block.keys():
        text = dump_yaml({"dataset": block})
        found += ["in an experiment:", *(f"    {line}" for line in text.splitlines())]
    else:
        file = folder / f"{parts[0].name}.json"
        found.append(f"for an experiment, part it: `ltpipe make-split --annotations {file} --output DIR`")
    return found
