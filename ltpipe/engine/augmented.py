"""What a training sees: its first samples after all transforms, and the images they come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltpipe.config.experiment import Experiment
from ltpipe.data.split import Split
from ltpipe.data.store import AnnotationStore
from ltpipe.engine.dataset_configs import stream_config, training_order
from ltpipe.engine.inference import build_dataset
from ltpipe.engine.model_config import read_detector
from ltpipe.errors import UserError
from ltpipe.pipeline.paths import Paths


@dataclass(frozen=True)
class Sample:
    """One training sample.

    Attributes:
        row: Store row of its image.
        image: ``(H, W, 3) uint8`` BGR after the transforms, before normalisation and padding.
        boxes: ``(G, 4)`` xyxy, absolute pixels of it.
        masks: ``(G, H, W) bool``, or None.
        names: ``G`` classes.
        foreign: Of each object, whether it comes from another image.
        drawn_for: The class for which a replay list holds the image; None outside of phases.
    """

    row: int
    image: NDArray[np.uint8]
    boxes: NDArray[np.float64]
    masks: NDArray[np.bool_] | None
    names: list[str]
    foreign: list[bool]
    drawn_for: str | None


def training_samples(exp: Experiment, paths: Paths, phase: int, count: int) -> Iterator[Sample]:
    """Yield the first samples of a training, with its own order and seed.

    Args:
        exp: The experiment.
        paths: Its artefacts.
        phase: 0: base training, else a phase.
        count: How many.

    Raises:
        UserError: A transform makes something else than an 8-bit image of three channels.
    """
    fragment, split = read_detector(exp.detector.config), Split.load(paths.split)
    classes, order = split.classes_known(phase), training_order(exp, paths, phase)
    dataset: Any = build_dataset(stream_config(exp, paths, fragment, phase=phase, num_classes=classes, **order))
    rows = {int(number): row for row, number in enumerate(dataset.store.image_ids)}
    for place in range(count):
        yield _sample(dataset[place], rows, dataset.store, dataset.metainfo["classes"], exp.detector.config)


def _sample(
    packed: dict[str, Any], rows: dict[int, int], store: AnnotationStore, classes: tuple[str, ...], where: object
) -> Sample:
    image, data = packed["inputs"].numpy().transpose(1, 2, 0), packed["data_samples"]
    if image.dtype != np.uint8 or image.shape[2] != 3:
        raise UserError(
            "training images that cannot be shown", where=where, got=f"{image.shape[2]} channels of {image.dtype}",
            allowed="three channels of 8 bits: normalisation belongs into the data preprocessor",
        )  # fmt: skip
    gt = data.gt_instances
    boxes = getattr(gt.bboxes, "tensor", gt.bboxes).numpy().astype(np.float64)
    masks = gt.masks.to_ndarray().astype(bool) if "masks" in gt and len(gt) else None
    label = gt.metainfo.get("replay_label")
    names = [classes[i] for i in gt.labels.tolist()]
    drawn_for = None if label is None else classes[int(label)]
    row = rows[int(data.img_id)]
    own = store.ann_ids[store.image_ptr[row] : store.image_ptr[row + 1]]
    foreign = [False] * len(names) if "ann_ids" not in gt else (~np.isin(gt.ann_ids.numpy(), own)).tolist()
    return Sample(row, np.ascontiguousarray(image), boxes, masks, names, foreign, drawn_for)
