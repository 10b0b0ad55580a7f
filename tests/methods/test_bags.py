"""Balanced group softmax: layout, draws, loss, scores, the component and the calibrator."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor

from ltpipe.errors import UserError
from ltpipe.methods.bags.functions import (
    draw_others,
    group_class_weights,
    group_labels,
    group_layout,
    group_losses,
    group_scores,
    layout_from_groups,
)
from ltpipe.methods.bags.group_softmax import BAGS, GroupSoftmaxLoss
from tests.helpers.detectors import probabilities

COUNTS = [5, 2000, 0, 50, 500, 9, 10, 99, 100, 999, 1000]
K = len(COUNTS)
GROUPS = [0, 3, 0, 1, 2, 0, 1, 1, 2, 2, 3]


def naive_loss(score: Tensor, labels: list[int], weights: Tensor) -> Tensor:
    """Loop over groups and rows, with channels found by walking over the classes."""
    total, start = torch.zeros(()), 0
    for g in range(5):
        members = [c for c in range(K) if GROUPS[c] == g] if g < 4 else [K]
        size = 1 + len(members)
        loss = torch.zeros(())
        for n, label in enumerate(labels):
            place = members.index(label) + 1 if label in members else 0
            loss = loss - weights[g, n] * F.log_softmax(score[n, start : start + size], dim=0)[place]
        total = total + loss / max(float(weights[g].sum()), 1)
        start += size
    return total


def test_groups_at_the_borders() -> None:
    layout = group_layout(COUNTS)
    assert layout.group.tolist() == [*GROUPS, 4]
    assert layout.sizes.tolist() == [4, 4, 4, 3, 2] and layout.num_channels == K + 1 + 5
    assert layout.position[[0, 2, 5]].tolist() == [1, 2, 3] and layout.position[K] == 1
    assert sorted(layout.channel) == sorted(set(range(K + 6)) - {0, 4, 8, 12, 15}), (
        "every class has a channel of its own"
    )
    for g, row in enumerate(layout.label_map):
        assert np.count_nonzero(row) == layout.sizes[g] - 1


@pytest.mark.parametrize("edges", [(10,), (100,), (5, 10, 50, 100, 500, 1000, 5000)])
def test_any_edges_and_empty_groups(edges: tuple[int, ...]) -> None:
    layout = group_layout(COUNTS, edges)
    assert layout.num_channels == K + 1 + len(edges) + 2
    for c, n in enumerate(COUNTS):
        assert layout.group[c] == sum(n >= edge for edge in edges)


def test_bad_edges() -> None:
    for edges in ((10, 5), (0, 10), (10, 10)):
        with pytest.raises(UserError, match="ascend"):
            group_layout(COUNTS, edges)


def rows(number: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, K + 1, (number,), generator=generator)
    labels[number // 3 :] = K
    return torch.randn(number, K + 6, generator=generator), labels


@pytest.mark.parametrize("beta", [0.5, 1.0, 8.0, 1000.0])
def test_draw(beta: float) -> None:
    layout = group_layout(COUNTS)
    in_groups = group_labels(rows()[1], torch.from_numpy(layout.label_map))
    generator = torch.Generator().manual_seed(0)
    seen = torch.zeros_like(in_groups)
    for _ in range(300):
        drawn = draw_others(in_groups, beta, torch.rand(4, 40, generator=generator))
        seen += drawn
        assert drawn[-1].all()
        for g in range(4):
            members = in_groups[g] > 0
            budget = min(int(beta * int(members.sum())), int((~members).sum())) if members.any() else 0
            assert (drawn[g] & members).sum() == members.sum() and (drawn[g] & ~members).sum() == budget
    for g in range(4):
        others = seen[g][in_groups[g] == 0]
        if (in_groups[g] > 0).any() and beta >= 1:
            assert (others > 0).all(), "every other may be drawn"


def test_floor_of_the_budget() -> None:
    in_groups = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]])
    assert draw_others(in_groups, 0.5, torch.rand(1, 6))[0].sum() == 3 + 1


def test_loss_and_gradient_equal_naive() -> None:
    layout = group_layout(COUNTS)
    score, labels = rows()
    in_groups = group_labels(labels, torch.from_numpy(layout.label_map))
    weights = draw_others(in_groups, 2.0, torch.rand(4, 40)).float()
    score.requires_grad_()
    losses = group_losses(score, in_groups, weights, layout.sizes.tolist())
    expected = naive_loss(score, labels.tolist(), weights)
    torch.testing.assert_close(losses.sum(), expected)
    for a, b in zip(torch.autograd.grad(losses.sum(), score), torch.autograd.grad(expected, score), strict=True):
        torch.testing.assert_close(a, b)


def test_groups_absent_from_the_batch_get_no_gradient() -> None:
    loss = GroupSoftmaxLoss(K, COUNTS)
    score = torch.randn(20, K + 6, requires_grad=True)
    labels = torch.full((20,), K)
    value = loss(score, labels)
    value.backward()
    assert not score.grad[:, :-2].any() and score.grad[:, -2:].any()
    torch.testing.assert_close(value, F.cross_entropy(score[:, -2:], torch.ones(20, dtype=torch.int64)))
    score.grad = None
    labels[:3] = 1  # group 3 only
    loss(score, labels).backward()
    assert not score.grad[:, :12].any() and score.grad[:, 12:15].any()


def test_large_beta_takes_everything() -> None:
    score, labels = rows()
    loss = GroupSoftmaxLoss(K, COUNTS, beta=1e6)
    weights = torch.ones(5, 40)
    for g in range(4):
        weights[g] = float(any(GROUPS[c] == g for c in labels.tolist() if c < K))
    torch.testing.assert_close(loss(score, labels), naive_loss(score, labels.tolist(), weights))


def test_scores() -> None:
    layout = group_layout(COUNTS)
    score = rows()[0]
    found = group_scores(score, torch.from_numpy(layout.channel), layout.sizes.tolist())
    foreground = score[:, -2:].softmax(1)[:, 0]
    assert found.shape == (40, K + 1)
    torch.testing.assert_close(found[:, K] + foreground, torch.ones(40))
    assert (found[:, :K] <= foreground[:, None] + 1e-6).all()
    start = 0
    for g in range(4):
        members = [c for c in range(K) if GROUPS[c] == g]
        inside = score[:, start : start + 1 + len(members)].softmax(1)
        torch.testing.assert_close(found[:, members], inside[:, 1:] * foreground[:, None])
        start += 1 + len(members)


def test_no_rows_half_precision_and_accuracy() -> None:
    loss = GroupSoftmaxLoss(K, COUNTS, beta=1e6)
    score, labels = rows()
    empty = loss(score[:0].requires_grad_(), labels[:0])
    assert empty == 0 and empty.requires_grad
    assert loss.get_activation(score[:0]).shape == (0, K + 1)
    half = loss(score.half(), labels)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, loss(score, labels), rtol=1e-2, atol=1e-3)
    right = torch.zeros(40, K + 6)
    right[torch.arange(40), loss.channel[labels]] = 10
    right[labels < K, -2] = 10
    assert all(float(v) == 100 for v in loss.get_accuracy(right, labels).values())
    assert float(loss.get_accuracy(right[labels == K], labels[labels == K])["acc_classes"]) == 0


@pytest.mark.parametrize("counts", [[0], [7], [7, 8, 9]])
def test_few_classes_and_empty_groups(counts: list[int]) -> None:
    loss = GroupSoftmaxLoss(len(counts), counts)
    score = torch.randn(6, len(counts) + 6, requires_grad=True)
    value = loss(score, torch.arange(6) % (len(counts) + 1))
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(score.grad).all()
    assert loss.get_activation(score).shape == (6, len(counts) + 1)


def test_draws_are_reproducible_and_resume() -> None:
    score, labels = rows()
    a, b = (GroupSoftmaxLoss(K, COUNTS, beta=1.0) for _ in range(2))
    first = [a(score, labels) for _ in range(4)]
    assert len({float(v) for v in first}) > 1, "a new draw in every iteration"
    b.load_state_dict({k: v.clone() for k, v in GroupSoftmaxLoss(K, COUNTS).state_dict().items()})
    again = [b(score, labels) for _ in range(2)]
    c = GroupSoftmaxLoss(K, COUNTS, beta=1.0)
    c.load_state_dict(copy.deepcopy(b.state_dict()))
    assert first == [*again, c(score, labels), c(score, labels)]
    assert float(GroupSoftmaxLoss(K, COUNTS, beta=1.0, seed=1)(score, labels)) != float(first[0])


def test_weights_of_another_layout_are_refused() -> None:
    state = GroupSoftmaxLoss(K, COUNTS).state_dict()
    for other in (GroupSoftmaxLoss(K, [*COUNTS[:-1], 999]), GroupSoftmaxLoss(K, COUNTS, edges=[100])):
        with pytest.raises(UserError, match="other groups"):
            other.load_state_dict(state)


def test_reweighting() -> None:
    layout = group_layout(COUNTS)
    weights = group_class_weights(COUNTS, layout)
    for g in range(4):
        members = [c for c in range(K) if GROUPS[c] == g]
        inverse = np.array([1 / max(COUNTS[c], 1) for c in members])
        np.testing.assert_allclose(weights[g, members], np.clip(inverse / inverse.mean(), 0.1, 5))
    assert (weights[torch.from_numpy(layout.label_map) == 0] == 1).all() and weights[4, K] == 1
    score, labels = rows()
    loss = GroupSoftmaxLoss(K, COUNTS, beta=1e6, reweight=True)
    plain = torch.ones(5, 40)
    for g in range(4):
        plain[g] = float(any(GROUPS[c] == g for c in labels.tolist() if c < K))
    torch.testing.assert_close(
        loss(score, labels), naive_loss(score, labels.tolist(), plain * weights[:, labels].float())
    )


def test_layout_of_given_groups() -> None:
    layout = layout_from_groups([2, 0, 2], 3)
    assert layout.sizes.tolist() == [2, 1, 3, 2] and layout.channel.tolist() == [4, 1, 5, 7]


def head_config(**kwargs: Any) -> dict[str, Any]:
    sizes = {"in_channels": 4, "roi_feat_size": 3, "fc_out_channels": 16, "num_classes": K}
    return {"type": "ltpipe.LTBBoxHead", **sizes, **kwargs}


def test_box_head_with_the_loss() -> None:
    loss = {"type": "ltpipe.GroupSoftmaxLoss", "num_classes": K, "instance_counts": COUNTS}
    head = MODELS.build(head_config(loss_cls=loss))
    assert head.fc_cls.out_features == K + 6
    score, _ = head(torch.randn(3, 4, 3, 3))
    assert probabilities(head, score).shape == (3, K + 1)
    losses = head.loss(score, None, torch.zeros(3, 5), torch.tensor([0, K, 1]), torch.ones(3), None, None)
    assert {"loss_cls", "acc_objectness", "acc_classes"} <= losses.keys() and losses["loss_cls"].dim() == 0


def test_calibrator_replaces_only_the_classifier() -> None:
    head = MODELS.build(head_config())
    model = {"roi_head": {"bbox_head": head_config()}}
    state = {f"roi_head.bbox_head.{k}": v for k, v in head.state_dict().items()}
    calibrator = BAGS(K, COUNTS)
    calibrator.initialise(head)
    assert (
        abs(float(calibrator.head.fc_cls.weight.detach().std()) - 0.01) < 2e-3 and not calibrator.head.fc_cls.bias.any()
    )
    merged_model, merged_state = calibrator.merge(model, state)
    merged = MODELS.build(merged_model["roi_head"]["bbox_head"])
    merged.load_state_dict({k.removeprefix("roi_head.bbox_head."): v for k, v in merged_state.items()})
    changed = {k for k, v in state.items() if k not in merged_state or not torch.equal(v, merged_state[k])}
    assert changed == {"roi_head.bbox_head.fc_cls.weight", "roi_head.bbox_head.fc_cls.bias"}
    x = torch.randn(5, 4, 3, 3)
    expected = calibrator.scores(calibrator(head.predictor_inputs(x)[0]))
    torch.testing.assert_close(probabilities(merged, merged(x)[0]), expected)
    staged, weights = calibrator.merge({"roi_head": {"bbox_head": [head_config() for _ in range(3)]}}, {}, 1)
    assert ["loss_cls" in one for one in staged["roi_head"]["bbox_head"]] == [False, True, False]
    assert staged["roi_head"]["bbox_head"][1]["loss_cls"]["type"].endswith("GroupSoftmaxLoss") and all(
        key.startswith("roi_head.bbox_head.1.") for key in weights
    )


@pytest.mark.parametrize("agnostic", [False, True])
def test_the_whole_box_head_is_trained_with_its_box_loss(agnostic: bool) -> None:
    """Loss and gradients are those of mmdet's box head with the grouped classifier in it; the detector stays."""
    head = MODELS.build(head_config(reg_class_agnostic=agnostic))
    before = copy.deepcopy(head.state_dict())
    calibrator = BAGS(K, COUNTS, trained="box_head", beta=1e6)
    calibrator.initialise(head)
    assert calibrator.reads == "roi" and all(p.requires_grad for p in calibrator.parameters())
    for name in ("shared_fcs.0.weight", "fc_reg.weight"):
        assert torch.equal(calibrator.head.state_dict()[name], before[name])
    loss = {"type": "ltpipe.GroupSoftmaxLoss", "num_classes": K, "instance_counts": COUNTS, "beta": 1e6}
    twin = MODELS.build(head_config(reg_class_agnostic=agnostic, loss_cls=loss))
    twin.load_state_dict(calibrator.head.state_dict())
    x, labels = torch.randn(12, 4, 3, 3), torch.tensor([0, K, 1, 3, K, 9, *[K] * 6])
    boxes = torch.tensor([[0.0, 0.0, 10.0, 20.0]]).repeat(12, 1) + torch.arange(12.0)[:, None]
    matched = boxes + torch.tensor([1.0, 2.0, -3.0, 4.0])
    _, total = calibrator.train_losses(x, labels, boxes, matched)
    targets, weights = twin.bbox_coder.encode(boxes, matched), (labels < K).float()[:, None].expand(-1, 4)
    losses = twin.loss(*twin(x), torch.cat([torch.zeros(12, 1), boxes], 1), labels, torch.ones(12), targets, weights)
    torch.testing.assert_close(total, losses["loss_cls"] + losses["loss_bbox"])
    assert losses["loss_bbox"].item() > 0.1
    total.backward()
    (losses["loss_cls"] + losses["loss_bbox"]).backward()
    for (name, ours), theirs in zip(calibrator.head.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


def test_a_whole_box_head_without_foreground_or_rows() -> None:
    calibrator = BAGS(K, COUNTS, trained="box_head")
    calibrator.initialise(MODELS.build(head_config()))
    for number in (3, 0):
        boxes = torch.zeros(number, 4) + torch.tensor([0.0, 0.0, 5.0, 5.0])
        _, total = calibrator.train_losses(torch.randn(number, 4, 3, 3), torch.full((number,), K), boxes, boxes)
        total.backward()
        assert torch.isfinite(total) and all(torch.isfinite(p.grad).all() for p in calibrator.parameters())


def test_the_whole_box_head_is_merged() -> None:
    head = MODELS.build(head_config())
    state = {f"roi_head.bbox_head.{k}": v for k, v in head.state_dict().items()} | {"neck.weight": torch.ones(1)}
    calibrator = BAGS(K, COUNTS, trained="box_head")
    calibrator.initialise(head)
    with torch.no_grad():
        for parameter in calibrator.parameters():
            parameter += 0.1
    model, merged = calibrator.merge({"roi_head": {"bbox_head": head_config()}}, state)
    other = MODELS.build(model["roi_head"]["bbox_head"])
    other.load_state_dict({k.removeprefix("roi_head.bbox_head."): v for k, v in merged.items() if k != "neck.weight"})
    x = torch.randn(5, 4, 3, 3)
    for ours, theirs in zip(other(x), calibrator.head(x), strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(probabilities(other, other(x)[0]), calibrator.scores(calibrator(x)))
    assert merged["neck.weight"] == 1 and set(merged) - set(state) == {
        f"roi_head.bbox_head.loss_cls.{name}" for name in ("label_map", "draws")
    }
