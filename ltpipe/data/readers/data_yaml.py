"""What describes a YOLO data set: ``data.yaml``, darknet's ``obj.data`` or a list of classes; and its image files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ltpipe.data.findings import Findings
from ltpipe.data.readers.collected import ONLY_PART, PARTS, SUFFIXES, files_below, plain
from ltpipe.errors import UserError
from ltpipe.input_files import read_text
from ltpipe.yaml_files import load_yaml

MENDED = "paths found by a part of their name"
YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class Description:
    """A YOLO data set.

    Attributes:
        file: What describes it.
        names: Class names by number.
        entries: Folders and lists of images by part, as they are written.
        roots: Folders that these are looked for in.
        keypoints: Numbers that follow the box of an object with keypoints.
    """

    file: Path
    names: dict[int, str]
    entries: dict[str, list[str]]
    roots: tuple[Path, ...]
    keypoints: int = 0


def read_description(source: Path, findings: Findings) -> Description | None:
    """Read what describes the data set in a folder; None if nothing does.

    Args:
        source: The folder, or the YAML file.
        findings: Told of paths that had to be mended.

    Raises:
        UserError: It cannot be used, or several files describe one.
    """
    if source.is_file():
        return _from_yaml(source, findings) if source.suffix.lower() in YAML else None
    found = [file for file in sorted(source.iterdir()) if file.suffix.lower() in YAML and _is_meant(file)]
    if len(found) > 1:
        got = ", ".join(file.name for file in found)
        fix = f"name one: `ltpipe import {found[0]} ...`"
        raise UserError("several files describe a YOLO data set", where=source, got=got, fix=fix)
    if found:
        return _from_yaml(found[0], findings)
    if (source / "obj.data").is_file():
        return _from_darknet(source / "obj.data")
    lists = [source / "classes.txt", source / "labels" / "classes.txt"]
    file = next((file for file in lists if file.is_file()), None)
    return None if file is None else Description(file, _listed(file), {ONLY_PART: ["."]}, (source,))


def part_images(known: Description, name: str, findings: Findings) -> tuple[list[Path], list[Path]] | None:
    """Return the image files of a part, and those of its entries that are folders.

    Args:
        known: The data set.
        name: The part.
        findings: Told of paths that had to be mended.

    Returns:
        None for a test part that is not there. Images of lists may be missing.

    Raises:
        UserError: A folder or list of it is not there, or it has no image.
    """
    images, folders = dict[Path, None](), []
    for entry in known.entries[name]:
        place = _found(entry, known.roots)
        if place is None and name == "test":
            findings.remark("parts that are not there: left out", f"{known.file}: {name}: {entry}")
            return None
        if place is None:
            got = f"{entry}, in {', '.join(map(str, known.roots))}"
            fix = "correct the path, or `path` of the file"
            raise UserError("no such folder or list of images", where=f"{known.file}: {name}", got=got, fix=fix)
        if place.resolve() != (known.roots[0] / entry).resolve():
            findings.remark(MENDED, f"{known.file}: {name}: {entry} -> {place}")
        if place.is_dir():
            folders.append(place)
            images.update(dict.fromkeys(files_below(place, SUFFIXES)))
        else:
            images.update(dict.fromkeys(_of_list(place, known.roots)))
    if not images:
        got, allowed = ", ".join(known.entries[name]), f"files with {', '.join(sorted(SUFFIXES))}"
        raise UserError("a part without images", where=f"{known.file}: {name}", got=got, allowed=allowed)
    return list(images), folders


def _is_meant(file: Path) -> bool:
    """Whether a file describes a data set; one of another name may be anything, YAML or not."""
    try:
        return _describes(_yaml(file))
    except UserError:
        if file.stem == "data":
            raise
        return False


def _describes(content: Any) -> bool:
    return isinstance(content, dict) and bool({"names", "nc"} & content.keys())


def _text(file: Path) -> str:
    return read_text(file, "the description of the data set")


def _yaml(file: Path) -> Any:
    """Read YAML with every scalar as text: ``no`` and ``1`` are names of classes."""
    return load_yaml(file, "the description of the data set", text=True)[1]


def _from_yaml(file: Path, findings: Findings) -> Description:
    content = _yaml(file)
    if not _describes(content):
        allowed = "keys names, train, val and maybe path"
        raise UserError("the file describes no YOLO data set", where=file, allowed=allowed)
    roots = [file.parent]
    if content.get("path"):
        root = file.parent / str(content["path"]).replace("\\", "/")  # itself if it is absolute
        if root.is_dir():
            roots.insert(0, root)
        else:
            findings.remark(MENDED, f"{file}: path {content['path']} -> {file.parent}")
    entries = {PARTS[key]: _entries(content[key]) for key in content if key in PARTS and content[key]}
    if not entries:
        allowed = "train, val and test: folders or lists of images"
        raise UserError("the file names no images", where=file, allowed=allowed)
    shape = content.get("kpt_shape")
    try:
        keypoints = int(np.prod([int(value) for value in shape])) if isinstance(shape, list) else 0
    except ValueError as error:
        raise UserError("unusable kpt_shape", where=file, got=shape) from error
    return Description(file, _names(content, file), entries, tuple(roots), keypoints)


def _names(content: Mapping[str, Any], file: Path) -> dict[int, str]:
    """Return class names by number: of a list, or of a dictionary by number; ``nc`` must be as many."""
    names, nc = content.get("names"), content.get("nc")
    if nc is not None and not (_is_number(nc) and int(nc) > 0):
        raise UserError("nc is no number of classes", where=file, got=nc)
    if names is None:
        return {number: f"class_{number}" for number in range(int(str(nc)))}
    if isinstance(names, dict) and all(map(_is_number, names)):
        found = {int(key): name for key, name in sorted(names.items(), key=lambda item: int(item[0]))}
    else:
        found = dict(enumerate(names)) if isinstance(names, list) else {}
    if not found or not all(isinstance(name, str) for name in found.values()):
        raise UserError("names are no class names", where=file, got=names, allowed="a list, or a name by number from 0")
    if nc is not None and int(nc) != len(found):
        fix = "correct nc, or the names: a number of the labels could mean another class"
        raise UserError("nc and names disagree", where=file, got=f"nc {nc}, {len(found)} names", fix=fix)
    return found


def _is_number(text: Any) -> bool:
    """Whether a text is a whole number that may count classes."""
    return isinstance(text, str) and text.isdecimal() and len(text) < 7


def _entries(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def _from_darknet(file: Path) -> Description:
    """Read ``key = value`` lines: train, valid, names."""
    pairs = (line.partition("=") for line in _text(file).splitlines())
    content = {key.strip(): value.strip() for key, _, value in pairs}
    entries = {PARTS[key]: [content[key]] for key in content if key in PARTS}
    listed = _found(content.get("names", "obj.names"), (file.parent,))
    if listed is None or not entries:
        allowed = "names and train, and files of these"
        raise UserError("the file describes no YOLO data set", where=file, allowed=allowed)
    return Description(file, _listed(listed), entries, (file.parent,))


def _listed(file: Path) -> dict[int, str]:
    names = [line.strip() for line in _text(file).splitlines() if line.strip()]
    if not names:
        raise UserError("the list of classes is empty", where=file)
    return dict(enumerate(names))


def _found(entry: str, roots: Sequence[Path]) -> Path | None:
    """Return where a path leads: as written, else without its first folders; None if nowhere.

    The last folder alone is not enough unless it names a part: ``images`` may hold all of them.
    """
    written = Path(entry.replace("\\", "/"))
    if written.is_absolute() and written.exists():
        return written
    parts = [part for part in written.parts if part != written.anchor]
    below = [part for part in parts if part != ".."]
    tails = [parts, *(below[start:] for start in range(len(below)))]
    for number, tail in enumerate(tails):
        for root in roots:
            place = root.joinpath(*tail)
            enough = number == 0 or len(tail) > 1 or place.is_file() or tail[-1].lower() in PARTS
            if enough and place.exists():
                return plain(place)
    return None


def _of_list(file: Path, roots: Sequence[Path]) -> Iterator[Path]:
    """Yield the images of a list, one a line; those that are not there as they are written."""
    for line in _text(file).splitlines():
        if line.strip():
            yield _found(line.strip(), (file.parent, *roots)) or file.parent / line.strip()
