"""Configs of detectors in another class order; tensors are reordered by :mod:`ltpipe.methods.class_rows`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Arguments of components with an entry per class: counts and names, and weights that end with the background.
PER_CLASS = ("image_counts", "instance_counts", "class_frequency", "class_names", "class_ranks", "class_weight")


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
