"""Held-out training images: what is chosen, what stays for training, and the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltpipe.data.holdout import choose_holdout, load_holdout, save_holdout
from ltpipe.data.phase import PhaseView
from ltpipe.data.split import Split, make_split
from ltpipe.errors import UserError
from tests.data.test_phase import make_table


def world(images: list[list[int]], classes: int, **split: Any) -> tuple[Any, Split]:
    """Return a store and a split; ``images`` holds the category ids of every image."""
    records = [
        {"id": 100 * i + j, "image_id": i + 1, "category_id": c, "bbox": [0.0, 0.0, 5.0, 5.0]}
        for i, inside in enumerate(images)
        for j, c in enumerate(inside)
    ]
    table = make_table(range(1, len(images) + 1), range(1, classes + 1), records)
    counts = np.bincount(table.ann_category, minlength=classes)
    return table, make_split(table.category_ids, counts, **split)


def long_tailed(seed: int, num_images: int = 200, classes: int = 20) -> tuple[Any, Split]:
    random = np.random.default_rng(seed)
    share = 0.6 / np.arange(1, classes + 1)
    return world([[c + 1 for c in np.flatnonzero(random.random(classes) < share)] for _ in range(num_images)], classes)


@pytest.mark.parametrize("seed", range(5))
def test_every_class_that_can_spare_an_image_is_held_out(seed: int) -> None:
    table, split = long_tailed(seed)
    view = PhaseView(table, split, 0)
    held = choose_holdout(view, largest_share=1.0)
    rest = PhaseView(table, split, 0, exclude=held)
    before, after = view.class_images.image_counts, rest.class_images.image_counts
    assert ((after >= 1) == (before >= 1)).all(), "no class loses its last image"
    for label in np.flatnonzero((before >= 2) & (before == after)):
        spare = [i for i in view.pairs(label) if all(after[c] >= 2 for c in labels_of(view, i))]
        assert not spare, "a class without a held-out image has none that could be spared"
    assert len(held) < view.num_classes and (np.diff(held) > 0).all()
    assert set(rest.image_ids) == set(view.image_ids) - set(held)


def labels_of(view: PhaseView, row: int) -> list[int]:
    index = int(np.flatnonzero(view.images == row)[0])
    return np.unique(view.annotations_of(index)[1]).tolist()


def test_budget_and_seed() -> None:
    table, split = long_tailed(1)
    view = PhaseView(table, split, 0)
    assert len(choose_holdout(view, largest_share=0.01)) <= 2
    assert np.array_equal(choose_holdout(view, seed=3), choose_holdout(view, seed=3))
    assert not np.array_equal(choose_holdout(view, seed=3), choose_holdout(view, seed=4))


def test_single_images_are_never_held_out() -> None:
    table, split = world([[1], [1], [1, 2]], 2)
    assert choose_holdout(PhaseView(table, split, 0)).tolist() in ([1], [2])
    table, split = world([[1], [2]], 2)
    with pytest.raises(UserError, match="held out"):
        choose_holdout(PhaseView(table, split, 0))


def test_excluded_images_are_in_no_phase() -> None:
    random = np.random.default_rng(0)
    table, split = world([[int(c)] for c in random.integers(1, 7, 60)], 6, base_classes=2, step=2)
    held = choose_holdout(PhaseView(table, split, split.num_phases))
    for phase in range(split.num_phases + 1):
        view = PhaseView(table, split, phase, exclude=held)
        assert not set(view.image_ids) & set(held) and not set(view.class_images.image_id) & set(held)


def test_file(tmp_path: Path) -> None:
    save_holdout(tmp_path / "holdout.npz", np.array([3, 5]))
    assert load_holdout(tmp_path / "holdout.npz").tolist() == [3, 5]
    with pytest.raises(UserError, match="no list"):
        load_holdout(tmp_path / "other.npz")
    (tmp_path / "holdout.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match="damaged"):
        load_holdout(tmp_path / "holdout.npz")
