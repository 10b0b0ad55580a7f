"""Group softmax: the eqlv2 layout through the loss itself, and the original repository's layout (background first)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from ltpipe.interop.bags import from_original_channels, layout_from_original, original_tables
from ltpipe.methods.bags import group_softmax as bags
from ltpipe.methods.bags.functions import draw_others, group_labels, group_layout, group_losses, group_scores
from ltpipe.methods.bags.group_softmax import GroupSoftmaxLoss

METHOD = "lt_losses"
DEFAULT_EDGES = (10, 100, 1000)


def close(actual: Tensor, expected: np.ndarray) -> None:
    """Relative 1e-4 of the largest value, absolute 1e-6."""
    expected = np.asarray(expected, np.float64)
    tolerance = max(1e-6, 1e-4 * float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(actual.detach().double().numpy(), expected, rtol=0, atol=tolerance)


@contextmanager
def given_draw(weights: Tensor) -> Iterator[None]:
    """Make the loss use stored weights instead of its own draw."""
    with patch.object(bags, "draw_others", lambda *args: weights):
        yield


def check_draw(in_groups: Tensor, weights: Tensor, beta: float) -> None:
    """Our draw takes the same members and as many others."""
    drawn = draw_others(in_groups, beta, torch.rand(len(in_groups) - 1, in_groups.shape[1]))
    assert torch.equal(drawn.sum(1), weights.sum(1))
    assert torch.equal(drawn & (in_groups > 0), weights.bool() & (in_groups > 0))


def check_group(path: Path) -> None:
    """Layout, loss and gradient per iteration with the stored draws, test-time scores."""
    with np.load(path, allow_pickle=False) as file:
        d = dict(file)
    counts, edges = d["instance_counts"], d["bin_split"].tolist()
    layout = group_layout(counts, edges)
    np.testing.assert_array_equal(layout.group, d["group_ids"])
    np.testing.assert_array_equal(layout.sizes - 1, d["n_cls_group"])
    np.testing.assert_array_equal(layout.label_map, d["group_label_maps"])
    loss = GroupSoftmaxLoss(len(counts), counts.tolist(), edges, float(d["beta"]), float(d["loss_weight"]))
    assert loss.get_cls_channels(len(counts)) == int(d["num_channels"])
    for t, labels in enumerate(torch.from_numpy(d["in_labels"])):
        in_groups = group_labels(labels, loss.label_map)
        np.testing.assert_array_equal(in_groups.numpy(), d["out_group_labels"][t])
        weights = torch.from_numpy(d["out_sample_weights"][t]).long()
        check_draw(in_groups, weights, float(d["beta"]))
        np.testing.assert_allclose(weights.sum(1).clamp(min=1), d["out_avg"][t])
        score = torch.from_numpy(d["in_logits"][t]).requires_grad_()
        with given_draw(weights):
            value = loss(score, labels)
        value.backward()
        close(value, d["out_loss"][t])
        close(score.grad, d["out_grad"][t])
    close(loss.get_activation(torch.from_numpy(d["in_logits"][-1])), d["out_activation_last"])


def check_original(path: Path) -> None:
    """Tables from counts; losses, gradient and scores after moving labels and channels to our order."""
    with np.load(path, allow_pickle=False) as file:
        d = dict(file)
    layout = group_layout(d["instance_counts"], DEFAULT_EDGES)
    table, slices = original_tables(layout)
    np.testing.assert_array_equal(table, d["label2binlabel"])
    np.testing.assert_array_equal(slices, d["pred_slice"])
    assert np.array_equal(layout_from_original(d["label2binlabel"]).channel, layout.channel)
    classes, sizes = len(layout.group) - 1, layout.sizes.tolist()
    for t, old_labels in enumerate(d["in_labels"]):
        labels = torch.from_numpy((old_labels - 1) % (classes + 1))
        in_groups = group_labels(labels, torch.from_numpy(layout.label_map))
        expected = torch.from_numpy(d["out_bin_labels"][t]).long()
        assert torch.equal(in_groups[:-1], expected[1:]) and torch.equal(1 - in_groups[-1], expected[0])
        weights = torch.from_numpy(np.roll(d["out_sample_weights"][t], -1, axis=0)).long()
        check_draw(in_groups, weights, float(d["others_sample_ratio"]))
        np.testing.assert_allclose(np.roll(weights.sum(1).clamp(min=1), 1), d["out_avg"][t])
        score = torch.from_numpy(d["in_logits"][t]).requires_grad_()
        losses = group_losses(from_original_channels(score, dim=1), in_groups, weights, sizes)
        losses.sum().backward()
        close(losses.roll(1), d["out_loss_per_bin"][t])
        close(score.grad, d["out_grad"][t])
    last = from_original_channels(torch.from_numpy(d["in_logits"][-1]), dim=1)
    close(group_scores(last, torch.from_numpy(layout.channel), sizes).roll(1, dims=1), d["out_scores_last"])


CHECKS = {"group_": check_group, "bags_original_": check_original}
