"""IIF loss, scores and post-hoc calibrator."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from mmdet.models.losses import CrossEntropyLoss
from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead
from torch import Tensor

import ltpipe.methods  # noqa: F401  (registers everything)
from ltpipe.errors import UserError
from ltpipe.methods.iif.calibrator import IIFCalibrator
from ltpipe.methods.iif.loss import IIFLoss, iif_scores
from ltpipe.registry import MODELS
from tests.published.iif_csv import table_from_counts, write_table

IMAGES, INSTANCES, NUM_IMAGES = [300, 40, 9, 2], [700, 60, 9, 3], 1000
K = len(IMAGES)


def make(**options: object) -> IIFLoss:
    return IIFLoss(K, IMAGES, INSTANCES, **{"num_images": NUM_IMAGES, **options})


def batch(n: int = 12, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels with every class and background, label weights with zeros."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, K + 1, generator=random) * 2
    labels = torch.arange(n) % (K + 1)
    return logits, labels, (torch.rand(n, generator=random) > 0.3).float()


@pytest.mark.parametrize("count", ["image", "instance"])
@pytest.mark.parametrize("variant", ["raw", "smooth", "rel", "normit", "gombit", "base2", "base10"])
def test_value_gradient_and_scores(variant: str, count: str) -> None:
    loss = make(variant=variant, count=count)
    w = loss.weights
    assert w.shape == (K + 1,) and w.dtype == torch.float32 and w[-1] == 1
    logits, labels, weights = batch()
    z = logits.clone().requires_grad_()
    value = loss(z, labels, weights, avg_factor=float(weights.sum()))
    value.backward()

    p = torch.stack([torch.softmax(row * w, 0) for row in logits])
    rows = torch.stack([-torch.log(p[i, y]) for i, y in enumerate(labels)])
    torch.testing.assert_close(value.detach(), (weights * rows).sum() / weights.sum())
    expected = w * (p - F.one_hot(labels, K + 1)) * weights[:, None] / weights.sum()
    torch.testing.assert_close(z.grad, expected)
    torch.testing.assert_close(loss.get_activation(logits), p)
    torch.testing.assert_close(loss(logits, labels, reduction_override="none"), rows)
    torch.testing.assert_close(-loss.get_activation(logits).gather(1, labels[:, None])[:, 0].log(), rows)


def test_weights_of_one_are_cross_entropy() -> None:
    loss, plain = make(), CrossEntropyLoss()
    loss.weights.fill_(1)
    logits, labels, weights = batch()
    for reduction, avg_factor in (("mean", 7.0), ("mean", None), ("none", None), ("sum", None)):
        a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        ours = loss(a, labels, weights, avg_factor=avg_factor, reduction_override=reduction)
        theirs = plain(b, labels, weights, avg_factor=avg_factor, reduction_override=reduction)
        ours.sum().backward()
        theirs.sum().backward()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0)
    with pytest.raises(ValueError, match="sum"):
        loss(logits, labels, weights, avg_factor=2.0, reduction_override="sum")


def test_rows_without_weight_have_no_influence() -> None:
    loss = make()
    logits, labels, weights = batch()
    changed = torch.where(weights[:, None] > 0, logits, logits * 50)
    assert torch.equal(loss(logits, labels, weights, avg_factor=3.0), loss(changed, labels, weights, avg_factor=3.0))
    assert loss(logits, labels, torch.zeros(len(labels)), avg_factor=1.0) == 0


@pytest.mark.parametrize("avg_factor", [None, 1.0])
def test_no_rois(avg_factor: float | None) -> None:
    loss = make()
    logits = torch.zeros(0, K + 1, requires_grad=True)
    labels = torch.zeros(0, dtype=torch.int64)
    value = loss(logits, labels, torch.zeros(0), avg_factor=avg_factor)
    value.backward()
    assert value == 0 and logits.grad is not None
    assert loss(logits, labels, reduction_override="none").shape == (0,)
    assert loss.get_activation(logits).shape == (0, K + 1)
    assert loss.get_accuracy(logits, labels)["acc_classes"] == 0


def test_accuracy_is_that_of_weighted_logits() -> None:
    loss = make()
    logits = torch.zeros(1, K + 1)
    logits[0, 0], logits[0, 3] = 2.0, 1.0  # the rare class wins once weighted
    assert logits.argmax() == 0 and (logits * loss.weights).argmax() == 3
    assert loss.get_accuracy(logits, torch.tensor([3]))["acc_classes"] == 100
    assert loss.get_accuracy(logits, torch.tensor([0]))["acc_classes"] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_multiplies_in_float32(dtype: torch.dtype) -> None:
    loss = make()
    logits, labels, weights = batch()
    half = logits.to(dtype)
    expected = loss(half.float(), labels, weights, avg_factor=6.0)
    with torch.autocast("cpu", dtype=dtype):
        got = loss(half.requires_grad_(), labels, weights, avg_factor=6.0)
        scores = loss.get_activation(half)
    got.backward()
    assert got.dtype == scores.dtype == torch.float32 and half.grad.isfinite().all()
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_no_keys_in_the_state_dict_and_moves_with_the_module() -> None:
    head = Shared2FCBBoxHead(
        in_channels=2,
        fc_out_channels=8,
        roi_feat_size=2,
        num_classes=K,
        loss_cls={"type": "ltpipe.IIFLoss", "num_classes": K, "image_counts": IMAGES, "instance_counts": INSTANCES,
                  "num_images": NUM_IMAGES},
    )  # fmt: skip
    plain = Shared2FCBBoxHead(in_channels=2, fc_out_channels=8, roi_feat_size=2, num_classes=K)
    head.load_state_dict(plain.state_dict(), strict=True)
    assert head.fc_cls.out_features == K + 1 and head.custom_activation and head.custom_accuracy
    assert head.to("meta").loss_cls.weights.device.type == "meta"


def test_head_with_other_classes_is_refused() -> None:
    with pytest.raises(UserError, match="another number of classes"):
        make().get_cls_channels(K + 1)


def test_missing_facts_are_refused() -> None:
    with pytest.raises(UserError, match="num_images"):
        IIFLoss(K, IMAGES, INSTANCES)
    assert torch.isfinite(IIFLoss(K, IMAGES, INSTANCES, count="instance").weights).all()
    with pytest.raises(UserError, match="one image and one instance count"):
        IIFLoss(K + 1, IMAGES, INSTANCES, num_images=NUM_IMAGES)
    with pytest.raises(UserError, match="300 of 200"):
        IIFLoss(K, IMAGES, INSTANCES, num_images=200)


def test_aliases_and_options() -> None:
    torch.testing.assert_close(make(variant="prob_obj").weights, make(variant="rel", count="instance").weights)
    assert make(bg_weight=2.0).weights[-1] == 2
    assert (make(min_weight=4.0).weights[:-1] >= 4).all()
    assert "variant=raw, count=image, weights=1.2" in repr(make())


def test_range_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="ltpipe"):
        make()
    assert "weights 1.2 / 3.96 / 6.21" in caplog.text


@pytest.mark.parametrize("count", ["image", "instance"])
def test_degenerate_counts_stay_finite(count: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for variant in ("raw", "smooth", "rel", "normit", "gombit", "base2", "base10"):
            loss = IIFLoss(2, [0, 5], [0, 8], num_images=5, variant=variant, count=count)
            value = loss(torch.randn(3, 3), torch.tensor([0, 1, 2]))
            assert loss.weights.isfinite().all() and value.isfinite()


def test_weights_from_a_table(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    write_table(path, table_from_counts(IMAGES, INSTANCES, NUM_IMAGES), "lvis")
    torch.testing.assert_close(make(table=str(path), variant="base10_obj").weights, make(variant="base10_obj").weights)
    torch.testing.assert_close(IIFLoss(K, IMAGES, INSTANCES, table=str(path)).weights, make().weights)
    with pytest.raises(UserError, match="image count"):
        IIFLoss(K, IMAGES[::-1], INSTANCES, table=str(path))


def calibrator(**options: object) -> IIFCalibrator:
    return IIFCalibrator(K, IMAGES, INSTANCES, **{"num_images": NUM_IMAGES, **options})


def test_post_hoc_scores_are_those_of_the_trained_mode() -> None:
    logits = batch()[0]
    got = calibrator().scores(logits)
    torch.testing.assert_close(got, make().get_activation(logits), rtol=0, atol=0)
    torch.testing.assert_close(got, iif_scores(logits, make().weights), rtol=0, atol=0)
    torch.testing.assert_close(got.sum(1), torch.ones(len(got)))


def test_post_hoc_merge_changes_scores_only() -> None:
    box = {
        "type": "mmdet.Shared2FCBBoxHead",
        "in_channels": 2,
        "fc_out_channels": 8,
        "roi_feat_size": 2,
        "num_classes": K,
    }
    model = {"roi_head": {"bbox_head": dict(box)}}
    plain = MODELS.build(box)
    state = {f"roi_head.bbox_head.{k}": v for k, v in plain.state_dict().items()}
    ours = calibrator(variant="smooth")
    ours.initialise(plain)
    merged, kept = ours.merge(model, state)
    assert model == {"roi_head": {"bbox_head": box}} and kept.keys() == state.keys()
    assert all(kept[k] is state[k] for k in state)

    head = MODELS.build(merged["roi_head"]["bbox_head"])
    head.load_state_dict({k.removeprefix("roi_head.bbox_head."): v for k, v in kept.items()}, strict=True)
    x = torch.randn(5, 2, 2, 2)
    torch.testing.assert_close(head(x), plain(x))
    logits = head(x)[0]
    torch.testing.assert_close(head.loss_cls.get_activation(logits), ours.scores(logits), rtol=0, atol=0)
    assert not torch.allclose(ours.scores(logits), logits.softmax(-1))

    stages, _ = ours.merge({"roi_head": {"bbox_head": [dict(box), dict(box)]}}, state)
    assert [h["loss_cls"]["type"] for h in stages["roi_head"]["bbox_head"]] == ["ltpipe.IIFLoss"] * 2


def test_post_hoc_needs_softmax() -> None:
    for loss in (CrossEntropyLoss(use_sigmoid=True), make()):
        with pytest.raises(UserError, match="softmax"):
            calibrator().initialise(SimpleNamespace(loss_cls=loss))


def test_calibrator_holds_nothing_to_train_or_store() -> None:
    ours = calibrator()
    assert not ours.state_dict() and not list(ours.parameters()) and ours.needs_features is False
    x = batch()[0]
    assert ours(x) is x
