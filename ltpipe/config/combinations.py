"""Combinations of methods, detector and stages that cannot work, and why."""

from __future__ import annotations

from collections.abc import Callable

from ltpipe.config import catalogue
from ltpipe.config.calibrator_combinations import check_calibrators
from ltpipe.config.choices import holds
from ltpipe.config.detector import DENSE_HEADS, ResolvedDetector, class_name
from ltpipe.config.experiment import Experiment
from ltpipe.errors import UserError


def _one_stage_detectors(exp: Experiment, detector: ResolvedDetector) -> None:
    """Detectors without a RoI head are trained and measured; what acts in RoI heads has no place in them."""
    if detector.roi_head is not None:
        return
    if not any(detector.model.get(head) is not None for head in DENSE_HEADS):
        raise UserError(
            "this detector has no head that knows classes",
            where=exp.where("detector.config"),
            got=f"{detector.model.get('type', 'no type')} in {detector.source}",
            allowed=f"a roi_head, or one of {', '.join(DENSE_HEADS)}",
        )
    model, evaluation = exp.model, exp.evaluate
    asked = {
        "lst": exp.lst is not None,
        "calibrate": bool(exp.calibrate),
        "model.classifier": model.classifier.type != "linear",
        "model.mask": model.mask.type != "fcn",
        "model.parts": bool(model.parts),
        "model.loss_average": model.loss_average != "process",
        "base.trained": exp.base.trained is not None,
        "base.fresh": bool(exp.base.fresh),
        "base.checkpoint": exp.base.checkpoint is not None,
        "detector.geometry": exp.detector.geometry != "modern",
        "evaluate.modes": bool(evaluation.modes),
        "evaluate.thresholds": bool(evaluation.thresholds),
        "evaluate.oracle_labels": evaluation.oracle_labels,
    }
    for key, given in asked.items():
        if given:
            raise UserError(
                "this acts in the RoI head of two-stage detectors, and the detector has none",
                where=exp.where(key),
                got=f"{detector.model.get('type', 'no type')} in {detector.source}",
                fix=f"leave out {key}, or choose Faster R-CNN, Mask R-CNN, a cascade or their like",
            )
    _one_stage_losses(exp, detector)


def _one_stage_losses(exp: Experiment, detector: ResolvedDetector) -> None:
    """Anchor heads can have a loss that scores every class by itself and heeds label weights; others keep their own."""
    name = exp.model.loss.type
    if name == "cross_entropy":
        return
    flags = catalogue.find("loss", name).flags
    head = class_name(detector.model.get("bbox_head") or {})
    if flags.get("background") != "none" or not flags.get("weighted", False):
        raise UserError(
            "this loss needs a background, or ignores the weights of anchors, which one-stage detectors rely on",
            where=exp.where("model.loss"),
            got=f"{name}, with {head or 'no bbox_head'} in {detector.source}",
            allowed="cross_entropy (the loss that the detector file names), or " + ", ".join(_one_stage_names()),
        )
    if head != "RetinaHead":
        raise UserError(
            "the head of this detector has targets of its own, which the loss does not know",
            where=exp.where("model.loss"),
            got=f"{name}, with {head or 'no bbox_head'} in {detector.source}",
            allowed="cross_entropy (the loss that the detector file names), or a detector with a RetinaHead",
        )


def _one_stage_names() -> list[str]:
    flags = {name: catalogue.find("loss", name).flags for name in catalogue.names("loss")}
    return [name for name, one in flags.items() if one.get("background") == "none" and one.get("weighted")]


def _distillation_needs_cosine(exp: Experiment, detector: ResolvedDetector) -> None:
    if exp.lst is None or exp.lst.distill.teacher == "none" or exp.model.classifier.type == "cosine":
        return
    raise UserError(
        "distillation compares cosine similarities, which this classifier does not compute",
        where=exp.where("lst.distill.teacher"),
        got=f"model.classifier.type: {exp.model.classifier.type}",
        allowed="model.classifier.type: cosine, or lst.distill.teacher: none",
    )


def _cached_teacher_needs_fixed_scale(exp: Experiment, detector: ResolvedDetector) -> None:
    moving = detector.random_geometry
    if not moving or exp.lst is None or exp.lst.distill.teacher != "cached":
        return
    raise UserError(
        "a cached teacher knows each image at one size, flipped or not; this pipeline changes its geometry at random",
        where=exp.where("lst.distill.teacher"),
        got=f"{', '.join(moving)} in train_pipeline of {exp.detector.config}",
        allowed="teacher: online, or a pipeline of Resize and RandomFlip",
    )


def _images_are_mixed_by_the_pipeline(exp: Experiment, detector: ResolvedDetector) -> None:
    if detector.hidden_mixing:
        raise UserError(
            "a transform of several images stands inside another transform, where it gets none",
            where=f"{exp.detector.config}: train_pipeline",
            got=", ".join(detector.hidden_mixing),
            fix="put it into train_pipeline itself; it has a chance of its own: prob",
        )


def _masks_need_a_mask_head(exp: Experiment, detector: ResolvedDetector) -> None:
    masks = [iou_type for iou_type in exp.evaluate.iou_types if iou_type != "bbox"]
    if masks and not detector.has_masks:
        raise UserError(
            "masks are evaluated, but the detector has no mask head",
            where=exp.where("evaluate.iou_types"),
            got=f"{', '.join(masks)}, and no mask_head in {exp.detector.config}",
            allowed="iou_types: [bbox]",
        )


def _best_is_measured(exp: Experiment, detector: ResolvedDetector) -> None:
    schedules = {"base": exp.base.schedule, **({"lst": exp.lst.schedule} if exp.lst is not None else {})}
    for key, schedule in schedules.items():
        keep = "last" if schedule.validation is None else schedule.validation.keep
        if keep != "last" and keep.best.partition("/")[0] not in exp.evaluate.iou_types:
            raise UserError(
                "the best weights would be chosen by what is not measured",
                where=exp.where(f"{key}.schedule.validation.keep"),
                got=f"best: {keep.best}, with evaluate.iou_types: {', '.join(exp.evaluate.iou_types)}",
            )


def _parts_only_once(exp: Experiment, detector: ResolvedDetector) -> None:
    types = [part.type for part in exp.model.parts]
    for index, kind in enumerate(types):
        if kind in types[:index]:
            raise UserError("a part is named twice", where=exp.where(f"model.parts[{index}]"), got=kind)


def _parts_need_their_loss(exp: Experiment, detector: ResolvedDetector) -> None:
    for index, part in enumerate(exp.model.parts):
        allowed = catalogue.find("part", part.type).flags.get("losses", [])
        if allowed and exp.model.loss.type not in allowed:
            raise UserError(
                f"{part.type} changes what the loss is computed from, which fits another loss only",
                where=exp.where(f"model.parts[{index}]"),
                got=f"model.loss.type: {exp.model.loss.type}",
                allowed=f"model.loss.type: {' or '.join(allowed)}",
            )


def _parts_need_fixed_layers(exp: Experiment, detector: ResolvedDetector) -> None:
    """Parts that keep what the shared layers of the box head made need these layers as they are."""
    for index, part in enumerate(exp.model.parts):
        needed = holds(catalogue.find("part", part.type).flags.get("needs_fixed_layers", False), part)
        if needed and (exp.base.trained is None or exp.incremental):
            raise UserError(
                f"{part.type} keeps the output of layers that change in this training",
                where=exp.where(f"model.parts[{index}]"),
                got="phases, which train them" if exp.incremental else "base.trained: null, which trains all",
                fix="loce: set base.trained: [fc_cls, fc_reg, rpn_head, mask_head] as published, or memory: roi",
            )


def _parts_need_class_wise_heads(exp: Experiment, detector: ResolvedDetector) -> None:
    """Parts that work between classes need an output per class in both heads."""
    for index, part in enumerate(exp.model.parts):
        if not catalogue.find("part", part.type).flags.get("needs_class_wise", False):
            continue
        here = exp.where(f"model.parts[{index}]")
        for kind, option in (("bbox_head", "reg_class_agnostic"), ("mask_head", "class_agnostic")):
            if any(head.get(option) for head in detector.heads(kind)):
                raise UserError(
                    f"{part.type} works on the outputs of every class, but the detector has one output for all",
                    where=here,
                    got=f"{option}=True in {detector.source}",
                    fix=f"set {option}=False in the detector file, or take {part.type} out of `parts`",
                )
        if catalogue.find("mask", exp.model.mask.type).flags.get("needs_class_weight", False):
            raise UserError(
                f"{part.type} needs the mask filters of all classes, which this mask head does not have",
                where=here,
                got=f"model.mask.type: {exp.model.mask.type}",
                allowed="model.mask.type: fcn or normed",
            )


def _second_stage_needs_a_first(exp: Experiment, detector: ResolvedDetector) -> None:
    """What is not trained, or only scaled, has to come from a trained detector."""
    asked = {f"base.{key}": getattr(exp.base, key) for key in ("trained", "fresh")}
    if catalogue.find("classifier", exp.model.classifier.type).flags.get("needs_start", False):
        asked["model.classifier"] = exp.model.classifier.type
    for key, value in asked.items():
        if value and exp.detector.load_from is None:
            raise UserError(
                "this needs a trained detector to start from",
                where=exp.where(key),
                got=f"{list(value) if isinstance(value, tuple) else value}, and no detector.load_from",
                fix="set detector.load_from to a checkpoint, e.g. results/<experiment>/base/model.pth",
            )
    transferred = catalogue.find("mask", exp.model.mask.type).flags.get("needs_class_weight", False)
    trained = exp.base.trained or ()
    if "mask_head" in trained and not detector.has_masks:
        raise UserError(
            "the detector has no mask head to train",
            where=exp.where("base.trained"),
            got=f"mask_head in {exp.detector.config}",
            fix="leave mask_head out",
        )
    if "conv_logits" in trained and (transferred or not detector.has_masks):
        raise UserError(
            "the detector has no mask predictor to train",
            where=exp.where("base.trained"),
            got=f"conv_logits, with model.mask.type: {exp.model.mask.type} in {exp.detector.config}",
            fix="leave conv_logits out",
        )


def _hybrid_cascades(exp: Experiment, detector: ResolvedDetector) -> None:
    if detector.roi_head_type != "HybridTaskCascadeRoIHead":
        return
    if exp.model.mask.type != "fcn":
        raise UserError(
            "a hybrid task cascade has mask heads of its own, which hand their features on",
            where=exp.where("model.mask.type"),
            got=exp.model.mask.type,
            allowed="fcn, or a cascade that is not hybrid",
        )
    for index, part in enumerate(exp.model.parts):
        if holds(catalogue.find("part", part.type).flags.get("needs_same_rois", False), part):
            raise UserError(
                f"{part.type} would give the mask head weights of other RoIs, which a hybrid task cascade draws anew",
                where=exp.where(f"model.parts[{index}]"),
                fix="crat: set mask_weights_from: mask; or use a cascade that is not hybrid",
            )


COMBINATIONS: tuple[Callable[[Experiment, ResolvedDetector], None], ...] = (
    _one_stage_detectors,
    _distillation_needs_cosine,
    _cached_teacher_needs_fixed_scale,
    _images_are_mixed_by_the_pipeline,
    _masks_need_a_mask_head,
    _best_is_measured,
    _parts_only_once,
    _parts_need_their_loss,
    _parts_need_fixed_layers,
    _parts_need_class_wise_heads,
    _second_stage_needs_a_first,
    _hybrid_cascades,
    lambda exp, detector: check_calibrators(exp, has_masks=detector.has_masks),
)
