"""Several modes and thresholds from one run of the detector."""

from __future__ import annotations

import copy
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from ltpipe.engine.roi_heads import LTRoIHead
from ltpipe.methods.simcal.calibrator import DualHead
from ltpipe.methods.simcal.functions import distinct_choices
from tests.methods.test_simcal import COUNTS, K, build, calibrator, detector

LAYERS: dict[str, Any] = {"in_features": 4, "hidden": [4], "num_classes": K}


def test_equal_choices_are_one() -> None:
    """COUNTS = [3, 500, 12, 300, 0]: T = 10 and 5 agree, 0 is the detector, 1000 the calibrated head."""
    wanted = [("dual", 300.0), ("base", None), ("cal", None), ("avg", None)]
    wanted += [("dual", t) for t in (5.0, 10.0, 0.0, 1000.0, 300.0)]
    found = distinct_choices(torch.tensor(COUNTS), wanted)
    assert [choice.names for choice in found] == [
        (("dual", 300.0),),
        (("base", None), ("dual", 0.0)),
        (("cal", None), ("dual", 1000.0)),
        (("avg", None),),
        (("dual", 5.0), ("dual", 10.0)),
    ]
    assert [choice.from_calibrated() for choice in found] == [3, 0, K, None, 2]
    assert found[0].tail.tolist() == [True, False, True, False, True]
    inclusive = distinct_choices(torch.tensor(COUNTS), [("dual", 300.0)], inclusive=True)
    assert inclusive[0].from_calibrated() == 4


def test_the_configured_choice_comes_first() -> None:
    head = DualHead(COUNTS, threshold=100, mode="avg", **LAYERS)
    names = [choice.names for choice in head.choices(["dual", "base"], [100, 301])]
    assert names == [(("avg", None),), (("dual", 100),), (("base", None),), (("dual", 301),)]
    assert [choice.names for choice in head.choices()] == [(("avg", None),)]


def test_every_choice_equals_a_detector_configured_that_way() -> None:
    model, state = detector()
    cal = calibrator("3fc_ft", build(model, state).bbox_head)
    with torch.no_grad():
        for parameter in cal.parameters():
            parameter.mul_(1.5)
    merged_model, merged_state = cal.merge(model, state)
    roi_head = build(merged_model, merged_state)
    choices = roi_head.calibrator.choices(["base", "cal", "avg"], [5, 400])
    forwards: list[int] = []
    for module in (roi_head.bbox_roi_extractor, roi_head.calibrator):
        module.register_forward_hook(lambda _, inputs, output: forwards.append(len(output)))
    found = rescored(roi_head, lambda r: (choice.fuse(r.own_scores, r.calibrated_scores) for choice in choices))
    assert len(found) == len(choices) == 6 and forwards == [6, 6]
    for choice, result in zip(choices, found, strict=True):
        for mode, threshold in choice.names:
            single_model = copy.deepcopy(merged_model)
            setting = {"mode": mode} if threshold is None else {"mode": mode, "threshold": threshold}
            single_model["roi_head"]["calibrator"].update(setting)
            expected = rescored(build(single_model, merged_state))[0]
            for key in ("bboxes", "scores", "labels"):
                assert torch.equal(result[key], expected[key]), (mode, threshold)
    assert not torch.equal(found[1].scores, found[2].scores)


def rescored(roi_head: LTRoIHead, rescore: Any = None) -> list[InstanceData]:
    """Detections of one small image for every set of scores, or as the RoI head itself makes them."""
    generator = torch.Generator().manual_seed(5)
    maps = (torch.randn(1, 4, 16, 16, generator=generator),)
    corner = torch.rand(6, 2, generator=generator) * 30
    proposals = InstanceData(bboxes=torch.cat([corner, corner + 20], dim=1))
    meta = {"img_shape": (64, 64), "scale_factor": (2.0, 2.0)}
    with torch.no_grad():
        if rescore is None:
            return roi_head.predict_bbox(maps, [meta], [proposals], roi_head.test_cfg, rescale=True)
        sample = ConfigDict(metainfo=meta)
        return list(roi_head.predict_rescored(maps, proposals, sample, rescore))
