"""NorCal against scores of ``tydpan/NorCal``, in all modes of its code."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from ltpipe.methods.norcal.calibrator import NorCal, norcal_log_weights
from tests.helpers.post_hoc import scores_of

METHOD = "norcal"


def code_scores(logits: torch.Tensor, log_weights: torch.Tensor, scaled: str, *, renormalised: bool) -> torch.Tensor:
    """Scores of all options of the code, of which the calibrator has those that are published."""
    shift = F.pad(log_weights, (0, 1))
    if scaled == "logits":
        logits, shift = logits * shift.exp(), torch.zeros_like(shift)
    if renormalised:
        return F.softmax(logits + shift, dim=-1)
    return (logits + shift).exp() if scaled == "exps" else F.softmax(logits, dim=-1) * shift.exp()


def check_scores(path: Path) -> None:
    """Every mode of the code from the calibrator's weights; the published ones through the calibrator itself."""
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
        ours = code_scores(logits, weights, scaled, renormalised=norm == "renorm")
        assert_close(ours, expected, rtol=2e-5, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")
        if norm == "renorm" and scaled != "logits":
            calibrator = NorCal(len(counts), counts.tolist(), form, **{option: values[method][int(index)]})
            assert_close(scores_of(calibrator, logits), expected, rtol=2e-5, atol=1e-12)


CHECKS = {"scores_": check_scores}
