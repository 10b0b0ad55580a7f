"""``ltpipe convert``: what is read, what is written, and how to go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ltpipe.config.class_list import annotation_categories
from ltpipe.errors import UserError
from ltpipe.interop.checkpoint_facts import StatedFacts
from ltpipe.interop.class_index import by_category, read_class_index, write_class_index
from ltpipe.interop.convert import CLASS_INDEX, Request, convert
from ltpipe.interop.safe_reading import is_torch_file, read_content
from ltpipe.run.files import sha256_file
from ltpipe.run.outputs import Output


def run(arguments: Any) -> None:
    """Run ``ltpipe convert`` with parsed arguments: the fields of :class:`Request` and :class:`StatedFacts`."""
    if holds_class_index(arguments.files[0], arguments.source):
        print(convert_class_index(arguments.files[0], arguments.output, arguments.annotations))
        return
    given = StatedFacts(*(getattr(arguments, f.name) for f in fields(StatedFacts)))
    request = Request(
        tuple(arguments.files),
        arguments.output,
        arguments.source,
        arguments.classes,
        arguments.init,
        arguments.groups,
        arguments.ignore_names,
        given,
    )
    print(report(request, convert(request)))


def holds_class_index(path: Path, source: str | None) -> bool:
    """Whether a file is SimCal's class index: it is named so, or is a plain pickle of records by number."""
    if source is not None:
        return source == CLASS_INDEX
    if is_torch_file(path):
        return False
    content = read_content(path)
    return isinstance(content, Mapping) and bool(content) and all(isinstance(key, int) for key in content)


def report(request: Request, meta: Mapping[str, Any]) -> str:
    """Return what was found and how to go on, as text."""
    record, ids = meta["converted"], meta.get("category_ids")
    lines = [f"{request.output}: from {record['layout']}, {'no' if ids is None else len(ids)} classes"]
    choices = record.get("model", {})
    lines += [f"  {slot}: {_braces(choice)} ({record['known_from'][slot]})" for slot, choice in choices.items()]
    lines += [f"  labels: {record['labels']}"] if "labels" in record else []
    if record["dropped"]:
        lines.append(f"  left out: {', '.join(record['dropped'][:8])}")
    if ids is None:
        lines.append(f"start a training from it:  detector: {{load_from: {request.output}}}")
    elif not choices:
        lines.append(f"use it as it is:  calibrate: {{NAME: {{type: simcal, checkpoint: {request.output}}}}}")
    else:
        model = ", ".join(f"{slot}: {_braces(choice)}" for slot, choice in choices.items() if slot != "part")
        geometry = record["geometry"]
        lines += [f"use it as it is:  base: {{checkpoint: {request.output}}}", f"  with  model: {{{model}}}"]
        lines += [f"  and   detector: {{geometry: {geometry}}}"] if geometry != "modern" else []
    return "\n".join(lines)


def _braces(choice: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in choice.items()) + "}"


def convert_class_index(path: Path, output: Path, annotations: Path | None) -> str:
    """Write SimCal's class index as JSON; return what was found.

    Raises:
        UserError: The annotations are not named, or belong to another data set; or the output is an input, or a file
            that ltpipe did not make.
    """
    if annotations is None:
        raise UserError("a class index has no category ids", where=path, fix="give --annotations with the JSON file")
    made = Output(output, "convert", inputs=[path, annotations])
    classes = read_class_index(path)
    ids = [int(category["id"]) for category in annotation_categories(annotations)]
    by_category(classes, ids, path)
    with made.write() as temporary:
        write_class_index(temporary, classes, ids, sha256_file(annotations))
    return f"{output}: class index of {len(classes)} classes, {sum(len(c.image_ids) for c in classes)} image entries"
