"""Annotation files with anything anywhere: read, or refused with a message; what is read comes back from JSON."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from ltpipe.data.annotation_json import write_dataset
from ltpipe.data.store import AnnotationStore
from ltpipe.data.store_writer import build_store
from ltpipe.data.summary import lines
from ltpipe.errors import UserError
from tests.helpers.annotation_cases import coco_content, lvis_content

FORMATS = {"coco": coco_content, "lvis": lvis_content}
FAR = [[0, 0, 4e8, 0, 4e8, 4e8]]
VALUES: list[Any] = [
    *(
        None,
        "",
        [],
        {},
        0,
        -1,
        1,
        2,
        3,
        True,
        False,
        1.5,
        1e300,
        1e-320,
        1e9,
        10**30,
        -(2**63),
        2**63,
        2**31,
        "abc",
        "1",
    ),
    *(
        "1.0",
        "NaN",
        float("nan"),
        float("inf"),
        "a/b\\c",
        "http://x/y?z",
        "\ud83d",
        [[]],
        [None],
        [[None]],
        [[1, 2]],
        [{}],
    ),
    *([[1, 2, 3, 4]], [1, 2, 3, 4, 5, 6], [["a"]], [[1, 2], [3, 4], [5, 6]], [[[1, 2], [3, 4], [5, 6]]], [[1e300] * 6]),
    *(
        FAR,
        [[0] * 6],
        {"size": [6, 5], "counts": "xx"},
        {"size": [6, 5], "counts": [1, 2]},
        {"size": None, "counts": []},
    ),
    *({"counts": [0]}, {"size": [6.0, 5], "counts": [30]}, [{"size": [6, 5], "counts": [30]}]),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def disturb(content: Any, chance: random.Random) -> None:
    """Replace, remove or repeat one value."""
    path = chance.choice(list(places(content)))
    for key in path[:-1]:
        content = content[key]
    kind = chance.random()
    if kind < 0.15:
        del content[path[-1]]
    elif kind < 0.3 and isinstance(content, list):
        content.insert(path[-1], deepcopy(content[path[-1]]))
    else:
        content[path[-1]] = deepcopy(chance.choice(VALUES))


@pytest.mark.parametrize("fmt", FORMATS)
def test_anything_is_read_or_refused(tmp_path: Path, fmt: str) -> None:
    outcomes = set()
    file, store = tmp_path / "a.json", tmp_path / "store"
    for seed in range(100):
        chance, content = random.Random(seed), deepcopy(FORMATS[fmt]())
        for _ in range(chance.choice([1, 1, 2, 4])):
            disturb(content, chance)
        file.write_text(json.dumps(content))
        try:
            with warnings.catch_warnings(action="error"):
                build_store(file, store, fmt=fmt, faults=chance.choice(["refuse", "drop"]), progress=False)
        except UserError as error:
            assert str(file) in str(error), seed
            outcomes.add("refused")
            continue
        outcomes.add("read")
        found = AnnotationStore.open(store)
        assert all(line.startswith("train: ") for line in lines("train", found.info))
        write_dataset(tmp_path / "b.json", found)
        build_store(tmp_path / "b.json", tmp_path / "again", fmt=fmt, progress=False)
        again = AnnotationStore.open(tmp_path / "again")
        assert (
            again.ann_ids.tolist() == found.ann_ids.tolist() and again.ann_bbox.tolist() == found.ann_bbox.tolist()
        ), seed
        assert again.ann_has_mask.tolist() == found.ann_has_mask.tolist(), seed
        assert not again.info["dropped"], seed
        for folder in (store, tmp_path / "again"):
            shutil.rmtree(folder)
    assert outcomes == {"read", "refused"}
