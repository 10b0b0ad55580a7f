"""``ltpipe score --calibrate``: also show detections with calibrated scores, which are fitted on other images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ltpipe.data.categories import ONE_LIST, Categories, labels_in
from ltpipe.data.store import AnnotationStore
from ltpipe.data.train_val import Recipe, make_split
from ltpipe.errors import UserError, unknown_name
from ltpipe.interop.known_ids import KnownIds
from ltpipe.interop.read_detections import read_results
from ltpipe.metrics.confidence import RIGHT
from ltpipe.metrics.predictions import Predictions
from ltpipe.metrics.score_calibration import GROUPINGS, Grouping, fit_scores, label, ranked
from ltpipe.metrics.score_functions import FUNCTIONS
from ltpipe.metrics.tensors import IouType, Protocol

HALF = Recipe(0.5, seed=0)
Open = Callable[[Path, Path], AnnotationStore]


@dataclass(frozen=True)
class Calibrate:
    """How scores are calibrated.

    Attributes:
        methods: Names in :data:`~ltpipe.metrics.score_functions.FUNCTIONS`; none: not at all.
        grouping: One function for all classes, one per frequency group or one per class.
        threshold: Least IoU of a right detection.
        annotations: Of the held-out images; None: half of the images are held out.
        detections: On the held-out images, a file for each file that is measured.
    """

    methods: tuple[str, ...] = ()
    grouping: Grouping = "class"
    threshold: float = RIGHT
    annotations: Path | None = None
    detections: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        for method in self.methods:
            if method not in FUNCTIONS:
                raise unknown_name("score calibration", method, FUNCTIONS, where="--calibrate")
        if self.grouping not in GROUPINGS:
            raise unknown_name("grouping of score calibration", self.grouping, GROUPINGS, where="--calibrate-by")
        if not 0 < self.threshold < 1:
            got = self.threshold
            raise UserError("no IoU threshold", where="--calibrate-iou", got=got, allowed="between 0 and 1")
        if (self.annotations is None) != (not self.detections) or (self.detections and not self.methods):
            raise UserError(
                "held-out images are incomplete, or for nothing",
                where="--held-out-annotations, --held-out-detections, --calibrate",
                fix="name annotations, detections and what is to be calibrated, or --calibrate alone",
            )

    def facts(self) -> dict[str, Any]:
        """Return what the record says of it, beside the files."""
        if not self.methods:
            return {}
        return {"calibrate": self.methods, "calibrate_by": self.grouping, "calibrate_iou": self.threshold}


class Judged(NamedTuple):
    """One file of detections, as it is measured.

    Attributes:
        name: The file, with ``+method`` where its scores are calibrated.
        predictions: Its detections; what is calibrated has ranks for scores, because calibrated ones may be equal.
        confidences: The calibrated scores; None: those of the predictions.
    """

    name: str
    predictions: Predictions
    confidences: NDArray[np.float64] | None = None


class HeldOut:
    """Images to fit on, and those that are left to judge on.

    Args:
        settings: How scores are calibrated.
        gt: All annotations.
        annotations: Their file.
        files: The files of detections, by name.
        work: Folder for temporary files.
        open_store: Reads annotations into a folder.

    Attributes:
        judged: Annotations of the images that detections are measured on.

    Raises:
        UserError: Not as many files of held-out detections as of detections, or images that are in both sets.
    """

    def __init__(
        self,
        settings: Calibrate,
        gt: AnnotationStore,
        annotations: Path,
        files: Mapping[str, Path],
        work: Path,
        open_store: Open,
    ) -> None:
        self.settings, self.judged, self._files = settings, gt, {}
        if not settings.methods:
            return
        if settings.annotations is None:
            if (gt.folder / "ids.json").is_file():
                fix = "number images and categories, or name other images with --held-out-annotations"
                raise UserError(
                    "half of the images cannot be held out: their ids are no numbers", where=annotations, fix=fix
                )
            make_split(annotations, work / "halves", HALF)
            # A class of one image goes to the first part: there it can be measured.
            self.judged = open_store(work / "halves" / "train.json", work / "judged")
            self._fitted = open_store(work / "halves" / "val.json", work / "held_out")
            return
        if len(settings.detections) != len(files):
            got = f"{len(settings.detections)} for {len(files)} files of detections"
            raise UserError(
                "each file needs its detections on the held-out images", where="--held-out-detections", got=got
            )
        self._fitted = open_store(settings.annotations, work / "held_out")
        self._files = dict(zip(files, settings.detections, strict=True))
        self._known = KnownIds(self._fitted, settings.annotations)
        ours = Categories.of_store(gt, f"{annotations}")
        labels_in(ours, Categories.of_store(self._fitted, "the held-out annotations"), where=settings.annotations,
                  fix=ONE_LIST, part=True)  # fmt: skip
        both = _names(gt) & _names(self._fitted)
        if both:
            raise UserError(
                "calibrated scores would be judged on images that they are fitted on",
                where=settings.annotations,
                got=f"{len(both)} images are in {annotations}, too: {', '.join(sorted(both)[:3])}",
                fix="hold out other images, e.g. with `ltpipe make-split`",
            )

    def sentence(self) -> str:
        """Say what was fitted on which images."""
        if not self.settings.methods:
            return ""
        by = {"overall": "for all classes", "frequency": "per frequency group", "class": "per class"}
        where = f"{len(self._fitted.image_ids):,} held-out images"
        only = f"; all numbers are of the other {len(self.judged.image_ids):,}" if not self._files else ""
        methods = ", ".join(self.settings.methods)
        return f" Scores calibrated ({methods}, {by[self.settings.grouping]}) on {where}{only}."

    def split(self, name: str, found: Predictions) -> tuple[Predictions, Predictions | None]:
        """Return the detections to measure, and those to fit on."""
        if not self.settings.methods:
            return found, None
        if self._files:
            return found, read_results(self._files[name], self._known)
        here, there = (np.isin(found.image_ids, gt.image_ids) for gt in (self.judged, self._fitted))
        return found.take(np.flatnonzero(here)), found.take(np.flatnonzero(there))

    def variants(
        self,
        name: str,
        found: Predictions,
        held_out: Predictions | None,
        kind: IouType,
        classes: pd.DataFrame,
        protocol: Protocol | None,
    ) -> Iterator[Judged]:
        """Yield the detections as they are, and with their scores calibrated by every method.

        Raises:
            UserError: Scores are no probabilities.
        """
        yield Judged(name, found)
        if held_out is None or kind == "boundary":
            return
        for part in (found, held_out):
            if len(part) and (part.scores.min() < 0 or part.scores.max() > 1):
                got = f"{part.scores.min():g} to {part.scores.max():g}"
                raise UserError(
                    "scores to calibrate are no probabilities", where=part.source, got=got, allowed="0 to 1"
                )
        known = classes.dropna(subset=["frequency"])
        frequency = dict(zip(known["category_id"].tolist(), known["frequency"], strict=True))
        labelled = label(self._fitted, held_out, kind, self.settings.threshold, protocol=protocol)
        for method in self.settings.methods:
            fitted = fit_scores(labelled, frequency, method, grouping=self.settings.grouping)
            scores = fitted.apply(found.category_ids, found.scores)
            yield Judged(f"{name}+{method}", replace(found, scores=ranked(scores, found.scores)), scores)


def settings_of(
    methods: Sequence[str], grouping: Grouping, threshold: float, annotations: str | Path | None,
    detections: str | Path | Sequence[str | Path],
) -> Calibrate:  # fmt: skip
    """Return checked settings of what people pass.

    Raises:
        UserError: Unknown names, or held-out images without detections.
    """
    files = [detections] if isinstance(detections, str | Path) else detections
    held_out = None if annotations is None else Path(annotations)
    return Calibrate(tuple(methods), grouping, threshold, held_out, tuple(map(Path, files)))


def _names(gt: AnnotationStore) -> set[str]:
    return {gt.image_file(row) for row in range(len(gt.image_ids))}
