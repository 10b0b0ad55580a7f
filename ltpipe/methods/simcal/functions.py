"""SimCal's dual-head scores: which classifier speaks for which class.

Paper: arXiv 2007.11978; repository twangnh/SimCal, ``get_det_bboxes``. With probabilities ``p_o`` of the detector and
``p_c`` of the calibrated head, ``p[j] = p_c[j] if n_j < T else p_o[j]`` and ``p[bg] = p_o[bg]``; rows are not
renormalised. In a cascade both logits are first averaged over the stages. Boxes and masks never change. Needs the
training instance counts ``n_j``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Mode = Literal["dual", "cal", "base", "avg"]


def tail_classes(instance_counts: Tensor, threshold: float, inclusive: bool = False) -> Tensor:
    """Return ``(K,) bool``: the classes with fewer training instances than the threshold.

    Args:
        instance_counts: ``(K,) int64`` training instances, label order.
        threshold: T. 300 reproduces the published LVIS numbers, 400 those of COCO-LT.
        inclusive: Also those with exactly T instances, as the paper writes; the code compares with ``<``.
    """
    return instance_counts <= threshold if inclusive else instance_counts < threshold


def average_stages(logits: Sequence[Tensor]) -> Tensor:
    """Return the mean logits ``(N, C)`` of the stages of a cascade, to be activated afterwards.

    Args:
        logits: ``(N, C)`` float of every stage, each on its own refined RoIs.
    """
    return torch.stack([stage.float() for stage in logits]).mean(dim=0)


def fuse_scores(base: Tensor, calibrated: Tensor, tail: Tensor, mode: Mode = "dual") -> Tensor:
    """Return final scores ``(N, K + 1) float32``, background last.

    Args:
        base: ``(N, K + 1)`` float probabilities of the detector's classifier, background last.
        calibrated: ``(N, K + 1)`` float probabilities of the calibrated head, background last.
        tail: ``(K,) bool`` from :func:`tail_classes`.
        mode: ``dual``: the calibrated head for tail classes, the detector for the others and background; ``cal``,
            ``base``: one of them; ``avg``: their mean.
    """
    base, calibrated = base.float(), calibrated.float()
    if mode == "base":
        return base
    if mode == "cal":
        return calibrated
    if mode == "avg":
        return (base + calibrated) / 2
    from_calibrated = torch.cat([tail, tail.new_zeros(1)])
    return torch.where(from_calibrated, calibrated, base)


@dataclass(frozen=True, eq=False)
class FusionChoice:
    """One way to fuse scores.

    Attributes:
        names: The modes with their thresholds (None outside ``dual``) that mean this choice.
        mode: One of them.
        tail: ``(K,) bool`` classes that take the calibrated score in the mode ``dual``.
    """

    names: tuple[tuple[Mode, float | None], ...]
    mode: Mode
    tail: Tensor

    def fuse(self, base: Tensor, calibrated: Tensor) -> Tensor:
        """Return :func:`fuse_scores` of this choice."""
        return fuse_scores(base, calibrated, self.tail.to(base.device), self.mode)

    def from_calibrated(self) -> int | None:
        """Return how many classes take the calibrated score; None for the mean of both."""
        return {"dual": int(self.tail.sum()), "cal": len(self.tail), "base": 0, "avg": None}[self.mode]


def distinct_choices(
    instance_counts: Tensor,
    wanted: Sequence[tuple[Mode, float | None]],
    inclusive: bool = False,
    *,
    whole: bool = True,
) -> list[FusionChoice]:
    """Return the different choices among the wanted ones, in order of first appearance.

    Args:
        instance_counts: ``(K,) int64`` training instances.
        wanted: Modes; ``dual`` with its threshold T, the others with None.
        inclusive: See :func:`tail_classes`.
        whole: Also take ``dual`` for ``base`` or ``cal`` where T selects no class or all: then only the score of
            the background differs, which no detection carries.
    """
    groups: dict[object, list[tuple[Mode, float | None]]] = {}
    for mode, threshold in dict.fromkeys(wanted):
        key: object = mode
        if threshold is not None:
            selected = int(tail_classes(instance_counts, threshold, inclusive).sum())
            ends = {0: "base", len(instance_counts): "cal"} if whole else {}
            key = ends.get(selected, selected)
        groups.setdefault(key, []).append((mode, threshold))
    choices = []
    for names in groups.values():
        mode, threshold = names[0]
        nothing = torch.zeros(len(instance_counts), dtype=torch.bool, device=instance_counts.device)
        tail = nothing if threshold is None else tail_classes(instance_counts, threshold, inclusive)
        choices.append(FusionChoice(tuple(names), mode, tail))
    return choices
