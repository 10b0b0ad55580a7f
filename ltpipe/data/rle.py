"""Compressed run-length masks: checked decoding of many strings at once, without a C library.

A mask of ``h * w`` pixels is scanned down the columns; its runs alternate background, foreground, background, ... and
are written as text of six bits per character (offset 48): five bits of the number, least significant group first, and
one bit that says "more follows". From the fourth run on the number is the difference to the run two places before. The
common C decoder reads past the end of a string that stops in the middle of a number, so text from a file must pass
:func:`measure` before it reaches any decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_CHARACTERS = 7  # 35 bits: enough for every run length that fits 32 bits
BLOCK_BYTES = 1 << 16  # text decoded at a time: its intermediate arrays then stay in the processor's cache
PROBLEMS = (
    "",
    "is empty",
    "has an illegal character",
    "stops in the middle of a number",
    "has an impossible run length",
    "does not cover the image: its runs do not sum to height * width",
)


@dataclass(frozen=True)
class Runs:
    """Decoded masks, back to back.

    Attributes:
        lengths: ``(R,) int64`` run lengths in pixels.
        pointer: ``(N + 1,) int64``; mask ``i`` owns ``lengths[pointer[i]:pointer[i + 1]]``.
        problem: ``(N,) uint8`` index into :data:`PROBLEMS`; 0 is a well-formed string (its total is not judged).
    """

    lengths: NDArray[np.int64]
    pointer: NDArray[np.int64]
    problem: NDArray[np.uint8]

    def totals(self) -> NDArray[np.int64]:
        """Return ``(N,) int64``: the number of pixels the runs of each mask cover; ``h * w`` when the mask is whole."""
        return _sums(self.lengths, self.pointer)

    def areas(self) -> NDArray[np.int64]:
        """Return ``(N,) int64``: foreground pixels of each mask."""
        return _sums(np.where(_position(self.pointer) % 2 == 1, self.lengths, 0), self.pointer)


def measure(
    text: NDArray[np.uint8], offsets: NDArray[np.int64], pixels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Return the area of many masks and what is wrong with each.

    Args:
        text: ``(B,) uint8`` buffer.
        offsets: ``(N + 1,) int64``; string ``i`` is ``text[offsets[i]:offsets[i + 1]]``.
        pixels: ``(N,) int64``; ``h * w`` of each mask.

    Returns:
        ``(N,) int64`` foreground pixels and ``(N,) uint8`` index into :data:`PROBLEMS` (0: nothing is wrong).
    """
    areas = np.zeros(len(pixels), np.int64)
    problem = np.zeros(len(pixels), np.uint8)
    row = 0
    while row < len(pixels):
        stop = max(row + 1, int(np.searchsorted(offsets, offsets[row] + BLOCK_BYTES)) - 1)
        part = offsets[row : stop + 1]
        runs = decode_runs(text[part[0] : part[-1]], part - part[0])
        areas[row:stop] = runs.areas()
        wrong_total = runs.totals() != pixels[row:stop]
        problem[row:stop] = np.where(runs.problem == 0, np.where(wrong_total, len(PROBLEMS) - 1, 0), runs.problem)
        row = stop
    return areas, problem


def decode_runs(text: NDArray[np.uint8], offsets: NDArray[np.int64]) -> Runs:
    """Decode ``N`` compressed run-length strings that lie back to back in one buffer.

    Args:
        text: ``(B,) uint8`` buffer.
        offsets: ``(N + 1,) int64``; string ``i`` is ``text[offsets[i]:offsets[i + 1]]``. ``offsets[0]`` must be 0.

    Returns:
        The runs. A malformed string is reported in ``problem`` and its runs are meaningless, but no other mask suffers.
    """
    count = len(offsets) - 1
    problem = np.zeros(count, np.uint8)
    empty = np.diff(offsets) == 0
    digits = text - np.uint8(48)
    illegal = np.flatnonzero(digits > 63)
    ends = (digits & 32) == 0
    last = offsets[1:][~empty] - 1
    cut = np.flatnonzero(~empty)[~ends[last]]
    ends[last] = True  # a broken string must not swallow the next one
    stops = np.flatnonzero(ends)
    pointer = np.searchsorted(stops, offsets).astype(np.int64)
    values, too_long = _numbers(digits, stops)
    lengths = _undo_differences(values, pointer)
    impossible = too_long | (lengths < 0) | (lengths > np.iinfo(np.uint32).max)
    problem[_owners(np.flatnonzero(impossible), pointer)] = 4
    problem[cut] = 3
    problem[_owners(illegal, offsets)] = 2
    problem[empty] = 1
    return Runs(lengths, pointer, problem)


def rle_runs(counts: str | bytes | Sequence[int]) -> NDArray[np.int64]:
    """Return the ``(n,) int64`` run lengths of compressed or plain RLE counts.

    Raises:
        ValueError: The counts are cut off, hold illegal characters, or are not whole numbers >= 0.
    """
    if isinstance(counts, (str, bytes)):
        text = np.frombuffer(counts.encode() if isinstance(counts, str) else counts, np.uint8)
        decoded = decode_runs(text, np.array([0, len(text)]))
        if decoded.problem[0] > 1:  # an empty text is no runs
            raise ValueError(f"RLE text {PROBLEMS[decoded.problem[0]]}")
        runs = decoded.lengths
    else:
        if not all(type(count) is int for count in counts):
            raise ValueError("RLE counts that are not whole numbers")
        runs = np.array(counts, np.int64)
    if (runs < 0).any():
        raise ValueError("negative RLE run")
    return runs


class OtherSize(ValueError):
    """A mask of an image of another size."""


def check_rle(rle: dict[str, Any], height: int, width: int) -> int:
    """Check an RLE mask of an image of ``height`` x ``width`` pixels; return how many it covers.

    Args:
        rle: ``{"size": [height, width], "counts": text or list}``.
        height: Image height in pixels.
        width: Image width in pixels.

    Raises:
        OtherSize: The size is not the image's.
        ValueError: The runs do not fill the image exactly.
    """
    if list(rle["size"]) != [height, width]:
        raise OtherSize(f"RLE size {rle['size']} is not the image's [height, width] {[height, width]}")
    runs = rle_runs(rle["counts"])
    total = int(runs.sum())
    if total != height * width:
        raise ValueError(f"RLE runs sum to {total}, not to height * width = {height * width}")
    return int(runs[1::2].sum())


def _numbers(digits: NDArray[np.uint8], stops: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the signed numbers that end at ``stops``, and which of them are longer than any run length needs."""
    if not len(stops):
        return np.zeros(0, np.int64), np.zeros(0, bool)
    starts = np.concatenate([[0], stops[:-1] + 1])
    size = stops - starts + 1
    values = (digits[starts] & 31).astype(np.int64)
    for place in range(1, min(int(size.max()), MAX_CHARACTERS)):
        longer = np.flatnonzero(size > place)
        values[longer] |= (digits[starts[longer] + place] & 31).astype(np.int64) << (5 * place)
    negative = (digits[stops] & 16) != 0
    values -= np.where(negative, np.int64(1) << (5 * np.minimum(size, MAX_CHARACTERS)), 0)
    return values, size > MAX_CHARACTERS


def _undo_differences(values: NDArray[np.int64], pointer: NDArray[np.int64]) -> NDArray[np.int64]:
    """Turn stored numbers into run lengths: runs 1, 3, 5, ... and 2, 4, 6, ... of a mask are two cumulative sums."""
    place = _position(pointer)
    later = place > 0
    pairs = np.maximum(np.diff(pointer), 1) // 2  # the first run stands alone, the others go two by two
    first_pair = np.concatenate([[0], np.cumsum(pairs)])
    slot = np.repeat(2 * first_pair[:-1], np.diff(pointer))[later] + place[later] - 1
    chains = np.zeros(2 * first_pair[-1], np.int64)
    chains[slot] = values[later]
    sums = np.concatenate([np.zeros((1, 2), np.int64), np.cumsum(chains.reshape(-1, 2), axis=0)])
    sums = sums[1:] - np.repeat(sums[first_pair[:-1]], pairs, axis=0)
    lengths = values.copy()
    lengths[later] = sums.reshape(-1)[slot]
    return lengths


def _position(pointer: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the place of every run inside its mask, from 0."""
    return np.arange(pointer[-1]) - np.repeat(pointer[:-1], np.diff(pointer))


def _owners(items: NDArray[np.int64], pointer: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the masks that own the given places in a back-to-back array."""
    return np.searchsorted(pointer, items, side="right") - 1


def _sums(values: NDArray[np.int64], pointer: NDArray[np.int64]) -> NDArray[np.int64]:
    total: NDArray[np.int64] = np.concatenate([[0], np.cumsum(values)])
    return total[pointer[1:]] - total[pointer[:-1]]
