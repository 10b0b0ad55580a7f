"""Logit adjustment: ``Chumsy0725/logit-adj-pytorch`` in classification, ``kostas1515/FRACAL`` (raw) in detection."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.testing import assert_close

from ltpipe.methods.logit_adjustment.calibrator import LogitAdjustment, log_prior
from tests.helpers.post_hoc import scores_of

METHOD = "logit_adjustment"


def check_classification(path: Path) -> None:
    """Without background and without centring; the reference adds 1e-12 inside the logarithm."""
    with np.load(path, allow_pickle=False) as z:
        prior = log_prior(z["counts"], centred=False)
        for index, tau in enumerate(z["taus"]):
            np.testing.assert_allclose(tau * prior, z[f"adjustment_{index}"], rtol=0, atol=1e-5)
            np.testing.assert_allclose(z["logits"] - tau * prior, z[f"adjusted_logits_{index}"], rtol=0, atol=1e-5)


def check_detection(path: Path) -> None:
    """Image and instance prior, relative to a uniform one; background untouched."""
    with np.load(path, allow_pickle=False) as z:
        images, instances = z["image_counts"].tolist(), z["instance_counts"].tolist()
        for prior in ("image", "instance"):
            calibrator = LogitAdjustment(len(images), images, instances, int(z["num_images"]), prior=prior)
            np.testing.assert_allclose(calibrator.adjustment, z[f"adjustment_{prior}"], rtol=1e-5, atol=2e-6)
            scores = scores_of(calibrator, torch.from_numpy(z["logits"]))
            assert_close(scores, torch.from_numpy(z[f"scores_{prior}"]), rtol=3e-5, atol=1e-12)


CHECKS = {"classification_": check_classification, "detection_": check_detection}
