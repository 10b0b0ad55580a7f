"""FASA's tensor functions against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ltpipe.errors import UserError
from ltpipe.methods.eql.loss import EQLLoss
from ltpipe.methods.fasa.counters import PerClassLossMeter, class_losses, row_losses
from ltpipe.methods.fasa.functions import (
    adapted_probability,
    class_moments,
    cluster_classes,
    initial_probability,
    select_classes,
    updated_statistics,
    virtual_features,
)
from ltpipe.methods.softmax.baseline import SoftmaxLoss

C, D = 6, 5


def naive_update(
    state: dict[int, tuple[Tensor, Tensor]], x: Tensor, y: Tensor, decay: float, skip_var_single: bool = False
) -> None:
    """The update of one iteration, class by class."""
    for c in range(C):
        rows = x[y == c]
        if not len(rows):
            continue
        mean, var = rows.mean(0), rows.var(0) if len(rows) > 1 else torch.zeros(D)
        if c in state:
            old_mean, old_var = state[c]
            single = skip_var_single and len(rows) == 1
            mean, var = (
                decay * mean + (1 - decay) * old_mean,
                old_var if single else decay * var + (1 - decay) * old_var,
            )
        state[c] = mean, var


LABELS = [
    [0, 0, 0, 2, C, C],  # three rows, one row, background
    [],  # an empty iteration
    [C, C],  # background only
    [2, 1, 0, 0, -1, C + 3],  # a single sighting of a seen class; labels that are no class
    [4, 4, 4, 4, 4],
    [5, 2, 2, 1],
]


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("decay", [0.1, 0.5, 1.0])
def test_running_statistics(decay: float, skip: bool) -> None:
    torch.manual_seed(0)
    state = torch.zeros(C, D), torch.zeros(C, D), torch.zeros(C, dtype=torch.bool)
    naive: dict[int, tuple[Tensor, Tensor]] = {}
    for labels in LABELS * 2:
        y = torch.tensor(labels, dtype=torch.int64)
        x = torch.randn(len(labels), D) * 3 + 100
        naive_update(naive, x, y, decay, skip)
        state = updated_statistics(state, class_moments(x, y, C), decay, skip)
    mean, var, seen = state
    assert sorted(naive) == seen.nonzero()[:, 0].tolist() == [0, 1, 2, 4, 5]
    for c, (expected_mean, expected_var) in naive.items():
        torch.testing.assert_close(mean[c], expected_mean)
        torch.testing.assert_close(var[c], expected_var, rtol=1e-4, atol=1e-5)
    assert not mean[3].any() and not var[3].any()


def test_first_single_sighting_has_no_variance() -> None:
    x = torch.randn(1, D)
    state = torch.zeros(C, D), torch.zeros(C, D), torch.zeros(C, dtype=torch.bool)
    mean, var, _ = updated_statistics(state, class_moments(x, torch.tensor([3]), C), 0.1)
    torch.testing.assert_close(mean[3], x[0], rtol=0, atol=0)
    assert not var.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_moments_are_computed_in_float32(dtype: torch.dtype) -> None:
    x = (torch.randn(64, D) * 0.3 + 200).to(dtype).requires_grad_()
    y = torch.zeros(64, dtype=torch.int64)
    count, mean, var = class_moments(x, y, C)
    assert count.dtype == mean.dtype == var.dtype == torch.float32 and not mean.requires_grad
    torch.testing.assert_close(mean[0], x.detach().double().mean(0).float())
    torch.testing.assert_close(var[0], x.detach().double().var(0).float(), rtol=1e-4, atol=1e-6)


def test_overflowed_rows_are_left_out() -> None:
    x = torch.randn(4, D)
    bad = torch.cat([x, torch.full((1, D), float("inf")), torch.full((1, D), float("nan"))])
    y = torch.tensor([0, 0, 1, C, 0, 1])
    for ours, expected in zip(class_moments(bad, y, C), class_moments(x, y[:4], C), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_initial_probability() -> None:
    counts = [1, 10, 100, 1000]
    inverse = 1 / np.array(counts)
    torch.testing.assert_close(initial_probability(counts), torch.tensor(inverse / inverse.sum()).float())
    assert float(initial_probability(counts).sum()) == pytest.approx(1)
    torch.testing.assert_close(
        initial_probability(counts, 0.5, 0.3), torch.tensor(0.3 * (inverse / inverse.sum()) ** 0.5).float()
    )
    assert initial_probability(counts, scale=1e6).max() == 1


@pytest.mark.parametrize("num_classes", [1, 3, 27, 1230])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_classes_without_instances_are_never_drawn(num_classes: int, power: float) -> None:
    counts = [5] * num_classes + [0] * 27
    prob = initial_probability(counts, power)
    assert prob.isfinite().all() and not prob[num_classes:].any()
    torch.testing.assert_close(prob[:num_classes], initial_probability(counts[:num_classes], power))


@pytest.mark.parametrize("counts", [[], [0, 0], [3, -1], [[1]]])
def test_impossible_counts_are_refused(counts: list) -> None:
    with pytest.raises(UserError, match="instance counts"):
        initial_probability(counts)


def test_selection_is_strict_and_of_seen_classes_only() -> None:
    prob = torch.tensor([0.5, 0.5, 1.0, 0.0, 0.9])
    uniform = torch.tensor([0.5, 0.49, 0.99, 0.0, 0.1])
    seen = torch.tensor([True, True, True, True, False])
    assert select_classes(prob, seen, uniform).tolist() == [1, 2]


def test_virtual_features() -> None:
    mean, var, noise = torch.randn(C, D), torch.rand(C, D), torch.randn(2, D)
    labels = torch.tensor([1, 4])
    expected = torch.stack([mean[c] + var[c].sqrt() * e for c, e in zip([1, 4], noise, strict=True)])
    torch.testing.assert_close(virtual_features(mean, var, labels, noise), expected)
    assert virtual_features(mean, var, labels[:0], noise[:0]).shape == (0, D)


def test_counters_equal_a_loop() -> None:
    torch.manual_seed(1)
    meter, loss = PerClassLossMeter(C), SoftmaxLoss(loss_weight=2.0)
    totals, counts = np.zeros(C + 1), np.zeros(C + 1)
    for n in (8, 0, 3):
        logits, labels = torch.randn(n, C + 1), torch.randint(0, C + 1, (n,))
        weights = torch.rand(n) * (torch.rand(n) > 0.4)
        rows = row_losses(loss, logits, labels, weights)
        mean = meter.add(rows, labels)
        expected = [
            2 * float(w) * float(F.cross_entropy(z[None], y[None]))
            for z, y, w in zip(logits, labels, weights, strict=True)
        ]
        np.testing.assert_allclose(rows, expected, rtol=1e-5)
        assert float(mean) == pytest.approx(np.mean(expected) if n else 0.0)
        for y, value in zip(labels.tolist(), expected, strict=True):
            totals[y] += value
            counts[y] += 1
    np.testing.assert_allclose(meter.totals, totals, rtol=1e-5)
    np.testing.assert_array_equal(meter.counts, counts)
    assert meter.counts.sum() == 11


def test_losses_without_rows_are_replaced_by_the_log_score() -> None:
    logits, labels, weights = torch.randn(7, C + 1), torch.arange(7), torch.rand(7)

    class Summed(SoftmaxLoss):
        def forward(self, *args: object, **kwargs: object) -> dict[str, Tensor]:
            return {"loss_cls": super().forward(*args, **kwargs).sum(), "loss_other": torch.zeros(())}

    torch.testing.assert_close(
        row_losses(Summed(loss_weight=3.0), logits, labels, weights),
        row_losses(SoftmaxLoss(loss_weight=3.0), logits, labels, weights),
    )
    sigmoid = EQLLoss(C, [1] * C, [1] * C, statistic="instance_count", threshold=0.5)
    rows = row_losses(sigmoid, torch.randn(7, C), labels, weights)
    assert rows.shape == (7,) and rows.isfinite().all()


def test_class_losses() -> None:
    totals, counts = torch.tensor([2.0, 0.0, 6.0]), torch.tensor([4.0, 0.0, 12.0])
    none = torch.zeros(3)
    current, reference = class_losses(totals, counts, none)
    torch.testing.assert_close(current, torch.tensor([2.0, 0.0, 6.0]) / 16)
    torch.testing.assert_close(reference, current)
    previous = torch.tensor([0.1, 0.2, 0.0])
    assert torch.equal(class_losses(totals, counts, previous)[1], previous)
    current, reference = class_losses(totals, counts, previous, "class_mean")
    torch.testing.assert_close(current, torch.tensor([0.5, 0.2, 0.5]))
    torch.testing.assert_close(reference, torch.tensor([0.1, 0.2, 0.5]))


def test_adaptation_moves_groups_together() -> None:
    prob = torch.tensor([0.5, 0.2, 0.95, 0.4, 0.3])
    groups = torch.tensor([0, 0, 1, 2, -1])
    before = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 9.0])
    after = torch.tensor([3.0, 0.5, 0.5, 1.0, 7.0, 0.0])  # group 0 up, group 1 down, group 2 equal, 4 in no group
    got, raised, lowered = adapted_probability(prob, before, after, groups, 1.1, 0.9)
    torch.testing.assert_close(got, torch.tensor([0.45, 0.18, 1.0, 0.4, 0.3]))
    assert (raised, lowered) == (1, 1)
    got, raised, lowered = adapted_probability(prob, before, after, torch.full((5,), -1), 1.1, 0.9)
    assert torch.equal(got, prob) and (raised, lowered) == (0, 0)
    got, *_ = adapted_probability(prob, after, after, groups, 1.1, 0.9)
    assert torch.equal(got, prob)
    for _ in range(50):
        prob, *_ = adapted_probability(prob, after, before, groups, 3.0, 0.0)
    assert ((prob >= 0) & (prob <= 1)).all()


def test_clusters() -> None:
    torch.manual_seed(0)
    centres = torch.randn(4, D) * 20
    member = torch.arange(24) % 4
    mean = centres[member] + torch.randn(24, D) * 0.1
    seen = torch.ones(24, dtype=torch.bool)
    seen[5:8] = False
    groups = cluster_classes(mean, seen)
    assert (groups[5:8] == -1).all()
    for a in range(24):
        for b in range(24):
            if seen[a] and seen[b]:
                assert (groups[a] == groups[b]) == (member[a] == member[b])
    assert cluster_classes(mean, None, "sq_dist").max() + 1 < 4  # the published similarity joins far classes


@pytest.mark.parametrize("seen", [0, 1, 2, 3])
@pytest.mark.parametrize("equal", [True, False])
def test_few_seen_classes(seen: int, equal: bool) -> None:
    mean = torch.ones(C, D) if equal else torch.randn(C, D, generator=torch.Generator().manual_seed(3))
    groups = cluster_classes(mean, torch.arange(C) < seen)
    assert groups.shape == (C,) and (groups[seen:] == -1).all()


def test_groups_of_the_reference(request: pytest.FixtureRequest) -> None:
    path = request.path.parents[1] / "oracles" / "data" / "fasa" / "adapt_cluster_0.npz"
    with np.load(path) as z:
        for mean, groups, corrected in zip(z["feature_mean"], z["groups"], z["groups_neg_similarity"], strict=True):
            for similarity, expected in (("sq_dist", groups), ("neg_sq_dist", corrected)):
                ours = cluster_classes(torch.from_numpy(mean), None, similarity).tolist()
                pairs = set(zip(ours, expected.tolist(), strict=True))
                assert len(pairs) == len(set(ours)) == len(set(expected.tolist()))
