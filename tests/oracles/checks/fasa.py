"""FASA against vectors of ``yuhangzang/FASA``: statistics, drawing, loss, counters, adaptation."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from torch.testing import assert_close

from ltpipe.methods.fasa.counters import PerClassLossMeter, class_losses, row_losses
from ltpipe.methods.fasa.functions import (
    adapted_probability,
    cluster_classes,
    initial_probability,
    select_classes,
    virtual_features,
)
from ltpipe.methods.fasa.part import FASA
from ltpipe.methods.head_parts import BoxBatch
from ltpipe.methods.softmax.baseline import SoftmaxLoss

METHOD = "fasa"
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def load(path: Path) -> SimpleNamespace:
    """Arrays as tensors, single numbers as numbers."""
    with np.load(path, allow_pickle=False) as file:
        values = {name: file[name] for name in file.files}
    return SimpleNamespace(**{k: v.item() if v.ndim == 0 else torch.from_numpy(v) for k, v in values.items()})


def part(num_classes: int, **options: Any) -> FASA:
    """A FASA part in training, as if its hook were there."""
    made = FASA(num_classes, [1] * num_classes, [1] * num_classes, **options)
    made.hooked = True
    return made


def check_stats_update(path: Path) -> None:
    """Mean, variance and seen classes after every iteration."""
    z = load(path)
    fasa = part(z.num_classes, decay_ratio=z.decay_ratio)
    others = torch.ones(z.num_classes, dtype=torch.bool)
    others[z.classes] = False
    for step, (start, stop) in enumerate(zip(z.offsets[:-1], z.offsets[1:], strict=True)):
        fasa.update(z.embedding[start:stop], z.labels[start:stop])
        assert_close(fasa.mean[z.classes], z.mean[step], **CLOSE)
        assert_close(fasa.var[z.classes], z.var[step], **CLOSE)
        assert_close(fasa.seen[z.classes].float(), z.used[step])
        if hasattr(z, "other_abs_sum"):
            assert float(fasa.mean[others].abs().sum() + fasa.var[others].abs().sum()) == float(z.other_abs_sum)


def check_init_prob(path: Path) -> None:
    """Initial probabilities for every power and scale."""
    z = load(path)
    for power, scale, prob in zip(z.power.tolist(), z.scale.tolist(), z.prob, strict=True):
        assert_close(initial_probability(z.counts.numpy(), power, scale), prob, **CLOSE)


def check_generate(path: Path) -> None:
    """Selected classes and features for given random numbers."""
    z = load(path)
    labels = select_classes(z.prob, z.used > 0, z.uniform)
    assert_close(labels, z.virtual_labels)
    noise = z.noise.reshape(len(labels), z.mean.shape[1])
    assert_close(virtual_features(z.mean, z.var, labels, noise), z.virtual.reshape(noise.shape), **CLOSE)


def check_generate_moments(path: Path) -> None:
    """Our own draws have the same frequencies and moments as the reference's, and as asked for."""
    z = load(path)
    fasa = part(len(z.prob))
    state = {"mean": z.mean, "var": z.var, "seen": z.used > 0, "prob": z.prob}
    fasa.load_state_dict({**fasa.state_dict(), **state})
    calls = min(int(z.n_calls), 5000)
    drawn: list[list[Tensor]] = [[] for _ in range(len(z.prob))]
    for _ in range(calls):
        for feature, label in zip(*fasa.draw(), strict=True):
            drawn[int(label)].append(feature)
        fasa.iteration += 1
    for c, rows in enumerate(drawn):
        p = float(z.prob[c].clamp(0, 1)) * float(z.used[c] > 0)
        for count, total in ((len(rows), calls), (int(z.n_selected[c]), z.n_calls)):
            assert abs(count - p * total) <= 5 * (p * (1 - p) * total) ** 0.5 + 1e-3
        if len(rows) > 1:
            check_moments(torch.stack(rows).double(), z.mean[c].double(), z.var[c].double())
            both = z.var[c].double() * (1 / len(rows) + 1 / float(z.n_selected[c]))
            assert ((torch.stack(rows).double().mean(0) - z.empirical_mean[c]).abs() <= 6 * both.sqrt() + 1e-5).all()


def check_moments(rows: Tensor, mean: Tensor, var: Tensor) -> None:
    """Mean within 5 and, where the normal approximation holds, variance within 6 standard errors."""
    n = len(rows)
    assert ((rows.mean(0) - mean).abs() <= 5 * (var / n).sqrt() + 1e-5).all()
    if n >= 50:
        assert ((rows.var(0) - var).abs() <= 6 * var * (2 / (n - 1)) ** 0.5 + 1e-5).all()


class Injected(FASA):
    """FASA with the reference's draws."""

    def draw(self) -> tuple[Tensor, Tensor]:
        """Return the draws of the file, of classes that can be drawn."""
        features, labels = self.injected
        assert self.seen[labels].all() and (self.prob[labels] > 0).all()
        return features, labels


def check_head_loss(path: Path) -> None:
    """Losses, accuracy, gradients and statistics of one training iteration."""
    z = load(path)
    num_classes, width = z.mean_before.shape
    loss = {"type": "mmdet.L1Loss", "loss_weight": 1.0}
    head = BBoxHead(in_channels=width, roi_feat_size=1, num_classes=num_classes, loss_bbox=loss)
    head.loss_cls = SoftmaxLoss()
    head.fc_cls.load_state_dict({"weight": z.fc_weight, "bias": z.fc_bias})
    counts = [1] * num_classes
    fasa = Injected(num_classes, counts, counts, loss_aug_weight=z.loss_aug_weight, decay_ratio=z.decay_ratio)
    state = {"mean": z.mean_before, "var": z.var_before, "seen": z.used_before > 0, "prob": z.prob}
    fasa.load_state_dict({**fasa.state_dict(), **state})
    fasa.epoch, fasa.injected = z.epoch, (z.virtual.reshape(-1, width), z.virtual_labels.long())

    features = z.embedding.clone().requires_grad_()
    cls_score = head.fc_cls(features)
    assert_close(cls_score, z.cls_score, **CLOSE)
    rois = torch.zeros(len(features), 5)
    losses = head.loss(cls_score, z.bbox_pred, rois, z.labels, z.label_weights, z.bbox_targets, z.bbox_weights)
    batch = BoxBatch(features, cls_score, z.labels, z.label_weights, features, rois, losses)
    total = losses["loss_cls"] + fasa.box_losses(head, batch)["loss_fasa"]
    total.backward()
    assert_close(float(total.detach()), z.loss_cls, **CLOSE)
    assert_close(float(losses["loss_bbox"]), z.loss_bbox, **CLOSE)
    assert_close(losses["acc"], z.acc.reshape(-1), **CLOSE)
    assert_close(fasa.mean, z.mean_after, **CLOSE)
    assert_close(fasa.var, z.var_after, **CLOSE)
    assert_close(fasa.seen.float(), z.used_after)
    assert_close(head.fc_cls.weight.grad, z.grad_fc_weight, **CLOSE)
    assert_close(head.fc_cls.bias.grad, z.grad_fc_bias, **CLOSE)
    assert_close(features.grad, z.grad_embedding, **CLOSE)


def check_counter(path: Path) -> None:
    """Loss in training and sums by class while counting."""
    z = load(path)
    loss, meter = SoftmaxLoss(), PerClassLossMeter(z.cls_score.shape[-1] - 1)
    for step, (logits, labels, weights) in enumerate(zip(z.cls_score, z.labels, z.weights, strict=True)):
        avg_factor = max(float((weights > 0).sum()), 1.0)
        assert_close(loss(logits, labels, weights, avg_factor=avg_factor), z.loss_train_mode[step], **CLOSE)
        mean = meter.add(row_losses(loss, logits, labels, weights), labels)
        assert_close(mean.float(), z.loss_count_mode[step], **CLOSE)
    assert_close(meter.totals.float(), z.cum_losses, rtol=1e-4, atol=1e-6)
    assert_close(meter.counts.float(), z.cum_labels)


def check_adapt(path: Path) -> None:
    """Class losses and probabilities after every epoch, with the reference's groups."""
    z = load(path)
    prob, previous = z.prob_before[0], z.t0_before[0]
    for epoch, groups in enumerate(z.groups):
        if hasattr(z, "feature_mean"):
            ours = cluster_classes(z.feature_mean[epoch], None, "sq_dist")
            # ids, and now and then a class, depend on the scikit-learn version
            assert adjusted_rand_score(groups, ours) > 0.5
        assert_close(previous, z.t0_before[epoch], **CLOSE)
        assert_close(prob, z.prob_before[epoch], rtol=1e-4, atol=1e-9)
        current, reference = class_losses(z.cum_losses[epoch], z.cum_labels[epoch], previous)
        prob, _, _ = adapted_probability(prob, reference, current, groups, z.dynamic_up, z.dynamic_down)
        previous = current
        assert_close(current, z.t1[epoch], **CLOSE)
        assert_close(prob, z.prob_after[epoch], rtol=1e-4, atol=1e-9)


CHECKS = {
    "adapt_": check_adapt,
    "counter_": check_counter,
    "generate_": check_generate,
    "generate_moments": check_generate_moments,
    "head_loss_": check_head_loss,
    "init_prob_": check_init_prob,
    "stats_update_": check_stats_update,
}
