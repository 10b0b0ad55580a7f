"""Channel order and tables of the original BAGS repository."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ltpipe.errors import UserError
from ltpipe.interop.bags import from_original_channels, layout_from_original, original_tables
from ltpipe.methods.bags.functions import group_layout, group_scores
from tests.published.bags_channels import to_original_channels

COUNTS = [5, 2000, 0, 50, 500]


def test_tables_by_hand() -> None:
    table, slices = original_tables(group_layout(COUNTS, (10, 100)))
    assert table.tolist() == [[0, 1, 1, 1, 1, 1], [0, 1, 0, 2, 0, 0], [0, 0, 0, 0, 1, 0], [0, 0, 1, 0, 0, 2]]
    assert slices.tolist() == [[0, 2], [2, 3], [5, 2], [7, 3]]


def test_channels_are_exactly_invertible() -> None:
    weight = torch.randn(11, 4)
    assert torch.equal(to_original_channels(from_original_channels(weight)), weight)
    assert torch.equal(from_original_channels(weight)[:-2], weight[2:])
    assert torch.equal(from_original_channels(weight)[-2:], weight[[1, 0]])
    assert torch.equal(from_original_channels(weight.T, dim=1), from_original_channels(weight).T)


def test_scores_equal_the_originals_merge() -> None:
    layout = group_layout(COUNTS, (10, 100))
    table, slices = original_tables(layout)
    logits = torch.randn(4, layout.num_channels)
    parts = [logits[:, start : start + length].softmax(1) for start, length in slices.tolist()]
    expected = torch.zeros(4, len(COUNTS) + 1)
    expected[:, 0] = parts[0][:, 0]
    for c in range(1, len(COUNTS) + 1):
        g = 1 + int(np.argmax(table[1:, c] > 0))
        expected[:, c] = parts[g][:, table[g, c]] * parts[0][:, 1]
    ours = group_scores(from_original_channels(logits, 1), torch.from_numpy(layout.channel), layout.sizes.tolist())
    torch.testing.assert_close(ours.roll(1, dims=1), expected)


def test_reading_tables() -> None:
    layout = group_layout(COUNTS)
    table, _ = original_tables(layout)
    read = layout_from_original(table.astype(np.int16))
    for name in ("group", "position", "sizes"):
        assert np.array_equal(getattr(read, name), getattr(layout, name))
    wrong = table.copy()
    wrong[1, 2] = 3
    with pytest.raises(UserError, match="group table"):
        layout_from_original(wrong)
    wrong = table.copy()
    wrong[1, [1, 3]] = wrong[1, [3, 1]]
    with pytest.raises(UserError, match="group table"):
        layout_from_original(wrong)
