"""SimCal: a second classification head, trained on class-balanced proposals of the frozen detector.

Paper: Wang et al., "The Devil is in Classification: A Simple Framework for Long-tail Instance Segmentation", ECCV
2020, arXiv 2007.11978; repository twangnh/SimCal. Training minimises ``L = 1/R sum_rows -log softmax(z)_y`` over the
mini-batches of :mod:`ltpipe.data.calibration_rois` with plain SGD; at test time the scores of both heads are
combined as :mod:`ltpipe.methods.simcal.functions` says. In a cascade every stage has a head of its own. Acts on the
pooled RoI features; needs training instance counts.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Literal

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

from ltpipe.errors import UserError
from ltpipe.methods.box_layers import only_fully_connected
from ltpipe.methods.calibration import Calibrator, State
from ltpipe.methods.reductions import mean_over_processes
from ltpipe.methods.simcal.functions import (
    FusionChoice,
    Mode,
    average_stages,
    distinct_choices,
    fuse_scores,
    tail_classes,
)
from ltpipe.methods.simcal.heads import CalibrationHead, NearestClassMean, make_head
from ltpipe.registry import MODELS, method


@method("calibrator", "simcal")
class SimCal(Calibrator):
    """Calibrated head beside the detector's classifier, used for classes with few instances.

    Args:
        num_classes: Foreground classes K.
        instance_counts: Training instances per class.
        head: Layers, start and trained part; see :mod:`ltpipe.methods.simcal.heads`. ``3fc_ft`` is the paper's best.
        threshold: Classes with fewer training instances take the calibrated score. 300 reproduces the published LVIS
            numbers (the repository's last commit says 100), 400 those of COCO-LT.
        inclusive: Also classes with exactly ``threshold`` instances (the paper writes <=, the repository <).
        mode: ``dual`` as published; ``cal``: calibrated head for everything; ``base``: the detector's scores; ``avg``:
            mean of both.
    """

    needs_features = True
    fuses_scores = True
    lowest_level = {
        "head": {
            "2fc_rand": "roi",
            "3fc_rand": "roi",
            "3fc_ft": "roi",
            "3fc_ft_freeze1": "fc1",
            "cls_ft": "last",
            "cls_rand": "last",
            "2fc_ncm": "last",
        }
    }
    sweeps = {"threshold": [3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]}
    needs_softmax = {"head": ["3fc_ft", "3fc_ft_freeze1", "cls_ft"]}

    def __init__(
        self,
        num_classes: int,
        instance_counts: Sequence[int],
        head: Literal["2fc_rand", "3fc_rand", "3fc_ft", "3fc_ft_freeze1", "cls_ft", "cls_rand", "2fc_ncm"] = "3fc_ft",
        threshold: float = 300,
        inclusive: bool = False,
        mode: Literal["dual", "cal", "base", "avg"] = "dual",
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.head_name = head
        self.fusion: dict[str, Any] = {
            "instance_counts": [int(n) for n in instance_counts],
            "threshold": threshold,
            "inclusive": inclusive,
            "mode": mode,
        }

    @staticmethod
    def check_head(bbox_head: Any) -> None:
        """Refuse box heads whose layers cannot be copied."""
        only_fully_connected(bbox_head)

    def initialise(self, bbox_head: Any) -> None:
        """Build the head; layers that it starts from are copied by value from the trained box head."""
        self.head = make_head(self.head_name, bbox_head, self.num_classes)
        self.reads = self.head.reads

    def take_over(self, state: Mapping[str, Tensor]) -> None:
        """Load a trained head.

        Raises:
            UserError: It has other layers than this one.
        """
        prefix = "roi_head.calibrator."
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        try:
            self.head.load_state_dict(own)
        except RuntimeError as error:
            raise UserError(
                "the head was trained with other layers",
                where="calibrate: head",
                got=f"{self.head_name}; the file has {', '.join(sorted(own)) or 'none'}",
                fix="choose the head it was trained as",
            ) from error

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(n, K + 1)``, background last."""
        return self.head.forward_trained(x)

    def fused(self, own: Tensor, scores: Tensor) -> Tensor:
        """Return the scores of both classifications, combined as configured, ``(n, K + 1)``."""
        counts, threshold = torch.as_tensor(self.fusion["instance_counts"]), self.fusion["threshold"]
        tail = tail_classes(counts, threshold, self.fusion["inclusive"]).to(own.device)
        return fuse_scores(own, scores, tail, self.fusion["mode"])

    def loss(self, cls_score: Tensor, labels: Tensor) -> Tensor:
        """Return the cross entropy averaged over the rows of all processes."""
        return mean_over_processes(F.cross_entropy(cls_score.float(), labels, reduction="none"))

    def observe(self, x: Tensor, labels: Tensor) -> None:
        """Collect class means if the classifier consists of them."""
        if isinstance(self.head.fc_cls, NearestClassMean):
            self.head.fc_cls.observe(x, labels)

    def merge(
        self, model: Mapping[str, Any], state: Mapping[str, Tensor], stage: int | None = None
    ) -> tuple[dict[str, Any], State]:
        """Add the head as ``roi_head.calibrator``, in cascades as ``roi_head.calibrator.<stage>``.

        No weight of the detector changes.
        """
        merged, prefix = deepcopy(dict(model)), "roi_head.calibrator."
        layers = deepcopy(self.head.config)
        if stage is None:
            merged["roi_head"]["calibrator"] = {"type": "ltpipe.DualHead", **layers, **self.fusion}
        else:
            before = merged["roi_head"]["calibrator"]["stages"] if stage else []
            cascade = {"type": "ltpipe.CascadeDualHead", "stages": [*before, layers], **self.fusion}
            merged["roi_head"]["calibrator"] = cascade
            prefix += f"{stage}."
        added = {f"{prefix}{k}": v.detach().cpu().clone() for k, v in self.head.state_dict().items()}
        return merged, {**state, **added}


class _Fusion(nn.Module):
    """How a calibrated classification is combined with the detector's at test time.

    Args:
        instance_counts: Training instances per class.
        threshold: See :class:`SimCal`.
        inclusive: See :class:`SimCal`.
        mode: See :class:`SimCal`.
        **layers: Passed on.
    """

    tail: Tensor

    def __init__(
        self,
        instance_counts: Sequence[int],
        threshold: float = 300,
        inclusive: bool = False,
        mode: Mode = "dual",
        **layers: Any,
    ) -> None:
        super().__init__(**layers)
        tail = tail_classes(torch.as_tensor(instance_counts), threshold, inclusive)
        # Derived from the config alone, so that another threshold needs no new checkpoint.
        self.register_buffer("tail", tail, persistent=False)
        self.mode: Mode = mode
        self.instance_counts, self.threshold, self.inclusive = list(instance_counts), threshold, inclusive
        if mode == "dual" and (bool(tail.all()) or not bool(tail.any())):
            one = "calibrated head" if bool(tail.all()) else "detector"
            print_log(f"threshold {threshold} splits no class: every score is the {one}'s", level=logging.WARNING)

    def calibrated_scores(self, bbox_feats: Any) -> Tensor:
        """Return the calibrated classification's probabilities ``(N, K + 1) float32``, background last.

        Args:
            bbox_feats: ``(N, c, h, w)`` float, pooled RoI features; in cascades a list of those of every stage.
        """
        return F.softmax(self(bbox_feats).float(), dim=-1)

    def fuse(self, own: Tensor, calibrated: Tensor) -> Tensor:
        """Return final scores ``(N, K + 1) float32``, background last; they are no logits and rows do not sum to 1.

        Args:
            own: ``(N, K + 1)`` float probabilities of the detector's own classifier, background last.
            calibrated: Of :meth:`calibrated_scores`.
        """
        return fuse_scores(own, calibrated, self.tail, self.mode)

    def choices(self, modes: Sequence[Mode] = (), thresholds: Sequence[float] = ()) -> list[FusionChoice]:
        """Return the different ways to fuse: the configured one, then the modes, then ``dual`` at the thresholds.

        Args:
            modes: ``dual`` stands for the configured threshold.
            thresholds: Values of T.
        """
        named = [(mode, self.threshold if mode == "dual" else None) for mode in (self.mode, *modes)]
        wanted: list[tuple[Mode, float | None]] = [*named, *(("dual", threshold) for threshold in thresholds)]
        return distinct_choices(torch.as_tensor(self.instance_counts), wanted, self.inclusive)


@MODELS.register_module()
class DualHead(_Fusion, CalibrationHead):
    """Calibrated head that fuses its scores with the detector's at test time.

    Args:
        instance_counts: Training instances per class.
        threshold: See :class:`SimCal`.
        inclusive: See :class:`SimCal`.
        mode: See :class:`SimCal`.
        **layers: Arguments of :class:`~ltpipe.methods.simcal.heads.CalibrationHead`.
    """


class _Stages(nn.ModuleList):
    def __init__(self, stages: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(CalibrationHead(**layers) for layers in stages)

    def forward(self, bbox_feats: Sequence[Tensor]) -> Tensor:
        return average_stages([head(feats) for head, feats in zip(self, bbox_feats, strict=True)])


@MODELS.register_module()
class CascadeDualHead(_Fusion, _Stages):
    """Calibrated heads of a cascade, one per stage: their mean logits are activated and fused once.

    Args:
        instance_counts: Training instances per class.
        threshold: See :class:`SimCal`.
        inclusive: See :class:`SimCal`.
        mode: See :class:`SimCal`.
        stages: Arguments of :class:`~ltpipe.methods.simcal.heads.CalibrationHead` of every stage.
    """
