"""Thresholds of scores for the best ``K`` detections per category of a whole set, found while detecting.

Source: ``infer_topk.py`` of ``achalddave/large-vocab-devil`` (Dave et al., arXiv 2102.01066), see
:mod:`ltpipe.metrics.fixed_ap`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SLACK = 1.1
"""More scores are remembered than asked for: a second pass over the images may differ a little."""
Scores = NDArray[np.float32]


class TopScores:
    """The best scores of each class so far.

    Args:
        counts: ``K`` of each of ``C`` foreground classes: detections of it in the whole set; 0: none at all.
        min_score: No threshold is lower.
    """

    def __init__(self, counts: Sequence[int], min_score: float = 1e-7) -> None:
        self.min_score = np.float32(min_score)
        self._kept = [int(np.ceil(SLACK * count)) for count in counts]
        self._best: list[Scores] = [np.zeros(0, np.float32) for _ in counts]

    def update(self, labels: NDArray[np.int64], scores: Scores) -> None:
        """Take the detections of an image; ``(n,)`` labels and scores."""
        for label in np.unique(labels):
            self._add(int(label), scores[labels == label])

    def merge(self, others: Sequence[TopScores]) -> None:
        """Take what other processes have."""
        for other in others:
            for label, scores in enumerate(other._best):
                self._add(label, scores)

    def thresholds(self) -> Scores:
        """Return ``(C + 1,) float32``: what has a lower score is not among the best; the last is for background.

        A threshold is infinite where nothing is asked for.
        """
        found = np.full(len(self._best) + 1, self.min_score, np.float32)
        for label, (best, kept) in enumerate(zip(self._best, self._kept, strict=True)):
            if len(best) >= kept:
                found[label] = max(best[-1], self.min_score) if kept else np.inf
        return found

    def _add(self, label: int, scores: Scores) -> None:
        both = np.concatenate([self._best[label], scores.astype(np.float32)])
        self._best[label] = np.sort(both)[::-1][: self._kept[label]]
