"""Channel order and side files of the original BAGS repository (FishYuLi/BalancedGroupSoftmax).

There the background is class 0 and its group comes first, with channels ``[background, foreground]``; ltpipe has it
last, as ``[foreground, background]`` (the order of tztztztztz/eqlv2). The groups of classes are laid out alike.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltpipe.errors import UserError
from ltpipe.methods.bags.functions import GroupLayout, layout_from_groups


def from_original_channels(rows: Tensor, dim: int = 0) -> Tensor:
    """Return classifier rows, logits or gradients in ltpipe's channel order.

    Args:
        rows: Float, K + G + 1 channels along ``dim`` in the original order.
        dim: Axis of the channels.
    """
    channels = rows.shape[dim]
    return rows.index_select(dim, torch.tensor([*range(2, channels), 1, 0], device=rows.device))


def original_tables(layout: GroupLayout) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the tables of ``label2binlabel.pt`` and ``pred_slice_with0.pt`` for a layout.

    Returns:
        ``(G + 1, K + 1) int64`` label of every old class (0: background) in every group, the background's first; and
        ``(G + 1, 2) int64`` first channel and number of channels of every group.
    """
    table = np.roll(layout.label_map, (1, 1), axis=(0, 1))
    table[0] = 1 - table[0]
    sizes = np.roll(layout.sizes, 1)
    return table, np.stack([np.cumsum(sizes) - sizes, sizes], axis=1)


def layout_from_original(table: NDArray[np.integer]) -> GroupLayout:
    """Return the layout that a ``label2binlabel`` table describes.

    Args:
        table: ``(G + 1, K + 1)`` integers.

    Raises:
        UserError: A class is in no group or in several, or its place is not that of its id.
    """
    table = np.asarray(table, np.int64)
    members = table[1:, 1:] > 0
    if (members.sum(axis=0) == 1).all():
        layout = layout_from_groups(members.argmax(axis=0), len(members))
        if np.array_equal(original_tables(layout)[0], table):
            return layout
    raise UserError(
        "not a group table",
        where="label2binlabel",
        got=f"shape {table.shape}",
        allowed="one group per class, ids in order",
    )
