"""CRAT's tensor functions against loops, autograd and plain formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ltpipe.errors import UserError
from ltpipe.frequency import frequency_groups
from ltpipe.methods.crat import functions
from tests.published.crat_energy import energy_from_reference


def test_class_sums_is_the_weight_gradient_of_a_linear_layer() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(5, 4, 7, requires_grad=True), torch.randn(9, 7)
    labels, slopes = torch.randint(0, 5, (9,)), torch.randn(9, 4)
    own = torch.einsum("pkd,pd->pk", weight[labels], x)
    (expected,) = torch.autograd.grad((own * slopes).sum(), weight)
    torch.testing.assert_close(functions.class_sums(slopes, x, labels, 5), expected)


def test_update_leaves_absent_rows_alone_or_decays_them() -> None:
    torch.manual_seed(0)
    start = torch.rand(4, 4, 3)
    present, absent = torch.tensor([0, 2]), torch.tensor([1, 3])
    value = torch.rand(2, 4, 3)
    kept, decayed, untouched = start.clone(), start.clone(), start.clone()
    functions.update_energy(kept, value, present, 0.01, decay_absent=False)
    assert torch.equal(kept[absent], start[absent])
    torch.testing.assert_close(kept[present], 0.99 * start[present] + 0.01 * value)
    functions.update_energy(decayed, value, present, 0.1, decay_absent=True)
    torch.testing.assert_close(decayed[absent], 0.9 * start[absent])
    torch.testing.assert_close(decayed[present], 0.9 * start[present] + 0.1 * value)
    functions.update_energy(untouched, torch.zeros(0, 4, 3), torch.zeros(0, dtype=torch.long), 0.1, True)
    assert torch.equal(untouched, start)


def test_similarity_is_the_cosine_of_the_outer_products() -> None:
    torch.manual_seed(0)
    u, v, energy = torch.randn(6, 4), torch.rand(6, 8), torch.rand(5, 4, 8)
    energy[3], v[2] = 0, 0
    outer = torch.einsum("pc,pd->pcd", u, v).flatten(1)
    expected = F.cosine_similarity(outer[:, None], energy.flatten(1)[None], dim=2, eps=1e-12)
    found = functions.similarity(u, v, energy, functions.class_norms(energy))
    torch.testing.assert_close(found, expected)
    assert not found[:, 3].any() and not found[2].any()


def test_transfer_weights_are_a_softmax_over_the_other_classes() -> None:
    torch.manual_seed(0)
    cosine, labels = torch.rand(7, 5), torch.randint(0, 5, (7,))
    weights = functions.transfer_weights(cosine, labels, 0.05)
    for n, own in enumerate(labels):
        others = [i for i in range(5) if i != own]
        torch.testing.assert_close(weights[n, others], (cosine[n, others] / 0.05).softmax(0))
        assert weights[n, own] == 0
    torch.testing.assert_close(weights.sum(1), torch.ones(7))
    receivers = torch.tensor([True, False, True, False, False])
    limited = functions.transfer_weights(cosine, labels, 0.05, receivers)
    assert not limited[:, ~receivers].any()
    torch.testing.assert_close(limited.sum(1), torch.ones(7))


@pytest.mark.parametrize("num_classes, total", [(1, 0.0), (2, 1.0)])
def test_transfer_weights_with_hardly_any_classes(num_classes: int, total: float) -> None:
    weights = functions.transfer_weights(torch.zeros(3, num_classes), torch.zeros(3, dtype=torch.long), 0.05)
    torch.testing.assert_close(weights.sum(1), torch.full((3,), total))
    nobody = torch.zeros(num_classes, dtype=torch.bool)
    alone = functions.transfer_weights(torch.zeros(3, num_classes), torch.zeros(3, dtype=torch.long), 0.05, nobody)
    assert not alone.any()


def test_pruning() -> None:
    weights = torch.tensor([[0.7, 0.2, 0.1, 0.0], [0.3, 0.3, 0.25, 0.15]])
    assert torch.equal(functions.prune_weights(weights, threshold=0.5), weights * torch.tensor([[1.0], [0.0]]))
    kept = functions.prune_weights(weights, top_k=2)
    assert torch.equal(kept[0], torch.tensor([0.7, 0.2, 0.0, 0.0]))
    assert (kept[1] > 0).sum() == 2
    assert torch.equal(functions.prune_weights(weights, top_k=9), weights)


@pytest.mark.parametrize("chunk", [1, 1 << 24])
@pytest.mark.parametrize("soft", [False, True])
def test_mask_transfer_is_the_weighted_cross_entropy(chunk: int, soft: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(functions.CHUNK_ELEMENTS, "cpu", chunk)
    torch.manual_seed(0)
    logits = (torch.randn(5, 4, 6, 6) * 5).requires_grad_()
    targets, weights = torch.rand(5, 6, 6), torch.rand(5, 4)
    targets = targets if soft else targets.round()
    spread = targets[:, None].expand_as(logits)
    plain = (F.binary_cross_entropy_with_logits(logits, spread, reduction="none").mean((2, 3)) * weights).sum()
    ours = functions.mask_transfer_loss(logits, targets, weights)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(3 * loss, logits)[0] for loss in (ours, plain)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


def test_mask_transfer_of_the_largest_weights_only() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 8, 6, 6, requires_grad=True), torch.rand(5, 6, 6).round()
    weights = functions.prune_weights(torch.rand(5, 8), top_k=3)
    losses = [functions.mask_transfer_loss(logits, targets, weights, top_k) for top_k in (None, 3)]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*[torch.autograd.grad(loss, logits)[0] for loss in losses])


def test_mask_transfer_in_half_precision_and_without_samples() -> None:
    torch.manual_seed(0)
    logits, targets, weights = torch.randn(4, 3, 6, 6), torch.rand(4, 6, 6).round(), torch.rand(4, 3)
    half = logits.half().requires_grad_()
    loss = functions.mask_transfer_loss(half, targets, weights)
    loss.backward()
    assert loss.dtype == torch.float32 and half.grad.dtype == torch.float16
    torch.testing.assert_close(loss, functions.mask_transfer_loss(logits, targets, weights), rtol=1e-2, atol=1e-3)
    empty = torch.zeros(0, 3, 6, 6, requires_grad=True)
    loss = functions.mask_transfer_loss(empty, torch.zeros(0, 6, 6), torch.zeros(0, 3))
    loss.backward()
    assert loss == 0 and empty.grad.shape == empty.shape


def test_affinity_and_nearest_sources() -> None:
    energy = torch.zeros(4, 4, 3)
    energy[0, 0, 0], energy[1, 0, 0], energy[2, 0, :2] = 1.0, 7.0, 1.0
    affinity = functions.class_affinity(energy)
    root = 2**-0.5
    expected = torch.tensor([[1, 1, root, 0], [1, 1, root, 0], [root, root, 1, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(affinity, expected)
    sources = torch.tensor([True, True, True, False])
    labels, cosines = functions.nearest_sources(affinity, torch.tensor([2, 0]), sources, 5)
    assert set(labels[0, :2].tolist()) == {0, 1} and labels[0, 2] == -1 and cosines[0, 2] == 0
    assert labels[1].tolist() == [1, 2, -1]
    torch.testing.assert_close(cosines[1], torch.tensor([1, root, 0]))


def test_effective_sources_counts_uniform_weights() -> None:
    weights = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.0, 1.0, 0.0, 0.0]])
    torch.testing.assert_close(functions.effective_sources(weights), torch.tensor([4.0, 1.0]))


def test_reference_layout() -> None:
    columns = torch.arange(2 * 12.0).view(2, 12)
    energy = energy_from_reference(columns, 4)
    for f in range(3):
        for k in range(4):
            assert torch.equal(energy[:, k, f], columns[:, f * 4 + k])


def test_choices_of_classes() -> None:
    images, instances = [10, 11, 100, 101], [30, 29, 300, 400]
    assert functions.classes_of("r", frequency_groups(images), instances) == [True, False, False, False]
    assert functions.classes_of("rf", frequency_groups(images), instances) == [True, False, False, True]
    assert functions.classes_of(">=30", frequency_groups(images), instances) == [True, False, True, True]
    assert functions.classes_of("<30", frequency_groups(images), instances) == [False, True, False, False]
    for wrong in ("x", "", "=3"):
        with pytest.raises(UserError, match="unknown choice"):
            functions.classes_of(wrong, frequency_groups(images), instances)
