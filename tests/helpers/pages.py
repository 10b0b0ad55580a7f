"""Pages that ltpipe writes."""

from __future__ import annotations

import base64
import re
from pathlib import Path


def check_pages(folder: Path) -> dict[str, str]:
    """Return all pages; every link leads somewhere, every picture is whole, nothing is loaded."""
    pages = {file.name: file.read_text(encoding="utf-8") for file in folder.glob("*.html")}
    for text in pages.values():
        for link in re.findall(r'href="([^"]+)"', text):
            name, _, anchor = link.partition("#")
            target = pages[name] if name else text
            assert not anchor or f'id="{anchor}"' in target, link
        for source in re.findall(r'src="([^"]+)"', text):
            kind, _, content = source.partition(",")
            start = {"data:image/jpeg;base64": b"\xff\xd8", "data:image/png;base64": b"\x89PNG"}[kind]
            assert base64.b64decode(content).startswith(start)
    return pages
