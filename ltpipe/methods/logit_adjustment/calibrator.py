"""Post-hoc logit adjustment (Menon et al., ICLR 2021, arXiv 2007.07314), for classification.

    z'_c = z_c - tau ln pi_c

The form for detectors is that of ``kostas1515/FRACAL`` (``raw`` without fractal dimension), background untouched:

    z'_c = z_c - tau (ln(n_c / N) + ln K)

with ``n_c`` training images of the class and ``N`` all training images, or with instances and their sum. ``ln K``
compares with a uniform prior; without it every class rises by ``tau ln K`` against the background. Acts on the scores
of the box head at test time; needs counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ltpipe.errors import UserError
from ltpipe.methods.adjusted_scores import OffsetCalibrator
from ltpipe.methods.frequency_links import Floats, seen_counts
from ltpipe.registry import method


def log_prior(counts: Sequence[int] | NDArray[np.integer], total: int | None = None, *, centred: bool = True) -> Floats:
    """Return ``ln(n / N) + ln K``, or ``ln(n / N)``, ``(K,)`` float64; classes without data count as having one.

    Args:
        counts: ``(K,)`` training images or instances per class.
        total: ``N``: all training images; None: the sum of the counts.
        centred: Compare with the uniform prior.
    """
    n = seen_counts(counts, "logit adjustment")
    prior = np.log(n / (n.sum() if total is None else total))
    return prior + np.log(len(n)) if centred else prior


@method("calibrator", "logit_adjustment")
class LogitAdjustment(OffsetCalibrator):
    """Logits reduced by the logarithm of the class prior, without training anything.

    Args:
        num_classes: Foreground classes K.
        image_counts: Training images per class.
        instance_counts: Training instances per class.
        num_images: Images in the training annotations, annotated or not; needed for ``prior: image``.
        tau: Factor of the logarithm; 0 leaves the detector as it is (with ``centre: uniform``).
        prior: Shares of the instances, or of the images that hold the class, which do not sum to 1.
        centre: ``uniform``: relative to a uniform prior; ``none``: as in classification, where there is no background.

    Raises:
        UserError: The number of images is not known.
    """

    sweeps = {"tau": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]}

    def __init__(
        self,
        num_classes: int,
        image_counts: Sequence[int],
        instance_counts: Sequence[int],
        num_images: int | None = None,
        tau: float = 1.0,
        prior: Literal["image", "instance"] = "instance",
        centre: Literal["uniform", "none"] = "uniform",
    ) -> None:
        super().__init__(num_classes)
        if prior == "image" and num_images is None:
            raise UserError(
                "logit adjustment does not know the number of training images",
                where="num_images",
                fix="give the number of images in the training annotations, or set prior: instance",
            )
        counts, total = (image_counts, num_images) if prior == "image" else (instance_counts, None)
        self.adjustment = tau * log_prior(counts, total, centred=centre == "uniform")

    def offsets(self, sigmoid: bool) -> Floats:
        """Return ``-tau (ln prior + ln K)``."""
        return -self.adjustment
