"""Class order and phases of an experiment.

Classes are sorted by their number of training instances; phase 0 knows the first ``K_0``, phase ``n`` the first
``K_n``. A class keeps its label, the rank in this order, in all phases. Source: "Learning to Segment the Tail" (arXiv
2004.00900) and its preprocessing notebooks; one-shot experiments are the case of a single phase with all classes.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ltpipe.data.id_rows import row_of
from ltpipe.errors import UserError
from ltpipe.run.files import write_json


@dataclass(frozen=True, eq=False)
class Split:
    """Class order and phase boundaries; made by :func:`make_split`.

    Attributes:
        order: ``(K,) int64`` category ids; the position is the label.
        counts: ``(K,) int64`` training instances in the same order.
        boundaries: ``K_0 < K_1 < ... < K_T = K``, classes known after each phase.
        dataset: Name of the data set.
        annotation_sha256: Checksum of the training annotations that were counted.
    """

    order: NDArray[np.int64]
    counts: NDArray[np.int64]
    boundaries: tuple[int, ...]
    dataset: str = ""
    annotation_sha256: str = ""

    @property
    def num_classes(self) -> int:
        """Classes of the last phase."""
        return len(self.order)

    @property
    def num_phases(self) -> int:
        """Incremental phases ``T``; the base phase 0 is not counted."""
        return len(self.boundaries) - 1

    def classes_known(self, phase: int) -> int:
        """Return ``K_n``, the number of classes known after phase ``n``."""
        if not 0 <= phase <= self.num_phases:
            raise UserError("no such phase", got=phase, allowed=f"0 (base) to {self.num_phases}")
        return self.boundaries[phase]

    def new_labels(self, phase: int) -> range:
        """Return the labels that phase ``n`` adds, ``K_{n-1} .. K_n - 1``; all base labels for phase 0."""
        return range(self.boundaries[phase - 1] if phase else 0, self.classes_known(phase))

    @cached_property
    def phase_of_label(self) -> NDArray[np.int32]:
        """``(K,) int32``: the phase that introduced each label."""
        return np.repeat(np.arange(len(self.boundaries), dtype=np.int32), np.diff(self.boundaries, prepend=0))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of class order and boundaries: two splits with equal digests give every class the same label."""
        return hashlib.sha256(json.dumps([self.order.tolist(), list(self.boundaries)]).encode()).hexdigest()

    def labels_of(self, category_ids: ArrayLike) -> NDArray[np.int32]:
        """Return the label of each category id, int32, ``-1`` for ids outside the split."""
        return row_of(np.asarray(category_ids, dtype=np.int64), self.order).astype(np.int32)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``split.json`` atomically."""
        content = {
            "dataset": self.dataset,
            "annotation_sha256": self.annotation_sha256,
            "order": self.order.tolist(),
            "counts": self.counts.tolist(),
            "boundaries": list(self.boundaries),
            "tie_break": "file_order",
        }
        write_json(path, content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Split:
        """Read ``split.json``.

        Raises:
            UserError: The file is missing, damaged or contradicts itself.
        """
        fix = "run `ltpipe split --experiment EXP` again"
        try:
            content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
            order, counts = (np.array(content[key], dtype=np.int64) for key in ("order", "counts"))
            boundaries = _check_boundaries(content["boundaries"], len(order))
            if order.ndim != 1 or counts.shape != order.shape or len(np.unique(order)) != len(order):
                raise ValueError("order and counts must be lists of equal length without repeated ids")
            return cls(order, counts, boundaries, content["dataset"], content["annotation_sha256"])
        except FileNotFoundError as error:
            raise UserError("no class split", where=path, fix=fix) from error
        except (ValueError, KeyError, TypeError, UserError) as error:
            raise UserError("damaged class split", where=path, got=error, fix=fix) from error


def make_split(
    category_ids: ArrayLike,
    counts: ArrayLike,
    *,
    base_classes: int | None = None,
    step: int | None = None,
    boundaries: list[int] | None = None,
    dataset: str = "",
    annotation_sha256: str = "",
) -> Split:
    """Sort the classes by training instances and cut them into phases.

    Ties keep the order of the annotation file. Give ``base_classes`` and ``step`` (the last phase takes what is left),
    or explicit ``boundaries``, or neither: then all classes are in the base.

    Args:
        category_ids: ``(K,)`` ids in file order.
        counts: ``(K,)`` training instances of each.
        base_classes: Classes of phase 0.
        step: Classes that each later phase adds.
        boundaries: Number of classes known after each phase, e.g. ``[270, 430, 590]``; the last must be ``K``.
        dataset: Name of the data set, for the record.
        annotation_sha256: Checksum of the annotations, for the record.

    Raises:
        UserError: A phase would be empty, or the boundaries do not end at the number of classes.
    """
    ids, instances = np.asarray(category_ids, dtype=np.int64), np.asarray(counts, dtype=np.int64)
    assert ids.shape == instances.shape and ids.ndim == 1, "one count per category"
    total = len(ids)
    if total == 0:
        raise UserError("the data set has no classes", where="split", fix="check `categories` of the annotation file")
    if boundaries is None:
        boundaries = _regular_boundaries(total, base_classes, step)
    elif base_classes is not None or step is not None:
        raise UserError(
            "two descriptions of the phases", where="split", fix="give either boundaries or base_classes and step"
        )
    order = np.argsort(-instances, kind="stable")
    return Split(ids[order], instances[order], _check_boundaries(boundaries, total), dataset, annotation_sha256)


def _regular_boundaries(total: int, base_classes: int | None, step: int | None) -> list[int]:
    """Return ``K_0, K_0 + step, ...`` up to ``total``."""
    if base_classes is None and step is None:
        return [total]
    if base_classes is None or not 1 <= base_classes <= total:
        raise UserError("bad size of the base", where="split.base_classes", got=base_classes, allowed=f"1 to {total}")
    if base_classes < total and (step is None or step < 1):
        raise UserError("bad phase size", where="split.step", got=step, allowed="1 or more")
    return [*range(base_classes, total, step or 1), total]


def _check_boundaries(boundaries: list[int], total: int) -> tuple[int, ...]:
    """Return the boundaries as a tuple if they rise strictly from 1 or more to ``total``."""
    allowed = f"rising numbers of classes, the first at least 1, the last {total} (all classes)"
    if not boundaries or boundaries[-1] != total or any(b <= a for a, b in pairwise([0, *boundaries])):
        raise UserError("bad phase boundaries", where="split.boundaries", got=boundaries, allowed=allowed)
    return tuple(int(b) for b in boundaries)
