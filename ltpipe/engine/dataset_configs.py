"""Dataset configs of an experiment's stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from mmengine.config import ConfigDict

from ltpipe.config.choices import holds_out
from ltpipe.config.detector import has_masks
from ltpipe.config.experiment import Experiment
from ltpipe.data.categories import Categories
from ltpipe.data.fractal_dimension import class_dimensions
from ltpipe.data.id_rows import row_of
from ltpipe.data.split import Split
from ltpipe.data.store import AnnotationStore
from ltpipe.data.tables import read_csv
from ltpipe.engine.model_config import REPLACEMENTS, ClassCounts, with_our_steps
from ltpipe.errors import UserError
from ltpipe.pipeline.digests import stage_seed
from ltpipe.pipeline.paths import Paths


def class_counts(paths: Paths, split: Split, num_classes: int) -> ClassCounts:
    """Return the training counts of the first ``num_classes`` classes, in label order."""
    ids = split.order[:num_classes]
    table = read_csv(paths.statistics("train")).set_index("category_id").loc[list(ids)]
    store = AnnotationStore.open(paths.store("train"))
    annotated = len(np.unique(store.ann_image))
    return ClassCounts(
        table["image_count"].tolist(),
        table["instance_count"].tolist(),
        len(store.image_ids),
        annotated,
        names=table["name"].tolist(),
        ranks=row_of(ids, np.sort(split.order)).tolist(),
        frequency=table["frequency"].tolist(),
        dimensions=lambda: class_dimensions(store, ids).tolist(),
    )


def known_classes(paths: Paths, split: Split, num_classes: int) -> Categories:
    """Return the first ``num_classes`` classes of the experiment, in label order.

    Raises:
        UserError: The split knows classes that the annotations do not have.
    """
    store = AnnotationStore.open(paths.store("train"))
    annotated = Categories.of_store(store, "the training annotations")
    return annotated.take(split.order[:num_classes], "the experiment")


def check_masks(paths: Paths, model: ConfigDict, where: object) -> None:
    """Refuse data with objects without a mask for a mask head that cannot leave them out.

    Args:
        paths: The experiment's artefacts.
        model: The detector.
        where: Its file, for the error.

    Raises:
        UserError: There are such objects, and the RoI head is not one of ours.
    """
    without = AnnotationStore.open(paths.store("train")).info["counts"].get("without_mask", 0)
    kind = model.type if model.get("roi_head") is None else model.roi_head.type
    if without and has_masks(model) and kind not in REPLACEMENTS.values():
        raise UserError(
            "this detector cannot leave objects without a mask out of the mask loss",
            where=where,
            got=f"{kind}; {without} training objects without a mask",
            allowed="a StandardRoIHead, CascadeRoIHead or HybridTaskCascadeRoIHead",
            fix="use one of these, a detector without masks, or annotations with masks",
        )


def common_config(exp: Experiment, paths: Paths, part: str, num_classes: int) -> dict[str, object]:
    """Return what the configs of all datasets on ``train``, ``val`` or a further test set share."""
    return {
        "store": str(paths.store(part)),
        "images": str(exp.parts()[part].images),
        "split": str(paths.split),
        "num_classes": num_classes,
    }


def stream_config(
    exp: Experiment,
    paths: Paths,
    fragment: ConfigDict,
    *,
    phase: int,
    num_classes: int,
    seed: int,
    order: Mapping[str, object],
) -> dict[str, object]:
    """Return the config of a training stream.

    Args:
        exp: The experiment.
        paths: Its artefacts.
        fragment: The detector file.
        phase: Phase whose annotations are seen.
        num_classes: Classes of the detector.
        seed: Seed of order and augmentation.
        order: ``{"sampler": {...}}`` or ``{"replay": file}``.
    """
    return {
        "type": "ltpipe.StreamDataset",
        **common_config(exp, paths, "train", num_classes),
        "phase": phase,
        "seed": seed,
        "holdout": str(paths.holdout) if holds_out(exp) else None,
        "ignore_future": exp.split is not None and exp.split.ignore_future_gt,
        "pipeline": with_our_steps(fragment.train_pipeline),
        **order,
    }


def training_order(exp: Experiment, paths: Paths, phase: int) -> dict[str, Any]:
    """Return ``seed`` and ``order`` of :func:`stream_config` for the base training, 0, or a phase."""
    if phase:
        return {"seed": stage_seed(exp, "lst", phase), "order": {"replay": str(paths.replay(phase))}}
    sampler = {"type": exp.base.sampler.type, **exp.base.sampler.options}
    return {"seed": stage_seed(exp, "base"), "order": {"sampler": sampler}}


def annotated_config(
    exp: Experiment, paths: Paths, fragment: ConfigDict, *, phase: int, num_classes: int
) -> dict[str, object]:
    """Return the config of training images with ground truth at test resolution, flipped on request."""
    steps = [dict(step) for step in fragment.test_pipeline if step["type"] != "PackDetInputs"]
    pipeline = [
        steps[0],
        dict(type="LoadAnnotations", with_bbox=True),
        *steps[1:],
        dict(type="ltpipe.FixedFlip"),
        dict(
            type="PackDetInputs",
            meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "flip", "flip_direction"),
        ),
    ]
    return {
        "type": "ltpipe.AnnotatedDataset",
        **common_config(exp, paths, "train", num_classes),
        "phase": phase,
        "pipeline": with_our_steps(pipeline),
    }


def test_config(
    exp: Experiment, paths: Paths, pipeline: list[dict[str, object]], num_classes: int, part: str = "val"
) -> dict[str, object]:
    """Return the config of the validation images, or of those of a further test set."""
    return {
        "type": "ltpipe.StoreDataset",
        **common_config(exp, paths, part, num_classes),
        "pipeline": with_our_steps(pipeline),
    }
