"""Tensor functions of FASA (Zang, Huang, Loy, ICCV 2021, arXiv 2102.12867; code ``yuhangzang/FASA``).

For every foreground class ``c`` of ``C``: running mean and diagonal variance of the classifier's input,

    mu_c <- a m_c + (1 - a) mu_c,    v_c <- a s_c + (1 - a) v_c            (m, s: of this iteration's rows of c),

a probability of drawing one virtual feature per iteration, at the start

    p_c = clamp(scale ((1/n_c) / sum_j 1/n_j)^power, 0, 1)                  (n_c: training instances),

virtual features ``mu_c + sqrt(v_c) eps``, and once per epoch, for every group G of similar classes with held-out class
losses L, ``p_c <- clamp(down p_c)`` when ``sum_G L`` rose since the last pass and ``clamp(up p_c)`` when it fell.

Nothing here keeps state or needs mmdet; :mod:`ltpipe.methods.fasa.part` holds the component.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from sklearn.cluster import AffinityPropagation
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from ltpipe.errors import UserError


def class_moments(
    features: Tensor, labels: Tensor, num_classes: int, reduce: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and unbiased variance of the foreground rows of every class.

    Rows with a label outside ``0..C-1`` and rows with a value that is not finite (an overflowed mixed-precision step)
    are left out.

    Args:
        features: ``(N, D)`` float of any precision; detached and computed in float32.
        labels: ``(N,)`` int64.
        num_classes: ``C``.
        reduce: Sum over processes, applied to ``(C, D + 1)`` and then ``(C, D)``; the result is that of the rows of all
            processes together.

    Returns:
        ``(C,)`` counts, ``(C, D)`` means and ``(C, D)`` variances, float32; a class without rows has zeros, one with a
        single row variance 0.
    """
    x = features.detach().float()
    width = x.shape[1]
    used = (labels >= 0) & (labels < num_classes) & x.isfinite().all(dim=1)
    slot = torch.where(used, labels, num_classes)  # everything else goes to one row more, cut off below
    sums = x.new_zeros(num_classes + 1, width + 1)
    sums.index_add_(0, slot, torch.cat([x, x.new_ones(len(x), 1)], dim=1))
    total = sums[:num_classes] if reduce is None else reduce(sums[:num_classes])
    count = total[:, width]
    mean = total[:, :width] / count.clamp(min=1)[:, None]

    centred = x - torch.cat([mean, mean.new_zeros(1, width)])[slot]
    squares = x.new_zeros(num_classes + 1, width).index_add_(0, slot, centred.square())[:num_classes]
    if reduce is not None:
        squares = reduce(squares)
    return count, mean, squares / (count - 1).clamp(min=1)[:, None]


def updated_statistics(
    state: tuple[Tensor, Tensor, Tensor],
    moments: tuple[Tensor, Tensor, Tensor],
    decay: float,
    skip_var_single: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Running statistics after one iteration.

    Args:
        state: ``(C, D)`` mean, ``(C, D)`` variance, ``(C,)`` bool seen.
        moments: As returned by :func:`class_moments`.
        decay: Weight of the new value; a class seen for the first time takes it whole.
        skip_var_single: Keep the variance of a seen class that has a single row, instead of counting it as 0.

    Returns:
        The new state; classes without rows keep theirs.
    """
    (mean, var, seen), (count, batch_mean, batch_var) = state, moments
    weight = torch.where(seen, decay, 1.0) * (count > 0)
    weight = weight.to(mean.dtype)[:, None]
    var_weight = weight.masked_fill((seen & (count == 1))[:, None], 0) if skip_var_single else weight
    return (
        torch.lerp(mean, batch_mean, weight),
        torch.lerp(var, batch_var, var_weight),
        seen | (count > 0),
    )


def initial_probability(counts: Sequence[int], power: float = 1.0, scale: float = 1.0) -> Tensor:
    """Probability of drawing each class at the start.

    Args:
        counts: ``(C,)`` training instances. A class without instances gets 0 and is left out of the normaliser.
        power: Exponent of the normalised inverse count.
        scale: Factor.

    Returns:
        ``(C,)`` float32 in [0, 1].

    Raises:
        UserError: A count is negative, or no class has instances.
    """
    n = np.asarray(counts, dtype=np.float64)
    if n.ndim != 1 or not (n >= 0).all() or not n.any():
        raise UserError(
            "FASA cannot sample classes from these instance counts",
            got=f"{n.size} counts, minimum {n.min() if n.size else None}, sum {n.sum()}",
            allowed="one non-negative count per class, at least one of them positive",
            fix="check that the training annotations are those of this experiment",
        )
    inverse = np.divide(1.0, n, out=np.zeros_like(n), where=n > 0)
    prob = np.where(n > 0, scale * (inverse / inverse.sum()) ** power, 0.0)
    return torch.from_numpy(prob.clip(0, 1).astype(np.float32))


def select_classes(prob: Tensor, seen: Tensor, uniform: Tensor) -> Tensor:
    """Classes that get a virtual feature: ``uniform < prob`` and seen.

    Args:
        prob: ``(C,)`` float.
        seen: ``(C,)`` bool.
        uniform: ``(C,)`` float in [0, 1).

    Returns:
        ``(k,)`` int64, ascending.
    """
    return ((uniform < prob) & seen).nonzero()[:, 0]


def virtual_features(mean: Tensor, var: Tensor, labels: Tensor, noise: Tensor) -> Tensor:
    """Gaussian features of the given classes; not clipped to be non-negative.

    Args:
        mean: ``(C, D)`` float.
        var: ``(C, D)`` float, variances.
        labels: ``(k,)`` int64 classes.
        noise: ``(k, D)`` standard normal draws.

    Returns:
        ``(k, D)`` float.
    """
    return mean[labels] + var[labels].sqrt() * noise


def adapted_probability(
    prob: Tensor, reference: Tensor, current: Tensor, groups: Tensor, up: float, down: float
) -> tuple[Tensor, int, int]:
    """Raise the probability of groups whose loss fell, lower that of groups whose loss rose.

    Args:
        prob: ``(C,)`` float32.
        reference: ``(C + 1,)`` or ``(C,)`` class losses of the previous pass.
        current: The same of this pass.
        groups: ``(C,)`` int64 group of every class; -1: in no group, never changed.
        up: Factor for groups whose loss fell.
        down: Factor for groups whose loss rose.

    Returns:
        New ``(C,)`` probabilities, number of groups raised, number of groups lowered.
    """
    members = groups >= 0
    if not members.any():
        return prob.clone(), 0, 0
    # float64: the sign must not depend on the order of the sum
    change = (current[: len(prob)].double() - reference[: len(prob)].double()).masked_fill(~members, 0)
    per_group = change.new_zeros(int(groups.max()) + 1).index_add_(0, groups.clamp(min=0), change)
    change = per_group[groups.clamp(min=0)].masked_fill(~members, 0)
    raised = torch.where(change < 0, (prob * up).clamp(0, 1), prob)
    result = torch.where(change > 0, (prob * down).clamp(0, 1), raised)
    return result, int((per_group < 0).sum()), int((per_group > 0).sum())


def cluster_classes(mean: Tensor, seen: Tensor | None, similarity: str = "neg_sq_dist") -> Tensor:
    """Groups of classes with similar mean features: affinity propagation, scikit-learn defaults, random state 1.

    Args:
        mean: ``(C, D)`` float.
        seen: ``(C,)`` bool: cluster only these classes. None: all.
        similarity: ``neg_sq_dist``: minus the squared Euclidean distance. ``sq_dist``: plus, as in the released code,
            which makes far classes similar and gives few, large groups.

    Returns:
        ``(C,)`` int64 on the CPU; -1 for classes left out, and for all when the clustering does not converge.
    """
    chosen = torch.arange(len(mean)) if seen is None else seen.cpu().nonzero()[:, 0]
    groups = torch.full((len(mean),), -1, dtype=torch.int64)
    if not len(chosen):
        return groups
    x = mean.detach().cpu().float()[chosen]
    norms = x.square().sum(dim=1)
    distance = norms[:, None] - 2 * x @ x.T + norms[None, :]
    affinity = distance if similarity == "sq_dist" else -distance
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", UserWarning)
        found = AffinityPropagation(affinity="precomputed", random_state=1).fit(affinity.numpy())
    groups[chosen] = torch.from_numpy(found.labels_.astype(np.int64))
    return groups
