"""The FASA part: order of an iteration, draws, gradients, state."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ltpipe.methods  # noqa: F401  (registers everything)
from ltpipe.errors import UserError
from ltpipe.methods.eqlv2.loss import EQLv2Loss
from ltpipe.methods.fasa.counters import PerClassLossMeter
from ltpipe.methods.fasa.hook import measured
from ltpipe.methods.fasa.part import FASA
from ltpipe.methods.head_parts import BoxBatch, HeadPart
from ltpipe.methods.iif.loss import IIFLoss
from ltpipe.methods.normed.layers import NormedLinear
from ltpipe.methods.softmax.baseline import SoftmaxLoss
from ltpipe.registry import MODELS

C, D = 5, 8
IMAGES, INSTANCES = [900, 200, 50, 8, 1], [2000, 300, 60, 9, 1]


def part(**options: Any) -> FASA:
    """A part in training at epoch 1, as if its hook were there."""
    made = FASA(C, IMAGES, INSTANCES, **options)
    made.hooked, made.epoch = True, 1
    return made


def head(**options: Any) -> SimpleNamespace:
    """A classifier and its loss."""
    torch.manual_seed(5)
    return SimpleNamespace(**{"fc_cls": nn.Linear(D, C + 1), "loss_cls": SoftmaxLoss(), **options})


def batch(heads: SimpleNamespace, n: int = 24, seed: int = 0, labels: Tensor | None = None) -> BoxBatch:
    """A batch with every class and background."""
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(n, D, generator=random).relu().requires_grad_()
    y = torch.arange(n) % (C + 1) if labels is None else labels
    logits = heads.fc_cls(features)
    loss = heads.loss_cls(logits, y, torch.ones(n), avg_factor=float(max(n, 1)))
    return BoxBatch(features, logits, y, torch.ones(n), features, torch.zeros(n, 5), {"loss_cls": loss})


def certain(fasa: FASA, probability: float = 1.0) -> FASA:
    fasa.prob.fill_(probability)
    return fasa


def test_the_loss_is_called_without_a_draw_too() -> None:
    """Losses that reduce over processes wait for each other: no process may leave a call out."""
    calls = []

    class Counting(SoftmaxLoss):
        def forward(self, cls_score: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            calls.append(len(cls_score))
            return super().forward(cls_score, *args, **kwargs)

    h = head(loss_cls=Counting())
    b = batch(h)
    calls.clear()
    assert certain(part(), 0.0).box_losses(h, b)["loss_fasa"] == 0 and calls == [0]


def test_before_the_start_epoch_the_loss_is_the_plain_one() -> None:
    h, fasa = head(), certain(part())
    fasa.epoch = 0
    b = batch(h)
    assert fasa.box_losses(h, b)["loss_fasa"] == 0
    assert fasa.seen.all() and fasa.mean.shape == (C, D) and int(fasa.drawn) == 0


def test_no_draw_without_probability_and_all_classes_with_certainty() -> None:
    h = head()
    none, every = certain(part(), 0.0), certain(part())
    assert none.box_losses(h, batch(h))["loss_fasa"] == 0 and int(none.drawn) == 0
    every.box_losses(h, batch(h))
    assert int(every.drawn) == C and every.draw()[1].tolist() == list(range(C))


def test_loss_is_that_of_the_draws_from_the_updated_statistics() -> None:
    h, fasa, twin = head(), certain(part(loss_aug_weight=0.3)), certain(part())
    b = batch(h)
    got = fasa.box_losses(h, b)["loss_fasa"]
    twin.update(b.features, b.labels)
    features, labels = twin.draw()
    expected = 0.3 * torch.nn.functional.cross_entropy(h.fc_cls(features), labels)
    torch.testing.assert_close(got, expected)


def test_gradients_reach_the_classifier_only() -> None:
    h, fasa = head(), certain(part())
    b = batch(h)
    fasa.box_losses(h, b)["loss_fasa"].backward()
    assert h.fc_cls.weight.grad.any() and h.fc_cls.bias.grad.any()
    assert b.features.grad is None or not b.features.grad.any()
    assert not any(buffer.requires_grad for buffer in fasa.buffers()) and not list(fasa.parameters())


def gradient(weight: float) -> tuple[float, Tensor]:
    h, fasa = head(), certain(part(loss_aug_weight=weight))
    b = batch(h)
    extra = fasa.box_losses(h, b)["loss_fasa"]
    (b.losses["loss_cls"] + extra).backward()
    return float(extra.detach()), h.fc_cls.weight.grad


def test_lambda_scales_linearly() -> None:
    (zero, base), (one, with_one), (two, with_two) = (gradient(w) for w in (0.0, 0.1, 0.2))
    h = head()
    batch(h).losses["loss_cls"].backward()
    assert zero == 0 and torch.equal(base, h.fc_cls.weight.grad)
    assert two == pytest.approx(2 * one)
    torch.testing.assert_close(with_two - base, 2 * (with_one - base))


def test_unseen_classes_and_background_are_never_drawn() -> None:
    h, fasa = head(), certain(part())
    labels = torch.tensor([0, 0, 3, C, C, 3])
    for seed in range(20):
        fasa.box_losses(h, batch(h, 6, seed, labels))
        assert fasa.draw()[1].tolist() == [0, 3]


def test_frequencies_and_moments_of_the_draws() -> None:
    fasa = part()
    mean, var = torch.randn(C, D), torch.rand(C, D) + 0.1
    prob = torch.tensor([0.9, 0.5, 0.1, 0.02, 1.0])
    state = {"mean": mean, "var": var, "seen": torch.ones(C, dtype=torch.bool), "prob": prob}
    fasa.load_state_dict({**fasa.state_dict(), **state})
    rows: list[list[Tensor]] = [[] for _ in range(C)]
    calls = 4000
    for _ in range(calls):
        features, labels = fasa.draw()
        assert labels.tolist() == sorted(set(labels.tolist()))
        for x, c in zip(features, labels.tolist(), strict=True):
            rows[c].append(x)
        fasa.iteration += 1
    for c, drawn in enumerate(rows):
        p, x = float(prob[c]), torch.stack(drawn)
        assert abs(len(drawn) - calls * p) <= 5 * (calls * p * (1 - p)) ** 0.5
        assert ((x.mean(0) - mean[c]).abs() <= 5 * (var[c] / len(x)).sqrt()).all()
        assert ((x.var(0) - var[c]).abs() <= 6 * var[c] * (2 / (len(x) - 1)) ** 0.5).all()


def test_draws_depend_on_seed_and_iteration_only() -> None:
    h = head()
    parts = [certain(part(seed=s)) for s in (0, 0, 1)]
    for fasa in parts:
        fasa.update(batch(h).features, batch(h).labels)
    torch.manual_seed(99)
    first = parts[0].draw()[0]
    torch.manual_seed(7)
    assert torch.equal(first, parts[1].draw()[0]) and not torch.equal(first, parts[2].draw()[0])
    parts[1].iteration += 1
    assert not torch.equal(first, parts[1].draw()[0])


def test_draws_leave_the_global_generator_alone() -> None:
    h, fasa = head(), certain(part())
    state = torch.get_rng_state()
    fasa.box_losses(h, batch(h, seed=1))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("labels", [torch.zeros(0, dtype=torch.int64), torch.full((4,), C)])
def test_no_rois_and_no_foreground(labels: Tensor) -> None:
    h, fasa = head(), certain(part())
    b = batch(h, len(labels), labels=labels)
    loss = fasa.box_losses(h, b)["loss_fasa"]
    loss.backward()
    assert loss == 0 and not fasa.seen.any() and h.fc_cls.weight.grad is not None
    fasa.box_losses(h, batch(h))
    extra = fasa.box_losses(h, batch(h, len(labels), labels=labels))["loss_fasa"]
    assert extra > 0 and fasa.seen.all()


def test_evaluation_mode_does_nothing() -> None:
    h, fasa = head(), certain(part())
    fasa.box_losses(h, batch(h))
    before = {k: v.clone() for k, v in fasa.state_dict().items()}
    fasa.eval()
    assert fasa.box_losses(h, batch(h, seed=2)) == {}
    assert all(torch.equal(before[k], v) for k, v in fasa.state_dict().items())


def test_state_round_trip_continues_exactly() -> None:
    h = head()
    straight, first = part(), part()
    for seed in range(3):
        straight.box_losses(h, batch(h, seed=seed))
        first.box_losses(h, batch(h, seed=seed))
    resumed = part()
    resumed.load_state_dict(first.state_dict(), strict=True)
    for fasa in (straight, resumed):
        fasa.adapt(torch.arange(C + 1.0) + 1, torch.ones(C + 1))
        fasa.adapt(torch.ones(C + 1), torch.ones(C + 1))
        certain(fasa, 0.5)
    for seed in range(3, 6):
        a, b = (fasa.box_losses(h, batch(h, seed=seed))["loss_fasa"] for fasa in (straight, resumed))
        assert torch.equal(a, b)
    for key, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_buffers_keep_their_identity_and_a_plain_checkpoint_loads() -> None:
    h, fasa = head(), part()
    known = {name: id(buffer) for name, buffer in fasa.named_buffers()}
    fasa.box_losses(h, batch(h))
    assert known == {name: id(buffer) for name, buffer in fasa.named_buffers()}
    missing = part().load_state_dict({}, strict=False).missing_keys
    assert sorted(missing) == ["drawn", "iteration", "mean", "prev_loss", "prob", "seen", "var"]


def test_another_feature_width_is_refused() -> None:
    fasa = part()
    fasa.update(torch.zeros(2, D), torch.tensor([0, 1]))
    with pytest.raises(UserError, match="another classifier"):
        fasa.update(torch.zeros(2, D + 1), torch.tensor([0, 1]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mixed_precision(dtype: torch.dtype) -> None:
    h, fasa, exact = head(), certain(part()), certain(part())
    with torch.autocast("cpu", dtype=dtype):
        b = batch(h)
        b.features = b.features.to(dtype)
        loss = fasa.box_losses(h, b)["loss_fasa"]
    loss.backward()
    expected = exact.box_losses(h, batch(h))["loss_fasa"]
    torch.testing.assert_close(loss.float(), expected, rtol=0.05, atol=0.01)
    assert fasa.mean.dtype == fasa.var.dtype == torch.float32 and h.fc_cls.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    "loss",
    [
        SoftmaxLoss(),
        IIFLoss(C, IMAGES, INSTANCES, num_images=2000),
        MODELS.build({"type": "mmdet.SeesawLoss", "num_classes": C}),
        EQLv2Loss(C),
    ],
    ids=["softmax", "iif", "seesaw", "eqlv2"],
)
@pytest.mark.parametrize("layer", [nn.Linear, NormedLinear])
def test_works_with_other_losses_and_classifiers(loss: nn.Module, layer: type[nn.Module]) -> None:
    channels = loss.get_cls_channels(C) if hasattr(loss, "get_cls_channels") else C + 1
    h, fasa = head(fc_cls=layer(D, channels), loss_cls=loss), certain(part())
    logits = h.fc_cls(torch.rand(12, D))
    y = torch.arange(12) % (C + 1)
    b = BoxBatch(torch.rand(12, D), logits, y, torch.ones(12), logits, torch.zeros(12, 5))
    extra = fasa.box_losses(h, b)["loss_fasa"]
    extra.backward()
    assert extra.shape == () and extra > 0 and h.fc_cls.weight.grad.isfinite().all()
    assert certain(fasa, 0.0).box_losses(h, b)["loss_fasa"] == 0
    meter = PerClassLossMeter(C)
    assert meter.box_losses(h, b) == {}
    assert meter.counts.sum() == 12 and meter.totals.isfinite().all() and meter.totals.sum() > 0


def test_meters_take_the_place_of_parts_until_an_error() -> None:
    first, second, other = certain(part()), certain(part()), HeadPart()
    model = nn.ModuleList([nn.Module(), nn.Module(), nn.ModuleList([first, second, other])])
    model[0].parts, model[1].parts = [other, first], [second]
    h = head()
    b = batch(h, seed=3)
    with pytest.raises(RuntimeError, match="stop"), measured(model, [second, first]) as meters:
        assert model[0].parts == [meters[1]] and model[1].parts == [meters[0]]
        assert meters[1].box_losses(h, b) == meters[1].mask_losses(h, None) == {}
        raise RuntimeError("stop")
    assert model[0].parts == [other, first] and model[1].parts == [second]
    torch.testing.assert_close(meters[1].totals.sum().float() / len(b.labels), b.losses["loss_cls"].detach())
    assert meters[1].counts.sum() == len(b.labels) and meters[0].counts.sum() == 0


def seen_part(**options: Any) -> FASA:
    """A part whose classes form two groups: {0, 1, 2} and {3, 4}."""
    fasa = part(**options)
    mean = torch.tensor([[0.0], [0.1], [0.2], [9.0], [9.1]]).repeat(1, D)
    fasa.load_state_dict({**fasa.state_dict(), "mean": mean, "var": mean, "seen": torch.ones(C, dtype=torch.bool)})
    return fasa


def test_first_pass_sets_the_reference_then_groups_move_together() -> None:
    fasa = seen_part()
    start = fasa.prob.clone()
    counts = torch.tensor([100.0, 10, 5, 3, 2, 880])
    result = fasa.adapt(torch.tensor([50.0, 5, 2, 2, 1, 80]), counts)
    assert torch.equal(fasa.prob, start) and (result.raised, result.lowered) == (0, 0) and result.num_groups == 2
    torch.testing.assert_close(fasa.prev_loss, torch.tensor([50.0, 5, 2, 2, 1, 80]) / 1000)
    result = fasa.adapt(torch.tensor([60.0, 4, 1, 1, 1, 8]), counts)
    torch.testing.assert_close(fasa.prob, start * torch.tensor([0.9, 0.9, 0.9, 1.1, 1.1]))
    assert (result.raised, result.lowered) == (1, 1)
    again = fasa.prob.clone()
    fasa.adapt(torch.tensor([60.0, 4, 1, 1, 1, 9]), counts)
    assert torch.equal(fasa.prob, again)


def test_a_pass_without_rois_or_with_overflow_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    fasa = seen_part()
    fasa.adapt(torch.ones(C + 1), torch.ones(C + 1))
    before = {k: v.clone() for k, v in fasa.state_dict().items()}
    for totals, counts in (
        (torch.zeros(C + 1), torch.zeros(C + 1)),
        (torch.full((C + 1,), torch.nan), torch.ones(C + 1)),
    ):
        with caplog.at_level(logging.WARNING):
            result = fasa.adapt(totals, counts)
        assert "adaptation skipped" in caplog.text and result.num_groups == 0
        assert all(torch.equal(before[k], v) for k, v in fasa.state_dict().items())


def test_presets_and_overrides() -> None:
    default, repro = part(), part(preset="repro")
    assert (default.similarity, default.sync, default.adapt_split) == ("neg_sq_dist", "iter", "holdout")
    assert (repro.similarity, repro.sync, repro.adapt_split) == ("sq_dist", "none", "val")
    assert repro.normaliser == "class_sum" and part(preset="repro", adapt_split="holdout").adapt_split == "holdout"


def test_hooks_take_the_images_of_the_preset() -> None:
    made = FASA.hooks({"preset": "repro"}, lambda split: {"images": split}, 7)
    assert made == [{"type": "ltpipe.FASAAdaptationHook", "dataloader": {"images": "val"}, "iterations_per_epoch": 7}]
    assert FASA.hooks({}, lambda split: {"images": split}, None)[0]["dataloader"] == {"images": "holdout"}
    assert FASA.hooks({"adapt_split": None}, lambda split: {"images": split}, 1)[0]["dataloader"] == {
        "images": "holdout"
    }


@pytest.mark.parametrize(
    "options, match",
    [
        ({"preset": "paper"}, "unknown FASA preset"),
        ({"decay_ratio": 0.0}, "out of range"),
        ({"dynamic_down": -0.1}, "out of range"),
        ({"interval": 0}, "out of range"),
    ],
)
def test_bad_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        part(**options)
    with pytest.raises(UserError, match="one image and one instance count"):
        FASA(C, IMAGES, INSTANCES[:-1])


def test_summary_by_frequency() -> None:
    fasa = part()
    summary = fasa.summary()
    assert summary["fasa/num_virtual"] == 0
    groups = {"r": [3, 4], "c": [2], "f": [0, 1]}
    for name, members in groups.items():
        assert summary[f"fasa/p_mean_{name}"] == pytest.approx(float(np.mean(fasa.prob[members].numpy())))


def test_groups_of_the_data_set_go_before_counts() -> None:
    letters = "rfcfr"
    assert {name: rows.tolist() for name, rows in part(class_frequency=list(letters)).frequency.items()} == {
        name: [i for i, letter in enumerate(letters) if letter == name] for name in "rcf"
    }


def test_missing_hook_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    h, fasa = head(), FASA(C, IMAGES, INSTANCES)
    with caplog.at_level(logging.WARNING):
        fasa.box_losses(h, batch(h))
        fasa.box_losses(h, batch(h))
    assert caplog.text.count("without FASAAdaptationHook") == 1
