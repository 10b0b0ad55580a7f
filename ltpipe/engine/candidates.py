"""One detector scored by several calibrations of it, from a single run: what a choice between them is made from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ltpipe.methods.box_layers import read_features
from ltpipe.methods.calibration import Calibrator


class CandidateScores(nn.Module):
    """In place of the second classifier of a RoI head: the scores of every candidate for the same RoIs.

    The boxes are those of the detector; candidates that change the classifier of every stage of a class-wise cascade
    refine them by other classes once they are merged.

    Args:
        roi_head: RoI head of the detector, which is not changed.
        candidates: Per candidate its calibrators, one per stage of the detector.
    """

    def __init__(self, roi_head: Any, candidates: Sequence[Sequence[Calibrator]]) -> None:
        super().__init__()
        # In a tuple: these modules are the detector's and the caller's.
        self._heads, self._candidates = tuple(roi_head.bbox_heads), tuple(map(tuple, candidates))

    @torch.no_grad()
    def calibrated_scores(self, bbox_feats: Any) -> Tensor:
        """Return scores ``(N, V, K + 1)`` of ``V`` candidates.

        Args:
            bbox_feats: ``(N, c, h, w)`` float, pooled RoI features; in cascades a list of those of every stage.
        """
        feats = [bbox_feats] if isinstance(bbox_feats, Tensor) else list(bbox_feats)
        read: dict[tuple[int, str], Tensor] = {}

        def rows(stage: int, calibrator: Calibrator) -> Tensor:
            what = calibrator.reads if calibrator.needs_features else "logits"
            if (stage, what) not in read:
                head = self._heads[stage]
                read[stage, what] = (
                    read_features(head, feats[stage], calibrator.reads)
                    if calibrator.needs_features
                    else head.fc_cls(head.predictor_inputs(feats[stage])[0])
                )
            return read[stage, what]

        found = []
        for stages in self._candidates:
            logits = [calibrator(rows(stage, calibrator)) for stage, calibrator in enumerate(stages)]
            found.append(stages[-1].scores(torch.stack(logits).mean(dim=0)))
        return torch.stack(found, dim=1)

    def fuse(self, own: Tensor, calibrated: Tensor) -> Tensor:
        """Return the detector's own scores ``(N, K + 1)``."""
        return own

    def rescore(self, found: InstanceData) -> Iterator[Tensor]:
        """Yield the final scores ``(n, K + 1)`` of every candidate for the RoIs of an image.

        Args:
            found: As :meth:`ltpipe.engine.roi_heads.RoICallPoints.predict_rescored` hands it over.
        """
        for index, stages in enumerate(self._candidates):
            scores = found.calibrated_scores[:, index] if len(found) else found.scores
            yield stages[-1].fused(found.own_scores, scores)
