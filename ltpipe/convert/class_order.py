"""Class rows of a detector in another order: other repositories count labels by category id, experiments by frequency.

A label is the position of a category in the list of its checkpoint. Every tensor with a row (or a block of rows) per
class is listed here; rows of the background and of the objectness follow those of the classes and stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ltpipe.errors import UserError
from ltpipe.methods.bags_groups import layout_from_groups

# Pattern of the key, and rows per class.
CLASS_ROWS = (
    (r"roi_head\.bbox_head\.(\d\.)?fc_cls\.(weight|bias|weight_scaler)$", 1),
    (r"roi_head\.bbox_head\.(\d\.)?fc_reg\.(weight|bias)$", 4),
    (r"roi_head\.bbox_head\.(\d\.)?loss_cls\.(pos_grad|neg_grad|pos_neg|cum_samples)$", 1),
    (r"roi_head\.mask_head\.(\d\.)?conv_logits\.(weight|bias)$", 1),
    (r"roi_head\.calibrator\.(.*\.)?fc_cls\.(weight|bias|weight_scaler|sums|counts)$", 1),
    (r"roi_head\.parts\.\d+\.(.*\.)?(mean|var|seen|prob|prev_loss|energy)$", 1),
)
# Arguments of components with an entry per class: counts and names, and weights that end with the background.
PER_CLASS = ("image_counts", "instance_counts", "class_names", "class_ranks", "class_weight")
LABEL_MAP = re.compile(r"(roi_head\.bbox_head\.(?:\d\.)?)loss_cls\.label_map$")


def reorder_classes(state: Mapping[str, Tensor], known: int, positions: Sequence[int]) -> dict[str, Tensor]:
    """Return a state whose label ``j`` is the old label ``positions[j]``.

    Args:
        state: Detector state under our names, background last.
        known: Classes it knows.
        positions: Old labels in the new order; fewer than ``known`` leave classes out.

    Raises:
        UserError: A class-wise tensor has fewer rows than there are classes.
    """
    reordered = dict(state)
    grouped = [found[1] for key in state if (found := LABEL_MAP.match(key))]
    for prefix in grouped:
        _reorder_groups(reordered, prefix, positions)
    for key, value in state.items():
        if any(key.startswith(f"{prefix}fc_cls.") for prefix in grouped):
            continue
        for pattern, block in CLASS_ROWS:
            if re.match(pattern, key) and not _class_agnostic(key, value):
                reordered[key] = _rows(key, value, known, positions, block)
    return reordered


def reorder_config(value: Any, order: Sequence[int]) -> Any:
    """Return a model config whose lists with an entry per class are in another order; what follows the classes stays.

    Args:
        value: A model config, or a part of one.
        order: Old labels in the new order.
    """
    if isinstance(value, list | tuple):
        return type(value)(reorder_config(inner, order) for inner in value)
    if not isinstance(value, Mapping):
        return value
    found = {key: reorder_config(inner, order) for key, inner in value.items()}
    per_class = [key for key in PER_CLASS if isinstance(found.get(key), list | tuple)]
    return found | {key: [found[key][label] for label in order] + list(found[key][len(order) :]) for key in per_class}


def _class_agnostic(key: str, value: Tensor) -> bool:
    return len(value) == {"fc_reg": 4, "conv_logits": 1}.get(key.split(".")[-2], 0)


def _rows(key: str, value: Tensor, known: int, positions: Sequence[int], block: int) -> Tensor:
    if len(value) < known * block:
        raise UserError(
            "the layer has fewer rows than the checkpoint knows classes", where=key, got=len(value),
            allowed=f"{known * block} or more",
        )  # fmt: skip
    own = value[: known * block].reshape(known, block, *value.shape[1:])[list(positions)].flatten(0, 1)
    return torch.cat([own, value[known * block :]])


def _reorder_groups(state: dict[str, Tensor], prefix: str, positions: Sequence[int]) -> None:
    """Reorder a classifier by groups: members stand in label order inside their group."""
    table = state[f"{prefix}loss_cls.label_map"]
    groups = (table[:-1, :-1] > 0).int().argmax(dim=0)
    old = layout_from_groups(groups.numpy(), len(table) - 1)
    new = layout_from_groups(groups[list(positions)].numpy(), len(table) - 1)
    rows = torch.arange(old.num_channels)
    rows[torch.from_numpy(new.channel)] = torch.from_numpy(old.channel[[*positions, len(groups)]])
    for part in ("weight", "bias"):
        if f"{prefix}fc_cls.{part}" in state:
            state[f"{prefix}fc_cls.{part}"] = state[f"{prefix}fc_cls.{part}"][rows]
    state[f"{prefix}loss_cls.label_map"] = torch.from_numpy(new.label_map)
