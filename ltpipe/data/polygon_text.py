"""Polygons straight from their JSON text to hundredths of a pixel, without a Python number for each coordinate."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ltpipe.compiled import compiled

Text = NDArray[np.uint8]
Ints = NDArray[np.int64]
Int32s = NDArray[np.int32]
LARGEST = 2**31 - 1
KEY = np.frombuffer(b'"segmentation"', np.uint8)


@compiled
def blank(text: Text, place: int, stop: int) -> int:
    """Return the first place from ``place`` on that is no white space."""
    while place < stop and (text[place] == 32 or 9 <= text[place] <= 10 or text[place] == 13):
        place += 1
    return place


@compiled
def find_mask(text: Text, place: int, stop: int) -> int:
    """Return where the value of the next ``segmentation`` begins, from a place inside of a record on; else -1."""
    depth = 0
    while place < stop:
        character = text[place]
        if character == ord('"'):
            start = place
            place += 1
            while place < stop and text[place] != ord('"'):
                place += 2 if text[place] == ord("\\") else 1
            place += 1
            after = blank(text, place, stop)
            if depth == 0 and place - start == len(KEY) and after < stop and text[after] == ord(":"):
                same = True
                for i in range(len(KEY)):
                    same = same and text[start + i] == KEY[i]
                if same:
                    return blank(text, after + 1, stop)
            continue
        if character == ord("[") or character == ord("{"):
            depth += 1
        elif character == ord("]") or character == ord("}"):
            depth -= 1
        place += 1
    return -1


@compiled
def read_number(text: Text, place: int, stop: int) -> tuple[int, int]:
    """Read a decimal number with at most two places; return hundredths and where it ends, or -1 there."""
    negative = place < stop and text[place] == ord("-")
    place += negative
    first, value, decimals = place, 0, 0
    while place < stop and 48 <= text[place] <= 57 and value <= LARGEST:
        value = 10 * value + (text[place] - 48)
        place += 1
    if place == first or (text[first] == 48 and place > first + 1):
        return 0, -1
    if place < stop and text[place] == ord("."):
        place += 1
        while place < stop and decimals < 2 and 48 <= text[place] <= 57:
            value = 10 * value + (text[place] - 48)
            place, decimals = place + 1, decimals + 1
        if not decimals:
            return 0, -1
    for _ in range(2 - decimals):
        value *= 10
    return (-value if negative else value), (place if value <= LARGEST else -1)


@compiled
def read_polygons(text: Text, place: int, stop: int, lengths: Int32s, values: Int32s) -> tuple[int, int, int]:
    """Read a list of polygons.

    Returns:
        Polygons, coordinates, and where the text goes on; -1 there if it is anything but polygons of three points or
        more, with coordinates that are whole hundredths.
    """
    count, total = 0, 0
    if place >= stop or text[place] != ord("["):
        return 0, 0, -1
    while True:
        place = blank(text, place + 1, stop)
        if place >= stop or text[place] != ord("["):
            return 0, 0, -1
        before = total
        while True:
            value, place = read_number(text, blank(text, place + 1, stop), stop)
            if place < 0:
                return 0, 0, -1
            values[total] = value
            total += 1
            place = blank(text, place, stop)
            if place >= stop or text[place] != ord(","):
                break
        if place >= stop or text[place] != ord("]") or total - before < 6 or (total - before) % 2:
            return 0, 0, -1
        lengths[count] = total - before
        count += 1
        place = blank(text, place + 1, stop)
        if place >= stop or text[place] != ord(","):
            break
    return (count, total, place + 1) if place < stop and text[place] == ord("]") else (0, 0, -1)


@compiled
def read_masks(text: Text, spans: Ints, counts: Ints, lengths: Int32s, values: Int32s) -> tuple[int, int]:
    """Read the polygons of records.

    Args:
        text: The annotation file.
        spans: ``(n, 2)`` first byte of each record, and the one after its last.
        counts: ``(n,)`` result: polygons of each record; 0 for a record that must be read in another way.
        lengths: Result: coordinates of each polygon.
        values: Result: coordinates in hundredths of a pixel.

    Returns:
        How many polygons and coordinates there are.
    """
    polygons, total = 0, 0
    for i in range(len(spans)):
        counts[i] = 0
        place = find_mask(text, spans[i, 0] + 1, spans[i, 1] - 1)
        if place >= 0:
            count, more, place = read_polygons(text, place, spans[i, 1], lengths[polygons:], values[total:])
            if place >= 0 and find_mask(text, place, spans[i, 1] - 1) < 0:
                counts[i] = count
                polygons, total = polygons + count, total + more
    return polygons, total
