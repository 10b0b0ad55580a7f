"""Pages of pictures: each of a size that browsers open at once, all of them together below a limit that is said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ltpipe.report import html
from ltpipe.report.captioned import Shot
from ltpipe.run.files import atomic_path

PAGE_BYTES = 4_000_000
MEGABYTE = 1_000_000


def shots(pictures: Iterable[Shot], *, large: bool = False) -> str:
    """Return pictures side by side."""
    found = "".join(shot.html() for shot in pictures)
    return f'<div class="shots{" large" if large else ""}">{found}</div>' if found else ""


class Budget:
    """What all pages together may still take.

    Args:
        megabytes: The limit.

    Attributes:
        full: Whether something was left out.
    """

    def __init__(self, megabytes: float) -> None:
        self.megabytes, self.full = megabytes, False
        self._left = megabytes * MEGABYTE

    def part(self, share: float) -> Budget:
        """Set a share of what is left aside for other pages."""
        own = Budget(share * self._left / MEGABYTE)
        self._left -= own._left
        return own

    def take(self, size: int) -> bool:
        """Take some bytes if they are left."""
        if size > self._left:
            self.full = True
            return False
        self._left -= size
        return True


class Pages:
    """Sections one after the other, on as many pages as they need.

    Args:
        folder: Where to.
        stem: Of the files: ``stem_001.html``.
        title: Of the pages.
        subtitle: One sentence below it.
        budget: What they may take.

    Attributes:
        links: Page and anchor of every section, by its key.
    """

    def __init__(self, folder: Path, stem: str, title: str, subtitle: str, budget: Budget) -> None:
        self.links: dict[str, str] = {}
        self._folder, self._stem, self._title, self._subtitle = folder, stem, title, subtitle
        self._budget, self._pages = budget, list[list[tuple[str, str, str]]]()
        self._size = PAGE_BYTES

    def add(self, key: object, name: str, heading: str, *parts: str) -> bool:
        """Add a section, on a new page if the last one is full; False if the limit of all pages is reached.

        Args:
            key: Unique.
            name: Text of its link in the page.
            heading: HTML.
            *parts: HTML.
        """
        body = f"<h2>{heading}</h2>{''.join(parts)}"
        if not self._budget.take(len(body)):
            return False
        if self._size + len(body) > PAGE_BYTES:
            self._pages.append([])
            self._size = 0
        self._size += len(body)
        anchor = f"s{len(self.links) + 1}"
        self._pages[-1].append((anchor, name, body))
        self.links[str(key)] = f"{self._file(len(self._pages))}#{anchor}"
        return True

    def write(self) -> list[Path]:
        """Write the pages; return their files."""
        files = []
        for number, sections in enumerate(self._pages, 1):
            more = {"index.html": "all classes"}
            more |= {self._file(number - 1): "previous page"} if number > 1 else {}
            more |= {self._file(number + 1): "next page"} if number < len(self._pages) else {}
            links = {f"#{anchor}": name for anchor, name, _ in sections}
            bodies = [f'<section id="{anchor}">{body}</section>' for anchor, _, body in sections]
            title = f"{self._title}, page {number} of {len(self._pages)}" if len(self._pages) > 1 else self._title
            file = self._folder / self._file(number)
            write_page(file, title, self._subtitle, more | links, bodies)
            files.append(file)
        return files

    def _file(self, number: int) -> str:
        return f"{self._stem}_{number:03d}.html"


def write_page(file: Path, title: str, subtitle: str, links: dict[str, str], bodies: Sequence[str]) -> None:
    """Write a page; links go to anchors or to files beside it."""
    with atomic_path(file) as temporary:
        temporary.write_text(html.page(title, subtitle, links, bodies, "Written by ltpipe."), encoding="utf-8")
