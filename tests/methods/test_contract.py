"""What every registered loss, classifier, part, mask head and calibrator promises."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ltpipe.interop.class_order import reorder_config
from ltpipe.interop.plain_mmdet import foreign_types, plain_detector
from ltpipe.methods.box_layers import read_features
from ltpipe.methods.class_rows import reorder_classes
from tests.helpers import contract_cases as cases
from tests.helpers.contract_cases import (
    BATCHES,
    CHANNELS,
    ROI,
    UNSEEN,
    WIDTH,
    K,
    MaskPredictor,
    box_batch,
    box_head,
    box_head_config,
    build,
    build_config,
    channels,
    logits,
    names,
    pooled,
    run_loss,
    run_part,
    total,
)
from tests.helpers.detectors import probabilities
from tests.helpers.pairs import run_pair

every_loss = pytest.mark.parametrize("loss_name", names("loss"))
every_classifier = pytest.mark.parametrize("classifier_name", names("classifier"))
every_part = pytest.mark.parametrize("part_name", names("part"))
every_mask_head = pytest.mark.parametrize("mask_name", names("mask"))
every_calibrator = pytest.mark.parametrize("calibrator_name", names("calibrator"))
every_batch = pytest.mark.parametrize("kind", BATCHES)


@pytest.fixture(autouse=True, params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is promised on a CPU and, with ``-m gpu``, on a GPU."""
    monkeypatch.setattr(cases, "DEVICE", torch.device(request.param))


def same_state(one: Any, other: Any, **tolerance: float) -> None:
    """Assert that two state dicts are equal, or close when a tolerance is given."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        if tolerance:
            torch.testing.assert_close(value, other[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)
        else:
            assert torch.equal(value, other[name]), name


def finite_gradients(module: nn.Module) -> None:
    """Assert that no parameter has a gradient that is not finite."""
    for name, parameter in module.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


# ---- losses


@every_loss
def test_loss_flags_come_together(loss_name: str) -> None:
    loss = build("loss", loss_name)
    flags = [getattr(loss, f"custom_{what}", False) for what in ("cls_channels", "activation", "accuracy")]
    assert all(flags) or not any(flags)


@every_loss
@every_batch
def test_loss_is_finite_and_has_a_graph(loss_name: str, kind: str) -> None:
    loss, labels = build("loss", loss_name), BATCHES[kind]
    for step in range(3):
        z = logits(loss, labels, step).requires_grad_()
        terms = run_loss(loss, z, labels)
        value = total(terms)
        value.backward()
        assert value.isfinite() and all("loss" in name for name in terms)
        assert z.grad.isfinite().all()
        assert labels or not value


@every_loss
def test_loss_keys_do_not_depend_on_the_batch(loss_name: str) -> None:
    loss = build("loss", loss_name)
    keys = {tuple(run_loss(loss, logits(loss, labels), labels)) for labels in BATCHES.values()}
    assert len(keys) == 1


@every_loss
def test_loss_survives_saturated_logits(loss_name: str) -> None:
    loss, labels = build("loss", loss_name), BATCHES["mixed"]
    z = (logits(loss, labels).sign() * 80).requires_grad_()
    value = total(run_loss(loss, z, labels))
    value.backward()
    assert value.isfinite() and z.grad.isfinite().all()


@every_loss
def test_loss_scores_and_accuracy(loss_name: str) -> None:
    loss, labels = build("loss", loss_name), BATCHES["mixed"]
    if not getattr(loss, "custom_activation", False):
        return
    for count in (len(labels), 0):
        z = logits(loss, labels)[:count]
        scores = loss.get_activation(z)
        assert scores.shape == (count, K + 1) and ((scores >= 0) & (scores <= 1)).all()
        for name, value in loss.get_accuracy(
            z, torch.tensor(labels, dtype=torch.long, device=cases.DEVICE)[:count]
        ).items():
            assert name.startswith("acc") and 0 <= float(value) <= 100


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_in_half_precision(loss_name: str, dtype: torch.dtype) -> None:
    labels, found = BATCHES["mixed"], []
    for half in (True, False):
        loss = build("loss", loss_name)
        z = logits(loss, labels).to(dtype)
        with torch.autocast(cases.DEVICE.type, dtype=torch.bfloat16, enabled=half):
            found.append(total(run_loss(loss, z if half else z.float(), labels)).float())
        for name, value in loss.state_dict().items():
            assert value.dtype not in (torch.float16, torch.bfloat16), name
    torch.testing.assert_close(found[0], found[1], rtol=1e-2, atol=0)


@every_loss
def test_loss_resumes_exactly(loss_name: str) -> None:
    labels = BATCHES["mixed"]
    whole, first, second = (build("loss", loss_name) for _ in range(3))
    for step in range(2):
        run_loss(whole, logits(whole, labels, step), labels)
        run_loss(first, logits(first, labels, step), labels)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    z = logits(whole, labels, 2)
    assert torch.equal(total(run_loss(whole, z, labels)), total(run_loss(second, z, labels)))
    same_state(whole.state_dict(), second.state_dict())


def _losses_of(rank: int) -> dict[str, dict[str, Tensor]]:
    """State and sums of every loss after batches of which each process has one half, then nothing on the first one."""
    found = {}
    for name in names("loss"):
        loss, labels, sums = build("loss", name), BATCHES["mixed"], []
        for step, rows in enumerate((slice(5) if rank == 0 else slice(5, None), slice(10 * rank))):
            sums.append(total(run_loss(loss, logits(loss, labels, step)[rows], labels[rows])).detach())
        found[name] = {**loss.state_dict(), "sums": torch.stack(sums)}
    return found


def test_losses_on_two_processes_equal_one(tmp_path: Path) -> None:
    """What a loss remembers is that of the whole batch; one that remembers nothing asks no other process."""
    first, second = run_pair(tmp_path, _losses_of)
    alone, remembering = _losses_of(0), set()
    for name in names("loss"):
        joint, fresh, labels = build("loss", name), build("loss", name), BATCHES["mixed"]
        for step in range(2):
            run_loss(joint, logits(joint, labels, step), labels)
        state, before = joint.state_dict(), fresh.state_dict()
        if any(not torch.equal(state[key], before[key]) for key in state):
            remembering.add(name)
            sums = first[name].pop("sums"), second[name].pop("sums")
            assert all(one.isfinite().all() for one in sums)
            same_state(first[name], second[name])
            same_state(first[name], state, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(first[name]["sums"], alone[name]["sums"]), name
    assert {"seesaw", "eqlv2"} <= remembering


# ---- classifiers


@every_classifier
@pytest.mark.parametrize("count", [0, 5])
def test_classifier_shapes_and_gradients(classifier_name: str, count: int) -> None:
    layer = build("classifier", classifier_name, in_features=WIDTH, out_features=K + 3)
    x = torch.randn(count, WIDTH, device=cases.DEVICE)
    x[:1] = 0
    x.requires_grad_()
    z = layer(x)
    z.square().sum().backward()
    assert z.shape == (count, K + 3) and z.isfinite().all() and x.grad.isfinite().all()
    finite_gradients(layer)


@every_classifier
def test_classifier_in_half_precision_and_after_loading(classifier_name: str) -> None:
    layer, other = (build("classifier", classifier_name, in_features=WIDTH, out_features=K + 1) for _ in range(2))
    nn.init.normal_(layer.weight)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(5, WIDTH, device=cases.DEVICE)
    assert torch.equal(layer(x), other(x))
    with torch.autocast(cases.DEVICE.type, dtype=torch.bfloat16):
        half = layer(x).float()
    torch.testing.assert_close(half, layer(x), rtol=2e-2, atol=0.02 * layer(x).abs().max().item())


@every_classifier
@every_loss
def test_every_classifier_works_with_every_loss(classifier_name: str, loss_name: str) -> None:
    head = box_head(classifier_name, loss_name)
    for kind in ("mixed", "no foreground"):
        batch = box_batch(head, BATCHES[kind])
        assert batch.cls_score.shape[1] == channels(head.loss_cls)
        assert probabilities(head, batch.cls_score).shape == (len(BATCHES[kind]), K + 1)
        total(batch.losses).backward()
    finite_gradients(head)


# ---- parts


@every_part
@every_loss
def test_part_works_with_every_loss(part_name: str, loss_name: str) -> None:
    part, head, mask_head = build("part", part_name), box_head(loss=loss_name), MaskPredictor()
    if part.losses and loss_name not in part.losses:
        return  # `validate` refuses them together
    keys = set()
    for kind, labels in BATCHES.items():
        terms = run_part(part, head, mask_head, box_batch(head, labels))
        value = total(terms)
        value.backward()
        assert value.isfinite(), kind
        keys.add(tuple(sorted(terms)))
    assert len(keys) == 1
    finite_gradients(head)


@every_part
@every_classifier
def test_part_works_with_every_classifier(part_name: str, classifier_name: str) -> None:
    part, head, mask_head = build("part", part_name), box_head(classifier_name), MaskPredictor()
    value = total(run_part(part, head, mask_head, box_batch(head, BATCHES["mixed"])))
    value.backward()
    assert value.isfinite()


@every_part
def test_part_has_no_state_with_gradient(part_name: str) -> None:
    part, head, mask_head = build("part", part_name), box_head(), MaskPredictor()
    run_part(part, head, mask_head, box_batch(head, BATCHES["mixed"]))
    assert not any(value.requires_grad for value in part.buffers())


@every_part
def test_part_resumes_exactly(part_name: str) -> None:
    head, mask_head = box_head(), MaskPredictor()
    whole, first, second = (build("part", part_name) for _ in range(3))
    for step in range(2):
        for part in (whole, first):
            run_part(part, head, mask_head, box_batch(head, BATCHES["mixed"], step))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    found = [run_part(part, head, mask_head, box_batch(head, BATCHES["mixed"], 2)) for part in (whole, second)]
    assert torch.equal(total(found[0]), total(found[1]))
    same_state(whole.state_dict(), second.state_dict())


@every_part
def test_part_in_half_precision(part_name: str) -> None:
    head, mask_head, found = box_head(), MaskPredictor(), []
    for half in (False, True):
        part = build("part", part_name)
        with torch.autocast(cases.DEVICE.type, dtype=torch.bfloat16, enabled=half):
            found.append(total(run_part(part, head, mask_head, box_batch(head, BATCHES["mixed"]))).float())
        for name, value in part.state_dict().items():
            assert value.dtype not in (torch.float16, torch.bfloat16), name
    torch.testing.assert_close(found[0], found[1], rtol=3e-2, atol=1e-4)


def _rank_parts(rank: int) -> dict[str, dict[str, Tensor]]:
    """State of every part after batches of which each process has one half."""
    states = {}
    for name in names("part"):
        part, head, mask_head = build("part", name), box_head(), MaskPredictor()
        rows = slice(5) if rank == 0 else slice(5, None)
        for step in range(2):
            run_part(part, head, mask_head, box_batch(head, BATCHES["mixed"], step, rows))
        states[name] = part.state_dict()
    return states


def test_parts_on_two_processes_equal_one(tmp_path: Path) -> None:
    first, second = run_pair(tmp_path, _rank_parts)
    for name in names("part"):
        joint, head, mask_head = build("part", name), box_head(), MaskPredictor()
        for step in range(2):
            run_part(joint, head, mask_head, box_batch(head, BATCHES["mixed"], step))
        same_state(first[name], second[name])
        same_state(first[name], joint.state_dict(), rtol=1e-5, atol=1e-9)


# ---- mask heads


def mask_head(name: str) -> Any:
    """Return a small mask head with its weights initialised."""
    head = build(
        "mask",
        name,
        num_convs=1,
        in_channels=CHANNELS,
        conv_out_channels=CHANNELS,
        roi_feat_size=ROI,
        num_classes=K,
        loss_mask={"type": "CrossEntropyLoss", "use_mask": True, "loss_weight": 1.0},
    )
    head.init_weights()
    return head


def mask_logits(head: Any, feats: Tensor, labels: Tensor) -> Tensor:
    """Call a mask head as the RoI head does."""
    if not getattr(head, "needs_class_weight", False):
        return head(feats)
    rows = torch.randn(K + 1, WIDTH, generator=torch.Generator().manual_seed(0)).to(cases.DEVICE)
    return head(feats, class_weight=rows, labels=labels)


@every_mask_head
@pytest.mark.parametrize("count", [0, 3])
def test_mask_head_shapes_and_gradients(mask_name: str, count: int) -> None:
    head, labels = mask_head(mask_name), torch.tensor([0, 5, 0], device=cases.DEVICE)[:count]
    found = mask_logits(head, pooled(count), labels)
    assert found.shape == (count, 1 if head.class_agnostic else K, 2 * ROI, 2 * ROI)
    found.square().sum().backward()
    finite_gradients(head)


@every_mask_head
def test_mask_head_in_half_precision_and_after_loading(mask_name: str) -> None:
    head, other, labels = mask_head(mask_name), mask_head(mask_name), torch.tensor([0, 5, 0], device=cases.DEVICE)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    other.load_state_dict(head.state_dict())
    expected = mask_logits(head, pooled(3), labels)
    assert torch.equal(mask_logits(other, pooled(3), labels), expected)
    with torch.autocast(cases.DEVICE.type, dtype=torch.bfloat16):
        half = mask_logits(head, pooled(3), labels).float()
    torch.testing.assert_close(half, expected, rtol=3e-2, atol=0.03 * expected.abs().max().item())


# ---- calibrators


def calibrator_on_detector(name: str) -> tuple[Any, Any, Tensor]:
    """Return a calibrator initialised from a box head, the head, and rows for the calibrator."""
    head, calibrator = box_head(), build("calibrator", name)
    calibrator.initialise(head)
    feats = pooled(len(BATCHES["mixed"]))
    with torch.no_grad():
        if calibrator.needs_features:
            return calibrator, head, read_features(head, feats, calibrator.reads)
        return calibrator, head, head(feats)[0]


@every_calibrator
def test_calibrator_trains_and_scores(calibrator_name: str) -> None:
    calibrator, _, rows = calibrator_on_detector(calibrator_name)
    labels = torch.tensor(BATCHES["mixed"], device=cases.DEVICE)
    for count in (len(rows), 0):
        z = calibrator(rows[:count])
        scores = calibrator.scores(z)
        assert scores.shape == (count, K + 1) and ((scores >= 0) & (scores <= 1)).all()
        if calibrator.needs_features:
            calibrator.observe(rows[:count], labels[:count])
            loss = calibrator.loss(z, labels[:count])
            assert loss.shape == () and loss.isfinite()
            if loss.requires_grad:
                loss.backward()
    finite_gradients(calibrator)


@every_calibrator
def test_calibrator_state_round_trip(calibrator_name: str) -> None:
    calibrator, _, rows = calibrator_on_detector(calibrator_name)
    other, _, _ = calibrator_on_detector(calibrator_name)
    with torch.no_grad():
        for parameter in calibrator.parameters():
            parameter.add_(torch.randn_like(parameter))
    other.load_state_dict(calibrator.state_dict())
    assert torch.equal(calibrator.scores(calibrator(rows)), other.scores(other(rows)))


def merged_head(calibrator: Any, head: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config and state of the detector with the calibrator in it."""
    model = {"roi_head": {"type": "ltpipe.LTRoIHead", "bbox_head": box_head_config()}}
    state = {f"roi_head.bbox_head.{key}": value for key, value in head.state_dict().items()}
    before = copy.deepcopy((model, state))
    merged, weights = calibrator.merge(model, state)
    assert model == before[0]
    same_state(state, before[1])
    return merged, weights


def parts_of(model: dict[str, Any], state: dict[str, Tensor]) -> dict[str, Any]:
    """Return the box head, and the second classifier if there is one, of a merged detector."""
    found = {}
    for part in ("bbox_head", "calibrator"):
        if part in model["roi_head"]:
            prefix = f"roi_head.{part}."
            found[part] = build_config(model["roi_head"][part])
            found[part].load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    return found


def observed(name: str) -> tuple[Any, Any, Tensor]:
    """Return a calibrator that has seen some rows and whose weights have moved, its head, and its rows."""
    calibrator, head, rows = calibrator_on_detector(name)
    calibrator.observe(rows, torch.tensor(BATCHES["mixed"], device=cases.DEVICE))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in filter(lambda one: one.requires_grad, calibrator.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(cases.DEVICE) * 0.3)
    return calibrator.eval(), head, rows


def detector_scores(parts: dict[str, Any], feats: Tensor) -> Tensor:
    """Return the scores of a detector, or of its second classifier."""
    with torch.no_grad():
        if "calibrator" in parts:
            return parts["calibrator"].calibrated_scores(feats)
        return probabilities(parts["bbox_head"], parts["bbox_head"](feats)[0])


@every_calibrator
def test_merged_detector_scores_as_the_calibrator(calibrator_name: str) -> None:
    calibrator, head, rows = observed(calibrator_name)
    expected = calibrator.scores(calibrator(rows)).detach()
    found = detector_scores(parts_of(*merged_head(calibrator, head)), pooled(len(rows)))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@every_calibrator
def test_merged_detector_in_another_class_order(calibrator_name: str) -> None:
    calibrator, head, rows = observed(calibrator_name)
    model, state = merged_head(calibrator, head)
    order = [4, 0, 5, 2, 1, 3]
    found = detector_scores(parts_of(model, state), pooled(len(rows)))
    parts = {f"roi_head.{part}": module for part, module in parts_of(model, state).items()}
    moved = reorder_classes(state, parts, K, order)
    again = detector_scores(parts_of(reorder_config(model, order), moved), pooled(len(rows)))
    torch.testing.assert_close(again, found[:, [*order, K]], rtol=1e-5, atol=1e-7)


# What mmdet has no words for; all others must export to it.
NOT_PLAIN = {"acsl", "bags", "disalign", "lws", "simcal"}


@every_calibrator
def test_merged_detector_in_mmdets_own_words(calibrator_name: str) -> None:
    calibrator, head, rows = observed(calibrator_name)
    model, state = merged_head(calibrator, head)
    plain, weights = plain_detector(model, state)
    if calibrator_name in NOT_PLAIN:
        assert set(foreign_types(plain))
        return
    assert not set(foreign_types(plain))
    found = detector_scores(parts_of(plain, weights), pooled(len(rows)))
    torch.testing.assert_close(found, detector_scores(parts_of(model, state), pooled(len(rows))), rtol=1e-4, atol=1e-6)


@every_calibrator
def test_merged_detector_in_half_precision(calibrator_name: str) -> None:
    calibrator, head, rows = observed(calibrator_name)
    parts = parts_of(*merged_head(calibrator, head))
    expected = detector_scores(parts, pooled(len(rows)))
    with torch.autocast(cases.DEVICE.type, dtype=torch.bfloat16):
        found = detector_scores(parts, pooled(len(rows))).float()
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.02)
    assert detector_scores(parts, pooled(0)).shape == (0, K + 1)
    for key, value in {**parts["bbox_head"].state_dict(), **calibrator.state_dict()}.items():
        assert value.isfinite().all(), f"{key}: class {UNSEEN} has no training data"
