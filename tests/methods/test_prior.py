"""The sigmoid losses' classifiers start at a low score, all other layers as in mmdet."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ltpipe.methods.eql.loss import EQLLoss
from ltpipe.methods.eqlv2.loss import EQLv2Loss
from tests.helpers.contract_cases import build_config

K, WIDTH = 300, 128
COUNTS = {"num_classes": K, "image_counts": [5] * K, "instance_counts": [9] * K, "num_annotated_images": 1000}
LOSSES = {"eql": {"type": "ltpipe.EQLLoss", **COUNTS}, "eqlv2": {"type": "ltpipe.EQLv2Loss", "num_classes": K}}


def head(loss: dict[str, object] | None) -> nn.Module:
    config = {"in_channels": 8, "roi_feat_size": 2, "fc_out_channels": WIDTH, "num_classes": K}
    if loss is not None:
        config |= {"loss_cls": loss, "cls_predictor_cfg": {"type": "ltpipe.LinearClassifier"}}
    built = build_config({"type": "ltpipe.LTBBoxHead" if loss else "mmdet.Shared2FCBBoxHead", **config})
    torch.manual_seed(1)
    built.init_weights()
    return built


def spread(weight: Tensor) -> float:
    return float(weight.detach().std())


@pytest.mark.parametrize("name", LOSSES)
def test_bias_and_first_loss(name: str) -> None:
    ours, plain = head(LOSSES[name]), head(None)
    assert ours.fc_cls.out_features == K + (name == "eqlv2")
    torch.testing.assert_close(ours.fc_cls.bias, torch.full_like(ours.fc_cls.bias, -6.9068), rtol=1e-4, atol=0)
    assert spread(ours.fc_cls.weight) == pytest.approx(0.01, rel=0.05)
    for layer, mmdets in ((ours.fc_reg, plain.fc_reg), *zip(ours.shared_fcs, plain.shared_fcs, strict=True)):
        assert spread(layer.weight) == pytest.approx(spread(mmdets.weight), rel=0.05) and not layer.bias.any()

    x = torch.randn(64, WIDTH).relu()
    labels = torch.randint(0, K, (64,))
    loss = ours.loss_cls(ours.fc_cls(x), labels)
    channels = ours.fc_cls.out_features
    expected = -math.log(0.001) - (channels - 1) * math.log(1 - 0.001)
    assert float(loss) == pytest.approx(expected, rel=0.02)
    assert isinstance(ours.loss_cls, {"eql": EQLLoss, "eqlv2": EQLv2Loss}[name])
