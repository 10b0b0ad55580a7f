"""Heads of mmdet get call points: parts during training, other classifiers, scores fused at test time.

mmdet's RoI heads call ``loss_and_target`` and ``predict_by_feat`` of their heads; that is where parts and calibrators
come in. Both belong to the RoI head (:mod:`ltpipe.engine.roi_heads`), so state-dict keys are those of mmdet's heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmdet.models.roi_heads import ConvFCBBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.registry import MODELS as MMDET_MODELS
from torch import nn

from ltpipe.engine.box_heads import BoxCallPoints
from ltpipe.engine.mask_heads import MaskCallPoints
from ltpipe.errors import UserError, unknown_name


def as_list(heads: Any) -> list[Any]:
    """Return the heads of every stage, or their configs: cascades have several, others one; None is none."""
    if heads is None:
        return []
    return list(heads) if isinstance(heads, nn.ModuleList | list | tuple) else [heads]


def class_of(config: Mapping[str, Any]) -> Any:
    """Return the class that a config builds.

    Raises:
        UserError: There is no such class.
    """
    kind = config.get("type")
    if kind is None:
        raise UserError("a component of the detector has no type", where="model", got=", ".join(config) or "{}")
    found = kind if isinstance(kind, type) else MMDET_MODELS.get(kind)
    if not isinstance(found, type):
        raise unknown_name("component", kind, MMDET_MODELS.module_dict, where="model", shown=0)
    return found


def with_call_points(head: Any, where: str = "model.roi_head") -> Any:
    """Return the config of a box or mask head with our call points; its state-dict keys stay.

    Args:
        head: Config of an mmdet ``ConvFCBBoxHead`` or ``FCNMaskHead``, or of a class derived from one; or a list.
        where: Named in the error.

    Raises:
        UserError: It is another kind of head, or a box head with a forward pass of its own.
    """
    if isinstance(head, list | tuple):
        return [with_call_points(one, where) for one in head]
    cls = class_of(head)
    for base, points in ((ConvFCBBoxHead, BoxCallPoints), (FCNMaskHead, MaskCallPoints)):
        if issubclass(cls, points):
            return dict(head)
        if issubclass(cls, base) and (base is FCNMaskHead or cls.forward is base.forward):
            return {**head, "type": type(f"LT{cls.__name__}", (points, cls), {"__module__": __name__})}
    raise UserError(
        "this head has no place for parts, calibrators and phases",
        where=where,
        got=head["type"],
        allowed="ConvFCBBoxHead, Shared2FCBBoxHead, Shared4Conv1FCBBoxHead, FCNMaskHead, HTCMaskHead and those derived",
    )
