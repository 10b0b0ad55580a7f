"""Calibration plans: which image, for which class, with which flip, every calibration step looks at.

Bi-level sampling of SimCal (arXiv 2007.11978): a step draws ``N`` classes with replacement, class ``c`` with
probability

    q_c ~ min(n_c, 100) ** tau        over the classes with n_c > 0 training instances

and for each of them ``m`` of its images with replacement. A slot is one (class, image, flip); the slots of a step lie
class-major. Instead of classes, images can be drawn, each once per pass over the data as in a detector's training
(BAGS, arXiv 2006.10408); their slots have no class. The plan is drawn as a whole, so it does not depend on the number
of processes, and all random choices about images are known before any feature is computed.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ltpipe.data.arrays import load_arrays, save_arrays
from ltpipe.data.class_images import ClassImages
from ltpipe.errors import UserError

COUNT_CAP = 100
"""Instances above which a class gains no more probability (SimCal's code)."""


@dataclass(frozen=True)
class PlanInfo:
    """How a plan was drawn.

    Attributes:
        steps: Calibration steps.
        classes_per_step: ``N``.
        images_per_class: ``m``.
        tau: Exponent of the class probabilities; 0 draws classes uniformly.
        flip_probability: Chance of a horizontally flipped slot.
        seed: Seed of the draw.
        split: Digest of the class split that gives the labels their meaning.
        annotation_sha256: Checksum of the annotations.
        draw: What a slot is drawn as: ``classes``, or ``images``.
    """

    steps: int
    classes_per_step: int = 16
    images_per_class: int = 1
    tau: float = 0.0
    flip_probability: float = 0.5
    seed: int = 0
    split: str = ""
    annotation_sha256: str = ""
    draw: Literal["classes", "images"] = "classes"

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("steps", "classes_per_step", "images_per_class"):
            value = getattr(self, name)
            if value < 1:
                raise UserError("bad calibration plan", where=f"plan.{name}", got=value, allowed="1 or more")
        if not 0 <= self.flip_probability <= 1:
            raise UserError("bad flip probability", where="plan", got=self.flip_probability, allowed="0 to 1")

    @property
    def slots_per_step(self) -> int:
        """``B = N * m``."""
        return self.classes_per_step * self.images_per_class


def class_probabilities(instance_counts: NDArray[np.int64], tau: float) -> NDArray[np.float64]:
    """Return ``q_c (K,) float64``: 0 for classes without instances."""
    weight = np.clip(instance_counts, 1, COUNT_CAP).astype(np.float64) ** tau
    weight[instance_counts == 0] = 0.0
    return weight / (weight.sum() or 1.0)


@dataclass(frozen=True, eq=False)
class CalibrationPlan:
    """The slots of all steps.

    Attributes:
        class_label: ``(S,) int32``, ``S = steps * N * m``; -1 where images are drawn.
        image_id: ``(S,) int64``.
        flip: ``(S,) bool``.
        info: How it was drawn.
    """

    class_label: NDArray[np.int32]
    image_id: NDArray[np.int64]
    flip: NDArray[np.bool_]
    info: PlanInfo

    def slots(self, step: int) -> slice:
        """Return the slots of one step, for indexing the arrays."""
        size = self.info.slots_per_step
        return slice(step * size, (step + 1) * size)

    def samples(self) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
        """Return the distinct (image, flip) pairs: what a frozen detector has to see once.

        Returns:
            Image ids ``(U,) int64`` ascending, flips ``(U,) bool``, and the sample of every slot ``(S,) int64``.
        """
        image, of_slot = np.unique(self.image_id, return_inverse=True)
        code, sample = np.unique(2 * of_slot + self.flip, return_inverse=True)
        return image[code // 2], (code % 2).astype(np.bool_), sample

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``plan.npz`` atomically."""
        arrays: dict[str, NDArray[Any]] = {
            "class_label": self.class_label,
            "image_id": self.image_id,
            "flip": self.flip,
        }
        save_arrays(path, arrays, asdict(self.info))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CalibrationPlan:
        """Read a plan.

        Raises:
            UserError: It is missing or damaged.
        """
        fix = "run `ltpipe features --experiment EXP` again"
        names = ("class_label", "image_id", "flip")
        arrays, metadata = load_arrays(path, names, kind="calibration plan", fix=fix)
        try:
            info = PlanInfo(**metadata)
        except TypeError as error:
            raise UserError("damaged calibration plan", where=path, got=error, fix=fix) from error
        if any(a.shape != (info.steps * info.slots_per_step,) for a in arrays.values()):
            raise UserError("damaged calibration plan", where=path, got="arrays of the wrong length", fix=fix)
        return cls(**arrays, info=info)


def draw_plan(classes: ClassImages, info: PlanInfo) -> CalibrationPlan:
    """Draw a calibration plan.

    Classes, images and flips have generators of their own, so a plan with more steps begins with the shorter one.

    Args:
        classes: Images and instance counts of every class.
        info: Sizes, probabilities and seed.

    Raises:
        UserError: No class has both an instance and an image.
    """
    of_class, of_image, of_flip = map(np.random.default_rng, np.random.SeedSequence(info.seed).spawn(3))
    flip = of_flip.random(info.steps * info.slots_per_step) < info.flip_probability
    probability = class_probabilities(np.where(classes.image_counts > 0, classes.annotation_counts, 0), info.tau)
    if not probability.any():
        raise UserError("no class has a training image", where="features.plan", fix="check the training annotations")
    if info.draw == "images":
        every = np.unique(classes.image_id)
        passes = -(-len(flip) // len(every))
        images = np.concatenate([of_image.permutation(every) for _ in range(passes)])[: len(flip)]
        return CalibrationPlan(np.full(len(flip), -1, np.int32), images, flip, info)
    drawn = of_class.choice(classes.num_classes, size=info.steps * info.classes_per_step, p=probability)
    label = np.repeat(drawn, info.images_per_class)
    pick = of_image.integers(classes.image_counts[label])
    return CalibrationPlan(label.astype(np.int32), classes.image_id[classes.ptr[label] + pick], flip, info)
