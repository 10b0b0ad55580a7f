"""What is wrong with detections: the error kinds of TIDE.

A detection that finds no object takes it for another class (``Cls``), places it badly (``Loc``), both (``Both``), finds
it a second time (``Dupe``) or sees one where there is none (``Bkg``); objects that nothing comes near are missed
(``Miss``). Source: Bolya et al., arXiv 2008.08115, ``dbolya/tide``.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ltpipe.data.store import AnnotationStore
from ltpipe.errors import UserError
from ltpipe.metrics import kernels
from ltpipe.metrics.contract import (
    counting_annotations,
    judged_pairs,
    known_rows,
    pair_of,
    partial_pairs,
    within_cap,
)
from ltpipe.metrics.error_matching import CLS, MISS, RIGHT, WRONG, tell_apart
from ltpipe.metrics.error_names import KINDS
from ltpipe.metrics.mask_outlines import annotation_masks
from ltpipe.metrics.native_engine import stable_order
from ltpipe.metrics.predictions import Predictions
from ltpipe.metrics.tensors import IouType, Protocol
from ltpipe.run.cores import cores

POSITIVE, BACKGROUND = 0.5, 0.1
"""Overlaps of right detections, and of detections that have nothing to do with an object."""
CAPS: dict[Protocol, int] = {"coco": 100, "lvis": 300}
"""Detections per image, over all categories."""
DETECTIONS_PER_PART = 50_000
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Errors:
    """Detections of one evaluation, image by image in file order, best score first, with what became of them.

    Attributes:
        category_ids: ``(K,) int64``, ascending.
        dets: ``(D,)`` rows of the predictions; the others are over the cap of their image.
        scores: ``(D,)``.
        det_category: ``(D,)`` rows of ``category_ids``.
        state: ``(D,)``: 0 right, 1 ignored (neither right nor wrong), 2 wrong.
        kind: ``(D,)`` rows of :data:`KINDS`; -1 for those that are right. Ignored ones have one too: mended, they
            may find an object.
        points_to: ``(D,)`` the annotation that is found, taken for another class or badly placed: a row of ``anns``;
            -1 for none.
        anns: ``(G,)`` rows of the annotations to be found.
        ann_category: ``(G,)`` rows of ``category_ids``.
        used: ``(G,)`` whether an annotation is found.
        missed: ``(G,)`` whether nothing comes near it.
    """

    category_ids: Ints
    dets: Ints
    scores: NDArray[np.floating]
    det_category: Ints
    state: Ints
    kind: Ints
    points_to: Ints
    anns: Ints
    ann_category: Ints
    used: Flags
    missed: Flags

    def counts(self) -> dict[str, Ints]:
        """Return ``{kind: (K,) int64}``: errors by the category of the detection, missed objects by their own."""
        return {
            name: np.bincount(
                self.ann_category[self.missed] if code == MISS else self.det_category[self.kind == code],
                minlength=len(self.category_ids),
            )
            for code, name in enumerate(KINDS)
        }

    def confusions(self) -> tuple[Ints, Ints, Ints]:
        """Return category ids ``taken for`` and ``meant``, and of how many objects, most often first.

        An object is taken for what the best-scored of the detections that find it or take it for another class says.
        """
        rows = np.flatnonzero((self.state == RIGHT) | ((self.kind == CLS) & (self.state == WRONG)))
        # Inside an image the best score comes first.
        best = rows[np.unique(self.points_to[rows], return_index=True)[1]]
        wrong = best[self.kind[best] == CLS]
        pairs = self.det_category[wrong] * len(self.category_ids) + self.ann_category[self.points_to[wrong]]
        found, count = np.unique(pairs, return_counts=True)
        order = np.lexsort((found, -count))
        taken, meant = np.divmod(found[order], len(self.category_ids))
        return self.category_ids[taken], self.category_ids[meant], count[order]


def find_errors(
    gt: AnnotationStore,
    predictions: Predictions,
    iou_type: IouType,
    *,
    protocol: Protocol | None = None,
    max_detections: int | None = None,
    positive: float = POSITIVE,
    background: float = BACKGROUND,
    unjudged_first: bool = False,
) -> Errors:
    """Name the error of every detection.

    Args:
        gt: Annotations.
        predictions: Detections.
        iou_type: ``bbox`` or ``segm``.
        protocol: Default: ``lvis`` for federated ground truth, else ``coco``.
        max_detections: Per image, over all categories; default: :data:`CAPS`; -1 for no cap.
        positive: Least overlap of a right detection.
        background: Larger overlaps are not background.
        unjudged_first: Detections of categories that an image says nothing about, and does not show, take no places
            under the cap. The published evaluation at several overlaps does so at all but the positive one.

    Raises:
        UserError: Detections and annotations do not belong together, or there is nothing to match.
    """
    protocol = protocol or ("lvis" if gt.federated else "coco")
    predictions = predictions.checked()
    if len(predictions) and (predictions.boxes if iou_type == "bbox" else predictions.masks) is None:
        raise UserError("no boxes or masks to match", where=predictions.source, got=iou_type)
    order = np.argsort(gt.category_ids, kind="stable")
    image, category = known_rows(gt, predictions)
    anns = np.sort(counting_annotations(gt, protocol, order, iou_type)[0])
    unjudged = _unjudged(gt, anns, image, category) if protocol == "lvis" else np.zeros(len(image), bool)
    rows = np.arange(len(image))
    if unjudged_first:
        shown = pair_of(gt, gt.ann_image[anns].astype(np.int64), gt.ann_category[anns])
        rows = np.flatnonzero(~unjudged | np.isin(pair_of(gt, image, category), shown))
    cap = CAPS[protocol] if max_detections is None else max_detections
    if cap != -1:
        rows = rows[within_cap(image[rows], predictions.scores[rows], cap)]
    rows = rows[np.argsort(-predictions.scores[rows], kind="stable")]
    rows = rows[stable_order(image[rows])]
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    crowd = gt.ann_iscrowd[anns].astype(bool)
    scene = _Scene(gt, predictions, iou_type, rows, image[rows], place[category[rows]], unjudged[rows], anns, crowd)
    state, kind, points_to, used = _match(scene, place, positive, background)
    return _without_crowds(scene, gt.category_ids[order], place, state, kind, points_to, used)


class _Scene(NamedTuple):
    """What is matched: detections by image and falling score, annotations by image."""

    gt: AnnotationStore
    predictions: Predictions
    iou_type: IouType
    dets: Ints
    det_image: Ints
    det_category: Ints
    unjudged: Flags
    anns: Ints
    crowd: Flags


def _unjudged(gt: AnnotationStore, anns: Ints, image: Ints, category: Ints) -> Flags:
    """Return which detections are of categories that their image says nothing, or not everything, about."""
    pairs = pair_of(gt, image, category)
    unjudged: Flags = ~np.isin(pairs, judged_pairs(gt, anns)) | np.isin(pairs, partial_pairs(gt))
    return unjudged


def _match(scene: _Scene, place: Ints, positive: float, background: float) -> tuple[Ints, Ints, Ints, Flags]:
    state, kind, points_to = (np.full(len(scene.dets), value, np.int64) for value in (WRONG, -1, -1))
    used = np.zeros(len(scene.anns), bool)
    ann_category = place[scene.gt.ann_category[scene.anns]]

    def match_part(part: tuple[slice, slice]) -> None:
        dets, anns = part
        if dets.stop == dets.start:
            return
        pointers, ious = _overlaps(scene, dets, anns, background)
        tell_apart(
            *pointers, ious, scene.det_category[dets], ann_category[anns], scene.crowd[anns], scene.unjudged[dets],
            positive, background, state[dets], kind[dets], points_to[dets], used[anns],
        )  # fmt: skip
        points_to[dets][points_to[dets] >= 0] += anns.start

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(match_part, _parts(scene)))
    return state, kind, points_to, used


def _parts(scene: _Scene) -> Iterator[tuple[slice, slice]]:
    """Cut detections and annotations between images."""
    ann_image = scene.gt.ann_image[scene.anns]
    images = np.unique(scene.det_image[DETECTIONS_PER_PART::DETECTIONS_PER_PART])
    dets = [0, *np.searchsorted(scene.det_image, images).tolist(), len(scene.dets)]
    anns = [0, *np.searchsorted(ann_image, images).tolist(), len(scene.anns)]
    for a, b, c, d in zip(dets[:-1], dets[1:], anns[:-1], anns[1:], strict=True):
        yield slice(a, b), slice(c, d)


def _overlaps(scene: _Scene, dets: slice, anns: slice, lowest: float) -> tuple[tuple[Ints, Ints, Ints], Floats]:
    """Return places and overlaps of all detections and annotations of every image; those below ``lowest`` may be 0."""
    gt, rows, found = scene.gt, scene.anns[anns], scene.dets[dets]
    images = np.unique(np.concatenate([scene.det_image[dets], gt.ann_image[rows].astype(np.int64)]))
    det_ptr, ann_ptr = (
        np.append(np.searchsorted(ids, images), len(ids)) for ids in (scene.det_image[dets], gt.ann_image[rows])
    )
    iou_ptr = np.concatenate([[0], np.cumsum(np.diff(det_ptr) * np.diff(ann_ptr))])
    ious, pointers, crowd = np.zeros(int(iou_ptr[-1])), (det_ptr, ann_ptr, iou_ptr), scene.crowd[anns]
    if scene.iou_type == "bbox":
        assert scene.predictions.boxes is not None
        boxes = scene.predictions.boxes[found].astype(np.float64)
        kernels.box_overlaps(*pointers, boxes, gt.ann_bbox[rows].astype(np.float64), crowd, ious)
    elif len(rows):
        masks = scene.predictions.masks
        assert masks is not None and masks.areas is not None
        pointer, text = masks.packed(found)
        heights = gt.image_sizes[images, 0].astype(np.int64)
        outlines = annotation_masks(gt, rows)
        areas = masks.areas[found].astype(np.float64)
        kernels.mask_overlaps(*pointers, text, pointer, areas, *outlines, crowd, heights, lowest, ious)
    return pointers, ious


def _without_crowds(
    scene: _Scene, category_ids: Ints, place: Ints, state: Ints, kind: Ints, points_to: Ints, used: Flags
) -> Errors:
    """Leave crowds out of the annotations, and find those that are missed."""
    near = np.zeros(len(scene.anns), bool)
    near[points_to[points_to >= 0]] = True
    objects = ~scene.crowd
    row = np.append(np.cumsum(objects) - 1, -1)
    missed = objects & ~used & ~near
    return Errors(
        category_ids,
        scene.dets,
        scene.predictions.scores[scene.dets],
        scene.det_category,
        state,
        kind,
        row[points_to],
        scene.anns[objects],
        place[scene.gt.ann_category[scene.anns[objects]]],
        used[objects],
        missed[objects],
    )
