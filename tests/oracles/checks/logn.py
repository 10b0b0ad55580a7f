"""LogN against the head of ``MCG-NJU/LogN``: running statistics, and what is made of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from mmdet.models.losses import CrossEntropyLoss
from torch import nn
from torch.testing import assert_close

from ltpipe.methods.logn.calibrator import LogN, normalisation

METHOD = "logn"


def check_statistics(path: Path) -> None:
    """After all batches in order; a classifier of unit rows hands the logits through."""
    with np.load(path, allow_pickle=False) as file:
        z = {name: torch.from_numpy(file[name]) for name in file.files}
    width = z["logits"].shape[1]
    classifier = nn.Linear(width, width)
    classifier.load_state_dict({"weight": torch.eye(width), "bias": torch.zeros(width)})
    head = SimpleNamespace(
        fc_cls=classifier, loss_cls=CrossEntropyLoss(), cls_predictor_cfg={"type": "Linear"}, custom_cls_channels=False
    )
    calibrator = LogN(width - 1, statistics="ema", momentum=float(z["momentum"]))
    calibrator.initialise(head)
    for batch in z["train_logits"]:
        calibrator.observe(batch, torch.zeros(len(batch), dtype=torch.long))
    mean, var = (part.float() for part in calibrator.moments())
    assert_close(mean, z["running_mean"], rtol=1e-4, atol=1e-6)
    assert_close(var, z["running_var"], rtol=1e-4, atol=1e-7)
    factor, summand = (part.float() for part in normalisation(*calibrator.moments()))
    assert_close(1 / factor, z["used_std"], rtol=1e-4, atol=0)
    assert_close(z["beta"] - summand / factor, z["used_mean"], rtol=1e-4, atol=1e-6)
    found = calibrator(z["logits"])
    assert_close(found, z["calibrated"], rtol=1e-4, atol=1e-5)
    assert_close(calibrator.scores(found), z["scores"], rtol=2e-4, atol=1e-12)


CHECKS = {"statistics_": check_statistics}
