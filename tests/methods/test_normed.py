"""Normalised classifier and mask predictor."""

from __future__ import annotations

import pytest
import torch
from mmdet.models.layers.normed_predictor import NormedLinear as MMDetNormedLinear
from mmdet.models.roi_heads.mask_heads import FCNMaskHead

import ltpipe.methods  # noqa: F401  (registers everything)
from ltpipe.errors import UserError
from ltpipe.methods.normed.layers import NormedLinear, NormedMaskHead
from ltpipe.registry import MODELS


def randomise(layer: torch.nn.Module) -> None:
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)


@pytest.mark.parametrize("temperature, power, eps", [(20.0, 1.0, 1e-6), (8.0, 2.0, 1e-3), (5.0, 0.5, 1e-6)])
def test_classifier_is_mmdets(temperature: float, power: float, eps: float) -> None:
    ours = NormedLinear(16, 7, temperature=temperature, power=power, eps=eps)
    theirs = MMDetNormedLinear(16, 7, temperature=temperature, power=power, eps=eps)
    randomise(ours)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    a, b = (torch.randn(9, 16, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    for layer, x in ((ours, a), (theirs, b)):
        layer(x).square().sum().backward()
    torch.testing.assert_close(ours(a), theirs(b))
    torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


def test_naive_value() -> None:
    layer = NormedLinear(4, 2, temperature=8.0)
    randomise(layer)
    x = torch.randn(3, 4)
    with torch.no_grad():
        for n in range(3):
            for c, (row, bias) in enumerate(zip(layer.weight, layer.bias, strict=True)):
                cosine = float(x[n] / (x[n].norm() + 1e-6) @ (row / (row.norm() + 1e-6)))
                assert float(layer(x)[n, c]) == pytest.approx(8 * cosine + float(bias), abs=1e-5)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_zero_rows_give_the_bias_and_finite_gradients(power: float) -> None:
    layer = NormedLinear(6, 3, power=power)
    randomise(layer)
    layer.weight.data[1] = 0
    x = torch.randn(4, 6)
    x[2] = 0
    x.requires_grad_()
    y = layer(x)
    torch.testing.assert_close(y[2], layer.bias, rtol=0, atol=0)
    torch.testing.assert_close(y[:, 1], layer.bias[1].expand(4), rtol=0, atol=0)
    y.square().sum().backward()
    assert x.grad.isfinite().all() and layer.weight.grad.isfinite().all()


def test_logits_are_bounded_and_start_small() -> None:
    layer = NormedLinear(64, 50, temperature=20.0)
    assert float(layer.weight.detach().std()) == pytest.approx(0.01, rel=0.1) and not layer.bias.any()
    assert float(layer(torch.randn(100, 64) * 1e4).detach().abs().max()) <= 20 + 1e-4
    assert layer(torch.zeros(0, 64)).shape == (0, 50)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    layer = NormedLinear(32, 5)
    randomise(layer)
    x = torch.rand(6, 32) * 300  # the squared norm overflows in float16
    with torch.autocast("cpu", dtype=dtype):
        got = layer(x.to(dtype))
    torch.testing.assert_close(got.float(), layer(x), rtol=0.05, atol=0.3)
    assert layer.to(dtype)(x.to(dtype)).dtype == dtype


def test_float64_is_not_rounded() -> None:
    layer = NormedLinear(5, 3).double()
    x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


def mask_head(**options: object) -> NormedMaskHead:
    small = {"num_convs": 1, "in_channels": 8, "conv_out_channels": 8, "num_classes": 3}
    return MODELS.build({"type": "ltpipe.NormedMaskHead", **small, **options})


def test_mask_predictor_is_normalised_and_the_rest_is_mmdets() -> None:
    head = mask_head(temperature=20.0)
    head.init_weights()
    plain = FCNMaskHead(num_convs=1, in_channels=8, conv_out_channels=8, num_classes=3)
    plain.load_state_dict(head.state_dict(), strict=True)
    assert not head.conv_logits.bias.any() and float(head.conv_logits.weight.detach().std()) > 0.05

    torch.nn.init.normal_(head.conv_logits.bias)
    x = torch.randn(2, 8, 14, 14)
    features = head.relu(head.upsample(head.convs[0](x)))
    got = head(x)
    assert got.shape == (2, 3, 28, 28)
    at = features[1, :, 5, 9]
    filters = head.conv_logits.weight[:, :, 0, 0]
    expected = 20 * (filters / (filters.norm(dim=1, keepdim=True) + 1e-6)) @ (at / (at.norm() + 1e-6))
    torch.testing.assert_close(got[1, :, 5, 9], expected + head.conv_logits.bias)
    assert float((got - head.conv_logits.bias[:, None, None]).detach().abs().max()) <= 20 + 1e-4


def test_mask_of_zero_features_is_the_bias_and_no_rois() -> None:
    head = mask_head(num_convs=0, upsample_cfg={"type": None})
    torch.nn.init.normal_(head.conv_logits.bias)
    torch.testing.assert_close(head(torch.zeros(1, 8, 2, 2))[0, :, 1, 1], head.conv_logits.bias)
    assert head(torch.zeros(0, 8, 2, 2)).shape == (0, 3, 2, 2)


def test_kernel_norm_is_the_same_for_single_pixels() -> None:
    a, b = mask_head(), mask_head(norm_over_kernel=True)
    b.load_state_dict(a.state_dict())
    x = torch.randn(1, 8, 4, 4)
    torch.testing.assert_close(a(x), b(x))


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": -1.0}, {"eps": 0.0}])
def test_options_out_of_range(options: dict) -> None:
    with pytest.raises(UserError, match="must be positive"):
        NormedLinear(2, 2, **options)
    with pytest.raises(UserError, match="must be positive"):
        mask_head(**options)
