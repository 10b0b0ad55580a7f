"""LOCE's equilibrium loss, mean scores, jittered boxes, rings and draws of classes against the published code."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ltpipe.methods.loce.functions import (
    class_probability,
    drawn_classes,
    jitter_signs,
    jittered_boxes,
    memory_scores,
    object_scores,
    shifted_logits,
    updated_mean_score,
)
from ltpipe.methods.loce.memory import FeatureMemory
from ltpipe.methods.softmax.baseline import SoftmaxLoss
from tests.helpers.loss_cases import check_steps, close, load

METHOD = "loce"


def check_loss(path: Path) -> None:
    """Losses and gradients of shifted logits; test scores are those of the plain softmax."""
    data = load(path)
    loss = SoftmaxLoss(loss_weight=data["loss_weight"])

    def step(t: int, logits: Tensor, labels: Tensor) -> Tensor:
        weights, factor = data["in_label_weights"][t], float(data["in_avg_factor"][t])
        return loss(shifted_logits(logits, data["in_mean_score"][t]), labels, weights, avg_factor=factor)

    check_steps(data, step)
    close(data["in_logits"][-1].softmax(dim=1), data["out_activation_last"])


def entries(data: dict[str, Tensor], t: int, process: int) -> Tensor:
    """Sums and numbers of the entries of one process."""
    scores = data["in_logits"][t, process].float().softmax(dim=1)
    truth, assigned = data["in_gt_labels"][t, process], data["in_assigned"][t, process]
    images, per_image = truth.shape
    offset = torch.arange(images)[:, None] * per_image
    objects = torch.where(assigned >= 0, assigned + offset, -1).flatten()
    background = scores.shape[1] - 1
    labels = torch.where(objects >= 0, truth.flatten()[objects], background)
    own = object_scores(scores[: len(labels)], labels, objects, images * per_image)
    return own + memory_scores(scores[len(labels) :], data["in_memory_labels"][t, process])


def check_mean_score(path: Path) -> None:
    """Mean scores of several steps and processes."""
    data = load(path)
    mean_score = data["mean_score_start"]
    for t, expected in enumerate(data["out_mean_score"]):
        found = torch.stack([entries(data, t, process) for process in range(data["in_logits"].shape[1])]).sum(dim=0)
        mean_score = updated_mean_score(mean_score, found, data["alpha"], data["bg_score"])
        close(mean_score, expected)


def check_boxes(path: Path) -> None:
    """Jittered copies of all boxes of an image."""
    data = load(path)
    assert jitter_signs().equal(data["sign"])
    height, width = data["img_shape"].tolist()
    close(jittered_boxes(data["in_boxes"], data["in_random"], (height, width)), data["out_boxes"])
    close(data["in_boxes"].repeat_interleave(16, dim=0), data["out_gt_boxes"])
    assert data["in_labels"].repeat_interleave(16).equal(data["out_labels"])


def check_queue(path: Path) -> None:
    """Rings after every call."""
    data = load(path)
    memory = FeatureMemory(data["num_classes"], data["queue_size"])
    for t, labels in enumerate(data["in_labels"]):
        known = labels >= 0
        boxes = torch.cat([torch.zeros(len(labels), 4), data["in_targets"][t]], dim=1)
        memory.add(data["in_features"][t][known], boxes[known], labels[known])
        assert memory.features.equal(data["out_features"][t])
        assert memory.boxes[..., 4:].equal(data["out_targets"][t])
        filled = torch.arange(memory.size) < memory.written[:, None]
        own = torch.arange(data["num_classes"])[:, None].expand_as(filled)
        assert torch.where(filled, own, -1).equal(data["out_labels"][t])
        assert ((memory.written - data["out_pointers"][t]) % memory.size == 0).all()


def check_classes(path: Path) -> None:
    """Probabilities of classes, and the classes of uniform numbers."""
    data = load(path)
    foreground = data["mean_score"][:-1]
    expected = data["out_probability_from_formula"]
    torch.testing.assert_close(class_probability(foreground).double(), expected, rtol=1e-5, atol=0)
    for uniform, classes in zip(data["in_uniform"], data["out_classes"], strict=True):
        found = drawn_classes(foreground, uniform)
        assert torch.where(found < len(foreground), found, -1).equal(classes)


CHECKS = {
    "ebl_": check_loss,
    "mean_score_": check_mean_score,
    "mfs_boxes_": check_boxes,
    "mfs_queue_": check_queue,
    "mfs_classes_": check_classes,
}
