"""Generator of classifier rows: naive values, gradients, refusals."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from ltpipe.errors import UserError
from tests.published.weight_generator import MetaWeightGenerator


def test_row_equals_the_formula_written_out() -> None:
    torch.manual_seed(0)
    generator = MetaWeightGenerator(6, 4, scale=3.0)
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter)
    features, base = F.normalize(torch.randn(5, 6), dim=1), torch.randn(4, 6)
    attended = torch.zeros(6)
    for f in features:
        q = generator.query.weight @ f + generator.query.bias
        scale, alike = generator.scale.detach(), [(q @ k / (q.norm() * k.norm())).detach() for k in generator.keys]
        logits = [float(scale) * float(one) for one in alike]
        weights = [math.exp(z) / sum(math.exp(v) for v in logits) for z in logits]
        attended += sum(w * row / row.norm() for w, row in zip(weights, base, strict=True)) / 5
    mean = features.mean(0)
    expected = generator.average.weight @ mean + generator.average.bias
    expected = expected + generator.attended.weight @ attended + generator.attended.bias
    torch.testing.assert_close(generator(features, base)[0], expected, rtol=1e-4, atol=1e-5)


def test_gradients_reach_old_rows_and_every_parameter() -> None:
    generator, base = MetaWeightGenerator(6, 4), torch.randn(4, 6, requires_grad=True)
    generator(F.normalize(torch.randn(3, 6), dim=1), base).square().sum().backward()
    assert base.grad.abs().sum() > 0 and all(p.grad.abs().sum() > 0 for p in generator.parameters())


def test_fresh_layers_are_close_to_the_identity() -> None:
    generator = MetaWeightGenerator(64, 500)
    assert (generator.query.weight - torch.eye(64)).std().item() == pytest.approx(0.001, rel=0.1)
    assert generator.keys.std().item() == pytest.approx(math.sqrt(2 / 64), rel=0.05)


def test_a_support_image_without_rois_is_refused() -> None:
    with pytest.raises(UserError, match="without RoIs"):
        MetaWeightGenerator(6, 4)(torch.zeros(0, 6), torch.randn(4, 6))
