"""Run lengths of COCO run-length encoded masks, checked before any C decoder sees them.

A mask is the column-major sequence of its pixels; the runs alternate between 0 and 1 and start with 0. The compressed
text (``pycocotools``) writes each run in base 32, lowest digit first: a character minus 48 holds five bits, bit
``0x20`` announces another digit, bit ``0x10`` of the last digit is the sign; from the fourth run on the number is the
difference to the run two places before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def rle_runs(counts: str | bytes | Sequence[int]) -> NDArray[np.int64]:
    """Return the ``(n,) int64`` run lengths of compressed or plain RLE counts.

    Raises:
        ValueError: The counts are cut off, hold illegal characters, or are not whole numbers >= 0.
    """
    if isinstance(counts, (str, bytes)):
        runs = _decompress(counts.encode() if isinstance(counts, str) else counts)
    else:
        if not all(type(count) is int for count in counts):
            raise ValueError("RLE counts that are not whole numbers")
        runs = np.array(counts, np.int64)
    if (runs < 0).any():
        raise ValueError("negative RLE run")
    return runs


def check_rle(rle: dict[str, Any], height: int, width: int) -> None:
    """Check an RLE mask of an image of ``height`` x ``width`` pixels.

    Args:
        rle: ``{"size": [height, width], "counts": text or list}``.
        height: Image height in pixels.
        width: Image width in pixels.

    Raises:
        ValueError: A key is missing, the size is not the image's, or the runs do not fill the image exactly.
    """
    if not isinstance(rle.get("counts"), (str, list)) or "size" not in rle:
        raise ValueError("RLE without the keys size and counts")
    if list(rle["size"]) != [height, width]:
        raise ValueError(f"RLE size {rle['size']} is not the image's [height, width] {[height, width]}")
    total = int(rle_runs(rle["counts"]).sum())
    if total != height * width:
        raise ValueError(f"RLE runs sum to {total}, not to height * width = {height * width}")


def _decompress(text: bytes) -> NDArray[np.int64]:
    digits = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if ((digits < 0) | (digits > 63)).any():
        raise ValueError("RLE text with illegal characters")
    last = np.flatnonzero(digits & 0x20 == 0)
    if len(digits) and (len(last) == 0 or last[-1] != len(digits) - 1):
        raise ValueError("RLE text is cut off")
    first = np.concatenate([[0], last[:-1] + 1])[: len(last)]
    length = last - first + 1
    if (length > 7).any():
        raise ValueError("RLE run of more than 32 bits")
    place = 5 * (np.arange(len(digits)) - np.repeat(first, length))
    runs = np.add.reduceat((digits & 0x1F) << place, first) if len(first) else digits
    runs -= np.where(digits[last] & 0x10, np.left_shift(1, 5 * length), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
