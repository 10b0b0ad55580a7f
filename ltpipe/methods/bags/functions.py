"""Groups, draws, losses and scores of balanced group softmax, as plain functions.

Class ``c`` with ``n_c`` instances is in group ``g`` if ``e_{g-1} <= n_c < e_g``; the last group holds the background.
Each group has its own softmax over ``[others, members...]``; "others" of the background group means foreground. With
the label ``y_g`` of a row in group ``g`` (0: others) and drawn weights ``w_g`` in {0, 1}

    L = sum_g sum_n w_gn CE(z_gn, y_gn) / max(sum_n w_gn, 1)

where the background group keeps every row, and group ``g`` keeps its ``F_g`` members and ``floor(beta F_g)`` random
others, nothing if ``F_g = 0``. At test time ``p[c] = softmax(z_g)[c] * P(foreground)`` and ``p[bg] = P(background)``.

Channels (K + G + 1, in the order of tztztztztz/eqlv2): group after group ``[others, members by label]``, last
``[foreground, background]``. :mod:`ltpipe.interop.bags` converts the order of the original repository.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ltpipe.frequency import BIN_EDGES, bins_of
from ltpipe.methods.class_weights import inverse_frequency_weights


@dataclass(frozen=True)
class GroupLayout:
    """Which channel belongs to which class.

    Attributes:
        group: ``(K + 1,) int64`` group of every label; the background, label K, is alone in the last group.
        position: ``(K + 1,) int64`` place inside the group, from 1; place 0 is "others".
        sizes: ``(G + 1,) int64`` channels of every group, "others" included; 1 for a group without classes.
    """

    group: NDArray[np.int64]
    position: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @property
    def num_channels(self) -> int:
        """Classifier outputs: K + G + 1."""
        return int(self.sizes.sum())

    @property
    def channel(self) -> NDArray[np.int64]:
        """``(K + 1,) int64`` channel of every label."""
        return (np.cumsum(self.sizes) - self.sizes)[self.group] + self.position

    @property
    def label_map(self) -> NDArray[np.int64]:
        """``(G + 1, K + 1) int64`` label of every class in every group, 0 where it is one of the others."""
        return np.where(self.group == np.arange(len(self.sizes))[:, None], self.position, 0)


def layout_from_groups(groups: Sequence[int] | NDArray[np.int64], num_groups: int) -> GroupLayout:
    """Return the layout of given groups.

    Args:
        groups: ``(K,)`` group of every class, ``0 .. num_groups - 1``.
        num_groups: Groups G without the background's.
    """
    group = np.append(np.asarray(groups, np.int64), num_groups)
    members = group == np.arange(num_groups + 1)[:, None]
    position = members.cumsum(axis=1)[group, np.arange(len(group))]
    return GroupLayout(group, position, members.sum(axis=1) + 1)


def group_layout(instance_counts: Sequence[int], edges: Sequence[float] = BIN_EDGES) -> GroupLayout:
    """Return the layout for training counts; a class without instances is in the first group.

    Args:
        instance_counts: ``(K,)`` training instances, label order.
        edges: Ascending counts at which a new group begins.

    Raises:
        UserError: The edges do not ascend.
    """
    return layout_from_groups(bins_of(instance_counts, edges, where="edges"), len(edges) + 1)


def group_labels(labels: Tensor, label_map: Tensor) -> Tensor:
    """Return ``(G + 1, N) int64`` labels inside the groups of labels ``(N,)``; ``label_map`` is that of the layout."""
    return label_map[:, labels]


def draw_others(in_groups: Tensor, beta: float, noise: Tensor) -> Tensor:
    """Draw which rows count in which group, without a transfer to the host.

    Args:
        in_groups: ``(G + 1, N) int64`` from :func:`group_labels`.
        beta: Others per member.
        noise: ``(G, N)`` float in [0, 1), independent uniform.

    Returns:
        ``(G + 1, N) bool``; the last row, of the background group, is all true.
    """
    member = in_groups[:-1] > 0
    count = member.sum(dim=1, keepdim=True)
    budget = torch.floor(count.double() * beta)
    rank = noise.masked_fill(member, torch.inf).argsort(dim=1).argsort(dim=1)
    kept = (member | (rank < budget)) & (count > 0)
    return torch.cat([kept, torch.ones_like(in_groups[-1:], dtype=torch.bool)])


def group_losses(cls_score: Tensor, in_groups: Tensor, weights: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the loss of every group, ``(G + 1,) float32``, averaged over the rows of this process.

    Args:
        cls_score: ``(N, K + G + 1)`` float.
        in_groups: ``(G + 1, N) int64`` from :func:`group_labels`.
        weights: ``(G + 1, N)`` from :func:`draw_others`, possibly times class weights.
        sizes: Channels of every group.
    """
    weights = weights.to(torch.float32)
    parts = torch.split(cls_score.float(), list(sizes), dim=1)
    rows = torch.stack([F.cross_entropy(z, y, reduction="none") for z, y in zip(parts, in_groups, strict=True)])
    total = weights.sum(dim=1)
    return (rows * weights).sum(dim=1) / torch.where(total > 0, total, 1)


def group_scores(cls_score: Tensor, channel: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return probabilities ``(N, K + 1) float32``, background last; rows do not sum to 1.

    Args:
        cls_score: ``(N, K + G + 1)`` float.
        channel: ``(K + 1,) int64`` of the layout.
        sizes: Channels of every group.
    """
    parts = [z.softmax(dim=1) for z in torch.split(cls_score.float(), list(sizes), dim=1)]
    foreground = parts[-1][:, :1]
    scores = torch.cat(parts, dim=1)[:, channel]
    return torch.cat([scores[:, :-1] * foreground, scores[:, -1:]], dim=1)


def group_class_weights(instance_counts: Sequence[int], layout: GroupLayout) -> Tensor:
    """Return ``(G + 1, K + 1) float64`` weights of rows by label: inverse frequency inside the group, others 1.

    Source: the repository's ``Reweight`` variant, ``(1 / n_c) / mean over the group``, clipped to [0.1, 5].
    """
    weights = torch.ones(len(layout.sizes), len(layout.group), dtype=torch.float64)
    counts = torch.as_tensor(instance_counts)
    for g in range(len(layout.sizes) - 1):
        members = torch.from_numpy(np.flatnonzero(layout.group == g))
        if len(members):
            weights[g, members] = inverse_frequency_weights(counts[members])
    return weights
