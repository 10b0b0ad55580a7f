"""Detections without a limit per image: the best ``K`` of each class in a whole set, from two passes over the images.

The first pass, without masks, learns which scores are among the best of their class; it goes along with the ordinary
evaluation. The second drops lower scores before duplicates are suppressed, which changes nothing for those that stay: a
lower score never suppresses a higher one. Source: ``infer_topk.py`` of ``achalddave/large-vocab-devil`` (Dave et al.,
arXiv 2102.01066).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.dist import get_rank
from mmengine.structures import InstanceData
from numpy.typing import NDArray
from torch import Tensor

from ltpipe.engine.inference import of_image, proposed
from ltpipe.engine.roi_heads import RoICallPoints
from ltpipe.engine.top_k import TopScores
from ltpipe.errors import UserError
from ltpipe.run.files import atomic_path

MASKS_AT_ONCE = 300


class PerClassLimit:
    """Chooses detections by thresholds per class that rise from image to image.

    Args:
        model: Detector in evaluation mode.
        per_class: ``K``.
        num_classes: Foreground classes.
        folder: Where each process keeps the thresholds of its part of the first pass, which are not above those of all.

    Attributes:
        per_class: ``K``.

    Raises:
        UserError: The RoI head cannot choose detections anew.
    """

    def __init__(self, model: Any, per_class: int, num_classes: int, folder: Path) -> None:
        self.per_class = per_class
        roi_head: Any = getattr(model, "roi_head", None)
        if not isinstance(roi_head, RoICallPoints):
            raise UserError(
                "detections per class need a RoI head that can choose them anew",
                where="evaluate.detections_per_class",
                got=type(model if roi_head is None else roi_head).__name__,
                fix="leave it out: AP_fixed is then that of detections with a limit per image",
            )
        self._roi_head, self._file = roi_head, folder / f"thresholds.{get_rank()}.npy"
        self._counts = [per_class] * num_classes
        self._top = TopScores(self._counts)
        self._lowest: NDArray[np.float32] = np.zeros(num_classes + 1, np.float32)
        self._cfg = ConfigDict(roi_head.test_cfg, score_thr=0.0, max_per_img=-1)

    def choose(self, found: InstanceData) -> InstanceData:
        """Return the detections of one image whose scores may be among the best, boxes as in ``found``."""
        thresholds = np.maximum(self._top.thresholds(), self._lowest)
        lowest = torch.from_numpy(thresholds).to(found.scores)
        scores = torch.where(found.scores >= lowest, found.scores, 0.0)
        chosen: InstanceData = self._roi_head.bbox_heads[-1].detections(found, scores, self._cfg)
        self._top.update(chosen.labels.cpu().numpy(), chosen.scores.cpu().numpy())
        return chosen

    def watch(self, found: InstanceData) -> Iterator[Tensor]:
        """Learn from an image of the ordinary evaluation, whose scores stay; see ``rescored_detections``."""
        self.choose(found)
        yield found.scores

    def start_second_pass(self) -> None:
        """Begin anew; what the first pass has learnt are lower limits from now on.

        After a kill the first pass may have seen some of the images only, or be read from the file: its thresholds are
        lower then, and never too high.
        """
        if not self._file.is_file():
            with atomic_path(self._file) as temporary, open(temporary, "wb") as handle:
                np.save(handle, self._top.thresholds())
        self._lowest = np.load(self._file)
        self._top = TopScores(self._counts)


@torch.no_grad()
def per_class_detections(
    model: Any, dataset: Any, limit: PerClassLimit, first: int = 0, stop: int | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the detections of every image that may be among the best of their class.

    Args:
        model: Detector in evaluation mode.
        dataset: Test dataset.
        limit: In its second pass.
        first: Image to start with.
        stop: Image to stop before; None: all.

    Yields:
        As :func:`~ltpipe.engine.inference.detections`; any number of them.
    """
    for maps, proposals, sample in proposed(model, dataset, first, stop):
        chosen = limit.choose(model.roi_head.predict_rois(maps, proposals, sample))
        starts = range(0, max(len(chosen), 1), MASKS_AT_ONCE)
        parts = [
            of_image(sample, model.roi_head.with_masks(maps, sample, chosen[a : a + MASKS_AT_ONCE]), int(sample.img_id))
            for a in starts
        ]
        columns = {key: np.concatenate([part[key] for part in parts]) for key in ("labels", "scores", "bboxes")}
        masks = None if parts[0]["masks"] is None else [mask for part in parts for mask in part["masks"]]
        yield {**parts[0], **columns, "masks": masks}
