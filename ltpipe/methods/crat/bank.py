"""CRAT's running per-class gradient energy, and what a batch brings to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ltpipe.methods.crat.functions import class_norms, class_sums, similarity, update_energy
from ltpipe.methods.reductions import all_reduce_sum, world_size


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


@dataclass(frozen=True)
class _Summary:
    """What is derived from one version of a statistic: a full pass over it would cost more than the update.

    Attributes:
        energy: The statistic.
        version: PyTorch's count of its changes.
        norms: ``(K,)`` float32 length of each class's row.
        seen: ``(K,)`` bool, classes whose row is not zero.
    """

    energy: Tensor
    version: int
    norms: Tensor
    seen: Tensor


def _nonzero(energy: Tensor) -> Tensor:
    return (energy != 0).flatten(1).any(dim=1)


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
    class_rows: ClassVar[dict[str, int]] = {"energy": 0}

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
        self._known: _Summary | None = None

    def seen(self) -> Tensor:
        """Return ``(K,)`` bool: classes with a statistic."""
        return self._summary().seen

    def update(self, grads: SampleGradients, labels: Tensor) -> None:
        """Add the statistic of one batch. With ``sync`` all processes must call it together.

        Args:
            grads: Of the ``P`` positive RoIs; may be empty.
            labels: ``(P,)`` int64.
        """
        if self.energy.shape[2] == 0:
            self._widen(grads.inputs.shape[1])
        counts = self._over_processes(torch.bincount(labels, minlength=len(self.energy)))
        present = counts.nonzero().squeeze(1)
        place = torch.zeros_like(counts).index_copy_(0, present, torch.arange(len(present), device=counts.device))
        summary = self._summary()
        value = self._class_values(grads, place[labels], counts[present])
        update_energy(self.energy, value, present, self.momentum, self.decay_absent)
        if self.decay_absent:
            self._known = None
            return
        rows = self.energy[present]
        summary.norms[present], summary.seen[present] = class_norms(rows), _nonzero(rows)
        self._known = replace(summary, version=self.energy._version)

    def _class_values(self, grads: SampleGradients, rows: Tensor, counts: Tensor) -> Tensor:
        """Return the batch's value ``(M, c, d)`` for the classes in it.

        Args:
            grads: Of the ``P`` positive RoIs.
            rows: ``(P,)`` int64, row of each RoI's class.
            counts: ``(M,)`` int64, RoIs of each class in all processes.
        """
        if self.class_stat == "batch":
            gradient = self._over_processes(class_sums(grads.of_batch_loss, grads.inputs, rows, len(counts)))
            return (gradient / (world_size() if self.sync else 1)).square()
        squares = class_sums(grads.of_sample_loss.square(), grads.inputs.square(), rows, len(counts))
        return self._over_processes(squares) / counts[:, None, None]

    def _summary(self) -> _Summary:
        """Return what is derived from the statistic, anew if others have written to it."""
        known = self._known
        if known is None or known.energy is not self.energy or known.version != self.energy._version:
            known = _Summary(self.energy, self.energy._version, class_norms(self.energy), _nonzero(self.energy))
            self._known = known
        return known

    def _widen(self, width: int) -> None:
        """Make room in place: others may hold the buffer."""
        self.energy.resize_(*self.energy.shape[:2], width).zero_()

    def _over_processes(self, tensor: Tensor) -> Tensor:
        return all_reduce_sum(tensor) if self.sync else tensor

    def cosine(self, grads: SampleGradients, sample_stat: Literal["squared", "first_signed"]) -> Tensor:
        """Return the cosines ``(P, K)`` between the samples' statistics and the classes'."""
        norms = self._summary().norms
        if sample_stat == "squared":
            return similarity(grads.of_sample_loss.square(), grads.inputs.square(), self.energy, norms)
        first = similarity(grads.of_sample_loss[:1], grads.inputs[:1], self.energy, norms)
        return first.expand(len(grads.inputs), -1) if len(first) else first

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        stored = state_dict.get(prefix + "energy")
        if stored is not None and stored.shape[:2] == self.energy.shape[:2]:
            self._widen(stored.shape[2])
        super()._load_from_state_dict(state_dict, prefix, *args)
