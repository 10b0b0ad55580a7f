"""NorCal against scores of ``tydpan/NorCal``, in all modes of its code."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch.testing import assert_close

from ltpipe.methods.norcal.calibrator import NorCal, norcal_log_weights, norcal_scores
from tests.helpers.post_hoc import scores_of

METHOD = "norcal"


def check_scores(path: Path) -> None:
    """Every mode from logits and image counts; the published one also through the calibrator."""
    with np.load(path, allow_pickle=False) as z:
        logits, counts = torch.from_numpy(z["logits"]), z["image_counts"]
        found = {name: torch.from_numpy(z[name]) for name in z.files if name.startswith("scores_")}
        values = {"gamma": z["gammas"].tolist(), "cb": z["betas"].tolist() if "betas" in z.files else []}
    assert found
    for name, expected in found.items():
        match = re.fullmatch(r"scores_(gamma|cb)_(exps|probs|logits)_(renorm|raw)_([0-9]+)", name)
        assert match is not None, name
        method, scaled, norm, index = match.groups()
        form = {"gamma": "power", "cb": "effective_number"}[method]
        option = {"gamma": "gamma", "cb": "beta"}[method]
        weights = torch.from_numpy(norcal_log_weights(counts, form, **{option: values[method][int(index)]})).float()
        ours = norcal_scores(logits, weights, scaled, renormalised=norm == "renorm")
        assert_close(ours, expected, rtol=2e-5, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")
        if norm == "renorm" and scaled != "logits":
            calibrator = NorCal(len(counts), counts.tolist(), form, **{option: values[method][int(index)]})
            assert_close(scores_of(calibrator, logits), expected, rtol=2e-5, atol=1e-12)


CHECKS = {"scores_": check_scores}
