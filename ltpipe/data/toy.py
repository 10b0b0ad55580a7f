"""A small long-tailed instance segmentation data set in LVIS v1 format, drawn on the fly.

Classes are combinations of a shape and a style. Their numbers of training images fall geometrically from
``most_images`` to ``fewest_images``, so the default has rare, common and frequent classes by LVIS's thresholds; the
validation set holds all classes equally often. Annotation is federated as in LVIS: an image lists categories verified
to be absent; a few images show objects of categories nobody looked for, or more objects of an annotated category than
are annotated (``not_exhaustive_category_ids``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ltpipe.data.toy_draw import SHAPES, STYLES, Thing, draw_scene, outline, polygon_area
from ltpipe.errors import UserError
from ltpipe.frequency import frequency_groups
from ltpipe.run.outputs import Output

PAIRS_PER_IMAGE = 3.4
SECOND_INSTANCE = 0.25
EMPTY_IMAGES = 0.01
UNVERIFIED = 0.06
NOT_EXHAUSTIVE = 0.05
NEGATIVES = {"train": 5, "val": 12}


class _Object(NamedTuple):
    """An object of a scene; ``annotated`` is false for those the annotators did not look for."""

    label: int
    annotated: bool


class _Class(NamedTuple):
    """A class, ``images`` the number of training images that show it."""

    name: str
    thing: Thing
    images: int


class _Scene(NamedTuple):
    """What one image shows and what its annotators said about it; labels are positions in the class list."""

    objects: list[_Object]
    negative: list[int]
    not_exhaustive: list[int]


def write_toy_data(
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    num_classes: int = 36,
    train_images: int = 1000,
    val_images: int = 240,
    image_size: int = 96,
    most_images: int | None = None,
    fewest_images: int = 3,
) -> None:
    """Write ``train.json``, ``val.json`` and their PNG files in ``train/`` and ``val/``.

    The same options give the same bytes of JSON and the same pixels. The JSON files appear last. Toy data drawn
    before are replaced, other files in the folder stay.

    Args:
        folder: Where to write.
        seed: Seed of everything random.
        num_classes: 1 to 54: nine shapes in up to six styles.
        train_images: Number of training images.
        val_images: Number of validation images.
        image_size: Height and width in pixels, at least 64.
        most_images: Training images of the most frequent class; default 45 % of them.
        fewest_images: Training images of the rarest class; lowered to ``most_images``.

    Raises:
        UserError: The options contradict each other, or the folder holds files that ltpipe did not draw.
    """
    most = max(1, round(0.45 * train_images)) if most_images is None else most_images
    _check_ranges(
        seed=(seed, 0, 2**32 - 1),
        num_classes=(num_classes, 1, len(SHAPES) * len(STYLES)),
        image_size=(image_size, 64, 1024),
        train_images=(train_images, 1, 1_000_000),
        most_images=(most, 1, train_images),
        fewest_images=(fewest_images, 1, train_images),
        val_images=(val_images, 1, 100_000),
    )
    parts = {"train": range(1, train_images + 1), "val": range(train_images + 1, train_images + val_images + 1)}
    output = _output(Path(folder), parts)
    classes = _classes(num_classes, most, min(fewest_images, most), np.random.default_rng([seed, 0]))
    train_counts = np.array([one.images for one in classes])
    share = round(PAIRS_PER_IMAGE * val_images / num_classes)
    val_counts = np.full(num_classes, min(max(share, 1), val_images))
    frequent = np.flatnonzero(train_counts >= np.quantile(train_counts, 0.7))
    rngs = [np.random.default_rng([seed, stream]) for stream in (1, 2)]
    plans = {
        "train": _plan(train_counts, train_images, NEGATIVES["train"], frequent, rngs[0]),
        "val": _plan(val_counts, val_images, NEGATIVES["val"], frequent, rngs[1]),
    }
    with output.write({"seed": seed}) as temporary:
        categories = _categories(classes, plans["train"])
        for split, stream in (("train", 3), ("val", 4)):
            (temporary / split).mkdir()
            drawn = _draw(temporary / split, plans[split], classes, image_size, parts[split], [seed, stream])
            info = {"description": f"ltpipe toy data, {split}", "version": "1", "seed": seed}
            lists = {"images": drawn[0], "annotations": drawn[1], "categories": categories}
            content = {"info": info, "licenses": [], **lists}
            (temporary / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")


def _output(folder: Path, parts: Mapping[str, range]) -> Output:
    """Return the images with these ids and the annotations, which appear last, as an output in a folder."""
    images = [f"{part}/{_file_name(image_id)}" for part, ids in parts.items() for image_id in ids]
    return Output(folder, "toy-data", names=[*images, *(f"{part}.json" for part in parts)])


def _file_name(image_id: int) -> str:
    return f"{image_id:06d}.png"


def _check_ranges(**options: tuple[int, int, int]) -> None:
    """Refuse the first option that is out of its range; each is its value, the least and the largest allowed."""
    for key, (value, low, high) in options.items():
        if not low <= value <= high:
            where = f"dataset.generate.{key}"
            raise UserError("toy data option out of range", where=where, got=value, allowed=f"{low} to {high}")


def _classes(number: int, most: int, fewest: int, rng: np.random.Generator) -> list[_Class]:
    """Return the classes sorted by name; neighbours in frequency differ in shape and style."""
    shapes, num_styles = list(SHAPES), -(-number // len(SHAPES))
    counts = np.rint(np.geomspace(most, fewest, number)).astype(int)
    shape_order, style_order = rng.permutation(len(shapes)), rng.permutation(num_styles)
    classes = []
    for rank, count in enumerate(counts.tolist()):
        turn, place = divmod(rank, len(shapes))
        thing = Thing(shapes[shape_order[place]], STYLES[style_order[(place + turn) % num_styles]])
        classes.append(_Class(f"{thing.style.name}_{thing.shape}", thing, count))
    return sorted(classes)


def _plan(
    counts: NDArray[np.int64], num_images: int, negatives: int, frequent: NDArray[np.intp], rng: np.random.Generator
) -> list[_Scene]:
    """Deal the classes to images: class ``c`` goes to exactly ``counts[c]`` of them, the load stays even."""
    room = counts.sum() / num_images + rng.uniform(-1.5, 1.5, num_images)
    room[rng.permutation(num_images)[: int(EMPTY_IMAGES * num_images)]] = -np.inf
    shown: list[list[int]] = [[] for _ in range(num_images)]
    for label in np.argsort(-counts, kind="stable").tolist():
        wish = room + rng.uniform(0, 2.5, num_images)
        for image in np.argsort(-wish, kind="stable")[: counts[label]].tolist():
            shown[image].append(label)
            room[image] -= 1
    return [_scene(labels, len(counts), negatives, frequent, rng) for labels in shown]


def _scene(
    labels: list[int], num_classes: int, negatives: int, frequent: NDArray[np.intp], rng: np.random.Generator
) -> _Scene:
    objects = [_Object(label, True) for label in labels]
    objects += [_Object(label, True) for label in labels if rng.random() < SECOND_INSTANCE]
    absent = rng.permutation(np.setdiff1d(np.arange(num_classes), labels))
    negative = np.sort(absent[: min(negatives, len(absent) // 2)]).tolist()
    not_exhaustive: list[int] = []
    if labels and rng.random() < NOT_EXHAUSTIVE:
        not_exhaustive = [int(rng.choice(labels))]
        objects.append(_Object(not_exhaustive[0], False))
    unverified = np.setdiff1d(frequent, [*labels, *negative])
    if labels and len(unverified) and rng.random() < UNVERIFIED:
        objects.append(_Object(int(rng.choice(unverified)), False))
    return _Scene([objects[place] for place in rng.permutation(len(objects))], negative, not_exhaustive)


def _categories(classes: Sequence[_Class], scenes: Sequence[_Scene]) -> list[dict[str, Any]]:
    """Return LVIS category records; ids count from 1 in the order of names, counts are the training set's."""
    groups = frequency_groups(np.array([one.images for one in classes]))
    instances = np.bincount(
        [one.label for scene in scenes for one in scene.objects if one.annotated], minlength=len(classes)
    )
    return [
        {
            "id": label + 1,
            "name": one.name,
            "synset": f"{one.name}.n.01",
            "synonyms": [one.name],
            "def": f"a {one.thing.shape} that is {one.thing.style.name.replace('_', ' and ')}",
            "frequency": groups[label],
            "image_count": one.images,
            "instance_count": int(instances[label]),
        }
        for label, one in enumerate(classes)
    ]


def _draw(
    folder: Path, scenes: Sequence[_Scene], classes: Sequence[_Class], size: int, ids: Sequence[int], seed: list[int]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Draw the scenes into ``folder`` and return their image and annotation records."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, scene in enumerate(tqdm(scenes, desc=f"drawing {folder.name}", unit=" images", disable=None)):
        rng = np.random.default_rng([*seed, index])
        pixels, masks = draw_scene(rng, size, [classes[one.label].thing for one in scene.objects])
        file = _file_name(ids[index])
        if not cv2.imwrite(str(folder / file), pixels):
            raise OSError(f"cannot write {folder / file}")
        images.append(
            {
                "id": ids[index],
                "file_name": file,
                "coco_url": f"http://images.cocodataset.org/{folder.name}/{file}",
                "height": size,
                "width": size,
                "neg_category_ids": [label + 1 for label in scene.negative],
                "not_exhaustive_category_ids": [label + 1 for label in scene.not_exhaustive],
            }
        )
        for one, mask in zip(scene.objects, masks, strict=True):
            if one.annotated:
                annotations.append(_annotation(len(annotations) + 1, ids[index], one.label + 1, outline(mask)))
    return images, annotations


def _annotation(number: int, image_id: int, category_id: int, polygons: list[list[float]]) -> dict[str, Any]:
    points = [np.array(polygon).reshape(-1, 2) for polygon in polygons]
    low, high = np.concatenate(points).min(axis=0), np.concatenate(points).max(axis=0)
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [round(float(value), 2) for value in (*low, *(high - low))],
        "area": round(sum(map(polygon_area, points)), 2),
        "segmentation": polygons,
    }
