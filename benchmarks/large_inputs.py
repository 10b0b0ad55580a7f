"""Annotation files and detections as large as LVIS v1's and V3Det's, drawn at random; input of the benchmarks.

LVIS v1: the real number of images and instances of every class, 100,170 and 19,809 images, polygons with about 45
points, federated lists, and 300 detections with masks for every validation image. V3Det: 183,354 and 29,821 images,
13,204 classes whose counts follow a power law, boxes only (their masks are the boxes). Half of the detections are of
categories that the image's annotators judged, as an engine under the federated protocol drops the others at once.

Run from the repository's root; the other benchmarks do it by themselves where files are missing:

    python benchmarks/large_inputs.py data/benchmarks/lvis_v1 [--dataset v3det] [--share 0.01] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from tqdm import tqdm

from ltpipe.data.store import AnnotationStore
from ltpipe.data.store_writer import build_store
from ltpipe.frequency import frequency_groups
from ltpipe.metrics.predictions_writer import PredictionWriter
from ltpipe.run.files import atomic_path

CLASSES = Path("configs/classes/lvis_v1.json")
SIZES = np.array([(480, 640), (427, 640), (640, 480), (640, 427), (375, 500), (640, 640)])  # height, width
IMAGES_PER_BLOCK = 2000
POINTS = 45
NEGATIVES, NOT_EXHAUSTIVE = 8, 0.05
DETECTIONS, OUTLINES, OUTLINE_POINTS = 300, 100, 12
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Source:
    """A data set to imitate.

    Attributes:
        train_images: Number of training images.
        val_images: Number of validation images.
        federated: Whether it is in the LVIS format.
    """

    train_images: int
    val_images: int
    federated: bool

    def class_counts(self) -> tuple[Ints, Ints]:
        """Return images and instances of every class of the training part."""
        if self.federated:
            classes = json.loads(CLASSES.read_text(encoding="utf-8"))
            images, instances = ([item[key] for item in classes] for key in ("image_count", "instance_count"))
            return np.array(images), np.array(instances)
        instances = np.maximum(1, 1_361_181 / 10.25 / np.arange(1, 13_205) ** 0.995).astype(np.int64)
        return np.maximum(1, instances * 2 // 3), instances


SOURCES = {"lvis_v1": Source(100_170, 19_809, True), "v3det": Source(183_354, 29_821, False)}


@dataclass(frozen=True)
class Objects:
    """Objects of one part, by image.

    Attributes:
        sizes: ``(I, 2)`` height and width of each image.
        ptr: ``(I + 1,)``; image ``i`` owns the objects ``ptr[i]:ptr[i + 1]``.
        category: ``(A,)`` positions in the class list.
    """

    sizes: Ints
    ptr: Ints
    category: Ints


def draw_objects(num_images: int, images: Ints, instances: Ints, random: np.random.Generator) -> Objects:
    """Give every class its number of instances in its number of images.

    Args:
        num_images: Images of the part.
        images: ``(C,)`` images of each class.
        instances: ``(C,)`` instances of each class.
        random: Source of chance.
    """
    found = []
    for count, total in zip(np.minimum(images, num_images).tolist(), instances.tolist(), strict=True):
        chosen = random.choice(num_images, count, replace=False, shuffle=False)
        more = chosen[random.integers(0, count, max(0, total - count))] if count else chosen
        found.append(np.concatenate([chosen, more]))
    image = np.concatenate(found)
    category = np.repeat(np.arange(len(found)), [len(rows) for rows in found])
    order = np.argsort(image, kind="stable")
    ptr = np.searchsorted(image[order], np.arange(num_images + 1))
    return Objects(SIZES[random.integers(0, len(SIZES), num_images)], ptr, category[order])


class Outlines:
    """Polygons of some objects: blobs around random boxes.

    Args:
        sizes: ``(n, 2)`` height and width of each object's image.
        points: Mean number of points of a polygon; 0 makes rectangles.
        random: Source of chance.

    Attributes:
        ptr: ``(n + 1,)`` first point of each polygon.
        xy: ``(P, 2)`` points in pixels, two decimals.
        boxes: ``(n, 4)`` xywh around them.
    """

    def __init__(self, sizes: Ints, points: int, random: np.random.Generator) -> None:
        height, width = sizes.T
        extent = np.minimum(np.exp(random.normal(4.0, 0.8, (2, len(sizes)))), 0.95 * np.stack([width, height]))
        corner = random.random((2, len(sizes))) * (np.stack([width, height]) - extent)
        if points:
            count = np.clip(random.lognormal(np.log(points) - 0.18, 0.6, len(sizes)), 4, 400).astype(np.int64)
        else:
            count = np.full(len(sizes), 4)
        self.ptr: Ints = np.concatenate([[0], np.cumsum(count)])
        owner = np.repeat(np.arange(len(sizes)), count)
        place = np.arange(len(owner)) - self.ptr[owner]
        angle = (place + (random.random(len(owner)) if points else 0.5)) * 2 * np.pi / count[owner]
        radius = 1 - 0.35 * random.random(len(owner)) if points else np.full(len(owner), np.sqrt(2))
        unit = 0.5 + 0.5 * np.stack([np.cos(angle), np.sin(angle)]) * radius
        self.xy = np.round(corner[:, owner] + np.clip(unit, 0, 1) * extent[:, owner], 2).T
        low, high = (f.reduceat(self.xy, self.ptr[:-1], axis=0) for f in (np.minimum, np.maximum))
        self.boxes = np.round(np.concatenate([low, high - low], axis=1), 2)

    @cached_property
    def areas(self) -> NDArray[np.float64]:
        """``(n,)`` square pixels."""
        following = np.arange(1, len(self.xy) + 1)
        following[self.ptr[1:] - 1] = self.ptr[:-1]
        (x, y), (u, v) = self.xy.T, self.xy[following].T
        return np.round(np.abs(np.add.reduceat(x * v - u * y, self.ptr[:-1])) / 2, 2)

    def polygons(self) -> Iterator[list[float]]:
        """Yield ``[x0, y0, x1, y1, ...]`` of every object."""
        flat, ends = self.xy.reshape(-1).tolist(), (2 * self.ptr).tolist()
        yield from (flat[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True))


def write_part(path: Path, source: Source, objects: Objects, groups: Sequence[str], seed: int) -> None:
    """Write an annotation file, block by block."""
    random, encoder = np.random.default_rng([seed, 1]), msgspec.json.Encoder()
    categories = [{"id": i, "name": f"class_{i}"} for i in range(1, len(groups) + 1)]
    if source.federated:
        categories = [item | {"frequency": group} for item, group in zip(categories, groups, strict=True)]
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        handle.write(b'{"info":{},"licenses":[],"categories":' + encoder.encode(categories) + b',"images":[')
        for start, stop in blocks(len(objects.sizes), path.name + " images"):
            records = image_records(objects, source.federated, len(groups), start, stop, random)
            handle.write((b"," if start else b"") + encoder.encode(records)[1:-1])
        handle.write(b'],"annotations":[')
        first = True
        for start, stop in blocks(len(objects.sizes), path.name):
            text = encoder.encode(annotation_records(objects, source.federated, start, stop, random))[1:-1]
            handle.write((b"" if first or not text else b",") + text)
            first = first and not text
        handle.write(b"]}")


def blocks(num_images: int, name: str) -> Iterator[tuple[int, int]]:
    """Yield the first and the last plus one of some images at a time."""
    for start in tqdm(range(0, num_images, IMAGES_PER_BLOCK), desc=name, unit=" blocks", disable=None):
        yield start, min(start + IMAGES_PER_BLOCK, num_images)


def image_records(
    objects: Objects, federated: bool, num_classes: int, start: int, stop: int, random: np.random.Generator
) -> list[dict[str, Any]]:
    """Return the image records of a block; ids count from 1."""
    records = []
    for image, (height, width) in enumerate(objects.sizes[start:stop].tolist(), start):
        record = {"id": image + 1, "height": height, "width": width, "file_name": f"{image + 1:012}.jpg"}
        if federated:
            record["coco_url"] = f"http://images.cocodataset.org/train2017/{image + 1:012}.jpg"
            present = np.unique(objects.category[objects.ptr[image] : objects.ptr[image + 1]])
            absent = np.setdiff1d(random.integers(0, num_classes, NEGATIVES), present)
            record["neg_category_ids"] = (absent + 1).tolist()
            record["not_exhaustive_category_ids"] = (present[random.random(len(present)) < NOT_EXHAUSTIVE] + 1).tolist()
        records.append(record)
    return records


def annotation_records(
    objects: Objects, polygons: bool, start: int, stop: int, random: np.random.Generator
) -> list[dict[str, Any]]:
    """Return the annotation records of a block of images; ids count from 1."""
    first, last = objects.ptr[[start, stop]].tolist()
    image = np.repeat(np.arange(start, stop), np.diff(objects.ptr[start : stop + 1]))
    shapes = Outlines(objects.sizes[image], POINTS if polygons else 0, random)
    columns = {
        "id": range(first + 1, last + 1),
        "image_id": (image + 1).tolist(),
        "category_id": (objects.category[first:last] + 1).tolist(),
        "bbox": shapes.boxes.tolist(),
        "area": shapes.areas.tolist(),
        "segmentation": ([polygon] for polygon in shapes.polygons()),
    }
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def write_detections(path: Path, store: AnnotationStore, seed: int) -> None:
    """Write 300 detections with boxes and masks for every image of a store."""
    random = np.random.default_rng([seed, 2])
    frequent = np.bincount(store.ann_category, minlength=len(store.category_ids)) + 1.0
    frequent /= frequent.sum()
    with PredictionWriter(path, masks=True) as writer:
        for row in tqdm(range(len(store.image_ids)), desc=path.name, unit=" images", disable=None):
            own = slice(store.image_ptr[row], store.image_ptr[row + 1])
            height, width = store.image_sizes[row].tolist()
            boxes, outlines = draw_outlines(store.ann_bbox[own], height, width, random)
            masks = [rle["counts"] for rle in coco_mask.frPyObjects(outlines, height, width)]
            which = random.integers(0, OUTLINES, DETECTIONS)
            present = store.category_ids[store.ann_category[own]]
            judged = np.concatenate([present, store.negative_categories(row)])
            category = random.choice(store.category_ids, DETECTIONS, p=frequent)
            known = random.random(DETECTIONS) < (0.5 if len(judged) else 0)
            category[known] = random.choice(judged, int(known.sum())) if len(judged) else 0
            right = random.random(DETECTIONS) < (0.25 if len(present) else 0)
            category[right] = present[which[right] % len(present)] if len(present) else 0
            score = np.round(np.clip(random.random(DETECTIONS) ** 2 + 0.2 * right, 0, 1), 4)
            writer.append(
                int(store.image_ids[row]), category, score, boxes[which], [masks[i] for i in which], (height, width)
            )


def draw_outlines(
    objects: NDArray[np.float64], height: int, width: int, random: np.random.Generator
) -> tuple[NDArray[np.float64], list[list[float]]]:
    """Return boxes ``(OUTLINES, 4)`` xywh and polygons near the objects of an image, in turn."""
    if not len(objects):
        objects = np.array([[0.25 * width, 0.25 * height, 0.5 * width, 0.5 * height]])
    near = objects[np.arange(OUTLINES) % len(objects)]
    extent = np.maximum(near[:, 2:] * random.lognormal(0, 0.15, (OUTLINES, 2)), 2)
    corner = near[:, :2] + near[:, 2:] * random.normal(0, 0.1, (OUTLINES, 2))
    angle = np.arange(OUTLINE_POINTS) * 2 * np.pi / OUTLINE_POINTS
    unit = 0.5 + 0.5 * np.stack([np.cos(angle), np.sin(angle)], axis=1) * (1 - 0.2 * random.random((OUTLINES, 1, 1)))
    points = np.clip(corner[:, None] + unit * extent[:, None], 0, [width, height])
    low, high = points.min(axis=1), points.max(axis=1)
    return np.concatenate([low, high - low], axis=1), points.reshape(OUTLINES, -1).tolist()


def make_inputs(
    folder: Path, dataset: str = "lvis_v1", share: float = 1.0, seed: int = 0, parts: Sequence[str] = ("train", "val")
) -> None:
    """Write what is missing of ``train.json``, ``val.json, val`` (the store) and, for LVIS, ``detections.arrow``.

    Args:
        folder: Where to.
        dataset: Name in :data:`SOURCES`.
        share: Part of the images and instances, up to 1; classes keep at least one.
        seed: Seed of everything.
        parts: ``train`` and ``val``; detections come with the latter.
    """
    source = SOURCES[dataset]
    images, instances = source.class_counts()
    groups = frequency_groups(images)
    for number, (part, num_images) in enumerate({"train": source.train_images, "val": source.val_images}.items()):
        scale = num_images / source.train_images
        if part in parts and not (folder / f"{part}.json").is_file():
            scaled = [np.maximum(1, np.rint(share * scale * counts)).astype(np.int64) for counts in (images, instances)]
            random = np.random.default_rng([seed, 0, number])
            objects = draw_objects(max(1, round(share * num_images)), *scaled, random)
            write_part(folder / f"{part}.json", source, objects, groups, seed + number)
    if "val" in parts and not (folder / "val" / "info.json").is_file():
        build_store(folder / "val.json", folder / "val", fmt="lvis" if source.federated else "coco")
    if source.federated and "val" in parts and not (folder / "detections.arrow").is_file():
        write_detections(folder / "detections.arrow", AnnotationStore.open(folder / "val"), seed)


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dataset", choices=SOURCES, default="lvis_v1")
    parser.add_argument("--share", type=float, default=1.0, help="part of the images and instances")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    make_inputs(options.folder, options.dataset, options.share, options.seed)


if __name__ == "__main__":
    main()
