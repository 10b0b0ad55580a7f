"""Checkpoints of the mmdetection 0.6 and 1.x generation: SimCal, BAGS, and their calibrated heads.

Sources: repositories twangnh/SimCal and FishYuLi/BalancedGroupSoftmax. Old class 0 is the background and old classes
1..K are labels 0..K-1, so classifier rows rotate by one; class-wise box regressors and mask predictors lose their
background block, which is the first one; the RPN, class-agnostic layers and the semantic head stay.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ltpipe.interop.layout import Layout, Rule, State, apply_layout

_STAGE = r"((?:\d\.)?)"
MMDET1 = Layout(
    name="mmdet1",
    title="mmdetection 0.6 or 1.x: SimCal, BAGS, their Mask R-CNN, Cascade and HTC",
    marks=(r"bbox_head\.(\d\.)?fc_cls\.",),
    rules=(
        Rule(rf"bbox_head\.{_STAGE}fc_cls\.", r"roi_head.bbox_head.\1fc_cls.", "classifier"),
        Rule(rf"bbox_head\.{_STAGE}fc_reg\.", r"roi_head.bbox_head.\1fc_reg.", "regressor"),
        Rule(rf"mask_head\.{_STAGE}conv_logits\.", r"roi_head.mask_head.\1conv_logits.", "mask"),
        Rule(r"(bbox_head|mask_head|semantic_head)\.", r"roi_head.\1."),
        # Deformable convolutions keep their offset layer inside the convolution now.
        Rule(r"(backbone\..*)conv2_offset\.", r"\1conv2.conv_offset."),
        Rule(r"(backbone|neck|rpn_head)\.", r"\1."),
    ),
    background="first",
    geometry="mmdet1",
)
_CALIBRATOR = "roi_head.calibrator."
CALIBRATED = Layout(
    name="simcal_head",
    title="a calibrated head of SimCal (3fc_ft.pth and the like)",
    marks=(r"(feat_classifier\.fc_classifier|feat_extractor\.fc2)\.",),
    rules=(
        Rule(r"feat_classifier\.fc([12])\.", rf"{_CALIBRATOR}fc\1."),
        Rule(r"feat_classifier\.fc_classifier\.", f"{_CALIBRATOR}fc_cls.", "classifier"),
        Rule(r"feat_extractor\.fc1\.", f"{_CALIBRATOR}fc1."),
        Rule(r"feat_extractor\.fc2\.", f"{_CALIBRATOR}fc_cls.", "classifier"),
    ),
    background="first",
)


def convert_calibrated_head(state: Mapping[str, Tensor], prefix: str = _CALIBRATOR) -> State:
    """Convert the ``state_dict`` of a calibrated head (``3fc_ft.pth`` and the like).

    Args:
        state: Old keys, ``feat_classifier.*`` with two hidden layers or ``feat_extractor.*`` with one.
        prefix: Where the head sits in the detector; cascades have one per stage.

    Raises:
        UserError: A key is none of these.
    """
    return {prefix + key.removeprefix(_CALIBRATOR): value for key, value in apply_layout(CALIBRATED, state).items()}
