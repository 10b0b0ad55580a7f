"""Where the image files of an annotation file are, whatever machine and tool wrote their names."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

from ltpipe.data.findings import Findings
from ltpipe.data.readers.coco_records import ImageRecord
from ltpipe.errors import UserError

MENDED = "image files found by a part of their name (a URL, an absolute path, backslashes, another folder)"


def image_files(
    images: Sequence[ImageRecord],
    folder: str | os.PathLike[str] | None,
    path: Path,
    name: Callable[[int], str],
    findings: Findings,
) -> list[str]:
    """Return the file of each image relative to ``folder``.

    That is ``file_name`` as it is, with slashes for backslashes, without its first folders, or its last part anywhere
    below the folder, else the same of ``coco_url`` (LVIS v1 has nothing else; v0.5 carries the COCO 2014 name beside
    the 2017 URL): the first that exists.

    Args:
        images: The images.
        folder: Folder of the image files; None: the names are not looked up.
        path: The annotation file, for messages.
        name: Names the record of an image.
        findings: Told of names that had to be mended.

    Raises:
        UserError: A record has no file name, or the folder or files in it are missing.
    """
    nameless = [row for row, image in enumerate(images) if not image.file_name and not image.coco_url]
    if nameless:
        raise UserError(
            "images without a file name",
            where=f"{path}: {name(nameless[0])}",
            got=f"{len(nameless)} of {len(images)} with neither file_name nor coco_url",
        )
    found = [_unseen(image) for image in images] if folder is None else _existing(Path(folder), images)
    missing = [row for row, file in enumerate(found) if file is None]
    if missing:
        first = ", ".join(_as_written(images[row]) for row in missing[:3])
        raise UserError(
            "image files are missing",
            where=f"{folder}, listed in {path}",
            got=f"{len(missing)} of {len(images)} not found: {first}{', ...' if len(missing) > 3 else ''}",
            fix=f"first one: {name(missing[0])}",
        )
    files = [file for file in found if file is not None]
    for row, (image, file) in enumerate(zip(images, files, strict=True)):
        if image.file_name is not None and file != image.file_name and not _from_url(image, file):
            findings.remark(MENDED, f"{name(row)}: {image.file_name} -> {file}")
    return files


def _unseen(image: ImageRecord) -> str | None:
    """Return the name of a file that is not looked up."""
    name = next(_spellings(image))
    return os.path.basename(name) if image.file_name and _elsewhere(name) else name


def _as_written(image: ImageRecord) -> str:
    return image.file_name or next(_parts(image.coco_url or "", 2), "")


def _from_url(image: ImageRecord, file: str) -> bool:
    """Whether a file has the name of the URL that COCO and LVIS give beside the file name."""
    return image.coco_url is not None and file in _parts(image.coco_url, 2)


def _spellings(image: ImageRecord) -> Iterator[str]:
    written = image.file_name
    if written:
        slashes = written.replace("\\", "/")
        if not _elsewhere(slashes) or os.path.exists(written):
            yield written
        yield from _parts(slashes)
        for form in ("NFC", "NFD"):
            yield unicodedata.normalize(form, slashes)
    if image.coco_url:
        yield from _parts(image.coco_url, 2)


def _elsewhere(name: str) -> bool:
    """Whether a name with slashes is a URL or an absolute path, maybe one of Windows."""
    return "://" in name or os.path.isabs(name) or name[1:2] == ":"


def _parts(name: str, most: int | None = None) -> Iterator[str]:
    """Yield a name with slashes without more and more of its first folders; of a URL, without host and query.

    Args:
        name: The name.
        most: Parts to begin with, None: all.
    """
    scheme, _, rest = name.rpartition("://")
    if scheme:
        rest = unquote(rest.split("?")[0].split("#")[0]).partition("/")[2]
    parts = [part for part in rest.split("/") if part not in ("", ".")]
    for start in range(0 if most is None else max(0, len(parts) - most), len(parts)):
        yield "/".join(parts[start:])


def _existing(folder: Path, images: Sequence[ImageRecord]) -> list[str | None]:
    """Return the first spelling of every image that exists, else the only file below with that last part."""
    if not folder.is_dir():
        raise UserError("image folder not found", where=folder, fix="correct the `images` path of the dataset block")
    # One listing per folder: asking for every file would take minutes on network file systems.
    listings: dict[str, set[str]] = {}

    def exists(file: str) -> bool:
        parent, base = os.path.split(file)
        if parent not in listings:
            listings[parent] = set(os.listdir(folder / parent)) if (folder / parent).is_dir() else set()
        return base in listings[parent]

    found = [next(filter(exists, _spellings(image)), None) for image in images]
    if None in found:
        below = _below(folder)
        for row, image in enumerate(images):
            if found[row] is None:
                names = map(os.path.basename, _spellings(image))
                found[row] = next((below[name] for name in names if name in below), None)
    return found


def _below(folder: Path) -> dict[str, str]:
    """Return the files below a folder by their last part, those whose last part is unique."""
    files = [
        os.path.relpath(os.path.join(parent, file), folder)
        for parent, folders, names in os.walk(folder)
        for file in names
        if not folders.sort()
    ]
    times = Counter(map(os.path.basename, files))
    return {os.path.basename(file): file for file in files if times[os.path.basename(file)] == 1}
