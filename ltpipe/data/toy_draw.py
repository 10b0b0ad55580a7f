"""Drawing of the toy data: textured scenes of small shapes with exact polygons of what is visible.

A class is a shape in a style (colour and pattern), so that what a detector learns of frequent classes (edges of a star,
the look of yellow dots) also serves rare ones. Everything is drawn on a grid four times finer than the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ltpipe.errors import UserError

FINE = 4
MAX_COVERED = 0.2
MIN_INSIDE = 0.65
SMALLEST_RADIUS = 0.07

Mask = NDArray[np.bool_]
Image = NDArray[np.uint8]
Points = NDArray[np.float64]


class Style(NamedTuple):
    """Look of a surface: ``hue`` in OpenCV's half degrees, ``saturation`` 0..255, ``pattern`` plain, stripes or dots."""

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
    return np.array(radii)[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


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
    canvas = cv2.resize(_background(rng, size), (size * FINE, size * FINE), interpolation=cv2.INTER_LINEAR)
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


class _Frame(NamedTuple):
    """Place of a thing on the fine grid."""

    centre: Points
    radius: float
    angle: float


def _place(
    rng: np.random.Generator, size: int, corners: Points, visible: Sequence[Mask], full: Sequence[int]
) -> tuple[Mask, _Frame]:
    """Find a place where neither the new thing nor an earlier one is covered too much; shrink it if there is none."""
    fine = size * FINE
    radius = np.exp(rng.uniform(np.log(0.1), np.log(0.19))) * fine
    while radius >= SMALLEST_RADIUS * fine:
        frame = _Frame(rng.uniform(0.5 * radius, fine - 0.5 * radius, 2), radius, rng.uniform(0, 2 * np.pi))
        turn = np.array(
            [[np.cos(frame.angle), np.sin(frame.angle)], [-np.sin(frame.angle), np.cos(frame.angle)]]
        ) * rng.uniform(0.85, 1.15, (2, 1))
        points = frame.centre + radius * corners @ turn
        canvas = np.zeros((fine, fine), np.uint8)
        cv2.fillPoly(canvas, [np.rint(points).astype(np.int32)], 1)
        mask = canvas.view(np.bool_)
        inside = int(mask.sum())
        x, y = points.T
        whole = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
        hidden = [int((mask & other).sum()) for other in visible]
        left = [int(other.sum()) - lost for other, lost in zip(visible, hidden, strict=True)]
        free = all(rest >= (1 - MAX_COVERED) * area for rest, area in zip(left, full, strict=True))
        if inside >= MIN_INSIDE * whole and sum(hidden) <= MAX_COVERED * inside and free:
            return mask, frame
        radius *= 0.985
    raise UserError("toy objects do not fit into their image", fix="fewer objects: more images or fewer classes")


def _paint(rng: np.random.Generator, canvas: Image, mask: Mask, frame: _Frame, style: Style) -> None:
    """Colour the masked pixels of the fine canvas; the pattern turns and grows with the thing."""
    y, x = np.nonzero(mask)
    across = np.stack([x, y], axis=1) - frame.centre
    sin, cos = np.sin(frame.angle), np.cos(frame.angle)
    u, v = across @ np.array([[cos, -sin], [sin, cos]]).T[:, :].T / frame.radius if False else (None, None)
