"""FASA: feature augmentation and sampling adaptation (Zang, Huang, Loy, ICCV 2021, arXiv 2102.12867).

Keeps a running Gaussian of the classifier's input for every foreground class and adds a small loss on features drawn
from it, ``L = lambda (1/K) sum_k CE(fc_cls(x_k), y_k)``, rare classes being drawn more often; see
:mod:`ltpipe.methods.fasa.functions` for the equations. How often a class is drawn is adapted once per epoch by the
change of the classification loss on held-out images (:class:`ltpipe.methods.fasa.hook.FASAAdaptationHook`).

Acts on the box head during training only: detections do not depend on it. Needs training image and instance counts, and
a set of images with annotations for the adaptation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ltpipe.errors import UserError, unknown_name
from ltpipe.frequency import FREQUENCY_NAMES, frequency_groups
from ltpipe.methods.fasa.counters import class_losses
from ltpipe.methods.fasa.functions import (
    adapted_probability,
    class_moments,
    cluster_classes,
    initial_probability,
    select_classes,
    updated_statistics,
    virtual_features,
)
from ltpipe.methods.head_parts import BoxBatch, HeadPart
from ltpipe.methods.reductions import all_reduce_sum, touch, world_size
from ltpipe.registry import method

PRESETS: dict[str, dict[str, str]] = {
    "default": {"similarity": "neg_sq_dist", "sync": "iter", "adapt_split": "holdout"},
    "repro": {"similarity": "sq_dist", "sync": "none", "adapt_split": "val"},
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Adaptation:
    """What one adaptation did.

    Attributes:
        groups: ``(C,)`` int64 group of every class, -1 for none.
        raised: Number of groups whose probabilities were raised.
        lowered: Number of groups whose probabilities were lowered.
    """

    groups: Tensor
    raised: int
    lowered: int

    @property
    def num_groups(self) -> int:
        """Number of groups."""
        return int(self.groups.max()) + 1 if len(self.groups) else 0


@method("part", "fasa")
class FASA(HeadPart):
    """Features drawn from a Gaussian of every class, rare classes more often.

    Buffers, so that a resumed run continues exactly: ``mean`` and ``var`` ``(C, D)``, ``seen`` ``(C,)``, ``prob``
    ``(C,)``, ``prev_loss`` ``(C + 1,)`` (zeros before the first adaptation), ``iteration`` and ``drawn`` (virtual
    features of this epoch and process). ``D`` is taken from the first batch or checkpoint.

    Args:
        num_classes: Foreground classes.
        image_counts: Training images per class.
        instance_counts: Training instances per class.
        preset: ``default``, or ``repro`` for the published run: similarity ``sq_dist``, no synchronisation, adaptation
            on the evaluation images. The three options below override it.
        similarity: How classes are grouped, see ``cluster_classes``. None: the preset's.
        sync: ``iter``: statistics of all processes together, every iteration; ``none``: each process its own. None: the
            preset's.
        adapt_split: Images of the adaptation pass: ``holdout`` (held out of training) or ``val``. None: the preset's.
        decay_ratio: Weight of the new statistic (code: 0.1).
        loss_aug_weight: Weight lambda of the loss on virtual features (code: 0.1).
        instance_prob_power: Exponent of the initial probability (code: 1).
        instance_prob_scale: Factor of the initial probability (code: 1).
        dynamic_up: Factor for groups whose held-out loss fell (code: 1.1).
        dynamic_down: Factor for groups whose held-out loss rose (code: 0.9).
        start_epoch: First epoch, from 0, with virtual features (code: 1).
        interval: Epochs between adaptations (code: 1).
        normaliser: ``class_sum``: class loss over all RoIs (code); ``class_mean``: over the RoIs of the class.
        skip_var_single: A single row does not pull the variance of its class towards 0.
        class_frequency: Frequency group per class, for the log; None: by image counts.
        seed: Seed of the drawn features; the draws also depend on the process and the iteration.

    Raises:
        UserError: An option is out of range, or the counts do not fit the classes.
    """

    class_rows: ClassVar[dict[str, Any]] = {"mean": 0, "var": 0, "seen": 0, "prob": 0, "prev_loss": 0}
    extra_images: ClassVar[dict[str, dict[str, str]]] = {
        "adapt_split": {"holdout": "holdout", "val": "val"},
        "preset": {"default": "holdout", "repro": "val"},
    }

    mean: Tensor
    var: Tensor
    seen: Tensor
    prob: Tensor
    prev_loss: Tensor
    iteration: Tensor
    drawn: Tensor

    def __init__(
        self,
        num_classes: int,
        image_counts: Sequence[int],
        instance_counts: Sequence[int],
        preset: Literal["default", "repro"] = "default",
        similarity: Literal["neg_sq_dist", "sq_dist"] | None = None,
        sync: Literal["iter", "none"] | None = None,
        adapt_split: Literal["holdout", "val"] | None = None,
        decay_ratio: float = 0.1,
        loss_aug_weight: float = 0.1,
        instance_prob_power: float = 1.0,
        instance_prob_scale: float = 1.0,
        dynamic_up: float = 1.1,
        dynamic_down: float = 0.9,
        start_epoch: int = 1,
        interval: int = 1,
        normaliser: Literal["class_sum", "class_mean"] = "class_sum",
        skip_var_single: bool = False,
        seed: int = 0,
        class_frequency: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if preset not in PRESETS:
            raise unknown_name("FASA preset", preset, PRESETS)
        if not 0 < decay_ratio <= 1 or min(dynamic_up, dynamic_down) < 0 or interval < 1:
            got = f"decay_ratio {decay_ratio}, dynamic {dynamic_up} / {dynamic_down}, interval {interval}"
            allowed = "0 < decay_ratio <= 1, dynamic_up and dynamic_down >= 0, interval >= 1"
            raise UserError("FASA option out of range", got=got, allowed=allowed)
        choice = PRESETS[preset]
        self.similarity = similarity or choice["similarity"]
        self.sync = sync or choice["sync"]
        self.adapt_split = adapt_split or choice["adapt_split"]
        self.num_classes, self.decay_ratio, self.loss_aug_weight = num_classes, decay_ratio, loss_aug_weight
        self.dynamic_up, self.dynamic_down = dynamic_up, dynamic_down
        self.start_epoch, self.interval, self.normaliser = start_epoch, interval, normaliser
        self.skip_var_single, self.seed = skip_var_single, seed
        self.epoch = 0  # set by the hook from the training loop's own counter
        self.hooked = self._warned = False
        if not len(image_counts) == len(instance_counts) == num_classes:
            got = f"{num_classes} classes, {len(image_counts)} image and {len(instance_counts)} instance counts"
            raise UserError("FASA needs one image and one instance count per class", got=got)
        letters = np.array(frequency_groups(image_counts) if class_frequency is None else class_frequency)
        self.frequency = {name: np.flatnonzero(letters == name) for name in FREQUENCY_NAMES}
        self._make_state(initial_probability(instance_counts, instance_prob_power, instance_prob_scale))

    def _make_state(self, prob: Tensor) -> None:
        self.register_buffer("mean", torch.zeros(self.num_classes, 0))
        self.register_buffer("var", torch.zeros(self.num_classes, 0))
        self.register_buffer("seen", torch.zeros(self.num_classes, dtype=torch.bool))
        self.register_buffer("prob", prob)
        self.register_buffer("prev_loss", torch.zeros(self.num_classes + 1))
        self.register_buffer("iteration", torch.zeros((), dtype=torch.int64))
        self.register_buffer("drawn", torch.zeros((), dtype=torch.int64))

    @staticmethod
    def hooks(
        options: Mapping[str, Any], dataloader: Callable[[str], Mapping[str, Any]], iterations_per_epoch: int | None
    ) -> list[dict[str, Any]]:
        """Configs of the training hooks that this part needs.

        Args:
            options: The constructor's options.
            dataloader: Called with ``holdout`` or ``val``: config of a finite dataloader over those images with
                annotations and the training pipeline.
            iterations_per_epoch: Iterations of an epoch, None for epoch-based loops.
        """
        split = options.get("adapt_split") or PRESETS[options.get("preset", "default")]["adapt_split"]
        return [
            {
                "type": "ltpipe.FASAAdaptationHook",
                "dataloader": dataloader(split),
                "iterations_per_epoch": iterations_per_epoch,
            }
        ]

    def box_losses(self, head: Any, batch: BoxBatch) -> dict[str, Tensor]:
        """Update the statistics with this batch, draw virtual features and return their loss.

        The classification loss sees the virtual features as it sees RoIs; one with statistics of its own counts them.

        Returns:
            ``loss_fasa``, zero before ``start_epoch`` and when no class is drawn; nothing in evaluation mode.
        """
        if not self.training:
            return {}
        self._warn_once_without_hook()
        self.update(batch.features, batch.labels)
        if self.epoch < self.start_epoch:
            return {"loss_fasa": touch(batch.cls_score)}
        features, labels = self.draw()
        self.iteration += 1
        self.drawn += len(labels)
        # Also without a draw: losses that reduce their statistics over processes must be called on all of them.
        logits = head.fc_cls(features.to(batch.features.dtype))
        weights, count = torch.ones_like(features[:, 0]), float(max(len(labels), 1))
        loss = head.loss_cls(logits, labels, weights, avg_factor=count)
        if isinstance(loss, dict):
            loss = torch.stack([v.sum() for k, v in loss.items() if "loss" in k]).sum()
        return {"loss_fasa": self.loss_aug_weight * loss}  # lambda outside: some losses ignore row weights

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Update the running statistics with the foreground rows of all processes.

        Args:
            features: ``(N, D)`` float classifier inputs.
            labels: ``(N,)`` int64.
        """
        self._fit(features.shape[1])
        shared = self.sync == "iter" and world_size() > 1
        moments = class_moments(features, labels, self.num_classes, all_reduce_sum if shared else None)
        state = (self.mean, self.var, self.seen)
        updated = updated_statistics(state, moments, self.decay_ratio, self.skip_var_single)
        for old, new in zip(state, updated, strict=True):
            old.copy_(new)

    @torch.no_grad()
    def draw(self) -> tuple[Tensor, Tensor]:
        """Draw this iteration's virtual features.

        Returns:
            ``(k, D)`` float32 features and ``(k,)`` int64 classes, at most one per class, ascending.
        """
        rank = dist.get_rank() if world_size() > 1 else 0
        state = np.random.SeedSequence([self.seed, rank, int(self.iteration)]).generate_state(1, np.uint64)
        random = torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))  # CPU: same draws on every device
        uniform = torch.rand(self.num_classes, generator=random)
        labels = select_classes(self.prob, self.seen, uniform.to(self.prob.device))
        noise = torch.randn(len(labels), self.mean.shape[1], generator=random)
        return virtual_features(self.mean, self.var, labels, noise.to(self.mean.device)), labels

    @torch.no_grad()
    def adapt(self, totals: Tensor, counts: Tensor) -> Adaptation:
        """Update the probabilities after a pass; the first pass only sets the reference losses.

        Args:
            totals: ``(C + 1,)`` sums of losses by label over all processes.
            counts: ``(C + 1,)`` numbers of RoIs by label over all processes.
        """
        none = torch.full((self.num_classes,), -1, dtype=torch.int64, device=self.prob.device)
        if not float(counts.sum()) > 0 or not bool(totals.isfinite().all()):
            logger.warning("FASA: adaptation skipped: no RoIs in the adaptation images, or losses that are not finite")
            return Adaptation(none, 0, 0)
        current, reference = class_losses(totals, counts, self.prev_loss, self.normaliser)
        groups = self._groups()
        prob, raised, lowered = adapted_probability(
            self.prob, reference, current, groups, self.dynamic_up, self.dynamic_down
        )
        self.prob.copy_(prob)
        self.prev_loss.copy_(current)
        return Adaptation(groups, raised, lowered)

    def summary(self) -> dict[str, float]:
        """Mean probability of rare, common and frequent classes, and virtual features drawn in this epoch."""
        prob = self.prob.cpu().numpy()
        means = {f"fasa/p_mean_{name}": float(prob[rows].mean()) for name, rows in self.frequency.items() if len(rows)}
        return {"fasa/num_virtual": float(all_reduce_sum(self.drawn)), **means}

    def _groups(self) -> Tensor:
        """``(C,)`` groups of classes, the same on every process unless ``sync`` is ``none``."""
        shared = self.sync == "iter" and world_size() > 1
        if shared and dist.get_rank() > 0:
            return all_reduce_sum(torch.zeros(self.num_classes, dtype=torch.int64, device=self.prob.device))
        # The released code also clusters the zero means of unseen classes.
        seen = None if self.similarity == "sq_dist" else self.seen
        groups = cluster_classes(self.mean, seen, self.similarity).to(self.prob.device)
        return all_reduce_sum(groups) if shared else groups

    def _fit(self, width: int) -> None:
        """Give the statistics their width when it becomes known. In place: wrappers hold on to the buffers."""
        if self.mean.shape[1] == width:
            return
        if self.mean.shape[1]:
            raise UserError(
                "FASA statistics belong to another classifier",
                got=f"{width} input features",
                allowed=f"{self.mean.shape[1]}",
                fix="start from a checkpoint of the same detector, or without FASA's buffers",
            )
        for buffer in (self.mean, self.var):
            buffer.resize_(self.num_classes, width).zero_()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        stored = state_dict.get(f"{prefix}mean")
        if stored is not None and stored.ndim == 2 and self.mean.shape[1] == 0:
            self._fit(stored.shape[1])
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _warn_once_without_hook(self) -> None:
        if not (self.hooked or self._warned):
            self._warned = True
            logger.warning("FASA runs without FASAAdaptationHook: epoch %d for ever, nothing is adapted", self.epoch)
