"""A finished picture with its caption, as a part of a page; imports nothing that draws."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from html import escape

LEGEND = "Green: objects of the annotations. Blue: right detections. Red: wrong ones."


@dataclass(frozen=True)
class Shot:
    """A picture and what is said below it.

    Attributes:
        picture: JPEG.
        caption: Plain text.
    """

    picture: bytes
    caption: str

    def html(self, link: str | None = None) -> str:
        """Return it as a part of a page, with the picture inside; ``link`` is where a click on it leads."""
        source = f"data:image/jpeg;base64,{base64.b64encode(self.picture).decode('ascii')}"
        image = f'<img loading="lazy" alt="{escape(self.caption, quote=True)}" src="{source}">'
        if link is not None:
            image = f'<a href="{escape(link, quote=True)}">{image}</a>'
        return f"<figure>{image}<figcaption>{escape(self.caption)}</figcaption></figure>"
