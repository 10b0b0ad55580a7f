"""The CRAT part against per-sample autograd, and its behaviour at the edges."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from crat_cases import BoxHead, D, Inputs, K, MaskHead, box_batch, mask_batch, part, random_inputs
from mmdet.models.layers import NormedLinear
from mmdet.models.losses import L1Loss, SmoothL1Loss
from pairs import run_pair
from torch import Tensor, nn

from ltpipe.errors import UserError
from ltpipe.methods.crat import CRAT
from ltpipe.methods.crat_functions import mask_transfer_loss

MIXED = [0, 2, K, 2, 1, K, 4, 0, 0, K]


def naive_step(head: BoxHead, inputs: Inputs, crat: CRAT, energy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, weights and statistic, with one backward pass per sample through the whole regressor."""
    positive = inputs.labels < K
    own_loss = box_batch(head, inputs).losses["loss_bbox"]
    (gradient,) = torch.autograd.grad(own_loss, head.fc_reg.weight)
    gradient = gradient.view(K, 4, D)
    energy = energy.clone()
    for label in inputs.labels[positive].unique():
        energy[label] = (1 - crat.box_bank.momentum) * energy[label] + crat.box_bank.momentum * gradient[label] ** 2
    loss, all_weights = torch.zeros(()), []
    chosen = inputs.rows(positive)
    for x, y, t, roi in zip(chosen.x, chosen.labels, chosen.targets, chosen.rois, strict=True):
        deltas = head.fc_reg(x[None]).view(K, 4)
        boxes = head.bbox_coder.decode(roi[None, 1:].expand(K, 4), deltas) if head.reg_decoded_bbox else deltas
        (sample,) = torch.autograd.grad((boxes[y] - t).abs().sum(), head.fc_reg.weight, retain_graph=True)
        statistic = sample.view(K, 4, D)[y].square().flatten()
        cosine = F.cosine_similarity(statistic[None], energy.flatten(1), dim=1, eps=1e-24)
        others = [i for i in range(K) if i != y]
        weights = torch.zeros(K)
        weights[others] = (cosine[others] / crat.temperature).softmax(0)
        all_weights.append(weights)
        for i in others:
            if energy[i].any():
                loss = loss + weights[i] * (boxes[i] - t).abs().sum()
    return crat.box_weight * loss, torch.stack(all_weights), energy


@pytest.mark.parametrize(
    "loss, decoded", [(L1Loss(), False), (SmoothL1Loss(beta=1.0, loss_weight=2.0), False), (L1Loss(), True)]
)
def test_closed_form_equals_per_sample_backward(loss: nn.Module, decoded: bool) -> None:
    torch.manual_seed(0)
    head, crat, energy = BoxHead(loss_bbox=loss, decoded=decoded), part(), torch.zeros(K, 4, D)
    for step in range(3):
        inputs = random_inputs(MIXED, seed=step)
        if decoded:
            inputs.targets = inputs.rois[:, 1:] + inputs.targets
        else:
            with torch.no_grad():  # a residual of exactly zero has no gradient
                inputs.targets[1, 2] = head.fc_reg(inputs.x).view(-1, K, 4)[1, inputs.labels[1], 2]
        expected, weights, energy = naive_step(head, inputs, crat, energy)
        found = crat.box_losses(head, box_batch(head, inputs))["loss_bbox_trans"]
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(crat.box_transfer, weights)
        torch.testing.assert_close(crat.box_bank.energy, energy, rtol=1e-5, atol=1e-12)
        for parameter in head.fc_reg.parameters():
            gradients = [torch.autograd.grad(value, parameter, retain_graph=True)[0] for value in (found, expected)]
            torch.testing.assert_close(*gradients)


def run(crat: CRAT, head: BoxHead, labels: list[int] | None = None, seed: int = 0) -> Tensor:
    """Run one step; return the box transfer loss."""
    inputs = random_inputs(MIXED if labels is None else labels, seed)
    return crat.box_losses(head, box_batch(head, inputs))["loss_bbox_trans"]


def warmed(**options: Any) -> tuple[CRAT, BoxHead]:
    """Return a part that has seen every class, and its head."""
    torch.manual_seed(0)
    crat, head = part(**options), BoxHead()
    run(crat, head, list(range(K)) * 2, seed=9)
    return crat, head


def test_weights_carry_no_gradient_and_statistics_are_buffers() -> None:
    crat, head = warmed()
    run(crat, head)
    assert not crat.box_transfer.requires_grad and not crat.box_bank.energy.requires_grad
    assert list(crat.parameters()) == [] and "box_bank.energy" in crat.state_dict()


def test_weights_depend_on_the_direction_of_the_features_only() -> None:
    crat, head = warmed()
    inputs = random_inputs(MIXED)
    weights = []
    for x, targets in ((inputs.x, inputs.targets), (3 * inputs.x, inputs.targets), (inputs.x, -2 * inputs.targets)):
        copied = copy.deepcopy(crat)
        copied.box_bank.momentum = 0.0
        copied.box_losses(head, box_batch(head, Inputs(x, inputs.labels, targets, inputs.rois)))
        weights.append(copied.box_transfer)
    torch.testing.assert_close(weights[1], weights[0])
    torch.testing.assert_close(weights[2], weights[0])


@pytest.mark.parametrize("preset, factor", [("persample", 1.0), ("v2", 1.0), ("v1", 0.9)])
def test_presets_treat_absent_classes_differently(preset: str, factor: float) -> None:
    crat, head = warmed(preset=preset)
    before = crat.box_bank.energy.clone()
    run(crat, head)
    absent = [3, 5]
    if factor == 1.0:
        assert torch.equal(crat.box_bank.energy[absent], before[absent])
    else:
        torch.testing.assert_close(crat.box_bank.energy[absent], factor * before[absent])


@pytest.mark.parametrize("preset", ["persample", "v1"])
def test_what_is_derived_from_the_statistic_follows_every_change(preset: str) -> None:
    crat, head = warmed(preset=preset)
    bank = crat.box_bank

    def check(step: str) -> None:
        torch.testing.assert_close(bank._summary().norms, bank.energy.flatten(1).norm(dim=1), msg=step)
        assert torch.equal(bank.seen(), bank.energy.flatten(1).any(dim=1)), step

    check("first batch")
    for seed in range(3):
        run(crat, head, seed=seed)
        check(f"batch {seed}")
    bank.energy[2] = 0
    check("written in place")
    bank.load_state_dict({"energy": 2 * bank.energy})
    check("loaded")
    bank.energy = bank.energy.flip(0)
    check("replaced")
    crat.double().float()
    check("converted there and back")
    run(copy.deepcopy(crat), head, seed=7)
    check("copy trained on")


def test_affinity_names_the_classes_that_give() -> None:
    assert part().class_affinity() == {}, "nothing seen yet"
    crat, head = part(source=">=100", target="rc", exclude_unseen=True), BoxHead()
    run(crat, head, [0, 0, 1, 2, 5, K])
    found = crat.class_affinity()
    rows = F.normalize(crat.box_bank.energy.flatten(1), dim=1)
    torch.testing.assert_close(found["cosine"], rows @ rows.T)
    assert not found["cosine"][[3, 4]].any() and found["nearest"].shape == found["similarity"].shape == (K, 3)
    assert set(found["nearest"][5].tolist()) == {0, 1, 2} and found["nearest"][0, 2] == -1
    torch.testing.assert_close(found["similarity"][5], found["cosine"][5, found["nearest"][5]])
    # Receivers are the seen classes among labels 2 to 5.
    weights = (found["cosine"][0, [2, 5]] / crat.temperature).softmax(0)
    torch.testing.assert_close(found["effective"][0], torch.special.entr(weights).sum().exp())
    assert found["effective"][5] == 1


def test_options_override_the_preset() -> None:
    crat = part(preset="v1", momentum=0.5, decay_absent=False, temperature=1.0, sample_stat="first_signed")
    assert (crat.box_bank.momentum, crat.box_bank.decay_absent) == (0.5, False)
    assert (crat.temperature, crat.sample_stat) == (1.0, "first_signed")


@pytest.mark.parametrize("preset", ["persample", "v1", "v2"])
@pytest.mark.parametrize("labels", [[], [K, K, K]])
def test_nothing_positive(preset: str, labels: list[int]) -> None:
    crat, head = warmed(preset=preset)
    before = crat.box_bank.energy.clone()
    head.zero_grad()
    loss = run(crat, head, labels)
    loss.backward()
    assert loss == 0 and not head.fc_reg.weight.grad.any()
    assert torch.equal(crat.box_bank.energy, before)
    mask_head = MaskHead()
    loss = crat.mask_losses(mask_head, mask_batch(mask_head, torch.zeros(0, dtype=torch.long)))["loss_mask_trans"]
    loss.backward()
    assert loss == 0 and not mask_head.conv_logits.weight.grad.any()


def test_one_seen_class_transfers_to_masks_only() -> None:
    torch.manual_seed(0)
    crat, head, mask_head = part(), BoxHead(), MaskHead()
    assert run(crat, head, [2, 2, K]) == 0
    others = [i for i in range(K) if i != 2]
    torch.testing.assert_close(crat.box_transfer[:, others], torch.full((2, K - 1), 1 / (K - 1)))
    assert crat.mask_losses(mask_head, mask_batch(mask_head, torch.tensor([2, 2])))["loss_mask_trans"] > 0


def test_single_class() -> None:
    torch.manual_seed(0)
    crat, head = part(num_classes=1), BoxHead(num_classes=1)
    inputs = random_inputs([0, 1, 0])
    assert crat.box_losses(head, box_batch(head, inputs))["loss_bbox_trans"] == 0


def test_absent_classes_receive_gradient() -> None:
    crat, head = warmed()
    inputs = random_inputs([0, 0, 1, K])
    batch = box_batch(head, inputs)
    extra = crat.box_losses(head, batch)["loss_bbox_trans"]
    for loss, reached in ((batch.losses["loss_bbox"], 2), (extra, K)):
        (gradient,) = torch.autograd.grad(loss, head.fc_reg.weight, retain_graph=True)
        assert int(gradient.view(K, -1).any(1).sum()) == reached


def test_zero_weights_change_no_bit() -> None:
    torch.manual_seed(0)
    crat, head, mask_head = part(box_weight=0.0, mask_weight=0.0), BoxHead(), MaskHead()
    batch = box_batch(head, random_inputs(MIXED))
    masks = mask_batch(mask_head, batch.labels[batch.labels < K])
    plain = batch.losses["loss_bbox"] + mask_head.loss_mask(masks.mask_preds, masks.targets, masks.labels).sum()
    extra = crat.box_losses(head, batch)["loss_bbox_trans"] + crat.mask_losses(mask_head, masks)["loss_mask_trans"]
    for parameter in (head.fc_reg.weight, mask_head.conv_logits.weight):
        (expected,) = torch.autograd.grad(plain, parameter, retain_graph=True)
        (found,) = torch.autograd.grad(plain + extra, parameter, retain_graph=True)
        assert torch.equal(found, expected)
    assert plain + extra == plain


def test_masks_of_some_objects_only_take_the_weights_of_their_rois() -> None:
    """Objects without a mask are in the box head's batch and not in the mask head's."""
    crat, head = warmed()
    mask_head, inputs = MaskHead(), random_inputs(MIXED)
    positives = inputs.labels[inputs.labels < K]
    kept = torch.arange(len(positives)) % 2 == 0
    crat.box_losses(head, box_batch(head, inputs))
    assert crat.box_transfer is not None
    weights, batch = crat.box_transfer[kept], mask_batch(mask_head, positives[kept])
    batch.kept = kept
    expected = crat.mask_weight * mask_transfer_loss(batch.mask_preds, batch.targets, weights, crat.top_k)
    assert crat.mask_losses(mask_head, batch)["loss_mask_trans"] == expected > 0


def test_order_of_classes_and_rois_does_not_matter() -> None:
    crat, head = warmed()
    inputs = random_inputs(MIXED)
    expected = copy.deepcopy(crat).box_losses(head, box_batch(head, inputs))["loss_bbox_trans"]
    shuffled = inputs.rows(torch.randperm(len(MIXED)))
    found = copy.deepcopy(crat).box_losses(head, box_batch(head, shuffled))["loss_bbox_trans"]
    torch.testing.assert_close(found, expected)

    order = torch.randperm(K)
    crat.box_bank.energy = crat.box_bank.energy[order.argsort()]
    with torch.no_grad():
        for parameter in head.fc_reg.parameters():
            parameter.copy_(parameter.view(K, 4, -1)[order.argsort()].view(parameter.shape))
    inputs.labels = torch.where(inputs.labels < K, order[inputs.labels.clamp(max=K - 1)], K)
    torch.testing.assert_close(crat.box_losses(head, box_batch(head, inputs))["loss_bbox_trans"], expected)


def test_mask_weights_of_the_mask_branch() -> None:
    torch.manual_seed(0)
    crat, head = part(mask_weights_from="mask", seen_mask_in_mask=True), MaskHead()
    batch = mask_batch(head, torch.tensor([0, 2, 2, 1]))
    found = crat.mask_losses(head, batch)["loss_mask_trans"]

    weight = head.conv_logits.weight
    mean_loss = head.loss_mask(batch.mask_preds, batch.targets, batch.labels).sum()
    energy = 0.01 * torch.autograd.grad(mean_loss, weight, retain_graph=True)[0].flatten(1).square()
    expected = torch.zeros(())
    for n, y in enumerate(batch.labels):
        bce = F.binary_cross_entropy_with_logits(
            batch.mask_preds[n], batch.targets[n].expand(K, -1, -1), reduction="none"
        ).mean((1, 2))
        sample = torch.autograd.grad(bce[y], weight, retain_graph=True)[0].flatten(1)[y].square()
        cosine = F.cosine_similarity(sample[None], energy, dim=1, eps=1e-24)
        others = [i for i in range(K) if i != y]
        for i, w in zip(others, (cosine[others] / 1.0).softmax(0), strict=True):
            expected = expected + 0.01 * w * bce[i] * bool(energy[i].any())
    torch.testing.assert_close(found, expected)


def test_seen_mask_and_softmax_over_seen_classes() -> None:
    torch.manual_seed(0)
    crat, head = part(exclude_unseen=True), BoxHead()
    run(crat, head, [0, 0, 2, 1, K])
    assert not crat.box_transfer[:, 3:].any()
    torch.testing.assert_close(crat.box_transfer.sum(1), torch.ones(4))


def test_sources_and_targets() -> None:
    crat, head = warmed(source=">=100", target="r")
    run(crat, head)
    labels = torch.tensor(MIXED)[torch.tensor(MIXED) < K]
    gives = labels < 3  # 90 images are 270 instances, 20 are 60
    assert torch.equal(crat.box_transfer.any(1), gives)
    assert not crat.box_transfer[:, :4].any()
    assert set(crat.state_dict()) == {"box_bank.energy"}


def test_pruning_options_reach_both_branches() -> None:
    crat, head = warmed(top_k=2)
    run(crat, head)
    assert ((crat.box_transfer > 0).sum(1) <= 2).all()
    crat, head = warmed(threshold=1.1)
    assert run(crat, head) == 0


def test_average_factor_form_is_the_sum_form_at_its_reference_sizes() -> None:
    labels = torch.tensor([label for label in MIXED if label < K])
    losses = {}
    for normalize in ("sum", "avg_factor"):
        crat, head = warmed(normalize=normalize)
        mask_head = MaskHead()
        box = run(crat, head)
        losses[normalize] = box, crat.mask_losses(mask_head, mask_batch(mask_head, labels))["loss_mask_trans"]
    torch.testing.assert_close(losses["avg_factor"][0] * len(MIXED) / 1024, losses["sum"][0])
    torch.testing.assert_close(losses["avg_factor"][1] * len(labels) / 256, losses["sum"][1])


@pytest.mark.parametrize("detach", [False, True])
def test_detached_features(detach: bool) -> None:
    crat, head = warmed(detach_features=detach)
    inputs = random_inputs(MIXED)
    x = inputs.x.requires_grad_()
    loss = crat.box_losses(head, box_batch(head, inputs, x))["loss_bbox_trans"]
    mask_head = MaskHead()
    masks = mask_batch(mask_head, inputs.labels[inputs.labels < K])
    masks.features.requires_grad_()
    masks.mask_preds = mask_head.conv_logits(masks.features)
    loss = loss + crat.mask_losses(mask_head, masks)["loss_mask_trans"]
    loss.backward()
    assert head.fc_reg.weight.grad.any() and mask_head.conv_logits.weight.grad.any()
    for features in (x, masks.features):
        assert (features.grad is None or not features.grad.any()) == detach


def test_unrectified_classifier_inputs_are_rectified() -> None:
    torch.manual_seed(0)
    inputs, head = random_inputs(MIXED), BoxHead()
    losses = []
    for rectify, features in ((True, inputs.x), (False, inputs.x - (inputs.x == 0).float())):
        crat = part()
        batch = box_batch(head, inputs)
        batch.features, head.fc_cls.rectify_input = features, rectify
        losses.append(crat.box_losses(head, batch)["loss_bbox_trans"])
    assert losses[0] == losses[1] > 0


def test_autocast_equals_float32() -> None:
    crat, head = warmed()
    reference = run(copy.deepcopy(crat), head)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        batch = box_batch(head, random_inputs(MIXED))
        assert batch.bbox_pred.dtype == torch.bfloat16
        found = crat.box_losses(head, batch)["loss_bbox_trans"]
    assert found.dtype == crat.box_bank.energy.dtype == torch.float32
    torch.testing.assert_close(found, reference, rtol=1e-2, atol=0)


def test_save_load_resume() -> None:
    crat, head = warmed(mask_weights_from="mask")
    mask_head = MaskHead()
    crat.mask_losses(mask_head, mask_batch(mask_head, torch.tensor([0, 1])))
    resumed = part(mask_weights_from="mask")
    resumed.load_state_dict(crat.state_dict())
    assert torch.equal(resumed.mask_bank.energy, crat.mask_bank.energy)
    assert run(crat, head) == run(resumed, head)
    assert torch.equal(resumed.box_bank.energy, crat.box_bank.energy)
    part().load_state_dict(part().state_dict())
    missing = part().load_state_dict({}, strict=False).missing_keys
    assert missing == ["box_bank.energy"]
    with pytest.raises(RuntimeError, match="size mismatch"):
        part().load_state_dict({"box_bank.energy": torch.zeros(K + 1, 4, D)})


def test_evaluation_mode_moves_no_statistic() -> None:
    crat, head = warmed(mask_weights_from="mask")
    mask_head = MaskHead()
    crat.mask_losses(mask_head, mask_batch(mask_head, torch.tensor([0, 1])))
    before = copy.deepcopy(crat.state_dict())
    crat.eval()
    with torch.no_grad():
        run(crat, head)
        crat.mask_losses(mask_head, mask_batch(mask_head, torch.tensor([3, 1])))
    for name, value in crat.state_dict().items():
        assert torch.equal(value, before[name])


def test_other_heads_are_refused() -> None:
    head = BoxHead()
    batch = box_batch(head, random_inputs(MIXED))
    batch.bbox_pred = batch.bbox_pred[:, :4]
    with pytest.raises(UserError, match="class-wise box"):
        part().box_losses(head, batch)
    mask_head = MaskHead(num_classes=1)
    with pytest.raises(UserError, match="class-wise mask"):
        part().mask_losses(mask_head, mask_batch(mask_head, torch.tensor([0])))
    head.fc_reg = NormedLinear(D, 4 * K)
    with pytest.raises(UserError, match="plain linear"):
        part().box_losses(head, box_batch(head, random_inputs(MIXED)))


def _rank_step(rank: int, labels: list[list[int]], class_stat: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    crat, head = part(class_stat=class_stat), BoxHead()
    inputs = random_inputs(labels[0] + labels[1])
    half = slice(0, len(labels[0])) if rank == 0 else slice(len(labels[0]), None)
    loss = crat.box_losses(head, box_batch(head, inputs.rows(half)))["loss_bbox_trans"]
    return {"loss": loss.detach(), "energy": crat.box_bank.energy, "weights": crat.box_transfer}


def test_one_process_is_the_same_synchronised_or_not() -> None:
    (one, head), (other, _) = warmed(sync=True), warmed(sync=False)
    assert run(one, head) == run(other, head)
    assert torch.equal(one.box_bank.energy, other.box_bank.energy)


@pytest.mark.parametrize("class_stat", ["batch", "per_sample"])
@pytest.mark.parametrize("labels", [[[0, 2, K, 2], [1, 2, 4, K]], [[0, 2, 2, K], [K, K, K, K]]])
def test_two_processes_equal_one(tmp_path: Path, labels: list[list[int]], class_stat: str) -> None:
    first, second = run_pair(tmp_path, _rank_step, labels, class_stat)
    assert torch.equal(first["energy"], second["energy"])
    torch.manual_seed(0)
    crat, head = part(class_stat=class_stat), BoxHead()
    loss = crat.box_losses(head, box_batch(head, random_inputs(labels[0] + labels[1])))["loss_bbox_trans"]
    torch.testing.assert_close(first["energy"], crat.box_bank.energy, rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(torch.cat([first["weights"], second["weights"]]), crat.box_transfer)
    torch.testing.assert_close(first["loss"] + second["loss"], loss.detach())
