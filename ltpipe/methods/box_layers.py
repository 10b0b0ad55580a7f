"""The layers between the pooled feature of a RoI and its classifier, and what is stored and read between them."""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ltpipe.errors import UserError

Reads = Literal["roi", "fc1", "last", "last_raw"]
Level = Literal["roi", "fc1", "last"]
LEVELS: tuple[Level, ...] = ("roi", "fc1", "last")


def hidden_layers(bbox_head: Any) -> list[nn.Linear]:
    """Return the fully connected layers before the classifier of mmdet's ``ConvFCBBoxHead``; there may be none."""
    return [*bbox_head.shared_fcs, *bbox_head.cls_fcs]


def flattened(bbox_head: Any, bbox_feats: Tensor) -> Tensor:
    """Return what the first fully connected layer, or the classifier if there is none, reads of pooled features.

    Args:
        bbox_head: mmdet's ``ConvFCBBoxHead``.
        bbox_feats: ``(n, c, h, w)`` float.
    """
    # Fully connected layers come after all convolutions of this path: mmdet forbids shared ones before others' own.
    for conv in (*bbox_head.shared_convs, *bbox_head.cls_convs):
        bbox_feats = conv(bbox_feats)
    return (bbox_head.avg_pool(bbox_feats) if bbox_head.with_avg_pool else bbox_feats).flatten(1)


def only_fully_connected(bbox_head: Any) -> list[nn.Linear]:
    """Return the hidden layers of a box head whose classifier sees the pooled features through nothing else.

    Raises:
        UserError: There are convolutions or average pooling before the classifier, or no hidden layer.
    """
    layers = hidden_layers(bbox_head)
    if len(bbox_head.shared_convs) or len(bbox_head.cls_convs) or bbox_head.with_avg_pool or not layers:
        raise UserError(
            "the layers of this box head cannot be copied into a calibrated head",
            where="detector.config: model.roi_head.bbox_head",
            got=type(bbox_head).__name__,
            allowed="fully connected layers only, at least one, without average pooling",
            fix="use a calibrator that trains the classifier alone, such as crt or bags",
        )
    return layers


def is_plain_linear(classifier: nn.Module) -> bool:
    """Return whether a classifier computes ``W x + b`` and nothing else."""
    return isinstance(classifier, nn.Linear) and type(classifier).forward is nn.Linear.forward


def rectifies(classifier: nn.Module | type) -> bool:
    """Return whether a classifier, or its class, reads the last hidden layer after its ReLU; LST's reads it before."""
    return bool(getattr(classifier, "rectify_input", True))


def read_features(bbox_head: Any, stored: Tensor, reads: Reads, level: Level = "roi") -> Tensor:
    """Return what a calibrator reads, computed by the frozen layers of the box head.

    Args:
        bbox_head: mmdet's ``ConvFCBBoxHead``.
        stored: Float, what :func:`stored_features` returned at this level; for ``roi`` pooled ``(n, c, h, w)``.
        reads: ``roi``: pooled features; ``fc1``: first hidden layer after its ReLU; ``last``: last hidden layer after
            its ReLU; ``last_raw``: before it. Without fully connected layers the last is the flattened feature map.
        level: What is stored.

    Raises:
        UserError: What is stored lies above what is to be read, or there is no such layer.
    """
    if reads == level == "roi":
        return stored
    layers = hidden_layers(bbox_head)
    below_relu = level == "fc1" and reads == "last_raw" and len(layers) == 1
    if below_relu or LEVELS.index(level) > LEVELS.index("last" if reads == "last_raw" else reads):
        raise UserError(
            "this calibrator trains layers below the stored features",
            where="features.level",
            got=f"{level} stored, {reads} read",
            allowed="a level that the calibrator's trained layers lie above; roi suits all",
        )
    if "fc1" in (reads, level) and not layers:
        raise UserError(
            "this box head has no fully connected layer before its classifier",
            where="features.level",
            got=f"fc1 of {type(bbox_head).__name__}",
            allowed="roi or last",
        )
    x = flattened(bbox_head, stored) if level == "roi" else stored
    done = {"roi": 0, "fc1": 1, "last": len(layers)}[level]
    for index, layer in enumerate(layers[done : 1 if reads == "fc1" else None], done + 1):
        x = layer(x)
        if reads == "fc1" or index < len(layers):
            x = F.relu(x)
    return F.relu(x) if reads == "last" and layers else x


def stored_features(bbox_head: Any, bbox_feats: Tensor, level: Level) -> Tensor:
    """Return what is stored of pooled features ``(n, c, h, w)``: themselves, or activations ``(n, d)``.

    Of the last hidden layer it is the value before its ReLU, from which both kinds of classifiers can be fed.
    """
    return read_features(bbox_head, bbox_feats, "last_raw" if level == "last" else level)
