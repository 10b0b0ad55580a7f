"""``distilled_logits.json`` of JoyHuYY1412/LST_LVIS."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ltpipe.errors import UserError
from ltpipe.methods.lst.teacher import TeacherLogits


def read_legacy_json(
    path: str | Path, boxes: Mapping[int, tuple[Sequence[int], Sequence[int]]], dtype: str = "float32"
) -> tuple[TeacherLogits, np.ndarray]:
    """Read the original JSON layout; also return its background column ``(2, B)``.

    Args:
        path: List of two objects (unflipped, flipped) from image id to rows of ``1 + K`` numbers, background first.
        boxes: Per image id, annotation ids and labels (0-based) of its boxes of new classes in the order of the rows:
            file order of the annotations without degenerate boxes.
        dtype: ``float16`` or ``float32``.

    Raises:
        UserError: Rows and annotations of an image differ in number.
    """
    plain, flipped = json.loads(Path(path).read_text())
    image_id = np.array(sorted(map(int, plain)), np.int64)
    for image in image_id.tolist():
        counts = len(plain[str(image)]), len(flipped.get(str(image), ())), len(boxes.get(image, ((), ()))[0])
        if len(set(counts)) > 1:
            raise UserError(
                "teacher rows and boxes of new classes differ in number",
                where=f"{path}: image {image}",
                got=f"{counts[0]} unflipped rows, {counts[1]} flipped rows, {counts[2]} boxes",
                fix="give the annotations the file was made from",
            )
    images = image_id.tolist()
    passes = [[row for image in images for row in part[str(image)]] for part in (plain, flipped)]
    columns = len(passes[0][0]) if passes[0] else 1
    values = np.array(passes, dtype).reshape(2, -1, columns)
    teacher = TeacherLogits(
        image_id=image_id,
        ptr=np.cumsum([0, *(len(boxes[i][0]) for i in images)], dtype=np.int64),
        ann_id=np.array([a for i in images for a in boxes[i][0]], np.int64),
        label=np.array([a for i in images for a in boxes[i][1]], np.int64),
        logits=values[:, :, 1:],
    )
    return teacher, values[:, :, 0]


def write_legacy_json(teacher: TeacherLogits, background: np.ndarray, path: Path) -> None:
    """Write the original JSON layout.

    Args:
        teacher: What the file holds.
        background: ``(2, B)`` similarity to the background row.
        path: The file.
    """
    rows = np.concatenate([background[:, :, None], teacher.logits], axis=2)
    content = [
        {
            str(image): part[start:stop].tolist()
            for image, start, stop in zip(teacher.image_id.tolist(), teacher.ptr[:-1], teacher.ptr[1:], strict=True)
        }
        for part in rows
    ]
    path.write_text(json.dumps(content))
