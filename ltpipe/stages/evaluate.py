"""``evaluate``: detections of a checkpoint on the validation images, and every number computed from them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from mmengine.config import Config
from numpy.typing import NDArray

from ltpipe.data.split import Split
from ltpipe.data.store import AnnotationStore
from ltpipe.engine.inputs import test_config
from ltpipe.engine.predict import build_dataset, detections, load_model
from ltpipe.evaluation.engine import Tensors, evaluate, save_tensors
from ltpipe.evaluation.metrics import per_class_table, summarize
from ltpipe.evaluation.predictions import Predictions
from ltpipe.evaluation.writer import PredictionWriter
from ltpipe.files import atomic_path, write_json
from ltpipe.spec.digest import stage_digest
from ltpipe.spec.models import Experiment
from ltpipe.spec.paths import Paths
from ltpipe.stages._run import stage_run


def run(exp: Experiment, paths: Paths, checkpoint: str) -> None:
    """Measure one checkpoint."""
    maker, key = paths.producer(checkpoint)
    inputs = {
        "index": paths.store("val") / "info.json",
        "split": paths.split,
        maker: paths.model(checkpoint),
        f"{maker}:config": paths.config(checkpoint),
    }
    with stage_run(
        "evaluate",
        paths.folder("evaluate", checkpoint),
        experiment=exp.name,
        digest=stage_digest(exp, "evaluate", checkpoint),
        seed=exp.seed,
        inputs=inputs,
    ) as stage:
        split = Split.load(paths.split)
        known = predict(exp, paths, checkpoint, split)
        gt = AnnotationStore.open(paths.store("val"))
        found = Predictions.open(paths.predictions(checkpoint))
        # The COCO protocol caps per image and class, at 100, whatever the detector keeps per image.
        cap = exp.evaluate.max_detections if gt.federated else None
        tensors = {
            iou_type: evaluate(gt, found, iou_type, max_detections=cap, category_ids=known)
            for iou_type in exp.evaluate.iou_types
            if iou_type == "bbox" or found.masks is not None
        }
        write_tables(exp, paths, checkpoint, split, tensors)
        save_tensors(paths.tensors(checkpoint), tensors)
        stage.outputs += [f(checkpoint) for f in (paths.predictions, paths.metrics, paths.per_class, paths.tensors)]
        stage.notes["detections"] = len(found)


def predict(exp: Experiment, paths: Paths, checkpoint: str, split: Split) -> NDArray[np.int64]:
    """Write the detections of the checkpoint and return the ids of the categories it knows."""
    config = Config.fromfile(str(paths.config(checkpoint)))
    limits = config.model.test_cfg.rcnn
    limits.score_thr, limits.max_per_img = exp.evaluate.score_threshold, exp.evaluate.max_detections
    limits.nms = dict(type="nms", iou_threshold=exp.evaluate.nms)
    model = load_model(config.model, paths.model(checkpoint))
    num_classes = config.train_dataloader.dataset.num_classes
    dataset = build_dataset(test_config(exp, paths, config.test_pipeline, num_classes))
    masks = "segm" in exp.evaluate.iou_types and model.with_mask
    with PredictionWriter(paths.predictions(checkpoint), masks=masks) as writer:
        for image in detections(model, dataset):
            boxes = image["bboxes"]
            writer.append(
                image["image_id"],
                split.order[image["labels"]],
                image["scores"],
                np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1),
                [mask["counts"] for mask in image["masks"]] if masks else None,
                image["size"],
            )
    return split.order[:num_classes]


def write_tables(exp: Experiment, paths: Paths, checkpoint: str, split: Split, tensors: dict[str, Tensors]) -> None:
    """Write the summary and the per-class table from the tensors."""
    statistics = pd.read_csv(paths.statistics("train"))
    phases = dict(zip(split.order.tolist(), split.phase_of_label.tolist(), strict=True))
    classes = statistics.assign(phase=statistics["category_id"].map(phases))
    phase = int(checkpoint.removeprefix("phase")) if checkpoint.startswith("phase") else split.num_phases
    metrics = {
        iou: summarize(item, classes, bins=exp.evaluate.bins, phase=0 if checkpoint == "base" else phase)
        for iou, item in tensors.items()
    }
    write_json(paths.metrics(checkpoint), metrics)
    tables = [per_class_table(item, classes).assign(iou_type=iou) for iou, item in tensors.items()]
    with atomic_path(paths.per_class(checkpoint)) as temporary:
        pd.concat(tables).to_csv(temporary, index=False)
