"""NorCal (Pan et al., NeurIPS 2021, arXiv 2107.02170; code ``tydpan/NorCal``).

With ``n_c`` the training images of class ``c``, of the whole training set whatever the sampler repeats:

    p_c = exp(z_c) w_c / (sum_j exp(z_j) w_j + exp(z_bg)),    w_c = n_c^-gamma  or  (1 - beta) / (1 - beta^n_c)

which is ``softmax(z + [ln w, 0])``. Acts on the scores of the box head at test time; needs image counts. Sigmoid and
Seesaw heads have ``ln w`` added to the logits of the classes in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ltpipe.methods.adjusted_scores import OffsetCalibrator
from ltpipe.methods.frequency_links import Floats, seen_counts
from ltpipe.registry import method

Form = Literal["power", "effective_number"]


def norcal_log_weights(
    image_counts: Sequence[int] | NDArray[np.integer], form: Form = "power", gamma: float = 0.6, beta: float = 0.999
) -> Floats:
    """Return ``ln w``, ``(K,)`` float64; classes without images count as having one.

    Args:
        image_counts: ``(K,)`` training images per class.
        form: ``power``: ``w = n^-gamma``; ``effective_number``: ``w = (1 - beta) / (1 - beta^n)``.
        gamma: Exponent.
        beta: In [0, 1).
    """
    n = seen_counts(image_counts, "NorCal")
    if form == "power":
        return -gamma * np.log(n)
    # 1 - beta^n loses digits for beta close to 1 and small n.
    return np.log1p(-beta) - np.log(-np.expm1(n * np.log(beta))) if beta else np.zeros_like(n)


@method("calibrator", "norcal")
class NorCal(OffsetCalibrator):
    """Scores divided by a power of the number of training images, without training anything.

    Args:
        num_classes: Foreground classes K.
        image_counts: Training images per class.
        form: ``power``: divide by ``n^gamma``; ``effective_number``: by ``(1 - beta^n) / (1 - beta)``.
        gamma: Exponent of the number of images; 0 leaves the detector as it is.
        beta: Of the effective number, in [0, 1).
    """

    sweeps = {"gamma": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]}

    def __init__(
        self,
        num_classes: int,
        image_counts: Sequence[int],
        form: Literal["power", "effective_number"] = "power",
        gamma: float = 0.6,
        beta: float = 0.999,
    ) -> None:
        super().__init__(num_classes)
        self.log_weights = norcal_log_weights(image_counts, form, gamma, beta)

    def offsets(self, sigmoid: bool) -> Floats:
        """Return ``ln w``."""
        return self.log_weights
