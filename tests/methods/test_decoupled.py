"""cRT and LWS."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn

from ltpipe.errors import UserError
from ltpipe.methods.box_layers import read_features
from ltpipe.methods.calibration import Calibrator
from ltpipe.methods.class_weights import effective_number_weights, inverse_frequency_weights
from ltpipe.methods.decoupled.calibrators import CRT, LWS, ScaledLinear, lws_logits
from tests.helpers.detectors import probabilities

K = 4
COUNTS = [1, 100, 0, 7]


def head_config(**kwargs: Any) -> dict[str, Any]:
    sizes = {"in_channels": 4, "roi_feat_size": 3, "fc_out_channels": 8, "num_classes": K}
    return {"type": "ltpipe.LTBBoxHead", **sizes, **kwargs}


def build(**kwargs: Any) -> tuple[nn.Module, dict[str, Any], dict[str, Tensor]]:
    """A box head, and config and weights of the detector that has it."""
    torch.manual_seed(0)
    head = MODELS.build(head_config(**kwargs))
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3)
    state = {f"roi_head.bbox_head.{k}": v for k, v in head.state_dict().items()}
    return head, {"roi_head": {"bbox_head": head_config(**kwargs)}}, state


def merged(calibrator: Calibrator, model: dict[str, Any], state: dict[str, Tensor]) -> nn.Module:
    new_model, new_state = calibrator.merge(model, state)
    head = MODELS.build(new_model["roi_head"]["bbox_head"])
    head.load_state_dict({k.removeprefix("roi_head.bbox_head."): v for k, v in new_state.items()})
    return head


def features(rows: int = 6) -> Tensor:
    return torch.randn(rows, 4, 3, 3, generator=torch.Generator().manual_seed(1))


def test_scaled_rows_by_hand() -> None:
    x, weight, bias, scale = torch.randn(3, 5), torch.randn(4, 5), torch.randn(4), torch.randn(4, 1)
    expected = [[float(scale[c] * (weight[c] @ row) + bias[c]) for c in range(4)] for row in x]
    torch.testing.assert_close(lws_logits(x, weight, bias, scale), torch.tensor(expected))
    assert lws_logits(x[:0], weight, None, scale).shape == (0, 4)


def test_scaled_linear_has_the_released_keys_and_one_trained_parameter() -> None:
    layer = ScaledLinear(5, 4)
    assert {k: tuple(v.shape) for k, v in layer.state_dict().items()} == {
        "weight": (4, 5),
        "bias": (4,),
        "weight_scaler": (4, 1),
    }
    layer(torch.randn(3, 5)).sum().backward()
    assert [k for k, p in layer.named_parameters() if p.grad is not None] == ["weight_scaler"]


def test_lws_starts_as_the_detector_and_keeps_its_weights() -> None:
    head, model, state = build()
    calibrator = LWS(K)
    calibrator.initialise(head)
    x = features()
    torch.testing.assert_close(calibrator(read_features(head, x, calibrator.reads)), head(x)[0])
    with torch.no_grad():
        calibrator.fc_cls.weight_scaler.mul_(torch.arange(1.0, K + 2)[:, None])
    new = merged(calibrator, model, state)
    expected = (head(x)[0] - head.fc_cls.bias) * torch.arange(1.0, K + 2) + head.fc_cls.bias
    torch.testing.assert_close(new(x)[0], expected)
    torch.testing.assert_close(new(x)[1], head(x)[1])


@pytest.mark.parametrize("kind", ["mmdet.Linear", "ltpipe.LinearClassifier"])
def test_lws_takes_linear_classifiers_with_softmax_channels_only(kind: str) -> None:
    head, _, _ = build(cls_predictor_cfg={"type": kind})
    LWS(K).initialise(head)
    seesaw = {"type": "mmdet.SeesawLoss", "num_classes": K}
    for options in ({"cls_predictor_cfg": {"type": "mmdet.NormedLinear"}}, {"loss_cls": seesaw}):
        with pytest.raises(UserError, match="cannot be rescaled"):
            LWS(K).initialise(build(**options)[0])


@pytest.mark.parametrize("kind", ["mmdet.Linear", "mmdet.NormedLinear", "ltpipe.LinearClassifier"])
def test_crt_replaces_the_classifier_by_a_fresh_one_of_its_kind(kind: str) -> None:
    torch.manual_seed(0)
    options = {"cls_predictor_cfg": {"type": kind}, "loss_cls": {"type": "mmdet.SeesawLoss", "num_classes": K}}
    head, model, state = build(**options)
    calibrator = CRT(K, COUNTS)
    calibrator.initialise(head)
    assert type(calibrator.fc_cls) is type(head.fc_cls) and calibrator.fc_cls.out_features == K + 1
    assert calibrator.fc_cls.weight.abs().max() < 0.06
    new, x = merged(calibrator, model, state), features()
    expected = calibrator.scores(calibrator(read_features(head, x, "last")))
    torch.testing.assert_close(probabilities(new, new(x)[0]), expected)
    assert all(torch.equal(v, head.state_dict()[k]) for k, v in new.state_dict().items() if not k.startswith("fc_cls"))


@pytest.mark.parametrize("class_weight", ["none", "inverse", "effective_number"])
def test_crt_loss(class_weight: str) -> None:
    calibrator = CRT(K, COUNTS, class_weight=class_weight)
    score, labels = torch.randn(10, K + 1), torch.arange(10) % (K + 1)
    weights = {
        "none": [1.0] * K,
        "inverse": [min(max(w / (2 + 1 / 100 + 1 / 7) * 4, 0.1), 5) for w in (1, 1 / 100, 1, 1 / 7)],
        "effective_number": effective_number_weights(torch.tensor(COUNTS)).tolist(),
    }[class_weight]
    expected = F.cross_entropy(score, labels, reduction="none") * torch.tensor([*weights, 1.0])[labels]
    torch.testing.assert_close(calibrator.loss(score, labels), expected.mean())
    assert calibrator.loss(score[:0], labels[:0]) == 0


def test_class_weights() -> None:
    counts = torch.tensor([1, 10, 1000, 0])
    raw = torch.tensor([1, 0.1, 0.001, 1], dtype=torch.float64)
    torch.testing.assert_close(inverse_frequency_weights(counts), (raw / raw.mean()).clamp(0.1, 5))
    raw = torch.tensor([0.001 / (1 - 0.999**n) for n in (1, 10, 1000, 1)], dtype=torch.float64)
    torch.testing.assert_close(effective_number_weights(counts), (raw / raw.mean()).clamp(0.1, 5))
