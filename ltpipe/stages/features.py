"""``features``: the calibration plan, and the frozen RoI features it asks for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ltpipe.config.experiment import Experiment
from ltpipe.data.calibration_plan import PlanInfo, draw_plan
from ltpipe.data.calibration_rois import RoiSampling
from ltpipe.data.calibration_rows import bound_rows, plan_features
from ltpipe.data.id_rows import row_of
from ltpipe.data.split import Split
from ltpipe.engine.dataset_configs import annotated_config
from ltpipe.engine.distributed import is_first, process_group
from ltpipe.engine.features import FrozenDetector, check_space, collect_boxes, write_features
from ltpipe.engine.inference import build_dataset
from ltpipe.engine.model_config import read_detector
from ltpipe.engine.stage_models import detector_of
from ltpipe.pipeline.paths import Paths
from ltpipe.run.files import discard
from ltpipe.run.stage_run import stage_run


def run(exp: Experiment, paths: Paths) -> None:
    """Plan all calibration steps; with ``storage: cached`` also pool their features."""
    spec = exp.features
    assert spec is not None, "validate refuses calibrators without a features block"
    with stage_run("features", exp, paths) as stage, process_group():
        detector = frozen_detector(exp, paths)
        view = detector.dataset.view
        info = PlanInfo(
            steps=spec.steps,
            classes_per_step=spec.classes_per_step,
            images_per_class=spec.images_per_class,
            tau=spec.tau,
            seed=spec.seed,
            split=view.split.digest,
            annotation_sha256=view.store.info["sha256"],
            draw=spec.draw,
        )
        slots = draw_plan(view.class_images, info)
        image_id, flip, unit_of_slot = slots.units()
        slot_label = slots.class_label.astype(np.int64)
        rows = row_of(image_id, view.store.image_ids)
        units = list(zip(rows.tolist(), flip.tolist(), strict=True))
        sampling = RoiSampling(
            rois=spec.rois,
            positive_fraction=spec.positive_fraction,
            neg_iou_min=spec.neg_iou_min,
            cap_before_filter=spec.cap_before_filter,
        )
        if spec.storage == "cached" and is_first():
            most = np.bincount(view.store.ann_image, minlength=len(view.store.image_ids))[rows] + detector.max_proposals
            bounds = bound_rows(unit_of_slot, slot_label, info.slots_per_step, most, sampling, spec.bg_ratio)
            bounds = (bounds[0] * detector.stages, bounds[1] * detector.stages)
            check_space(paths.features.parent, bounds, detector.shape_at(spec.level), spec.dtype)
        plans = plan_features(
            rows,
            flip,
            unit_of_slot,
            slot_label,
            info.slots_per_step,
            collect_boxes(detector, units, stage.work),
            [replace(sampling, pos_iou=iou) for iou in detector.positive_ious],
            num_classes=view.num_classes,
            bg_ratio=spec.bg_ratio,
            seed=spec.seed,
        )
        if is_first():
            for leftover in paths.plan.parent.glob("*_stage*.np?"):
                discard(leftover)
        if spec.storage == "cached":
            files = [paths.of_stage(paths.features, k) for k in range(len(plans))]
            boxes = [plan.unit_boxes for plan in plans]
            write_features(detector, units, boxes, files, spec.dtype, stage.work, spec.level)
            stage.outputs += files
        if not is_first():
            return
        if spec.storage != "cached":
            discard(paths.features)
        for k, plan in enumerate(plans):
            plan.save(paths.of_stage(paths.plan, k))
            stage.outputs.append(paths.of_stage(paths.plan, k))
        size = {key: sum(len(getattr(plan, key)) for plan in plans) for key in ("boxes", "rows")}
        stage.notes.update(images=len(units), **size)


def frozen_detector(exp: Experiment, paths: Paths) -> FrozenDetector:
    """Return the detector that is calibrated, on the training images of its phase."""
    source = exp.final_checkpoint()
    split = Split.load(paths.split)
    fragment = read_detector(exp.detector.config)
    data = annotated_config(exp, paths, fragment, phase=split.num_phases, num_classes=split.num_classes)
    return FrozenDetector(detector_of(exp, paths, split, source), build_dataset(data))
