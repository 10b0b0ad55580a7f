"""LOCE's memory: a ring of features of every class, with their boxes."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ltpipe.errors import UserError
from ltpipe.methods.loce.functions import ring_slots


class FeatureMemory(nn.Module):
    """Rings of features, the same on every process.

    Buffers, so that a resumed run continues exactly: ``features`` ``(K, Q, ...)`` float32, whose width is that of the
    first features, ``boxes`` ``(K, Q, 8)`` float32 (a box and that of its object, xyxy in pixels of the network input)
    and ``written`` ``(K,)`` int64, rows ever written to each ring.

    Args:
        num_classes: Foreground classes K.
        size: Places of a ring, Q.
    """

    class_rows: ClassVar[dict[str, int]] = {"features": 0, "boxes": 0, "written": 0}

    features: Tensor
    boxes: Tensor
    written: Tensor

    def __init__(self, num_classes: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("features", torch.zeros(num_classes, size, 0))
        self.register_buffer("boxes", torch.zeros(num_classes, size, 8))
        self.register_buffer("written", torch.zeros(num_classes, dtype=torch.int64))

    @torch.no_grad()
    def add(self, features: Tensor, boxes: Tensor, labels: Tensor) -> None:
        """Write rows to the rings of their classes; the oldest are overwritten.

        Args:
            features: ``(M, ...)`` float.
            boxes: ``(M, 8)`` float.
            labels: ``(M,)`` int64 in ``0..K-1``.
        """
        self._fit(features.shape[1:])
        rows, places, written = ring_slots(labels, self.written, self.size)
        self.features[labels[rows], places] = features[rows].to(self.features)
        self.boxes[labels[rows], places] = boxes[rows].to(self.boxes)
        self.written.copy_(written)

    def draw(self, classes: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draw features, with replacement, from what the rings of some classes hold; empty ones give none.

        Args:
            classes: ``(s,)`` int64; ``K`` is no class.
            uniform: ``(s, n)`` float in [0, 1), a number for each of ``n`` features of a class.

        Returns:
            Features ``(S, ...)`` float32, boxes ``(S, 8)`` and labels ``(S,)`` int64.
        """
        filled = torch.cat([self.written, self.written.new_zeros(1)])[classes].clamp(max=self.size)
        known = filled > 0
        labels, filled, uniform = classes[known], filled[known], uniform[known]
        places = (uniform * filled[:, None]).long()
        labels = labels[:, None].expand_as(places).flatten()
        return self.features[labels, places.flatten()], self.boxes[labels, places.flatten()], labels

    def _fit(self, shape: torch.Size) -> None:
        """Give the features their width when it becomes known. In place: wrappers hold on to the buffers."""
        if self.features.shape[2:] == shape:
            return
        if self.features.numel():
            raise UserError(
                "the feature memory belongs to another head",
                where="parts: loce",
                got=f"features of {tuple(shape)}",
                allowed=f"{tuple(self.features.shape[2:])}",
                fix="start from a checkpoint of the same detector with the same option `memory`",
            )
        self.features.resize_(*self.features.shape[:2], *shape).zero_()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        stored = state_dict.get(f"{prefix}features")
        if stored is not None and stored.shape[:2] == self.features.shape[:2] and stored.numel():
            self._fit(stored.shape[2:])
        super()._load_from_state_dict(state_dict, prefix, *args)
