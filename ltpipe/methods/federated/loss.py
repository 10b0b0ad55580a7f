"""Federated loss (xingyizhou/CenterNet2, facebookresearch/Detic): a sigmoid loss over some of the classes.

In every step and on every process ``M`` holds the labels of the RoIs, background included, and, up to ``s`` in all,
further classes drawn without replacement with probability proportional to ``n_c ** p``, ``n`` the training images.
``L = (1 / N) sum_n sum_{c in M, c <= K} BCE(z_nc, y_nc)``. Acts as ``loss_cls`` with ``K + 1`` channels, the last of
which is never used. Needs image counts.

It does not read which classes of an image LVIS has annotated. There is no softmax form: the one of the repositories
weighs each RoI by whether its label is in ``M``, where all labels are, and so equals plain cross entropy exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ltpipe.errors import UserError
from ltpipe.methods.seeded_draws import SeededDraws
from ltpipe.methods.sigmoid_loss import SigmoidLoss, one_hot
from ltpipe.registry import method


def drawn_classes(labels: Tensor, weight: Tensor, size: int, noise: Tensor) -> Tensor:
    """Return which classes a step looks at, ``(K + 1,)`` bool: its labels and the drawn ones.

    The draw is ``torch.multinomial``'s on the CPU, which takes the largest ``weight / noise``.

    Args:
        labels: ``(N,)`` int64, background ``K``.
        weight: ``(K + 1,)`` float32, to which the probability is proportional; classes with 0 are never drawn.
        size: Classes in all, labels included; if there are more labels, nothing is drawn.
        noise: ``(K + 1,)`` float32, exponentially distributed.
    """
    present = torch.zeros_like(weight, dtype=torch.bool).index_fill_(0, labels, True)
    rank = torch.where(present, torch.inf, weight / noise)
    best = rank.topk(min(size, len(rank)))
    drawn = torch.zeros_like(present).scatter_(0, best.indices, best.values > 0)
    return present | drawn


@method("loss", "federated")
class FederatedLoss(SigmoidLoss, SeededDraws):
    """Federated loss; scores at test time are ``sigmoid(z)``, that of the unused channel last.

    Label weights and the average factor are ignored, as in the repositories.

    Args:
        num_classes: Foreground classes ``K``.
        image_counts: Training images per class, label order.
        num_sampled: ``s``, classes per step, labels of the RoIs included (repositories: 50).
        power: ``p``, exponent of the image counts (repositories: 0.5).
        loss_weight: Factor of the loss (repositories: 1.0).
        prior_prob: Initial score of every class; the head sets the classifier's bias by it (CenterNet2 and Detic: 0.01;
            detectron2 leaves the bias at 0).
        seed: Seed of the draws, which also depend on the iteration and the process.

    Raises:
        UserError: No class is to be drawn.
    """

    background = "unused"

    frequency: Tensor

    def __init__(
        self,
        num_classes: int,
        image_counts: Sequence[int],
        num_sampled: int = 50,
        power: float = 0.5,
        loss_weight: float = 1.0,
        prior_prob: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__(num_classes, loss_weight)
        if num_sampled < 1:
            raise UserError("no classes per step", where="model.loss.num_sampled", got=num_sampled, allowed="1 or more")
        self.num_sampled, self.prior_prob = num_sampled, prior_prob
        counts = torch.tensor(image_counts, dtype=torch.float32)
        frequency = torch.where(counts > 0, counts**power, 0.0)
        self.register_buffer("frequency", F.pad(frequency, (0, 1)), persistent=False)
        self.start_draws(seed)

    def rows(self, logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
        """Return the loss of every RoI."""
        classes = self.classes(labels)[: self.num_classes]
        target = one_hot(labels, self.num_classes, self.num_classes)
        losses = F.binary_cross_entropy_with_logits(logits[:, : self.num_classes], target, reduction="none")
        return (losses * classes).sum(dim=1)

    def classes(self, labels: Tensor) -> Tensor:
        """Return which classes the next step looks at, ``(K + 1,)`` bool."""
        noise = torch.empty(self.num_classes + 1, device="cpu")  # the same numbers for all devices
        noise.exponential_(generator=self.generator("cpu"))
        return drawn_classes(labels, self.frequency, self.num_sampled, noise.to(labels.device))
