"""Channels of FishYuLi/BalancedGroupSoftmax."""

from __future__ import annotations

import torch
from torch import Tensor


def to_original_channels(rows: Tensor, dim: int = 0) -> Tensor:
    """Inverse of :func:`from_original_channels`."""
    channels = rows.shape[dim]
    order = [channels - 1, channels - 2, *range(channels - 2)]
    return rows.index_select(dim, torch.tensor(order, device=rows.device))
