"""LogN (Zhao, Teng, Wang, IJCV 2024, arXiv 2203.17020; code ``MCG-NJU/LogN``).

    z'_c = (z_c - mu_c + beta) / sigma_c,    beta = min_c mu_c,    background as it is, softmax over K + 1

``mu`` and ``sigma`` are those of a class's logit over all sampled RoIs of the training images, whatever their label.
The code takes running statistics that start from 0 and 1: after one pass over LVIS with a momentum of 5e-5 these still
weigh (1 - 5e-5)^25,000 = 0.29. Acts on the classifier; needs stored features of ordinary mini-batches
(``features: {draw: images, bg_ratio: null, neg_iou_min: 0}``) and reads each of them once.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ltpipe.methods.box_layers import is_plain_linear, rectifies
from ltpipe.methods.calibration import Calibrator, State, check_softmax, replace_classifier
from ltpipe.methods.reductions import all_reduce_sum, mean_over_processes
from ltpipe.registry import method

SMALLEST_VARIANCE = 1e-11


def combined(
    mean: Tensor, squares: Tensor, count: Tensor, other_mean: Tensor, other_squares: Tensor, other_count: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, sum of squared deviations and number of two sets of rows together.

    Args:
        mean: ``(C,)`` of the first set.
        squares: ``(C,)``.
        count: Scalar.
        other_mean: ``(C,)`` of the second set.
        other_squares: ``(C,)``.
        other_count: Scalar, positive.
    """
    total = count + other_count
    apart = other_mean - mean
    return (
        mean + apart * (other_count / total),
        squares + other_squares + apart.square() * (count * other_count / total),
        total,
    )


def running(mean: Tensor, var: Tensor, batch: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
    """Return the running mean and unbiased variance ``(C,)`` after a batch ``(n, C)`` of at least two rows."""
    return torch.lerp(mean, batch.mean(dim=0), momentum), torch.lerp(var, batch.var(dim=0), momentum)


def normalisation(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Return factor and summand of every logit, ``(K + 1,)``; those of the background are 1 and 0.

    Args:
        mean: ``(K + 1,)`` means of the logits, background last.
        var: ``(K + 1,)`` variances.
    """
    sigma = var[:-1].clamp(min=SMALLEST_VARIANCE).sqrt()
    return F.pad(1 / sigma, (0, 1), value=1.0), F.pad((mean[:-1].min() - mean[:-1]) / sigma, (0, 1))


@method("calibrator", "logn")
class LogN(Calibrator):
    """Logits normalised by their mean and deviation over training RoIs; a pass over the features, no training.

    With ``schedule: {epochs: 1}`` every mini-batch of the plan is read once; learning rate and momentum of the schedule
    mean nothing here.

    Args:
        num_classes: Foreground classes K.
        statistics: ``exact``: mean and unbiased variance of all rows; ``ema``: running statistics as in the code, which
            start from 0 and 1 and depend on the order of the mini-batches.
        momentum: Weight of a mini-batch in ``ema`` (published: 5e-5).
        shrink: Weight of mean 0 and variance 1 in the result; 0.29 is what a published pass over LVIS leaves of them.
    """

    needs_cross_entropy = True
    work = "one pass over stored features"
    sweeps = {"shrink": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]}

    count: Tensor
    mean: Tensor
    squares: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        num_classes: int,
        statistics: Literal["exact", "ema"] = "exact",
        momentum: float = 5e-5,
        shrink: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes, self.statistics = num_classes, statistics
        self.momentum, self.shrink = momentum, shrink
        channels = num_classes + 1
        for name in ("mean", "squares", "running_mean"):
            self.register_buffer(name, torch.zeros(channels, dtype=torch.float64))
        self.register_buffer("running_var", torch.ones(channels, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def initialise(self, bbox_head: Any) -> None:
        """Copy the detector's classifier.

        Raises:
            UserError: The detector does not score by a softmax over K + 1 outputs.
        """
        check_softmax(bbox_head, "logn")
        self.fc_cls = deepcopy(bbox_head.fc_cls).requires_grad_(False)
        self.classifier = dict(bbox_head.cls_predictor_cfg)
        self.reads = "last" if rectifies(self.fc_cls) else "last_raw"

    @torch.no_grad()
    def observe(self, x: Tensor, labels: Tensor) -> None:
        """Add the logits of all rows ``(n, d)``; ``ema`` leaves mini-batches of one row out, which have no variance."""
        rows = self.fc_cls(x.float()).double()
        if self.statistics == "ema":
            # Published as statistics of a process.
            if len(rows) > 1:
                self.running_mean, self.running_var = running(self.running_mean, self.running_var, rows, self.momentum)
            return
        number = all_reduce_sum(torch.tensor(float(len(rows)), dtype=torch.float64, device=rows.device))
        if number:
            mean = all_reduce_sum(rows.sum(dim=0)) / number
            squares = all_reduce_sum((rows - mean).square().sum(dim=0))
            self.mean, self.squares, self.count = combined(self.mean, self.squares, self.count, mean, squares, number)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and variance ``(K + 1,)`` float64 of the logits; 0 and 1 before any row is seen."""
        mean, var = self.running_mean, self.running_var
        if self.statistics == "exact" and self.count > 1:
            mean, var = self.mean, self.squares / (self.count - 1)
        return mean * (1 - self.shrink), var * (1 - self.shrink) + self.shrink

    def forward(self, x: Tensor) -> Tensor:
        """Return normalised logits ``(n, K + 1)`` of the input of the classifier."""
        factor, summand = (part.float() for part in normalisation(*self.moments()))
        logits: Tensor = self.fc_cls(x.float())
        return logits * factor + summand

    def loss(self, cls_score: Tensor, labels: Tensor) -> Tensor:
        """Return the cross entropy of the normalised logits, which nothing is trained by."""
        return mean_over_processes(F.cross_entropy(cls_score.float(), labels, reduction="none"))

    def merge(
        self, model: Mapping[str, Any], state: Mapping[str, Tensor], stage: int | None = None
    ) -> tuple[dict[str, Any], State]:
        """Put the normalisation into the rows of a linear classifier, or around another one."""
        factor, summand = normalisation(*self.moments())
        if is_plain_linear(self.fc_cls):
            rows, bias = self.fc_cls.weight.double() * factor[:, None], self.fc_cls.bias.double() * factor + summand
            weights = {"fc_cls.weight": rows.float(), "fc_cls.bias": bias.float()}
            return replace_classifier(model, state, classifier=self.classifier, weights=weights, stage=stage)
        weights = {f"fc_cls.classifier.{key}": value for key, value in self.fc_cls.state_dict().items()}
        weights |= {"fc_cls.scale": factor.float(), "fc_cls.shift": summand.float()}
        wrapped = {"type": "ltpipe.AffineClassifier", "classifier": self.classifier}
        return replace_classifier(model, state, classifier=wrapped, weights=weights, stage=stage)
