"""Which images a part sees between steps."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from ltpipe.engine.extra_images import ExtraImages

PAIRS = [[4, 7, 1, 9, 0], [9], [], [1, 3, 4]]


def rows(per_class: int, seed: int) -> list[int]:
    """Rows of a data set whose classes are in these images."""
    dataset = ExtraImages.__new__(ExtraImages)
    view = SimpleNamespace(num_classes=len(PAIRS), images=np.arange(10), pairs=lambda c: np.array(PAIRS[c], dtype=int))
    dataset.__dict__.update(seed=seed, only=None, per_class=per_class, view=view)
    return dataset.rows.tolist()


@pytest.mark.parametrize("per_class", [1, 2, 5])
def test_images_of_every_class(per_class: int) -> None:
    found = [rows(per_class, seed) for seed in range(20)]
    for listed in found:
        assert len(listed) == len(set(listed)), "each image once, whatever it shows"
        assert all(len(set(images) & set(listed)) >= min(per_class, len(images)) for images in PAIRS)
        assert len(listed) <= sum(min(per_class, len(images)) for images in PAIRS)
    assert found[3] == rows(per_class, 3)
    assert len({tuple(listed) for listed in found}) > 1, "drawn at random"
