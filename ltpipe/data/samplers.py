"""Index samplers for base and decoupled training: which images an epoch visits, in which order.

A sampler is a dataclass whose fields are the options of ``sampler: {type: NAME, ...}`` in an experiment;
:data:`SAMPLERS` lists them all. Its list depends on the labels, the epoch and the seed only: every process draws the
same one and takes its slice.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltpipe.data.basic_samplers import (
    ClassAwareSampler,
    InstanceBalancedSampler,
    RandomSampler,
    RepeatFactorSampler,
    Rows,
    Sampler,
    repeat_factors,
    require,
    require_size,
)
from ltpipe.data.class_images import ImageLabels
from ltpipe.data.torch_random import TorchRandom
from ltpipe.errors import UserError, unknown_name


@dataclass
class RepeatDropSampler:
    """Repeats tail images and leaves out a changing part of the others, inside aspect-ratio groups.

    Images with a repeat factor above 1 come ``ceil(r_i) + 1`` times, the others once unless dropped. Each group is
    padded with its first entries to a multiple of ``pad_to``; ``chunk`` successive entries share a group. Source: the
    samplers ``..._addrepeat`` (nothing dropped) and ``..._addrepeat_sampleout`` of FishYuLi/BalancedGroupSoftmax; with
    ``seed + epoch`` as their epoch, ``chunk`` images per GPU and ``pad_to = chunk * GPUs`` the entries are equal,
    process after process.

    Args:
        threshold: Share of images under which a class is repeated.
        drop_fraction: Part of the images with factor 1 that an epoch leaves out. The default matches the 23000 of 47072
            images of the source on LVIS v0.5; 0 drops nothing.
        drop_per_group: Number of images to leave out of each aspect-ratio group instead (source: ``[6000, 17000]``).
        chunk: Successive entries with the same aspect-ratio group, usually the images per GPU.
        pad_to: Multiple to which every group is padded, usually the total batch.
    """

    threshold: float = 1e-3
    drop_fraction: float = 0.49
    drop_per_group: list[int] | None = None
    chunk: int = 2
    pad_to: int = 16

    def __post_init__(self) -> None:
        """Check the options."""
        require(self.threshold >= 0, "bad threshold", self.threshold, "0 or more")
        require(0 <= self.drop_fraction < 1, "bad drop_fraction", self.drop_fraction, "0 or more, below 1")
        require(min(self.drop_per_group or [0]) >= 0, "bad drop_per_group", self.drop_per_group, "counts of images")
        fits = self.chunk > 0 and self.pad_to > 0 and self.pad_to % self.chunk == 0
        require(fits, "bad chunk and pad_to", (self.chunk, self.pad_to), "positive, pad_to a multiple of chunk")

    def _copies(self, labels: ImageLabels) -> tuple[Rows, Rows]:
        """Return ``ceil(r_i) (N,)`` and the images above 1 in the order in which the classes list them."""
        copies = np.ceil(repeat_factors(labels, self.threshold)[1]).astype(np.int64)
        by_class = labels.by_class[1]
        first = np.sort(np.unique(by_class, return_index=True)[1])
        listed = by_class[first]
        return copies, listed[copies[listed] > 1]

    def _dropped(self, group: int, available: int) -> int:
        """Return how many of the ``available`` unrepeated images of a group an epoch leaves out."""
        if self.drop_per_group is None:
            return int(self.drop_fraction * available)
        require(group < len(self.drop_per_group), "drop_per_group is too short", self.drop_per_group, "one per group")
        count = self.drop_per_group[group]
        require(count <= available, f"drop_per_group[{group}] is too large", count, f"up to {available}")
        return count

    def epoch(self, labels: ImageLabels, epoch: int, seed: int) -> Rows:
        """Return data set indices ``(L,) int64``; ``L`` is a multiple of ``pad_to``."""
        generator = TorchRandom(seed + epoch)
        copies, repeated = self._copies(labels)
        group_of = np.zeros(labels.num_images, dtype=np.int64) if labels.group is None else labels.group
        parts = []
        for group in np.unique(group_of).tolist():
            members = np.flatnonzero(group_of == group)
            extra = repeated[group_of[repeated] == group]
            plain = members[copies[members] == 1]
            drop = self._dropped(group, len(plain))
            if drop:
                kept = plain[generator.randperm(len(plain))[: len(plain) - drop]]
                rows = np.concatenate([kept, np.repeat(extra, copies[extra] + 1)])
            else:
                rows = np.concatenate([members, np.repeat(extra, copies[extra])])
            rows = rows[generator.randperm(len(rows))]
            parts.append(np.resize(rows, -(-len(rows) // self.pad_to) * self.pad_to))
        chunks = np.concatenate(parts).reshape(-1, self.chunk)
        return chunks[generator.randperm(len(chunks))].reshape(-1)

    def epoch_length(self, labels: ImageLabels) -> int | None:
        """Return the number of entries, padding included."""
        return len(self.epoch(labels, 0, 0))


@dataclass
class CombinedSampler:
    """Interleaves several samplers in fixed shares.

    Entry ``j`` of a part with share ``w`` has the time ``(j + 1/2) / w``; an epoch is the entries of all parts by time.
    So every beginning of it holds the shares within one entry (up to three parts). Each part is an endless stream that
    goes on where the epoch before stopped.

    Args:
        parts: ``{type: NAME, weight: W, ...}`` with the options of that sampler; weights need not sum to 1.
        epoch_size: Entries per epoch; null for as many as there are images.
    """

    parts: list[dict[str, Any]] = field(default_factory=list)
    epoch_size: int | None = None

    def __post_init__(self) -> None:
        """Check the options, those of the parts too."""
        require_size(self.epoch_size)
        require(len(self.parts) > 0, "no parts to combine", self.parts, "a list of {type: NAME, weight: W}")
        for part in self._weights():
            require(part > 0, "bad weight of a part", part, "above 0")
        self._samplers()

    def _weights(self) -> list[float]:
        return [part.get("weight", 1.0) for part in self.parts]

    def _samplers(self) -> list[Sampler]:
        plain = [{key: value for key, value in part.items() if key != "weight"} for part in self.parts]
        return [build_sampler(part, where=f"sampler.parts[{i}]") for i, part in enumerate(plain)]

    def _interleave(self, size: int) -> NDArray[np.int64]:
        """Return which part each entry comes from, ``(size,) int64``."""
        share = np.array(self._weights()) / sum(self._weights())
        times = [(np.arange(np.ceil(size * w) + 1) + 0.5) / w for w in share]
        part = np.repeat(np.arange(len(times)), [len(t) for t in times])
        return part[np.argsort(np.concatenate(times), kind="stable")[:size]]

    def epoch_with_parts(self, labels: ImageLabels, epoch: int, seed: int) -> tuple[Rows, Rows]:
        """Return data set indices ``(L,) int64`` and the part ``(L,) int64`` each comes from."""
        part_of = self._interleave(self.epoch_size or labels.num_images)
        rows = np.empty_like(part_of)
        for i, sampler in enumerate(self._samplers()):
            mine = np.flatnonzero(part_of == i)
            # Far apart, so that equal samplers in two parts do not draw the same images.
            rows[mine] = _stream(sampler, labels, epoch * len(mine), len(mine), seed + (i << 20))
        return rows, part_of

    def epoch(self, labels: ImageLabels, epoch: int, seed: int) -> Rows:
        """Return data set indices ``(L,) int64``."""
        return self.epoch_with_parts(labels, epoch, seed)[0]

    def epoch_length(self, labels: ImageLabels) -> int | None:
        """Return the epoch size."""
        return self.epoch_size or labels.num_images


def _stream(sampler: Sampler, labels: ImageLabels, start: int, count: int, seed: int) -> Rows:
    """Return entries ``start .. start + count - 1`` of a sampler's epochs laid end to end."""
    length = sampler.epoch_length(labels)
    epoch = start // length if length else 0
    position = epoch * length if length else 0
    pieces = [np.empty(0, dtype=np.int64)]
    while position < start + count:
        rows = sampler.epoch(labels, epoch, seed)
        pieces.append(rows[max(start - position, 0) : start + count - position])
        position += len(rows)
        epoch += 1
    return np.concatenate(pieces)


SAMPLERS: dict[str, type] = {
    "random": RandomSampler,
    "repeat_factor": RepeatFactorSampler,
    "class_aware": ClassAwareSampler,
    "instance_balanced": InstanceBalancedSampler,
    "repeat_drop": RepeatDropSampler,
    "combined": CombinedSampler,
}
"""Every sampler by the name used in experiments."""


def build_sampler(options: dict[str, Any], *, where: str = "sampler") -> Sampler:
    """Return the sampler of ``{type: NAME, ...}``.

    Args:
        options: The type and its options.
        where: File and key for errors.

    Raises:
        UserError: The type or an option is unknown, or a value is out of range.
    """
    values = dict(options)
    name = str(values.pop("type", None))
    if name not in SAMPLERS:
        raise unknown_name("sampler", name, SAMPLERS, where=where)
    known = [option.name for option in fields(SAMPLERS[name])]
    for option in values:
        if option not in known:
            raise unknown_name(f"option of sampler {name!r}", option, known, where=where)
    try:
        sampler: Sampler = SAMPLERS[name](**values)
    except TypeError as error:
        raise UserError(f"bad option of sampler {name!r}", where=where, got=error) from error
    return sampler
