"""BAGS: groups, tables, loss and merged scores in the layout of the original repository (background first)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

from ltpipe.interop.bags import from_original_channels, layout_from_original, original_tables
from ltpipe.methods.bags.functions import (
    GroupLayout,
    draw_others,
    group_class_weights,
    group_labels,
    group_layout,
    group_losses,
    group_scores,
)
from ltpipe.methods.class_weights import effective_number_weights, inverse_frequency_weights
from tests.published.bags_channels import to_original_channels

METHOD = "bags"
EDGES = {"": (10, 100, 1000), "2bins.": (100,), "8bins.": (5, 10, 50, 100, 500, 1000, 5000)}
SPLIT_NAMES = re.compile(r"[\[(](\d+), (\d+|~)\)")


def check_groups(path: Path) -> None:
    """Tables, class lists and weights from the training counts."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    counts = arrays["train_instance_count_with_bg0"][1:]
    for prefix, edges in EDGES.items():
        if f"{prefix}label2binlabel" not in arrays:
            continue
        layout = group_layout(counts, edges)
        table, slices = original_tables(layout)
        np.testing.assert_array_equal(table, arrays[f"{prefix}label2binlabel"])
        np.testing.assert_array_equal(slices, arrays[f"{prefix}pred_slice_with0"])
        assert np.array_equal(layout_from_original(arrays[f"{prefix}label2binlabel"]).group, layout.group)
        check_lists(arrays, f"{prefix}valsplit::", layout)
    layout = group_layout(counts, EDGES[""])
    weights = {
        "cls_weight": inverse_frequency_weights(torch.from_numpy(counts)),
        "cls_weight_bours": effective_number_weights(torch.from_numpy(counts)),
    }
    for key, value in weights.items():
        if key in arrays:
            np.testing.assert_allclose(np.append(1.0, value.numpy()), arrays[key], rtol=1e-9)
    by_label = group_class_weights(counts, layout).numpy()
    for key in (k for k in arrays if k.startswith("bins_cls_weight::")):
        g = int(key.rpartition("::")[2])
        np.testing.assert_allclose(np.append(1.0, by_label[g][layout.group == g]), arrays[key], rtol=1e-9)


def check_lists(arrays: dict[str, np.ndarray], prefix: str, layout: GroupLayout) -> None:
    """The named category id lists, whose names do not always tell the edges."""
    ids = np.arange(len(layout.group))  # ids 1..K belong to labels 0..K-1
    named = {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
    ranges = sorted((n for n in named if SPLIT_NAMES.fullmatch(n)), key=lambda n: int(SPLIT_NAMES.fullmatch(n)[1]))
    for g, name in enumerate(ranges):
        np.testing.assert_array_equal(np.sort(named[name]), ids[layout.group == g] + 1)
    everything = {"normal": ids[1:], "background": ids[:1], "all": ids}
    for name, expected in everything.items():
        if name in named:
            np.testing.assert_array_equal(named[name], expected)
    assert len(ranges) == len(layout.sizes) - 1 and named.keys() <= {*ranges, *everything}


def check_head(path: Path) -> None:
    """Labels, averages, losses and gradient with the stored draw; our own draw has the same sizes; merged scores."""
    with np.load(path, allow_pickle=False) as file:
        names = sorted({re.match(r"c\d+_", key)[0] for key in file.files}, key=lambda name: int(name[1:-1]))
        for name in names:
            check_head_case({k[len(name) :]: file[k] for k in file.files if k.startswith(name)})


def check_head_case(case: dict[str, np.ndarray]) -> None:
    """One case of ``gs_head``."""
    layout = layout_from_original(case["label2binlabel"])
    splits = [case[f"split{g}"] - 1 for g in range(len(layout.sizes) - 1) if f"split{g}" in case]
    for g, members in enumerate(splits):
        np.testing.assert_array_equal(np.flatnonzero(layout.group == g), np.sort(members))
    np.testing.assert_array_equal(original_tables(layout)[1], case["pred_slice"])

    classes = len(layout.group) - 1
    labels = torch.from_numpy((case["labels"] - 1) % (classes + 1))
    in_groups = group_labels(labels, torch.from_numpy(layout.label_map))
    # The background's group is the first there, and counts the other way round.
    expected = torch.from_numpy(case["bin_labels"])
    assert torch.equal(in_groups[:-1], expected[1:]) and torch.equal(1 - in_groups[-1], expected[0])

    stored = torch.from_numpy(case["bin_weights"])
    weights = torch.cat([stored[1:], stored[:1]])
    drawn = draw_others(in_groups, float(case["ratio"]), torch.rand(len(in_groups) - 1, len(labels)))
    assert torch.equal(drawn.sum(1), weights.sum(1))
    assert torch.equal(drawn & (in_groups > 0), weights.bool() & (in_groups > 0))
    np.testing.assert_allclose(np.roll(drawn.sum(1).clamp(min=1).numpy(), 1), case["avg_factor"])

    score = torch.from_numpy(case["cls_score"]).requires_grad_()
    ours = from_original_channels(score, dim=1)
    assert torch.equal(to_original_channels(ours, dim=1), score)
    losses = group_losses(ours, in_groups, weights, layout.sizes.tolist())
    losses.sum().backward()
    np.testing.assert_allclose(np.roll(losses.detach().numpy(), 1), case["loss_per_bin"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(float(losses.sum().detach()), case["loss_total"], rtol=1e-5)
    np.testing.assert_allclose(score.grad.numpy(), case["grad"], rtol=1e-5, atol=1e-5 * np.abs(case["grad"]).max())
    merged = group_scores(ours.detach(), torch.from_numpy(layout.channel), layout.sizes.tolist())
    np.testing.assert_allclose(np.roll(merged.numpy(), 1, axis=1), case["merged_scores_bg_first"], atol=1e-5)


CHECKS = {"groups_": check_groups, "gs_": check_head}
