"""CRAT's running per-class gradient energy, and what a batch brings to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ltpipe.methods.base import all_reduce_sum, world_size
from ltpipe.methods.crat_functions import class_sums, similarity, update_energy


@dataclass(frozen=True)
class SampleGradients:
    """Gradients at the outputs of the own class, and the inputs of the last layer.

    Attributes:
        inputs: ``(P, d)`` float32.
        of_batch_loss: ``(P, c)`` float32, of the configured loss of the batch.
        of_sample_loss: ``(P, c)`` float32, of each sample's own loss.
    """

    inputs: Tensor
    of_batch_loss: Tensor
    of_sample_loss: Tensor


class FisherBank(nn.Module):
    """Running per-class gradient energy of a last layer, equal on all processes.

    The width of the layer is read off the first batch or the loaded state.

    Args:
        num_classes: ``K``.
        outputs: Outputs per class, ``c``: 4 for boxes, 1 for masks.
        momentum: Weight of a batch in the running value.
        decay_absent: Move absent classes towards zero.
        class_stat: ``batch``: square the class's summed gradient; ``per_sample``: average its samples' squares.
        sync: Combine the batches of all processes. Every process divides its loss by its own number of RoIs, so the
            mean of their gradients is the gradient of the joint batch.

    Attributes:
        energy: ``(K, c, d)`` float32 buffer, laid out as the layer's weight; ``d = 0`` before the first batch.
    """

    energy: Tensor

    def __init__(
        self,
        num_classes: int,
        outputs: int,
        momentum: float,
        decay_absent: bool = False,
        class_stat: Literal["batch", "per_sample"] = "batch",
        sync: bool = True,
    ) -> None:
        super().__init__()
        self.momentum, self.decay_absent, self.class_stat, self.sync = momentum, decay_absent, class_stat, sync
        self.register_buffer("energy", torch.zeros(num_classes, outputs, 0))

    def seen(self) -> Tensor:
        """Return ``(K,)`` bool: classes with a statistic."""
        return (self.energy != 0).flatten(1).any(dim=1)

    def update(self, grads: SampleGradients, labels: Tensor) -> None:
        """Add the statistic of one batch. With ``sync`` all processes must call it together.

        Args:
            grads: Of the ``P`` positive RoIs; may be empty.
            labels: ``(P,)`` int64.
        """
        num_classes = len(self.energy)
        if self.energy.shape[2] == 0:
            self._widen(grads.inputs.shape[1])
        ones = self.energy.new_ones(len(labels))
        counts = self._over_processes(self.energy.new_zeros(num_classes).index_add_(0, labels, ones))
        if self.class_stat == "batch":
            gradient = self._over_processes(class_sums(grads.of_batch_loss, grads.inputs, labels, num_classes))
            value = (gradient / (world_size() if self.sync else 1)).square()
        else:
            squares = class_sums(grads.of_sample_loss.square(), grads.inputs.square(), labels, num_classes)
            value = self._over_processes(squares) / counts.clamp(min=1)[:, None, None]
        update_energy(self.energy, value, counts > 0, self.momentum, self.decay_absent)

    def _widen(self, width: int) -> None:
        """Make room in place: others may hold the buffer."""
        self.energy.resize_(*self.energy.shape[:2], width).zero_()

    def _over_processes(self, tensor: Tensor) -> Tensor:
        return all_reduce_sum(tensor) if self.sync else tensor

    def cosine(self, grads: SampleGradients, sample_stat: Literal["squared", "first_signed"]) -> Tensor:
        """Return the cosines ``(P, K)`` between the samples' statistics and the classes'."""
        if sample_stat == "squared":
            return similarity(grads.of_sample_loss.square(), grads.inputs.square(), self.energy)
        first = similarity(grads.of_sample_loss[:1], grads.inputs[:1], self.energy)
        return first.expand(len(grads.inputs), -1) if len(first) else first

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        stored = state_dict.get(prefix + "energy")
        if stored is not None and stored.shape[:2] == self.energy.shape[:2]:
            self._widen(stored.shape[2])
        super()._load_from_state_dict(state_dict, prefix, *args)
