"""A long-tailed version of a data set: annotations of a class stay in some images and go from the others.

Images are not chosen away: objects of a class simply lose their annotation outside the images kept for that class, and
only images without any annotation vanish. COCO-LT (SimCal, arXiv 2007.11978) is such a version of COCO train2017; its
class index shows this rule, the sampling script is unpublished. Without that index the kept images are drawn anew, to
the same counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ltpipe.data.annotation_subset import read_document, write_subset
from ltpipe.data.findings import Findings
from ltpipe.data.readers import READERS, Records
from ltpipe.errors import UserError
from ltpipe.input_files import read_bytes
from ltpipe.run.files import sha256_file
from ltpipe.run.outputs import Output

Flags = NDArray[np.bool_]
SHOWN = 8


class Target(msgspec.Struct, frozen=True):
    """How much of a class stays; class lists such as ``configs/classes/coco_lt.json`` hold these records.

    Attributes:
        id: Category id.
        instance_count: Annotations, crowds included.
        image_count: Images that hold them; None: as it comes.
        name: Category name, compared with the data set's unless empty.
    """

    id: int
    instance_count: int
    image_count: int | None = None
    name: str = ""


@dataclass(frozen=True)
class Recipe:
    """Where a long-tailed data set comes from.

    Attributes:
        rule: ``drawn`` to the counts, or ``listed`` in a class index.
        seed: Seed of the draw.
        source_sha256: Checksum of the source annotations.
    """

    rule: str
    seed: int
    source_sha256: str


def read_targets(path: Path) -> list[Target]:
    """Read target counts, a JSON list of ``{id, instance_count, image_count?, name?}``.

    Raises:
        UserError: The file is missing or holds something else.
    """
    try:
        return msgspec.json.decode(read_bytes(path, "the target counts"), type=list[Target])
    except msgspec.DecodeError as error:
        allowed = "a list of {id, instance_count}, with image_count and name if known"
        raise UserError("not a list of target counts", where=path, got=str(error), allowed=allowed) from error


def make_long_tailed(
    source: Path,
    output: Path,
    targets: Sequence[Target],
    *,
    seed: int = 0,
    listed: Mapping[int, Sequence[int]] | None = None,
) -> dict[str, Any]:
    """Write the long-tailed version of an annotation file, and ``<output>.record.json`` that says how it was made.

    Records are copied byte for byte, but LVIS images name the classes that they lost annotations of as not exhaustively
    annotated, and categories lose the counts and the frequency that no longer hold.

    Args:
        source: COCO- or LVIS-format JSON.
        output: JSON file to write.
        targets: Counts to reach, of every category of the source; empty with ``listed``: nothing is verified.
        seed: Seed of the draw; every class has a generator of its own.
        listed: Images that keep the annotations of each category, by category id, instead of a draw.

    Returns:
        The record: recipe, checksums, counts per class.

    Raises:
        UserError: The source cannot be read, targets or index do not belong to it, the counts cannot be reached, or the
            output is the source or a file that ltpipe did not make.
    """
    made = Output(output, "make-lt", inputs=[source])
    findings = Findings()
    records = READERS["coco"](source, findings)
    findings.check(source, "refuse")
    category, image = records.category_ids, records.image_ids
    _check_targets(records, targets, source, required=listed is None)
    if listed is None:
        kept, recipe = draw(category, image, targets, seed), Recipe("drawn", seed, sha256_file(source))
    else:
        kept, recipe = _listed(records, category, image, listed, source), Recipe("listed", seed, sha256_file(source))
    counts = _counts(records, category[kept], image[kept])
    _verify(counts, targets, images=listed is not None)
    facts = {**asdict(recipe), "images": len(np.unique(image[kept])), "annotations": int(kept.sum())}
    with made.write(record := {**facts, "source": source.name, "classes": counts}) as temporary:
        _write(source, temporary, records, kept, facts)
        record["sha256"] = sha256_file(temporary)
    return made.record


def draw(category: NDArray[np.int64], image: NDArray[np.int64], targets: Sequence[Target], seed: int) -> Flags:
    """Draw the annotations that stay, ``(A,) bool``.

    Args:
        category: ``(A,) int64`` category ids.
        image: ``(A,) int64`` image ids.
        targets: Counts per category; categories without a target keep nothing.
        seed: Seed.

    Raises:
        UserError: A count cannot be reached.
    """
    kept = np.zeros(len(category), dtype=bool)
    failed = []
    for target in targets:
        rows = np.flatnonzero(category == target.id)
        images, member = np.unique(image[rows], return_inverse=True)
        per_image = np.bincount(member, minlength=len(images))
        generator = np.random.default_rng([seed, target.id])
        quota = choose_quota(per_image, target.instance_count, target.image_count, generator)
        if quota is None:
            wanted = str(target.instance_count)
            wanted += "" if target.image_count is None else f" in {target.image_count} images"
            failed.append(f"{target.name or target.id}: {wanted} wanted, {len(rows)} in {len(images)} there")
            continue
        # The first annotations of an image, in file order, fill its quota.
        order = np.argsort(member, kind="stable")
        place = np.empty(len(rows), dtype=np.int64)
        place[order] = np.arange(len(rows)) - np.repeat(np.cumsum(per_image) - per_image, per_image)
        kept[rows[place < quota[member]]] = True
    _refuse(failed, "the target counts cannot be reached", "lower them, drop image_count, or try another seed")
    return kept


def choose_quota(
    per_image: NDArray[np.int64], instances: int, images: int | None, generator: np.random.Generator
) -> NDArray[np.int64] | None:
    """Choose how many annotations of a class each image keeps, ``(M,) int64``; None if it cannot be done.

    With ``images``: whole images, exactly that many; a random choice is corrected by swaps until the sum is right.
    Without: whole images in random order as long as they fit, and a part of one more if something is left.

    Args:
        per_image: ``(M,) int64`` annotations of the class in each image, positive.
        instances: Annotations to keep.
        images: Images to keep, or None.
        generator: Source of randomness.
    """
    if instances > per_image.sum() or (images is not None and images > len(per_image)):
        return None
    order = generator.permutation(len(per_image))
    quota = np.zeros(len(per_image), dtype=np.int64)
    if images is None:
        left = instances
        for place in order.tolist():
            if per_image[place] <= left:
                quota[place] = per_image[place]
                left -= int(per_image[place])
        if left:
            quota[order[quota[order] == 0][0]] = left
        return quota
    inside, outside = order[:images], order[images:]
    gap = instances - int(per_image[inside].sum())
    while gap:
        have, other = np.unique(per_image[inside]), np.unique(per_image[outside])
        change = other[None, :] - have[:, None]
        if not change.size or np.abs(gap - change).min() >= abs(gap):
            return None
        i, j = np.unravel_index(np.abs(gap - change).argmin(), change.shape)
        a = generator.choice(np.flatnonzero(per_image[inside] == have[i]))
        b = generator.choice(np.flatnonzero(per_image[outside] == other[j]))
        inside[a], outside[b] = outside[b], inside[a]
        gap -= int(change[i, j])
    quota[inside] = per_image[inside]
    return quota


def _check_targets(records: Records, targets: Sequence[Target], source: Path, *, required: bool) -> None:
    names = {c.id: c.name for c in records.categories}
    wrong = [f"{t.id} {t.name}".strip() for t in targets if t.id not in names or t.name not in ("", names[t.id])]
    absent = [f"{i} {name}" for i, name in names.items() if i not in {t.id for t in targets}]
    if wrong or (absent and (targets or required)):
        raise UserError(
            "the target counts are not those of this data set",
            where=source,
            got=f"unknown here: {_few(wrong)}; without a target: {_few(absent)}",
            allowed="one target per category, with its id and name",
        )


def _listed(
    records: Records,
    category: NDArray[np.int64],
    image: NDArray[np.int64],
    listed: Mapping[int, Sequence[int]],
    source: Path,
) -> Flags:
    """Return the annotations of each category in the images listed for it."""
    known = {i.id for i in records.images}
    strange = sorted({i for images in listed.values() for i in images} - known)
    if strange:
        raise UserError(
            "the class index does not belong to this data set",
            where=source,
            got=f"{len(strange)} listed images are not in it, e.g. {strange[:3]}",
            fix="COCO-LT is made from COCO train2017",
        )
    kept = np.zeros(len(category), dtype=bool)
    for category_id, images in listed.items():
        rows = np.flatnonzero(category == category_id)
        kept[rows] = np.isin(image[rows], np.asarray(images, dtype=np.int64))
    return kept


def _counts(records: Records, category: NDArray[np.int64], image: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Return id, name, image and instance count of every category, in file order."""
    return [
        {
            "id": c.id,
            "name": c.name,
            "image_count": len(np.unique(image[category == c.id])),
            "instance_count": int((category == c.id).sum()),
        }
        for c in records.categories
    ]


def _verify(counts: Sequence[Mapping[str, Any]], targets: Sequence[Target], *, images: bool) -> None:
    """Refuse counts other than the targets."""
    wanted = {t.id: t for t in targets}
    failed = []
    for found in counts if targets else ():
        target = wanted[found["id"]]
        same = found["instance_count"] == target.instance_count
        if images and target.image_count is not None:
            same = same and found["image_count"] == target.image_count
        if not same:
            failed.append(f"{found['name']}: {target.instance_count} wanted, {found['instance_count']} found")
    _refuse(failed, "the class index does not give the target counts", "use the annotations the index was made from")


def _refuse(failed: Sequence[str], what: str, fix: str) -> None:
    if failed:
        raise UserError(what, where=f"{len(failed)} classes", got="; ".join(failed[:SHOWN]), fix=fix)


def _write(source: Path, output: Path, records: Records, kept: Flags, facts: Mapping[str, Any]) -> None:
    content = read_document(source)
    filled = set(records.image_ids[kept].tolist())
    lost: dict[int, set[int]] = {}
    for image, category in zip(records.image_ids[~kept].tolist(), records.category_ids[~kept].tolist(), strict=True):
        lost.setdefault(image, set()).add(category)
    images = [
        _less_exhaustive(raw, lost[record.id])
        if record.not_exhaustive_category_ids is not None and record.id in lost
        else raw
        for raw, record in zip(content.images, records.images, strict=True)
        if record.id in filled
    ]
    annotations = [raw for raw, stays in zip(content.annotations, kept, strict=True) if stays]
    write_subset(output, content, images, annotations, {"long_tail": dict(facts)})


def _less_exhaustive(raw: msgspec.Raw, lost: set[int]) -> dict[str, Any]:
    image: dict[str, Any] = msgspec.json.decode(raw)
    image["not_exhaustive_category_ids"] = sorted({*image["not_exhaustive_category_ids"], *lost})
    return image


def _few(items: Sequence[str]) -> str:
    return ", ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "") if items else "none"
