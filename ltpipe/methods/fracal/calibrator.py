"""FRACAL for a trained detector; :mod:`ltpipe.methods.fracal.functions` has the formulas.

Acts on the scores of the box head at test time. Needs image counts and the number of training images, or instance
counts, and the fractal dimension of every class, which is measured on the training boxes
(:mod:`ltpipe.data.fractal_dimension`) or read from the authors' table. Their configs also suppress overlaps above 0.3
instead of 0.5 and cut masks at 0.4 instead of 0.5: compare with a detector that is tested in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ltpipe.errors import UserError
from ltpipe.methods.adjusted_scores import OffsetCalibrator
from ltpipe.methods.fracal.functions import frequency_shift, read_dimensions, sigmoid_shift, softmax_shift
from ltpipe.methods.frequency_links import Floats
from ltpipe.registry import method


@method("calibrator", "fracal")
class FRACAL(OffsetCalibrator):
    """Logits shifted by the frequency of a class and by how evenly its objects fill the image, without training.

    Args:
        num_classes: Foreground classes K.
        image_counts: Training images per class.
        instance_counts: Training instances per class.
        fractal_dimension: Fractal dimension per class; not needed with a table.
        num_images: Images in the training annotations, annotated or not; needed for ``count: image``.
        class_names: Names of the classes; compared with those in the table.
        class_ranks: Place of each class among all of the data set by ascending category id: its row in the table.
        variant: Link of the frequency; ``smooth_published`` has the sign error of the authors' code, ``none`` leaves
            the frequency out.
        strength: Exponent lambda of the fractal dimension; 0 leaves it out.
        count: Count images or instances.
        table: CSV file of the authors with the fractal dimensions; null: measured on the training boxes.

    Raises:
        UserError: The number of images or the fractal dimensions are not known, or the table does not fit.
    """

    product = True
    sweeps = {"strength": [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]}

    def __init__(
        self,
        num_classes: int,
        image_counts: Sequence[int],
        instance_counts: Sequence[int],
        fractal_dimension: Sequence[float] | None = None,
        num_images: int | None = None,
        class_names: Sequence[str] | None = None,
        class_ranks: Sequence[int] | None = None,
        variant: Literal[
            "none", "raw", "smooth", "smooth_published", "prob", "normit", "gombit", "base2", "base10"
        ] = "base10",
        strength: float = 2.0,
        count: Literal["image", "instance"] = "image",
        table: str | None = None,
    ) -> None:
        super().__init__(num_classes)
        if table is not None:
            self.dimension = read_dimensions(table, class_names, class_ranks, num_classes)
        elif fractal_dimension is not None:
            self.dimension = np.asarray(fractal_dimension, dtype=np.float64)
        else:
            raise UserError("FRACAL does not know the fractal dimension of the classes", where="fractal_dimension")
        if count == "image" and num_images is None:
            raise UserError(
                "FRACAL does not know the number of training images",
                where="num_images",
                fix="give the number of images in the training annotations, or set count: instance",
            )
        counts = image_counts if count == "image" else instance_counts
        total = num_images if count == "image" else int(np.maximum(np.asarray(counts), 1).sum())
        assert total is not None
        self.strength, self.shift = strength, frequency_shift(counts, total, variant, count)

    def offsets(self, sigmoid: bool) -> Floats:
        """Return the shifts for softmax or for sigmoid heads."""
        return (sigmoid_shift if sigmoid else softmax_shift)(self.shift, self.dimension, self.strength)
