"""Training and validation part of one annotation file, drawn by images and stratified by classes.

The draw is iterative stratification (Sechidis, Tsoumakas and Vlahavas, ECML PKDD 2011): the class with the fewest
images left is served first, and each of its images goes to the part that lacks most of it. Two things are added. Images
may belong together (a video, a scene): whole groups are drawn. And a class of two or more groups has images in both
parts wherever that is possible; a class of one group is trained. The libraries that have the method (iterative-
stratification, scikit-multilearn) know neither, and scikit-learn's grouped splits know one label per sample only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ltpipe.data.annotation_subset import Document, read_document, write_subset
from ltpipe.data.findings import Findings
from ltpipe.data.id_rows import row_of
from ltpipe.data.readers import READERS
from ltpipe.data.record_checks import CheckedColumns, checked_columns
from ltpipe.data.summary import used
from ltpipe.errors import UserError
from ltpipe.run.files import sha256_file
from ltpipe.run.outputs import Output

PARTS = ("train", "val")
NAMES = tuple(f"{part}.json" for part in PARTS)
SHOWN = 5
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Recipe:
    """How a file is split.

    Attributes:
        fraction: Share of the images that validate, between 0 and 1.
        seed: Seed of the draw.
        group_by: Key of image records; images with the same value stay together. None: each stands alone.
        group_pattern: Regular expression; what it finds in that value (its first group, if it has one) is compared.
    """

    fraction: float = 0.2
    seed: int = 0
    group_by: str | None = None
    group_pattern: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise UserError("no share of the images", where="--fraction", got=self.fraction, allowed="between 0 and 1")
        if self.group_pattern is not None:
            if self.group_by is None:
                fix = "name the key it is looked for in, e.g. --group-by file_name"
                raise UserError("a pattern without a key", where="--group-pattern", fix=fix)
            try:
                re.compile(self.group_pattern)
            except re.error as error:
                raise UserError("no regular expression", where="--group-pattern", got=error) from error


@dataclass(frozen=True)
class Groups:
    """What is drawn: groups of images, with the images of each class in them.

    Attributes:
        sizes: ``(G,) int64`` images of each group.
        group: ``(P,) int64``, a group.
        label: ``(P,) int64``, a class that it has.
        images: ``(P,) int64``, how many of its images have it.
        num_classes: Number of classes ``C``.
    """

    sizes: Ints
    group: Ints
    label: Ints
    images: Ints
    num_classes: int

    @cached_property
    def of_class(self) -> list[Ints]:
        """``C`` arrays: which pairs ``P`` belong to a class."""
        return _places(self.label, self.num_classes)

    @cached_property
    def of_group(self) -> list[Ints]:
        """``G`` arrays: which pairs ``P`` belong to a group."""
        return _places(self.group, len(self.sizes))


def make_split(source: Path, folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Write ``train.json``, ``val.json`` and ``record.json``; records are copied byte for byte.

    Args:
        source: COCO- or LVIS-format JSON.
        folder: Folder to write into.
        recipe: How to draw.

    Returns:
        The record: recipe, checksums, images of every class in both parts.

    Raises:
        UserError: The source cannot be read or has faults, has too few groups, or images without the key; or ltpipe did
            not make what lies in the folder.
    """
    output = Output(folder, "make-split", inputs=[source], names=NAMES)
    findings = Findings()
    records = READERS["coco"](source, findings)
    table = checked_columns(records, findings)
    findings.check(source, "refuse")
    document = read_document(source)
    of_image, names = _groups_of_images(table, document, recipe, source)
    groups = _counted(table, of_image, len(names))
    chosen = draw(groups, recipe.fraction, recipe.seed)[of_image]
    if chosen.all() or not chosen.any():
        got = (
            f"{len(names)} groups of images; {recipe.fraction:g} of them {'leaves none' if chosen.all() else 'is none'}"
        )
        raise UserError("one of the parts would be empty", where=source, got=got, fix="choose another --fraction")
    facts = {**asdict(recipe), "source": source.name, "source_sha256": sha256_file(source)}
    ids = np.array([image.id for image in table.images], np.int64)
    place, owner = (row_of(some, ids) for some in (_image_ids(records.images), records.image_ids))
    with output.write(facts := {**facts, "groups": len(names), "parts": {}}) as staged:
        for part, name in zip(PARTS, NAMES, strict=True):
            inside = chosen if part == "val" else ~chosen
            # An image without an extent and without objects is in neither.
            kept = [raw for raw, row in zip(document.images, place.tolist(), strict=True) if row >= 0 and inside[row]]
            rows = [raw for raw, row in zip(document.annotations, owner.tolist(), strict=True) if inside[row]]
            write_subset(staged / name, document, kept, rows, {"split": {**asdict(recipe), "part": part}})
            facts["parts"][part] = {"images": len(kept), "annotations": len(rows)}
        facts["classes"] = _class_counts(table, chosen)
    return output.record


def sentences(record: dict[str, Any]) -> list[str]:
    """Say what a split holds, and which classes are not validated."""
    found = [f"{part}: {n['images']} images, {n['annotations']} annotations" for part, n in record["parts"].items()]
    names = [one["name"] for one in record["classes"] if one["train"] > 0 and one["val"] == 0]
    if names:
        more = ", ..." if len(names) > SHOWN else ""
        why = "they, or another class of their images, would have none in train"
        found.append(f"{len(names)} classes have no image in val ({why}): {', '.join(names[:SHOWN])}{more}")
    return found


def draw(groups: Groups, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Draw the groups that validate, ``(G,) bool``.

    Args:
        groups: What there is.
        fraction: Share of the images, and of the images of every class.
        seed: Seed; groups are taken in random order.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(groups.sizes))
    chosen = _stratified(groups, fraction, order)
    _complete(groups, chosen, order)
    return chosen


def _stratified(groups: Groups, fraction: float, order: Ints) -> NDArray[np.bool_]:
    """Serve the class with the fewest images left first; each group goes to the part that lacks most of the class."""
    there = np.bincount(groups.label, groups.images, groups.num_classes)
    several = np.array([len(pairs) > 1 for pairs in groups.of_class])
    share = np.where(several, np.clip(np.floor(there * fraction + 0.5), 1, np.maximum(there - 1, 1)), 0)
    lacking = np.stack([there - share, share])
    total = float(groups.sizes.sum())
    lacking_images = np.array([total - total * fraction, total * fraction])
    chosen = np.full(len(groups.sizes), -1)
    rank = np.argsort(order)

    def put(group: int, part: int) -> None:
        pairs = groups.of_group[group]
        lacking[part, groups.label[pairs]] -= groups.images[pairs]
        left[groups.label[pairs]] -= groups.images[pairs]
        lacking_images[part] -= groups.sizes[group]
        chosen[group] = part

    left = there.copy()
    # Groups that alone have a class are trained: the choice of the others begins with what that gives.
    for group in np.unique(groups.group[[pairs[0] for pairs in groups.of_class if len(pairs) == 1]]).tolist():
        put(group, 0)
    while (left > 0).any():
        label = int(np.where(left > 0, left, np.inf).argmin())
        members = groups.group[groups.of_class[label]]
        members = members[chosen[members] < 0]
        for group in members[np.argsort(rank[members])].tolist():
            train, val = lacking[:, label].tolist()
            put(group, int(val > train or (val == train and lacking_images[1] > lacking_images[0])))
    for group in order[chosen[order] < 0].tolist():
        put(group, int(lacking_images[1] > lacking_images[0]))
    found: NDArray[np.bool_] = chosen == 1
    return found


def _complete(groups: Groups, chosen: NDArray[np.bool_], order: Ints) -> None:
    """Move groups, in place, so that classes are in both parts: first in training, then, without loss to it, in val."""
    rank = np.argsort(order)
    per_class = [groups.group[pairs] for pairs in groups.of_class]
    training = np.array([int((~chosen[members]).sum()) for members in per_class])
    rarest = np.argsort([len(members) for members in per_class], kind="stable").tolist()
    for part in (False, True):
        for label in rarest:
            members = per_class[label]
            if len(members) < 2 or (chosen[members] == part).any():
                continue
            able = [
                group
                for group in members.tolist()
                if not part or training[groups.label[groups.of_group[group]]].min() > 1
            ]
            if able:
                group = min(able, key=lambda group: (groups.sizes[group], rank[group]))
                chosen[group] = part
                training[groups.label[groups.of_group[group]]] += -1 if part else 1


def _places(values: Ints, count: int) -> list[Ints]:
    """Return where each of the values 0 .. count - 1 stands."""
    return np.split(np.argsort(values, kind="stable"), np.cumsum(np.bincount(values, minlength=count))[:-1])


def _image_ids(images: Sequence[Any]) -> Ints:
    return np.fromiter((image.id for image in images), np.int64, len(images))


def _counted(table: CheckedColumns, of_image: Ints, num_groups: int) -> Groups:
    """Count the images of each class in each group; crowds and ignored objects do not count."""
    single, num = used(table.annotations), len(table.categories)
    image, label = (table.annotations[key][single].astype(np.int64) for key in ("image", "category"))
    image, label = np.divmod(np.unique(image * num + label), num)
    pairs, images = np.unique(of_image[image] * num + label, return_counts=True)
    group, label = np.divmod(pairs, num)
    return Groups(np.bincount(of_image, minlength=num_groups), group, label, images, num)


def _groups_of_images(
    table: CheckedColumns, document: Document, recipe: Recipe, source: Path
) -> tuple[Ints, list[str]]:
    """Return the group of every usable image, and what the groups are called.

    Raises:
        UserError: Images lack the key, or the pattern is not in it.
    """
    if recipe.group_by is None:
        return np.arange(len(table.images)), [str(image.id) for image in table.images]
    found, without = [], []
    for row in table.image_rows.tolist():
        value = msgspec.json.decode(document.images[row]).get(recipe.group_by)
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        match = re.search(recipe.group_pattern or "(?s).*", text)
        if value is None or match is None:
            without.append(f"images[{row}]: {text}")
        else:
            found.append(match[1] if match.re.groups and match[1] is not None else match[0])
    if without:
        what = f"with {recipe.group_pattern} in it" if recipe.group_pattern else ""
        raise UserError(
            f"images without the key {recipe.group_by!r} {what}".rstrip(),
            where=source,
            got=f"{len(without)} of {len(table.images)}: {'; '.join(without[:3])}{', ...' if len(without) > 3 else ''}",
            fix="name a key that every image has, e.g. --group-by file_name --group-pattern '^[^/]+'",
        )
    names, places = np.unique(found, return_inverse=True)
    return places.reshape(-1).astype(np.int64), names.tolist()


def _class_counts(table: CheckedColumns, chosen: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Return id, name and the images of both parts of every class, in file order."""
    single, num = used(table.annotations), len(table.categories)
    image, label = (table.annotations[key][single].astype(np.int64) for key in ("image", "category"))
    image, label = np.divmod(np.unique(image * num + label), num)
    train, val = (np.bincount(label[chosen[image] == part], minlength=num).tolist() for part in (False, True))
    return [
        {"id": category.id, "name": category.name, "train": train[row], "val": val[row]}
        for row, category in enumerate(table.categories)
    ]
