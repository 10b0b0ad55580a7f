"""Image files compared with what the annotation file says of them.

Cameras store pixels as their sensor lies and an orientation beside them (EXIF). Most tools turn images by it before
they show them, some annotate the stored pixels. The size in the annotation file tells which: the orientation is applied
if the size is then that of the file, and left aside if only the stored pixels have that size. Where both have it, with
a square or mirrored image or one upside down, it is applied, as mmcv, Pillow's ``exif_transpose`` and browsers do.
"""

from __future__ import annotations

import struct
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ltpipe.errors import UserError

Size = tuple[int, int]  # height, width
SAMPLE = 50
# What Pillow raises for damaged files, beside OSError, and for those above its limit of pixels.
BAD_IMAGE = (EOFError, OverflowError, SyntaxError, TypeError, ValueError, struct.error, Image.DecompressionBombError)
ORIENTATION = 274  # number of the EXIF tag; 1: as stored, 5 to 8 swap height and width


def as_annotated(decode: Callable[[bool], NDArray[Any] | None], wanted: Size, path: object, image_id: int) -> Any:
    """Return an image in the orientation in which it was annotated.

    Args:
        decode: Returns the image, turned by its orientation if told so; None if it cannot.
        wanted: Height and width in the annotation file.
        path: The image file, for the error.
        image_id: Its id.

    Raises:
        UserError: The image cannot be read, or is of another size.
    """
    upright = decode(True)
    if upright is None:
        raise unreadable(path, image_id, "cut off, damaged, or of a format that the decoder does not know")
    if upright.shape[:2] == wanted:
        return upright
    stored = decode(False)
    if stored is not None and stored.shape[:2] == wanted:
        return stored
    raise other_size(path, image_id, upright.shape[:2], wanted)


def unreadable(path: object, image_id: int, why: object) -> UserError:
    """Return the error for an image file that is missing or damaged."""
    return UserError(
        "unreadable image",
        where=path,
        got=f"image id {image_id}: {why}",
        fix="replace the file; training continues from its last checkpoint",
    )


def other_size(path: object, image_id: int, found: Size, wanted: Size) -> UserError:
    """Return the error for an image of another size than the annotation file says."""
    swapped = "; height and width are swapped" if found == wanted[::-1] else ""
    return UserError(
        "the image is of another size than the annotation file says",
        where=f"{path}, image id {image_id}",
        got=f"height {found[0]}, width {found[1]}{swapped}",
        allowed=f"height {wanted[0]}, width {wanted[1]}, as in the annotation file",
        fix="use the images that were annotated: boxes and masks of the file do not fit another size",
    )


def check_sample(
    folder: Path, files: Sequence[str], sizes: Sequence[Size], ids: Sequence[int], *, seed: int, count: int = SAMPLE
) -> dict[str, int]:
    """Read some images of a data set, drawn by a seed, and compare them with its annotation file.

    Args:
        folder: Folder of the image files.
        files: Image files below it.
        sizes: Height and width of each in the annotation file.
        ids: Image ids.
        seed: Seed of the draw.
        count: Images to read.

    Returns:
        ``sampled`` images, and how many of them have an orientation that is ``turned``: applied, ``as_stored``: left
        aside, or ``unclear``: applied although the size does not tell.

    Raises:
        UserError: One of them cannot be read, or is of another size.
    """
    rows = np.random.default_rng(seed).permutation(len(files))[:count].tolist()

    def read(row: int) -> str:
        return _orientation(folder / files[row], sizes[row], ids[row])

    with ThreadPoolExecutor(4) as pool:
        found = Counter(pool.map(read, rows))
    return {"sampled": len(rows), **{key: found[key] for key in ("turned", "as_stored", "unclear")}}


def read_as_annotated(path: Path, wanted: Size, image_id: int) -> NDArray[np.uint8]:
    """Return an image ``(H, W, 3)`` BGR in the orientation in which it was annotated.

    Args:
        path: The image file.
        wanted: Height and width in the annotation file.
        image_id: Its id, for the error.

    Raises:
        UserError: It cannot be read, or is of another size.
    """
    image: NDArray[np.uint8] = as_annotated(_decoder(path, image_id), wanted, path, image_id)
    return image


def _decoder(path: Path, image_id: int) -> Callable[[bool], NDArray[Any] | None]:
    """Return what decodes an image file, turned by its orientation if told so."""
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise unreadable(path, image_id, error.strerror) from error

    def decode(turn: bool) -> NDArray[Any] | None:
        flag = cv2.IMREAD_COLOR if turn else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        try:
            return cv2.imdecode(content, flag) if len(content) else None
        except cv2.error:
            return None

    return decode


def _orientation(path: Path, wanted: Size, image_id: int) -> str:
    """Read an image and say what became of its orientation; empty if it has none."""
    decode = _decoder(path, image_id)
    image = as_annotated(decode, wanted, path, image_id)
    orientation = exif_orientation(path)
    if orientation == 1:
        return ""
    if orientation < 5 or wanted[0] == wanted[1]:
        return "unclear"
    upright = decode(True)
    return "turned" if upright is not None and upright.shape == image.shape else "as_stored"


def sizes(path: Path) -> tuple[Size, Size]:
    """Return the size of an image turned by its orientation, and as it is stored; only the head of the file is read.

    Raises:
        OSError: It cannot be read.
    """
    with warnings.catch_warnings(action="ignore"):
        try:
            with Image.open(path) as image:
                width, height = image.size
                turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
        except BAD_IMAGE as error:
            raise OSError(str(error)) from error
    return ((width, height) if turned else (height, width)), (height, width)


def exif_orientation(path: Path) -> int:
    """Return the orientation that an image file carries, 1 to 8; 1 if it has none."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            found = image.getexif().get(ORIENTATION, 1)
    except (OSError, *BAD_IMAGE):  # a format that only OpenCV knows
        return 1
    return found if found in range(1, 9) else 1


def orientation_remarks(found: dict[str, int]) -> list[str]:
    """Say in a sentence each what :func:`check_sample` found about orientations."""
    turned, stored, unclear = (found[key] for key in ("turned", "as_stored", "unclear"))
    remarks = []
    if turned:
        remarks.append(f"{turned} are turned by it, as their annotated size asks")
    if stored:
        remarks.append(f"{stored} are read as stored: only so they have their annotated size")
    if unclear:
        remarks.append(
            f"{unclear} are turned by it although their size does not tell (square, mirrored or upside down)"
            + (": the others of this file were annotated as stored, look at these" if stored else "")
        )
    return [f"of {found['sampled']} sampled images with an orientation (EXIF), {text}" for text in remarks]
