"""Drawing of the toy data: textured scenes of small shapes with exact polygons of what is visible.

A class is a shape in a style (colour and pattern), so that what a detector learns of frequent classes (edges of a star,
the look of yellow dots) also serves rare ones. Everything is drawn on a grid four times finer than the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ltpipe.errors import UserError

FINE = 4
MAX_COVERED = 0.2
MIN_INSIDE = 0.65
# As parts of the image's side: first drawn, and the least when there is little room.
RADIUS = (0.1, 0.19)
SMALLEST_RADIUS = 0.06

Mask = NDArray[np.bool_]
Image = NDArray[np.uint8]
Points = NDArray[np.float64]


class Style(NamedTuple):
    """Surface of a thing: ``hue`` in half degrees, ``saturation`` 0 to 255, ``pattern`` plain, stripes or dots."""

    name: str
    hue: int
    saturation: int
    pattern: str


STYLES = (
    Style("red", 2, 215, "plain"),
    Style("yellow_dotted", 28, 220, "dots"),
    Style("blue", 112, 210, "plain"),
    Style("green_striped", 62, 210, "stripes"),
    Style("violet_dotted", 148, 190, "dots"),
    Style("orange_striped", 14, 225, "stripes"),
)


def _polar(radii: Sequence[float], start: float = 0.0) -> Points:
    angle = start + np.arange(len(radii)) * (2 * np.pi / len(radii))
    corners: Points = np.array(radii)[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return corners


def _crescent() -> Points:
    outer = np.linspace(0.35 * np.pi, 1.65 * np.pi, 20)
    inner = np.linspace(1.5 * np.pi, 0.5 * np.pi, 14)
    arc = np.stack([0.45 + 0.72 * np.cos(inner), 0.89 * np.sin(inner)], axis=1)
    return np.concatenate([np.stack([np.cos(outer), np.sin(outer)], axis=1), arc])


# Corners in units of the radius, around the centre.
SHAPES: dict[str, Points] = {
    "disc": _polar([0.85] * 28),
    "square": _polar([1.0] * 4, np.pi / 4),
    "triangle": _polar([1.0] * 3),
    "star": _polar([1.0, 0.42] * 5),
    "crescent": _crescent(),
    "bar": np.array([[-1, -0.28], [1, -0.28], [1, 0.28], [-1, 0.28]]),
    "cross": np.array(
        [[-0.3, -0.95], [0.3, -0.95], [0.3, -0.3], [0.95, -0.3], [0.95, 0.3], [0.3, 0.3]]
        + [[0.3, 0.95], [-0.3, 0.95], [-0.3, 0.3], [-0.95, 0.3], [-0.95, -0.3], [-0.3, -0.3]]
    ),
    "arrow": np.array([[1, 0], [0.1, 0.8], [0.1, 0.3], [-0.95, 0.3], [-0.95, -0.3], [0.1, -0.3], [0.1, -0.8]]),
    "hook": np.array([[-0.8, -0.85], [-0.25, -0.85], [-0.25, 0.3], [0.85, 0.3], [0.85, 0.85], [-0.8, 0.85]]),
}


class Thing(NamedTuple):
    """One object to draw."""

    shape: str
    style: Style


def draw_scene(rng: np.random.Generator, size: int, things: Sequence[Thing]) -> tuple[Image, list[Mask]]:
    """Draw things on a textured background, later ones over earlier ones.

    Args:
        rng: Source of all randomness.
        size: Height and width in pixels.
        things: What to draw; at least 65 % of each lies inside and at most a fifth of it is covered by others.

    Returns:
        The image ``(size, size, 3) uint8`` in BGR order and the visible part of each thing,
        ``(4 * size, 4 * size) bool``.

    Raises:
        UserError: The things do not fit.
    """
    fine = (size * FINE, size * FINE)
    canvas = np.asarray(cv2.resize(_background(rng, size), fine, interpolation=cv2.INTER_LINEAR), np.uint8)
    visible: list[Mask] = []
    full: list[int] = []
    for thing in things:
        mask, frame = _place(rng, size, SHAPES[thing.shape], visible, full)
        for other in visible:
            other &= ~mask
        visible.append(mask)
        full.append(int(mask.sum()))
        _paint(rng, canvas, mask, frame, thing.style)
    image = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)
    image *= _ramp(rng, size, 0.25)[:, :, None] * rng.uniform(0.8, 1.15) * rng.uniform(0.93, 1.07, 3)
    image += rng.normal(0, rng.uniform(3, 8), image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), visible


def outline(mask: Mask) -> list[list[float]]:
    """Return polygons around a mask on the fine grid, in image pixels with two decimals.

    Pieces of less than four square pixels are left out.
    """
    # One pixel of growth to the right and below makes contours of pixel centres run along the pixel borders.
    grown = cv2.dilate(np.pad(mask, ((0, 1), (0, 1))).astype(np.uint8), np.ones((2, 2), np.uint8), anchor=(1, 1))
    contours, _ = cv2.findContours(grown, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    polygons = []
    for contour in contours:
        corners = cv2.approxPolyDP(contour, 1.0, closed=True)
        if len(corners) >= 3 and cv2.contourArea(corners) >= 4 * FINE**2:
            polygons.append([float(value) for value in np.round(corners.reshape(-1) / FINE, 2)])
    return polygons


def polygon_area(points: Points) -> float:
    """Return the area inside ``(n, 2)`` corners, in their unit squared."""
    x, y = points.T
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)


class _Frame(NamedTuple):
    """Place of a thing on the fine grid; ``axes`` holds its two unit directions as rows."""

    centre: Points
    radius: float
    axes: Points


def _place(
    rng: np.random.Generator, size: int, corners: Points, visible: Sequence[Mask], full: Sequence[int]
) -> tuple[Mask, _Frame]:
    """Find a place where neither the new thing nor an earlier one is covered too much; shrink it if there is none."""
    fine = size * FINE
    radius = np.exp(rng.uniform(*np.log(RADIUS))) * fine
    while radius >= SMALLEST_RADIUS * fine:
        angle = rng.uniform(0, 2 * np.pi)
        axes = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        frame = _Frame(rng.uniform(0.5 * radius, fine - 0.5 * radius, 2), radius, axes)
        points = frame.centre + radius * (corners * rng.uniform(0.85, 1.15, 2)) @ axes
        canvas = np.zeros((fine, fine), np.uint8)
        cv2.fillPoly(canvas, [np.rint(points).astype(np.int32)], (1,))
        mask = canvas.view(np.bool_)
        covered = [np.count_nonzero(mask & other) for other in visible]
        rest = [np.count_nonzero(other) - lost for other, lost in zip(visible, covered, strict=True)]
        free = all(left >= (1 - MAX_COVERED) * area for left, area in zip(rest, full, strict=True))
        inside = np.count_nonzero(mask)
        if free and sum(covered) <= MAX_COVERED * inside and inside >= MIN_INSIDE * polygon_area(points):
            return mask, frame
        radius *= 0.985
    raise UserError("toy objects do not fit into their image", fix="ask for more images or fewer classes")


def _paint(rng: np.random.Generator, canvas: Image, mask: Mask, frame: _Frame, style: Style) -> None:
    """Colour the masked pixels of the fine canvas; the pattern turns and grows with the thing."""
    x, y = cv2.findNonZero(mask.view(np.uint8))[:, 0].T
    u, v = frame.axes @ (np.stack([x, y]) - frame.centre[:, None]) / frame.radius
    if style.pattern == "stripes":
        marked = np.floor(v * rng.uniform(2.2, 3.0) + rng.uniform()) % 2 == 0
    elif style.pattern == "dots":
        cells = rng.uniform(1.8, 2.4)
        marked = (np.mod(u * cells, 1) - 0.5) ** 2 + (np.mod(v * cells, 1) - 0.5) ** 2 < 0.09
    else:
        marked = np.zeros(len(x), bool)
    hue = style.hue + rng.uniform(-6, 6)
    value = rng.uniform(150, 235)
    base = _bgr(hue, style.saturation + rng.uniform(-30, 20), value)
    mark = _bgr(hue, style.saturation * 0.35, min(255.0, value * 1.25)) if rng.random() < 0.7 else base * 0.35
    shade = 1 + rng.uniform(0, 0.18) * u[:, None]
    canvas[y, x] = np.clip(np.where(marked[:, None], mark, base) * shade, 0, 255).astype(np.uint8)


def _background(rng: np.random.Generator, size: int) -> Image:
    """Return a ``(size, size, 3)`` surface: a colour ramp, coarse and fine mottles, and a few strokes."""
    ends = [_bgr(rng.uniform(0, 180), rng.uniform(0, 80), rng.uniform(50, 200)) for _ in range(2)]
    weight = _ramp(rng, size, 1.0)[:, :, None] / 2
    image = ends[0] * weight + ends[1] * (1 - weight)
    for cells, strength in ((size // 16, 16.0), (size // 3, 9.0)):
        mottles = rng.normal(0, strength, (cells, cells, 1)) + rng.normal(0, strength / 4, (cells, cells, 3))
        image += cv2.resize(mottles, (size, size), interpolation=cv2.INTER_CUBIC)
    canvas: Image = np.clip(image, 0, 255).astype(np.uint8)
    for _ in range(rng.integers(3, 9)):
        colour = _bgr(rng.uniform(0, 180), rng.uniform(0, 130), rng.uniform(30, 230)).tolist()
        ends_at = rng.integers(0, size, (2, 2)).tolist()
        if rng.random() < 0.6:
            cv2.line(canvas, ends_at[0], ends_at[1], colour, int(rng.integers(1, 3)), cv2.LINE_AA)
        else:
            axes = rng.integers(size // 12, size // 3, 2).tolist()
            cv2.ellipse(canvas, ends_at[0], axes, rng.uniform(0, 180), 0, rng.uniform(60, 360), colour, 1, cv2.LINE_AA)
    return canvas


def _ramp(rng: np.random.Generator, size: int, strength: float) -> NDArray[np.float64]:
    """Return ``(size, size)`` values in ``1 +- strength``, linear in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:size, 0:size] / max(size - 1, 1) - 0.5
    ramp: NDArray[np.float64] = 1 + strength * np.sqrt(2) * (x * np.cos(angle) + y * np.sin(angle))
    return ramp


def _bgr(hue: float, saturation: float, value: float) -> NDArray[np.float64]:
    colour = np.array([[[hue % 180, np.clip(saturation, 0, 255), np.clip(value, 0, 255)]]], np.uint8)
    return np.asarray(cv2.cvtColor(colour, cv2.COLOR_HSV2BGR)[0, 0], np.float64)
