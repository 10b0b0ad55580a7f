"""Which part of the backbone stays fixed while LST learns new classes.

Paper: Learning to Segment the Tail (CVPR 2020, arXiv 2004.00900); ``FREEZE_CONV_BODY_AT`` of JoyHuYY1412/LST_LVIS: 2 is
``layer1`` (its base training), 5 is ``backbone`` (its incremental phases). FPN, RPN and both heads always train. Batch
normalisation uses its stored statistics at every level.
"""

from __future__ import annotations

from typing import Any

from ltpipe.errors import unknown_name

FROZEN_STAGES = {"none": -1, "stem": 0, "layer1": 1, "layer2": 2, "layer3": 3, "layer4": 4, "backbone": 4}


def freezing_options(level: str) -> dict[str, Any]:
    """Return the options of an mmdet backbone that freeze it up to ``level``.

    Args:
        level: ``none``, ``stem``, ``layer1`` .. ``layer4`` (each includes what comes before) or ``backbone``.

    Raises:
        UserError: Unknown level.
    """
    if level not in FROZEN_STAGES:
        raise unknown_name("freezing level", level, FROZEN_STAGES, where="lst.freeze")
    return {"frozen_stages": FROZEN_STAGES[level], "norm_eval": True}
