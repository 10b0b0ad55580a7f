"""From an experiment to complete mmengine configs.

A detector file is a plain mmengine config with ``model``, ``train_pipeline`` and ``test_pipeline``. mmdet's standard
heads in it are replaced by ours (same state-dict keys), and the experiment's classifier, losses and parts are put in.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdet.models.roi_heads import (
    CascadeRoIHead,
    ConvFCBBoxHead,
    HybridTaskCascadeRoIHead,
    Shared2FCBBoxHead,
    Shared4Conv1FCBBoxHead,
    StandardRoIHead,
)
from mmengine.config import ConfigDict

from ltpipe.config.blocks import Evaluate
from ltpipe.config.catalogue import component
from ltpipe.config.detector import resolve_detector
from ltpipe.config.experiment import Experiment
from ltpipe.config.fields import Choice
from ltpipe.engine.box_heads import BoxCallPoints
from ltpipe.engine.geometry import use_geometry
from ltpipe.engine.heads import as_list, class_of, with_call_points
from ltpipe.engine.one_stage import is_one_stage, use_classes, use_loss
from ltpipe.engine.roi_heads import RoICallPoints
from ltpipe.errors import UserError
from ltpipe.methods.box_layers import rectifies
from ltpipe.registry import IMPORTS, MODELS, import_plugins

# Mask heads get their call points from our RoI heads: config files of earlier versions name mmdet's own.
REPLACEMENTS = {
    ConvFCBBoxHead: "ltpipe.LTConvFCBBoxHead",
    Shared2FCBBoxHead: "ltpipe.LTBBoxHead",
    Shared4Conv1FCBBoxHead: "ltpipe.LTShared4Conv1FCBBoxHead",
    StandardRoIHead: "ltpipe.LTRoIHead",
    CascadeRoIHead: "ltpipe.LTCascadeRoIHead",
    HybridTaskCascadeRoIHead: "ltpipe.LTHybridTaskCascadeRoIHead",
}
OUR_STEPS = {
    "LoadImageFromFile": "ltpipe.LoadImage",
    "LoadAnnotations": "ltpipe.LoadObjects",
    "PackDetInputs": "ltpipe.PackLTInputs",
    "CopyPaste": "ltpipe.PasteObjects",
    "CachedMixUp": "ltpipe.MixUpImages",
    "CachedMosaic": "ltpipe.MosaicImages",
    "MixUp": "ltpipe.MixUpImages",
    "Mosaic": "ltpipe.MosaicImages",
}


@dataclass(frozen=True)
class ClassCounts:
    """Training counts of the classes a detector knows, in label order.

    Attributes:
        images: Images with the class.
        instances: Instances of the class.
        num_images: All training images.
        num_annotated_images: Those with an annotation.
        names: Names of the classes.
        ranks: Place of each class among all classes of the data set by ascending category id: its row in tables.
        frequency: ``r``, ``c`` or ``f`` per class.
        dimensions: Measures the fractal dimension of every class, which takes seconds; None: nothing to measure.
    """

    images: Sequence[int]
    instances: Sequence[int]
    num_images: int
    num_annotated_images: int
    names: Sequence[str] | None = None
    ranks: Sequence[int] | None = None
    frequency: Sequence[str] | None = None
    dimensions: Callable[[], Sequence[float]] | None = None

    def injected(self, wanted: Collection[str]) -> dict[str, Any]:
        """Return the constructor arguments that methods get from the data and not from the user.

        Args:
            wanted: Names of a constructor's parameters.
        """
        known: dict[str, Any] = {
            "num_classes": len(self.images),
            "image_counts": list(self.images),
            "instance_counts": list(self.instances),
            "num_images": self.num_images,
            "num_annotated_images": self.num_annotated_images,
            "class_frequency": self.frequency,
            "class_names": self.names,
            "class_ranks": self.ranks,
        }
        found = {name: value for name, value in known.items() if name in wanted}
        if "fractal_dimension" in wanted:
            found["fractal_dimension"] = None if self.dimensions is None else list(self.dimensions())
        return found


def read_detector(source: str | Path) -> ConfigDict:
    """Return ``model``, ``train_pipeline``, ``test_pipeline`` and, where given, the ``custom_...`` keys of a detector.

    Raises:
        UserError: See :func:`ltpipe.config.detector.resolve_detector`.
    """
    return ConfigDict(resolve_detector(source).values())


def component_modules(exp: Experiment, fragment: ConfigDict) -> list[str]:
    """Return the modules besides our own whose components a detector uses: plug-ins and ``custom_imports``.

    Args:
        exp: The experiment.
        fragment: Its detector file.
    """
    return [*exp.plugins, *fragment.get("custom_imports", [])]


def custom_imports(modules: Sequence[str]) -> dict[str, Any]:
    """Return the ``custom_imports`` of a config that uses components of ltpipe and of these modules."""
    return dict(imports=[*IMPORTS, *modules], allow_failed_imports=False)


def build_component(slot: str, choice: Choice, counts: ClassCounts) -> ConfigDict:
    """Return the mmengine config of a method chosen in the experiment, with its counts filled in.

    Args:
        slot: Slot of the catalogue.
        choice: The method and its options.
        counts: Training counts of the detector's classes.
    """
    found = component(slot, choice)
    cls = MODELS.get(found["type"])
    return ConfigDict(found, **counts.injected(inspect.signature(cls.__init__).parameters))


def assemble_model(exp: Experiment, counts: ClassCounts) -> tuple[ConfigDict, ConfigDict]:
    """Return the detector's fragment and its model config with the experiment's methods.

    Args:
        exp: The experiment.
        counts: Training counts of the classes the detector knows; their number fixes its outputs.
    """
    fragment = read_detector(exp.detector.config)
    import_plugins(component_modules(exp, fragment))
    model = fragment.model
    if is_one_stage(model):
        use_classes(model, len(counts.images))
        if exp.model.loss.type != "cross_entropy":
            use_loss(model, build_component("loss", exp.model.loss, counts))
        set_limits(model, exp.evaluate)
        return fragment, model
    roi_head = model.roi_head
    roi_head.type = REPLACEMENTS.get(class_of(roi_head), roi_head.type)
    stages = _one_head_per_stage(roi_head)
    for stage, head in enumerate(as_list(roi_head.bbox_head)):
        head.type = REPLACEMENTS.get(class_of(head), head.type)
        head.num_classes = len(counts.images)
        classifier = build_component("classifier", exp.model.classifier, counts)
        classifier.pop("num_classes", None)
        head.cls_predictor_cfg = classifier
        head.loss_cls = of_stage(build_component("loss", exp.model.loss, counts), stage)
    if roi_head.get("mask_head") is not None:
        choice = component("mask", exp.model.mask)
        for head in as_list(roi_head.mask_head):
            head.num_classes = len(counts.images)
            head.update(choice)
            if "class_features" in inspect.signature(class_of(head).__init__).parameters:
                head.class_features = as_list(roi_head.bbox_head)[0].get("fc_out_channels", 1024)
    _check_heads(model, exp)
    if exp.model.loss_average != "process":
        roi_head.loss_average = exp.model.loss_average
    if exp.split is not None and exp.split.ignore_future_gt:
        _ignore_regions(model.train_cfg)
    if exp.model.parts:
        parts = [build_component("part", part, counts) for part in exp.model.parts]
        roi_head.parts = [[of_stage(part, k) for k in range(stages)] for part in parts] if stages else parts
    model.test_cfg.rcnn.nms = dict(type="nms")
    set_limits(model, exp.evaluate)
    use_geometry(model, exp.detector.geometry)
    return fragment, model


def set_limits(model: ConfigDict, evaluate: Evaluate) -> None:
    """Put the limits of ``evaluate`` into a model config: score, detections per image and, where there is one, NMS."""
    cfg = model.test_cfg if is_one_stage(model) else model.test_cfg.rcnn
    cfg.score_thr, cfg.max_per_img = evaluate.score_threshold, evaluate.max_detections
    if cfg.get("nms") is not None:
        cfg.nms = {**cfg.nms, "iou_threshold": evaluate.nms}


def _ignore_regions(train_cfg: ConfigDict) -> None:
    """Leave out anchors and RoIs that lie with more than half of their area in an ignored object."""
    for cfg in (train_cfg.rpn, *as_list(train_cfg.rcnn)):
        cfg.assigner.ignore_iof_thr = 0.5


def _one_head_per_stage(roi_head: ConfigDict) -> int | None:
    """Write out the heads of every stage of a cascade; return the number of stages, None outside cascades."""
    stages: int | None = roi_head.get("num_stages")
    if stages is not None:
        for name in ("bbox_head", "mask_head"):
            if isinstance(roi_head.get(name), dict):
                roi_head[name] = [copy.deepcopy(roi_head[name]) for _ in range(stages)]
    return stages


def of_stage(config: ConfigDict, stage: int) -> ConfigDict:
    """Return the config of a component for one stage of a cascade: what it draws differs between the stages."""
    return ConfigDict(config, seed=config.seed + stage) if "seed" in config else copy.deepcopy(config)


def _check_heads(model: ConfigDict, exp: Experiment) -> None:
    """Refuse heads without our call points where the experiment needs them."""
    here, boxes = f"{exp.detector.config}: model.roi_head", as_list(model.roi_head.bbox_head)
    if issubclass(class_of(model.roi_head), RoICallPoints):
        with_call_points([*boxes, *as_list(model.roi_head.get("mask_head"))], here)
    elif exp.model.parts or exp.calibrate or exp.lst is not None or exp.model.loss_average != "process":
        raise UserError(
            "parts, calibrators and phases need a RoI head that is built for them",
            where=here,
            got=model.roi_head.type,
            allowed="StandardRoIHead, CascadeRoIHead, HybridTaskCascadeRoIHead",
        )
    elif not all(issubclass(class_of(h), BoxCallPoints) or rectifies(class_of(h.cls_predictor_cfg)) for h in boxes):
        raise UserError(
            "this classifier reads a layer before its ReLU, which this box head does not hand over",
            where=here,
            got=", ".join(head.type for head in boxes),
            allowed="ConvFCBBoxHead, Shared2FCBBoxHead, Shared4Conv1FCBBoxHead, or another classifier",
        )


def with_our_steps(pipeline: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the pipeline with mmdet's reading, mixing and packing replaced by ours, which lose no object and no id."""
    steps = [dict(step) for step in pipeline]
    for step in steps:
        if isinstance(step["type"], str):
            name = step["type"].removeprefix("mmdet.")
            step["type"] = OUR_STEPS.get(name, step["type"])
            if name.startswith("Cached") and name in OUR_STEPS:
                step["chained"] = True
                for option in ("max_cached_images", "random_pop"):
                    step.pop(option, None)
    return steps
