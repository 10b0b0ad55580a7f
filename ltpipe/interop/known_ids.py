"""Images and categories of annotations, as the files of other frameworks name them: by id, name or file name."""

from __future__ import annotations

import json
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ltpipe.data.id_rows import row_of
from ltpipe.data.store import AnnotationStore
from ltpipe.errors import UserError
from ltpipe.metrics.predictions import Predictions

Kind = Literal["image", "category"]
EXAMPLES = 3
SECTIONS: dict[Kind, str] = {"image": "images", "category": "categories"}


class KnownIds:
    """Looks ids up, and remembers what was not found so that one error can tell of all of it.

    Args:
        store: The annotations.
        source: What they are called in messages.
    """

    def __init__(self, store: AnnotationStore, source: object) -> None:
        self._store, self._source = store, source
        self._known: dict[Kind, NDArray[np.int64]] = {"image": store.image_ids, "category": store.category_ids}
        # Ids that are no numbers in the annotations got some when the store was built.
        renamed = store.folder / "ids.json"
        texts = json.loads(renamed.read_text(encoding="utf-8")) if renamed.is_file() else {}
        pairs: dict[Kind, list[tuple[str, int]]] = {
            "category": list(zip(store.category_names, store.category_ids.tolist(), strict=True)),
            "image": [
                (name, int(i)) for row, i in enumerate(store.image_ids) for name in _spellings(store.image_file(row))
            ],
        }
        self._names: dict[Kind, dict[str, int | None]] = {
            kind: _unique(found) | texts.get(SECTIONS[kind], {}) for kind, found in pairs.items()
        }
        self._strange: dict[Kind, dict[str, int]] = {"image": {}, "category": {}}

    def image(self, name: str) -> int:
        """Return the id of an image by its file name or text id; a stand-in if there is none, see :meth:`check`."""
        return self._find("image", name)

    def category(self, name: str) -> int:
        """Return the id of a category by its name or text id; a stand-in if there is none, see :meth:`check`."""
        return self._find("category", name)

    def size(self, image_id: int) -> tuple[int, int]:
        """Return height and width of an image in pixels, of an unknown one 1 and 1."""
        row = int(row_of(np.array([image_id]), self._known["image"])[0])
        height, width = self._store.image_sizes[row].tolist() if row >= 0 else (1, 1)
        return height, width

    def check(self, found: Predictions) -> None:
        """Refuse detections in images or of categories that are not in the annotations.

        Raises:
            UserError: There are some; tells how many, and of what.
        """
        got, near = [], None
        used: dict[Kind, NDArray[np.int64]] = {"image": found.image_ids, "category": found.category_ids}
        for kind, ids in used.items():
            strange = ids[row_of(ids, self._known[kind]) < 0]
            if not len(strange):
                continue
            texts = {number: name for name, number in self._strange[kind].items()}
            shown = [texts.get(i, i) for i in dict.fromkeys(strange.tolist())]
            more = ", ..." if len(shown) > EXAMPLES else ""
            listed = ", ".join(map(repr, shown[:EXAMPLES]))
            got.append(f"{len(strange)} of {len(ids)} detections with {len(shown)} unknown {kind} ids: {listed}{more}")
            near = near or _nearest(shown[:EXAMPLES], self._names[kind])
        if got:
            raise UserError(
                "detections that do not belong to these annotations",
                where=found.source,
                got="; ".join(got),
                allowed=f"ids or names of the {len(self._known['image'])} images and {len(self._known['category'])} "
                f"categories of {self._source}",
                fix=f"did you mean {near!r}?" if near else "score against the annotations the detections were made for",
            )

    def _find(self, kind: Kind, name: str) -> int:
        if name in self._names[kind]:
            found = self._names[kind][name]
            if found is None:
                what = f"several {SECTIONS[kind]} have this name"
                raise UserError(what, where=self._source, got=repr(name), fix="use ids")
            return found
        if name.strip().lstrip("-").isdecimal():
            return int(name)
        strange = self._strange[kind]
        return strange.setdefault(name, int(min(self._known[kind].min(), 0)) - 1 - len(strange))


def _spellings(file: str) -> set[str]:
    path = PurePosixPath(file)
    return {file, path.name, path.stem, str(path.with_suffix(""))}


def _unique(pairs: Iterable[tuple[str, int]]) -> dict[str, int | None]:
    """Return ids by name, None for a name of several."""
    found: dict[str, int | None] = {}
    for name, number in pairs:
        found[name] = number if found.get(name, number) == number else None
    return found


def _nearest(names: list[str | int], known: Iterable[str]) -> str | None:
    texts = [name for name in names if isinstance(name, str)]
    near = get_close_matches(texts[0], list(known), n=1) if texts else []
    return near[0] if near else None
