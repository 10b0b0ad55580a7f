"""Cosine classifier: values, invariances, half precision, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from mmdet.models.roi_heads import Shared2FCBBoxHead
from mmengine.registry import DefaultScope

from ltpipe.methods.cosine.classifier import CosineLinear, cosine_logits


def test_values_equal_the_formula_written_out() -> None:
    x, w = torch.randn(4, 6), torch.randn(3, 6)
    z = cosine_logits(x, w, torch.tensor([7.0]))
    for n in range(4):
        for c in range(3):
            dot = sum(float(x[n, i]) * float(w[c, i]) for i in range(6))
            norms = math.sqrt(float((x[n] ** 2).sum())) * math.sqrt(float((w[c] ** 2).sum()))
            assert z[n, c].item() == pytest.approx(7 * dot / norms, abs=1e-5)


def test_scaling_a_feature_or_a_row_changes_nothing_and_the_scale_bounds_the_logits() -> None:
    layer, x = CosineLinear(8, 5, scale=12.0), torch.randn(6, 8)
    z = layer(x)
    factors = torch.rand(6, 1) * 100 + 0.01
    torch.testing.assert_close(layer(x * factors), z, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        layer.weight[2] *= 37
    torch.testing.assert_close(layer(x), z, rtol=1e-5, atol=1e-5)
    assert z.abs().max() <= 12 + 1e-4


def test_zero_features_and_rows_give_zero() -> None:
    layer = CosineLinear(4, 3)
    with torch.no_grad():
        layer.weight[1] = 0
    z = layer(torch.cat([torch.zeros(1, 4), torch.randn(2, 4)]))
    assert (z[0] == 0).all() and (z[:, 1] == 0).all() and z.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_survives_zero_vectors_and_tiny_features(dtype: torch.dtype) -> None:
    layer, x = CosineLinear(16, 5), torch.randn(7, 16)
    x[0], x[1] = 0, x[1] * 1e-4
    wide = layer(x)
    narrow = layer.to(dtype)(x.to(dtype))
    assert narrow.isfinite().all() and (narrow[0] == 0).all()
    torch.testing.assert_close(narrow.float(), wide, rtol=0.05, atol=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert CosineLinear(16, 5)(x).isfinite().all()


def test_gradients() -> None:
    x, w = torch.randn(3, 5, dtype=torch.double, requires_grad=True), torch.randn(4, 5, dtype=torch.double)
    scale = torch.tensor([3.0], dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(cosine_logits, (x, w.requires_grad_(), scale))


def test_the_similarities_leave_the_scale_out() -> None:
    layer, x = CosineLinear(4, 3, scale=5.0), torch.randn(2, 4)
    torch.testing.assert_close(layer.similarities(x) * 5, layer(x))
    layer.similarities(x).sum().backward()
    assert layer.scale.grad is None and layer.weight.grad is not None


def test_no_rois() -> None:
    z = CosineLinear(4, 3)(torch.zeros(0, 4, requires_grad=True))
    assert z.shape == (0, 3)
    z.sum().backward()


def test_mmdets_head_builds_and_initialises_it() -> None:
    with DefaultScope.overwrite_default_scope("mmdet"):
        head = Shared2FCBBoxHead(
            in_channels=2,
            roi_feat_size=2,
            fc_out_channels=300,
            num_classes=99,
            cls_predictor_cfg=dict(type="ltpipe.CosineLinear", scale=15.0),
        )
    head.init_weights()
    assert isinstance(head.fc_cls, CosineLinear) and head.fc_cls.weight.shape == (100, 300)
    assert head.fc_cls.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert head.fc_cls.scale.tolist() == [15.0] and head.fc_cls.rectify_input is False
