"""What a detector gets right and wrong, class by class, as pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ltpipe.data.id_rows import row_of
from ltpipe.metrics.error_kinds import Errors
from ltpipe.metrics.error_matching import CLS, IGNORED, RIGHT, WRONG
from ltpipe.metrics.error_names import KINDS
from ltpipe.metrics.predictions import Predictions
from ltpipe.report import html
from ltpipe.report import shots as marks
from ltpipe.report.captioned import Shot
from ltpipe.report.picture_pages import shots
from ltpipe.report.shots import Outline, Shelf, detection

PER_KIND, SCENES, SCENE_SCORE, SCENE_BOXES = 4, 2, 0.3, 12
MISTAKES = [code for code, name in enumerate(KINDS) if name != "Miss"]
Rows = NDArray[np.int64]


class DetectionPictures:
    """Chooses and draws what is worth looking at of one set of detections.

    Args:
        shelf: Images and objects.
        predictions: The detections.
        errors: What became of them.
    """

    def __init__(self, shelf: Shelf, predictions: Predictions, errors: Errors) -> None:
        self._shelf, self._predictions, self._errors = shelf, predictions, errors
        store = shelf.store
        names = dict(zip(store.category_ids.tolist(), store.category_names, strict=True))
        self._names = [names[i] for i in errors.category_ids.tolist()]
        self._image = row_of(predictions.image_ids[errors.dets], store.image_ids)
        self._by_class = np.lexsort((-errors.scores, errors.det_category))
        self._first = np.searchsorted(errors.det_category[self._by_class], np.arange(len(self._names) + 1))
        # Objects that detections of other classes lie on, the most confident first.
        taken = np.flatnonzero((errors.kind == CLS) & (errors.state == WRONG))
        self._taken = taken[np.argsort(-errors.scores[taken], kind="stable")]
        self._meant = errors.ann_category[errors.points_to[self._taken]]

    def of_class(self, place: int) -> Iterator[str]:
        """Yield the parts of a class's section.

        Args:
            place: Row of ``errors.category_ids``.
        """
        errors, own = self._errors, self._own(place)
        yield from self._row("Best hits", own[errors.state[own] == RIGHT])
        for code in MISTAKES:
            wrong = own[(errors.state[own] == WRONG) & (errors.kind[own] == code)]
            yield from self._row(f"Confident mistakes: {list(KINDS.values())[code]}", wrong)
        yield from self._row("Its objects, taken for other classes", self._taken[self._meant == place])
        yield from self._missed(place)
        yield from self._scenes(place, own)

    def worst(self, place: int) -> Iterator[Shot]:
        """Yield one picture of a class: its most confident mistake, else the largest object missed, if there is one.

        Args:
            place: Row of ``errors.category_ids``.
        """
        errors, own = self._errors, self._own(place)
        wrong = own[errors.state[own] == WRONG]
        for row in wrong[:1].tolist():
            kind = list(KINDS.values())[int(errors.kind[row])]
            yield from (Shot(shot.picture, f"{kind}: {shot.caption}") for shot in self._shot(row))
        if not len(wrong):
            _, missed = self._largest_missed(place, 1)
            yield from (Shot(shot.picture, f"missed: {shot.caption}") for shot in missed)

    def _own(self, place: int) -> Rows:
        """Return the detections of a class, the most confident first."""
        return self._by_class[self._first[place] : self._first[place + 1]]

    def _row(self, heading: str, rows: Rows) -> Iterator[str]:
        """Yield the most confident of some detections."""
        found = [shot for row in rows[:PER_KIND].tolist() for shot in self._shot(row)]
        if found:
            yield html.subheading(f"{heading} ({len(rows):,})") + shots(found)

    def _shot(self, row: int) -> Iterator[Shot]:
        errors = self._errors
        right, meant = errors.state[row] == RIGHT, int(errors.points_to[row])
        name, score = self._names[errors.det_category[row]], float(errors.scores[row])
        colour = marks.FOUND if right else marks.WRONG
        outlines, caption = [], f"{name} {score:.2f}"
        if meant >= 0:
            truth = self._names[errors.ann_category[meant]]
            outlines.append(self._shelf.object(int(errors.anns[meant])))
            caption += "" if right else f", {'badly placed' if truth == name else f'is a {truth}'}"
        outlines.append(detection(self._predictions, int(errors.dets[row]), "", colour))
        image = int(self._image[row])
        yield from self._shelf.cut(image, outlines, f"{caption} · {self._shelf.store.image_file(image)}")

    def _missed(self, place: int) -> Iterator[str]:
        """Yield the largest objects that nothing comes near."""
        count, found = self._largest_missed(place, PER_KIND)
        if found:
            yield html.subheading(f"Missed objects, the largest ({count:,})") + shots(found)

    def _largest_missed(self, place: int, most: int) -> tuple[int, list[Shot]]:
        """Return how many objects of a class nothing comes near, and pictures of the largest of them."""
        store, errors = self._shelf.store, self._errors
        anns = errors.anns[np.flatnonzero(errors.missed & (errors.ann_category == place))]
        largest = anns[np.argsort(-store.ann_area[anns], kind="stable")][:most]
        return len(anns), [
            shot
            for row in largest.tolist()
            for shot in self._shelf.cut(
                int(store.ann_image[row]), [self._shelf.object(row)], store.image_file(int(store.ann_image[row]))
            )
        ]

    def _scenes(self, place: int, own: Rows) -> Iterator[str]:
        """Yield the images with most errors of a class, truth and detections side by side."""
        errors, store = self._errors, self._shelf.store
        wrong = own[(errors.state[own] == WRONG) & (errors.scores[own] >= SCENE_SCORE)]
        missed = errors.anns[~errors.used & (errors.ann_category == place)]
        images = np.concatenate([self._image[wrong], store.ann_image[missed].astype(np.int64)])
        values, counts = np.unique(images, return_counts=True)
        parts = []
        for image in values[np.argsort(-counts, kind="stable")][:SCENES].tolist():
            there = errors.anns[store.ann_image[errors.anns] == image]
            truth = [self._shelf.object(row, self._name(row)) for row in there[: 2 * SCENE_BOXES].tolist()]
            dets = np.flatnonzero((self._image == image) & (errors.scores >= SCENE_SCORE))
            name = store.image_file(image)
            pair = [
                *self._shelf.scene(image, truth, f"annotated: {len(there)} objects · {name}"),
                *self._shelf.scene(image, self._shown(dets), f"detected with {SCENE_SCORE:g} or more: {len(dets)}"),
            ]
            parts.append(shots(pair, large=True))
        if any(parts):
            yield html.subheading("Truth and detections side by side") + "".join(parts)

    def _shown(self, rows: Rows) -> Sequence[Outline]:
        """Return the most confident of the detections of an image, the best last: it is drawn above the others."""
        errors, kept = self._errors, rows[np.argsort(-self._errors.scores[rows], kind="stable")][:SCENE_BOXES]
        outlines = []
        for row in kept[::-1].tolist():
            colour = marks.FOUND if errors.state[row] in (RIGHT, IGNORED) else marks.WRONG
            text = f"{self._names[errors.det_category[row]]} {float(errors.scores[row]):.2f}"
            outlines.append(detection(self._predictions, int(errors.dets[row]), text, colour))
        return outlines

    def _name(self, annotation: int) -> str:
        return self._shelf.store.category_names[int(self._shelf.store.ann_category[annotation])]

    def confusions(self) -> NDArray[np.int64]:
        """Return how often the objects of each class ``(K,)`` are taken for others, and others for it."""
        errors, taken = self._errors, self._taken
        return np.bincount(self._meant, minlength=len(self._names)) + np.bincount(
            errors.det_category[taken], minlength=len(self._names)
        )
