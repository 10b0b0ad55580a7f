"""Released SimCal checkpoints: keys, rotated classifiers, dropped background blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ltpipe.errors import UserError
from ltpipe.interop.layout import background_last
from ltpipe.interop.mmdet1 import convert_calibrated_head
from tests.published.old_layouts import convert_detector

K = 3


def numbered(*shape: int) -> Tensor:
    """A tensor whose rows hold their index."""
    return torch.arange(shape[0], dtype=torch.float32).reshape(-1, *[1] * (len(shape) - 1)).expand(shape).clone()


def old_state(class_wise: bool, stages: tuple[str, ...] = ("",)) -> dict[str, Tensor]:
    state = {
        "backbone.layer3.0.conv2.weight": numbered(2, 2, 3, 3),
        "backbone.layer3.0.conv2_offset.weight": numbered(18, 2, 3, 3),
        "neck.lateral_convs.0.conv.weight": numbered(2, 2, 1, 1),
        "rpn_head.rpn_cls.weight": numbered(3, 2, 1, 1),
        "rpn_head.rpn_cls.bias": numbered(3),
        "semantic_head.conv_logits.weight": numbered(183, 2, 1, 1),
    }
    for stage in stages:
        for part in ("weight", "bias"):
            tail = (2,) if part == "weight" else ()
            state[f"bbox_head.{stage}shared_fcs.0.{part}"] = numbered(2, *tail)
            state[f"bbox_head.{stage}fc_cls.{part}"] = numbered(K + 1, *tail)
            state[f"bbox_head.{stage}fc_reg.{part}"] = numbered(4 * (K + 1) if class_wise else 4, *tail)
            mask = (2, 1, 1) if part == "weight" else ()
            state[f"mask_head.{stage}conv_logits.{part}"] = numbered(K + 1 if class_wise else 1, *mask)
    return state


def first(value: Tensor) -> list[float]:
    return value.flatten(1)[:, 0].tolist() if value.dim() > 1 else value.tolist()


@pytest.mark.parametrize("class_wise", [True, False])
@pytest.mark.parametrize("stages", [("",), ("0.", "1.", "2.")], ids=["single", "cascade"])
def test_detector(class_wise: bool, stages: tuple[str, ...]) -> None:
    old = old_state(class_wise, stages)
    new = convert_detector(old)
    assert len(new) == len(old)
    for stage in stages:
        for part in ("weight", "bias"):
            assert first(new[f"roi_head.bbox_head.{stage}fc_cls.{part}"]) == [1, 2, 3, 0]
            regressor = first(new[f"roi_head.bbox_head.{stage}fc_reg.{part}"])
            assert regressor == (list(range(4, 16)) if class_wise else [0, 1, 2, 3])
            assert first(new[f"roi_head.mask_head.{stage}conv_logits.{part}"]) == ([1, 2, 3] if class_wise else [0])
            assert torch.equal(
                new[f"roi_head.bbox_head.{stage}shared_fcs.0.{part}"], old[f"bbox_head.{stage}shared_fcs.0.{part}"]
            )
    for key in ("rpn_head.rpn_cls.weight", "rpn_head.rpn_cls.bias", "neck.lateral_convs.0.conv.weight"):
        assert torch.equal(new[key], old[key])
    assert torch.equal(new["roi_head.semantic_head.conv_logits.weight"], old["semantic_head.conv_logits.weight"])
    assert "backbone.layer3.0.conv2.conv_offset.weight" in new and "backbone.layer3.0.conv2.weight" in new


def test_unexpected_sizes_are_refused() -> None:
    state = old_state(class_wise=True)
    state["bbox_head.fc_reg.bias"] = numbered(7)
    with pytest.raises(UserError, match="number of outputs"):
        convert_detector(state)


def test_calibrated_heads() -> None:
    three = {f"feat_classifier.{name}.bias": numbered(n) for name, n in (("fc1", 2), ("fc2", 2), ("fc_classifier", 4))}
    new = convert_calibrated_head(three)
    assert {k: v.tolist() for k, v in new.items()} == {
        "roi_head.calibrator.fc1.bias": [0, 1],
        "roi_head.calibrator.fc2.bias": [0, 1],
        "roi_head.calibrator.fc_cls.bias": [1, 2, 3, 0],
    }
    two = {"feat_extractor.fc1.weight": numbered(2, 5), "feat_extractor.fc2.weight": numbered(4, 2)}
    assert first(convert_calibrated_head(two, "calibrator.1.")["calibrator.1.fc_cls.weight"]) == [1, 2, 3, 0]
    with pytest.raises(UserError, match="calibrated head"):
        convert_calibrated_head({"other.weight": numbered(2)})


def test_background_moves_along_any_axis() -> None:
    assert background_last(torch.arange(6).reshape(2, 3), dim=1).tolist() == [[1, 2, 0], [4, 5, 3]]
