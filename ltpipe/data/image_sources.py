"""Images and videos that a user names: files, folders, patterns. Nothing here is decoded before it is asked for."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
from numpy.typing import NDArray

from ltpipe.errors import UserError

IMAGES = frozenset(".jpg .jpeg .png .bmp .tif .tiff .webp .ppm .pgm .jp2".split())
VIDEOS = frozenset(".mp4 .avi .mov .mkv .webm .m4v .mpg .mpeg .wmv".split())


class Broken(Exception):
    """A file, or the rest of a video, cannot be read; what is said of it is one sentence."""


@dataclass(frozen=True)
class Picture:
    """An image file, or one frame of a video.

    Attributes:
        name: Unique name below the common folder of all sources; a frame is ``video.mp4/000012.jpg``.
        path: The file.
        frame: Number in the video, from 0; None for an image file.
        pixels: ``(H, W, 3) uint8`` BGR of a frame; an image file is read by who needs it.
    """

    name: str
    path: Path
    frame: int | None = None
    pixels: NDArray[Any] | None = None


@dataclass(frozen=True)
class Sources:
    """Files in the order in which they were named, those of a folder by name.

    Attributes:
        folder: The folder below which all of them lie.
        files: The files, absolute.
    """

    folder: Path
    files: tuple[Path, ...]

    def name(self, file: Path) -> str:
        """Return the name of a file below the folder."""
        return file.relative_to(self.folder).as_posix()

    def count(self, every: int = 1) -> int:
        """Return how many pictures there are; videos say themselves how long they are, sometimes wrongly."""
        return sum(-(-_length(file) // every) if is_video(file) else 1 for file in self.files)

    def pictures(self, every: int = 1) -> Iterator[Picture | tuple[str, Broken]]:
        """Yield image files and frames; the name and the reason where a video cannot be read.

        Args:
            every: Take every so-manieth frame of a video.
        """
        for file in self.files:
            if not is_video(file):
                yield Picture(self.name(file), file)
                continue
            try:
                yield from _frames(file, self.name(file), every)
            except Broken as error:
                yield self.name(file), error


def find_sources(named: Sequence[str | Path]) -> Sources:
    """Return all images and videos that are meant.

    Args:
        named: Files; folders, which are searched with all folders below them; and patterns with ``*``, ``?``, ``[...]``
            and ``**``. A file that is named twice counts once.

    Raises:
        UserError: One of them is not there, or holds no image and no video.
    """
    found: dict[Path, None] = {}
    for one in named:
        files = _meant(str(one))
        if not files:
            raise UserError(
                "no image and no video", where=one, got="no such file" if not Path(one).exists() else "others only",
                allowed=f"files, folders and patterns; {' '.join(sorted(IMAGES | VIDEOS))}",
            )  # fmt: skip
        found.update(dict.fromkeys(Path(os.path.abspath(file)) for file in files))
    return Sources(Path(os.path.commonpath([file.parent for file in found])), tuple(found))


def is_video(file: Path) -> bool:
    """Whether a file is read frame by frame."""
    return file.suffix.lower() in VIDEOS


def _meant(one: str) -> list[Path]:
    path = Path(one)
    if path.is_file():
        return [path]
    if path.is_dir():
        return _known(path.rglob("*"))
    return [file for match in sorted(glob.glob(one, recursive=True)) for file in _meant_by_pattern(Path(match))]


def _meant_by_pattern(path: Path) -> list[Path]:
    return _known(path.rglob("*") if path.is_dir() else [path])


def _known(files: Any) -> list[Path]:
    """Return the files whose suffix is one of ours, by name; hidden ones, as systems leave them, do not count."""
    return sorted(
        file
        for file in files
        if file.suffix.lower() in IMAGES | VIDEOS and not file.name.startswith(".") and file.is_file()
    )


def _length(file: Path) -> int:
    video = cv2.VideoCapture(str(file))
    try:
        return max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT)))
    finally:
        video.release()


def _frames(file: Path, name: str, every: int) -> Iterator[Picture]:
    video = cv2.VideoCapture(str(file))
    try:
        stated, number = max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT))), 0
        while video.grab():
            if number % every == 0:
                there, pixels = video.retrieve()
                if not there:
                    raise Broken(f"frame {number} cannot be decoded")
                yield Picture(f"{name}/{number:06d}.jpg", file, number, pixels)
            number += 1
        if not number:
            raise Broken("no frame can be read: cut off, damaged, or of a format that OpenCV does not know")
        # Containers count a frame or two more than there are.
        if number < 0.9 * stated:
            raise Broken(f"{number} frames of {stated} could be read, the rest is damaged")
    finally:
        video.release()
