"""tau-normalisation against ``FishYuLi/BalancedGroupSoftmax``; background comes first in these files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from mmdet.models.losses import CrossEntropyLoss
from torch import Tensor, nn
from torch.testing import assert_close

from ltpipe.methods.tau_norm.calibrator import SelectedTauNorm, TauNorm

METHOD = "tau_norm"


def check_weights(path: Path) -> None:
    """Normalised rows, scores, and scores of the selection, with the calibrator and the classifier it merges into."""
    with np.load(path, allow_pickle=False) as file:
        z = {name: torch.from_numpy(file[name]) for name in file.files}
    weight, bias = (z[f"{name}_bg_first"].roll(-1, dims=0) for name in ("weight", "bias"))
    classifier = nn.Linear(*weight.shape[::-1])
    classifier.load_state_dict({"weight": weight, "bias": bias})
    own = classifier(z["features"]).detach()
    for index, tau in enumerate(z["taus"].tolist()):
        for rows in ("all", "foreground"):
            calibrator = normalised(classifier, tau, rows)
            _, state = calibrator.merge({"roi_head": {"bbox_head": {}}}, {})
            merged = state["roi_head.bbox_head.fc_cls.weight"]
            assert_close(merged, z[f"weight_{rows}_{index}"].roll(-1, dims=0), rtol=1e-5, atol=0)
            expected = z[f"scores_{rows}_{index}"].roll(-1, dims=1)
            assert_close(calibrator.scores(calibrator(own)), expected, rtol=2e-5, atol=1e-12)
            logits = z["features"] @ merged.T + bias
            assert_close(logits.softmax(dim=1), expected, rtol=2e-5, atol=1e-12)
        calibrator = normalised(classifier, tau, "foreground", z[f"select_mask_{index}"][1:])
        expected = z[f"scores_select_{index}"].roll(-1, dims=1)
        assert_close(calibrator.scores(calibrator(own)), expected, rtol=2e-5, atol=1e-12)
        _, state = calibrator.merge({"roi_head": {"bbox_head": {}}}, {})
        selecting = SelectedTauNorm(*weight.shape[::-1])
        selecting.load_state_dict({key.rpartition(".")[2]: value for key, value in state.items()})
        assert_close(selecting(z["features"]).softmax(dim=1).detach(), expected, rtol=2e-5, atol=1e-12)


def normalised(classifier: nn.Linear, tau: float, rows: str, selected: Tensor | None = None) -> TauNorm:
    """The calibrator of a classifier; selected classes are those with few instances."""
    classes = classifier.out_features - 1
    counts = [10] * classes if selected is None else (10 - 9 * selected).tolist()
    calibrator = TauNorm(classes, counts, tau, rows, None if selected is None else 5)
    head = SimpleNamespace(fc_cls=classifier, loss_cls=CrossEntropyLoss(), cls_predictor_cfg={"type": "Linear"})
    calibrator.initialise(head)
    return calibrator


CHECKS = {"weights_": check_weights}
