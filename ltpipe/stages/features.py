"""``features``: the calibration plan, and the frozen RoI features it asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ltpipe.config.choices import chooses_on
from ltpipe.config.experiment import Experiment
from ltpipe.data.calibration_plan import PlanInfo, draw_plan
from ltpipe.data.calibration_rois import RoiSampling
from ltpipe.data.calibration_rows import FeaturePlan, bound_rows, plan_features
from ltpipe.data.id_rows import row_of
from ltpipe.data.split import Split
from ltpipe.engine.dataset_configs import annotated_config
from ltpipe.engine.distributed import is_first, process_group
from ltpipe.engine.features import check_space, collect_boxes, write_features
from ltpipe.engine.frozen_detector import FrozenDetector
from ltpipe.engine.inference import build_dataset
from ltpipe.engine.model_config import read_detector
from ltpipe.engine.stage_models import detector_of
from ltpipe.pipeline.paths import Paths
from ltpipe.run.files import discard
from ltpipe.run.stage_run import stage_run

DRAWN = ("steps", "classes_per_step", "images_per_class", "tau", "seed", "draw")
SAMPLED = ("rois", "positive_fraction", "neg_iou_min", "cap_before_filter")


def run(exp: Experiment, paths: Paths) -> None:
    """Plan all calibration steps; with ``storage: cached`` also pool their features."""
    spec = exp.features
    assert spec is not None, "validate refuses calibrators without a features block"
    with stage_run("features", exp, paths) as stage, process_group():
        detector = frozen_detector(exp, paths)
        view = detector.dataset.view
        drawn = {name: getattr(spec, name) for name in DRAWN}
        info = PlanInfo(**drawn, split=view.split.digest, annotation_sha256=view.store.info["sha256"])
        slots = draw_plan(view.class_images, info)
        image_id, flip, sample_of_slot = slots.samples()
        rows, slot_label = row_of(image_id, view.store.image_ids), slots.class_label.astype(np.int64)
        samples = list(zip(rows.tolist(), flip.tolist(), strict=True))
        sampling = RoiSampling(**{name: getattr(spec, name) for name in SAMPLED})
        if spec.storage == "cached" and is_first():
            slots_of = (sample_of_slot, slot_label, info.slots_per_step)
            fewest, most = bound_rows(*slots_of, detector.most_boxes(rows), sampling, spec.bg_ratio)
            bounds = (fewest * detector.stages, most * detector.stages)
            check_space(paths.features.parent, bounds, detector.shape_at(spec.level), spec.dtype)
        plans = plan_features(
            rows,
            flip,
            sample_of_slot,
            slot_label,
            info.slots_per_step,
            collect_boxes(detector, samples, stage.work),
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
            boxes = [plan.sample_boxes for plan in plans]
            write_features(detector, samples, boxes, files, spec.dtype, stage.work, spec.level)
            stage.outputs += files
        elif is_first():
            discard(paths.features)
        if not is_first():
            return
        stage.outputs += save_plans(plans, paths)
        stage.notes["images"] = len(samples)
        stage.notes |= {key: sum(len(getattr(plan, key)) for plan in plans) for key in ("boxes", "rows")}


def save_plans(plans: Sequence[FeaturePlan], paths: Paths) -> list[Path]:
    """Write the plan of every stage of the detector; return the files."""
    files = [paths.of_stage(paths.plan, k) for k in range(len(plans))]
    for plan, file in zip(plans, files, strict=True):
        plan.save(file)
    return files


def frozen_detector(exp: Experiment, paths: Paths) -> FrozenDetector:
    """Return the detector that is calibrated, on the training images of its phase."""
    source = exp.final_checkpoint()
    split = Split.load(paths.split)
    fragment = read_detector(exp.detector.config)
    data = annotated_config(exp, paths, fragment, phase=split.num_phases, num_classes=split.num_classes)
    if chooses_on(exp, "holdout"):  # what is chosen on these images is not trained on them either
        data["holdout"] = str(paths.holdout)
    return FrozenDetector(detector_of(exp, paths, split, source), build_dataset(data))
