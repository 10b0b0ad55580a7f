"""Reading replay lists of the original layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ltpipe.errors import UserError
from tests.published.lst_indices import read_legacy_replay

IMAGE_IDS = np.array([3, 8, 20])


def write(folder: Path, rows: object, labels: object) -> tuple[Path, Path]:
    files = folder / "indices.json", folder / "classes.json"
    for file, content in zip(files, (rows, labels), strict=True):
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    return files


def test_positions_become_ids_and_labels_start_at_zero(tmp_path: Path) -> None:
    files = write(tmp_path, [[0, 2, 2], [1, 0, 1]], [[1, 4, 2], [3, 1, 4]])
    image_id, label = read_legacy_replay(*files, IMAGE_IDS, num_classes=4)
    assert image_id.tolist() == [[3, 20, 20], [8, 3, 8]]
    assert label.tolist() == [[0, 3, 1], [2, 0, 3]]
    assert (image_id.dtype, label.dtype) == (np.int64, np.int32)


@pytest.mark.parametrize(
    ("rows", "labels", "words"),
    [
        ([[0, 3]], [[1, 1]], "another phase"),
        ([[0, 1]], [[0, 1]], "another phase"),
        ([[0, 1]], [[1, 5]], "another phase"),
        ([[0, 1]], [[1]], "do not belong together"),
        ([0, 1], [1, 1], "not a replay list"),
        ([[0.5, 1.0]], [[1, 1]], "not a replay list"),
        ("[[0, 1", [[1, 1]], "unreadable"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, rows: object, labels: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_legacy_replay(*write(tmp_path, rows, labels), IMAGE_IDS, num_classes=4)
