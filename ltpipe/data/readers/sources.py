"""Data sets of other formats in folders: which format, and which parts.

To add one, write a function that finds the parts, each with a reader, and name it in :data:`SOURCES`.
"""

from __future__ import annotations

from pathlib import Path

from ltpipe.data.findings import Findings
from ltpipe.data.readers.coco_folders import coco_parts
from ltpipe.data.readers.labelme import labelme_parts
from ltpipe.data.readers.protocol import Part, Source
from ltpipe.data.readers.voc import voc_parts
from ltpipe.data.readers.yolo import yolo_parts
from ltpipe.errors import UserError

SOURCES: dict[str, Source] = {"yolo": yolo_parts, "voc": voc_parts, "labelme": labelme_parts, "coco": coco_parts}
ALLOWED = (
    "YOLO (data.yaml, obj.data or classes.txt), Pascal VOC (XML), Labelme (JSON per image), COCO or LVIS (JSON files)"
)


def find_parts(source: Path, wanted: str | None, findings: Findings) -> tuple[str, list[Part]]:
    """Return the format of a data set, and its parts.

    Args:
        source: Its folder, or a file that describes it.
        wanted: A name in :data:`SOURCES`; None: the one that it is.
        findings: Told of what was mended on the way.

    Raises:
        UserError: It is of none of the formats, or could be of several.
    """
    if not source.exists():
        raise UserError("no such data set", where=source)
    found = {}
    for name in SOURCES if wanted is None else [wanted]:
        own = Findings()
        parts = SOURCES[name](source, own)
        if parts:
            found[name] = (parts, own)
    if len(found) != 1:
        raise UserError(
            "the format of the data set is unclear" if found else "no data set of a known format",
            where=source,
            got=", ".join(found) or "none of their files",
            allowed=ALLOWED,
            fix=f"name it: --format {' or '.join(found)}" if found else "name the folder that holds all of its parts",
        )
    ((name, (parts, own)),) = found.items()
    findings.remarks.update(own.remarks)
    return name, parts
