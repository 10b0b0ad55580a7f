"""Readers of annotation formats. A reader turns a file into :class:`Records`; everything after it is the same for all.

To add a format, write a function ``(path, findings) -> Records`` that notes what it mended, and name it in
:data:`READERS`.
"""

from __future__ import annotations

from ltpipe.data.readers.coco import read_coco, read_lvis
from ltpipe.data.readers.protocol import Reader, Records

READERS: dict[str, Reader] = {"coco": read_coco, "lvis": read_lvis}

__all__ = ["READERS", "Reader", "Records"]
