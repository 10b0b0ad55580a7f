"""Functions from a score to the probability that the detection is right, fitted on labelled detections.

Sources: histogram binning, isotonic regression, Platt scaling, temperature and beta calibration as in netcal, which
``achalddave/large-vocab-devil`` uses (Dave et al., arXiv 2102.01066); beta: Kull et al., AISTATS 2017.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression

from ltpipe.metrics.confidence import BINS, bin_detections, bin_of

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
ScoreFunction = Callable[[Floats], Floats]
Fit = Callable[[Floats, Flags], ScoreFunction]
TINY = float(np.finfo(np.float64).eps)
"""Scores are this far from 0 and 1 before logarithms are taken."""
PRIOR = 1e-3
"""Precision of a prior around the scores as they are, for fits that have no finite optimum without."""
STEPS = 200


class NoOptimum(Exception):
    """The likelihood has no finite maximum: a score divides right from wrong detections."""


def histogram(bins: int = BINS) -> Fit:
    """Return a fit of the share of right detections in equal bins of the score; the centre of an empty bin.

    Bins are closed at the left when they are filled and at the right when they are read, as in the published code.
    """

    def fit(scores: Floats, right: Flags) -> ScoreFunction:
        filled = bin_detections(scores, right, bins)
        centres = (np.arange(bins) + 0.5) / bins
        values = np.where(filled.count > 0, filled.target / np.maximum(filled.count, 1), centres)
        return lambda new: values[bin_of(new, bins, "right")]

    return fit


def isotonic(scores: Floats, right: Flags) -> ScoreFunction:
    """Fit the closest function that does not fall; linear between its steps, constant outside."""
    model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(scores, right.astype(np.float64))
    return lambda new: np.asarray(model.predict(new), np.float64)


def platt(scores: Floats, right: Flags, prior: float = 0.0) -> ScoreFunction:
    """Fit ``sigmoid(w logit(s) + b)``.

    Raises:
        NoOptimum: A score divides right from wrong detections.
    """
    if not prior:
        _check_mixed(scores, right)
    return _linear(lambda s: np.stack([_logit(s), np.ones_like(s)], axis=1), scores, right, [1.0, 0.0], prior)


def temperature(scores: Floats, right: Flags, prior: float = 0.0) -> ScoreFunction:
    """Fit ``sigmoid(w logit(s))``.

    Raises:
        NoOptimum: One half divides right from wrong detections.
    """
    sides = _logit(scores) * np.where(right, 1.0, -1.0)
    if not prior and ((sides >= 0).all() or (sides <= 0).all()):
        raise NoOptimum
    return _linear(lambda s: _logit(s)[:, None], scores, right, [1.0], prior)


def beta(scores: Floats, right: Flags, prior: float = 0.0) -> ScoreFunction:
    """Fit ``sigmoid(a ln s - b ln(1 - s) + c)`` with ``a, b >= 0``; a weight that would be negative is 0.

    Raises:
        NoOptimum: As :func:`platt`.
    """
    if not prior:
        _check_mixed(scores, right)
    kept = [0, 1]
    while True:
        columns = [*kept, 2]
        try:
            weights = fit_logistic(_beta_features(scores)[:, columns], right, np.array([1.0, 1.0, 0.0])[columns], prior)
        except NoOptimum:
            # Two scores divide them, which a function that does not fall cannot: one of the weights is negative.
            weights = np.array([-1.0, 1.0, 0.0]) if len(kept) == 2 else np.array([-1.0, 0.0])[-len(columns) :]
        negative = [place for place in range(len(kept)) if weights[place] < 0]
        if not negative:
            return lambda new: _sigmoid(_beta_features(new)[:, columns] @ weights)
        # The more negative one first: without it the other may be positive.
        del kept[min(negative, key=lambda place: float(weights[place]))]


FUNCTIONS: dict[str, Callable[[int, float], Fit]] = {
    "histogram": lambda bins, prior: histogram(bins),
    "isotonic": lambda bins, prior: isotonic,
    "platt": lambda bins, prior: partial(platt, prior=prior),
    "temperature": lambda bins, prior: partial(temperature, prior=prior),
    "beta": lambda bins, prior: partial(beta, prior=prior),
}
"""Fits by name, of a number of bins and the precision of a prior around the scores as they are."""


def fit_logistic(features: Floats, right: Flags, start: Floats, prior: float = 0.0) -> Floats:
    """Return the weights of the largest likelihood of ``sigmoid(features @ weights)``, by Newton's method.

    Args:
        features: ``(n, d) float64``.
        right: ``(n,) bool``.
        start: ``(d,)`` weights to start with.
        prior: Precision of a normal prior around them; 0: none.

    Raises:
        NoOptimum: There is no finite maximum, or only one that rounding cannot tell from it.
    """
    weights, target = start.copy(), right.astype(np.float64)
    loss = _loss(features @ weights, target)
    for _ in range(STEPS):
        chance = _sigmoid(features @ weights)
        slope = features.T @ (chance - target) + prior * (weights - start)
        curve = features.T @ (features * (chance * (1 - chance))[:, None]) + prior * np.eye(len(start))
        if np.abs(slope).max() <= 1e-9 * max(1.0, len(target) ** 0.5):
            if not prior and loss <= 1e-6:
                break
            return weights
        try:
            step = np.linalg.solve(curve, slope)
        except np.linalg.LinAlgError:
            break
        size, better = 1.0, np.inf
        while size > 1e-10:
            tried = weights - size * step
            better = _loss(features @ tried, target) + 0.5 * prior * float(((tried - start) ** 2).sum())
            if better <= loss - 1e-4 * size * float(slope @ step):
                break
            size /= 2
        if size <= 1e-10:
            # No step lowers the loss by what it could: the end, unless the slope says otherwise.
            if np.abs(slope).max() <= 1e-5 * len(target):
                return weights
            break
        weights, loss = tried, better
    raise NoOptimum


def _linear(
    features: Callable[[Floats], Floats], scores: Floats, right: Flags, start: list[float], prior: float
) -> ScoreFunction:
    weights = fit_logistic(features(scores), right, np.array(start), prior)
    return lambda new: _sigmoid(features(new) @ weights)


def _check_mixed(scores: Floats, right: Flags) -> None:
    """Refuse detections that a score divides into right and wrong ones, either way round, or that are all alike."""
    if right.all() or not right.any():
        raise NoOptimum
    good, bad = scores[right], scores[~right]
    if good.min() >= bad.max() or good.max() <= bad.min():
        raise NoOptimum


def _beta_features(scores: Floats) -> Floats:
    clipped = np.clip(scores, TINY, 1 - TINY)
    return np.stack([np.log(clipped), -np.log1p(-clipped), np.ones_like(clipped)], axis=1)


def _loss(logits: Floats, target: Floats) -> float:
    return float((np.logaddexp(0.0, logits) - target * logits).sum())


def _logit(scores: Floats) -> Floats:
    clipped = np.clip(scores, TINY, 1 - TINY)
    return np.asarray(np.log(clipped) - np.log1p(-clipped), np.float64)


def _sigmoid(logits: Floats) -> Floats:
    return np.asarray(expit(logits), np.float64)
