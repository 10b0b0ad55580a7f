"""Checks of a loaded experiment before any job is queued: data, detector, methods and their combination."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ltpipe.categories import ONE_LIST, Categories, labels_in
from ltpipe.errors import UserError, unknown_name
from ltpipe.spec import catalogue
from ltpipe.spec.base import Choice
from ltpipe.spec.blocks import Source
from ltpipe.spec.classes import annotation_categories, generated_classes, read_class_list
from ltpipe.spec.detector import check_detector, has_mask_head, random_geometry, roi_head_type, switched_on
from ltpipe.spec.given import check_given, check_taken_over
from ltpipe.spec.load import read_merged
from ltpipe.spec.models import Experiment
from ltpipe.spec.source import variables


def check_experiment(exp: Experiment, experiments: Sequence[str] = ()) -> list[str]:
    """Check everything that can be known before the data are read.

    Args:
        exp: The experiment.
        experiments: Names of all experiments, for ``report.compare``.

    Returns:
        Remarks: what could not be checked yet, one sentence each.

    Raises:
        UserError: The first thing found wrong.
    """
    remarks, num_classes = check_data(exp)
    remarks += check_given(exp, data_missing=bool(remarks))
    _check_phases(exp, num_classes)
    check_settings(exp, experiments)
    return remarks


def check_settings(exp: Experiment, experiments: Sequence[str] = ()) -> None:
    """Check what needs no data: the detector file, combinations of methods, the report.

    Args:
        exp: The experiment.
        experiments: Names of all experiments, for ``report.compare``.

    Raises:
        UserError: The first thing found wrong.
    """
    check_detector(exp.detector.config, where(exp, "detector.config"))
    for check in _COMBINATIONS:
        check(exp)
    _check_report(exp, experiments)


def where(exp: Experiment, key: str) -> str:
    """``file: key`` for messages."""
    return f"{exp.file or exp.name}: {key}"


def check_data(exp: Experiment) -> tuple[list[str], int]:
    """Check that the data are there, or will be drawn, or that a class list stands for them.

    Returns:
        Remarks, and the number of classes.

    Raises:
        UserError: Files are missing, or class lists do not match.
    """
    data = exp.dataset
    listed = read_class_list(data.class_list) if data.class_list else None
    parts = {"train": data.train, "val": data.val}
    missing = {part: source for part, source in parts.items() if not source.annotations.is_file()}
    if missing and data.generate is not None:
        return ["the toy data will be drawn first"], generated_classes(data.generate)
    if missing and listed is not None:
        files = ", ".join(str(source.annotations) for source in missing.values())
        return [f"checked against the class list only: {files} not found"], len(listed)
    for part, source in parts.items():
        _check_source(exp, part, source)
    train = Categories.of_records(annotation_categories(data.train.annotations), "the training annotations")
    val = Categories.of_records(annotation_categories(data.val.annotations), "the validation annotations")
    labels_in(train, val, where=where(exp, "dataset.val.annotations"), fix=ONE_LIST, part=True)
    if listed is not None:
        known = Categories.of_records(listed, "the class list")
        labels_in(known, train, where=where(exp, "dataset.class_list"), fix=ONE_LIST)
    return [], len(train.ids)


def _check_source(exp: Experiment, part: str, source: Source) -> None:
    for key, path, kind in (("annotations", source.annotations, "file"), ("images", source.images, "folder")):
        if path.is_file() if kind == "file" else path.is_dir():
            continue
        fix = f"correct the path, or put the {kind} there"
        for variable in _path_variables(exp, part, key):
            fix = f"set the environment variable {variable} to the data set's folder, or put the {kind} there"
        if key == "annotations" and exp.dataset.class_list is None:
            fix += "; a class list (dataset.class_list) is enough to validate without the data"
        raise UserError(f"missing {kind} of the data set", where=where(exp, f"dataset.{part}.{key}"), got=path, fix=fix)


def _path_variables(exp: Experiment, part: str, key: str) -> list[str]:
    """Environment variables in a path of the data set, as the experiment file has it."""
    return [] if exp.file is None else variables(read_merged(exp.file).values["dataset"][part][key])


def _check_phases(exp: Experiment, num_classes: int) -> None:
    phases = exp.num_phases(num_classes)
    if exp.split is None or exp.lst is None:
        return
    last = exp.split.phase_boundaries(num_classes)[-1]
    if last != num_classes:
        raise UserError(
            "the last boundary is not the number of classes",
            where=where(exp, "split.boundaries"),
            got=last,
            allowed=str(num_classes),
        )
    steps = exp.lst.iterations_per_phase
    if steps is not None and len(steps) != phases:
        raise UserError(
            "one number of iterations per phase is needed",
            where=where(exp, "lst.iterations_per_phase"),
            got=f"{len(steps)} numbers",
            allowed=f"{phases}, the number of phases",
        )


# ---- combinations that cannot work -----------------------------------------------------------------------------------


def _distillation_needs_cosine(exp: Experiment) -> None:
    if exp.lst is None or exp.lst.distill.teacher == "none" or exp.model.classifier.type == "cosine":
        return
    raise UserError(
        "distillation compares cosine similarities, which this classifier does not compute",
        where=where(exp, "lst.distill.teacher"),
        got=f"model.classifier.type: {exp.model.classifier.type}",
        allowed="model.classifier.type: cosine, or lst.distill.teacher: none",
    )


def _cached_teacher_needs_fixed_scale(exp: Experiment) -> None:
    moving = random_geometry(exp.detector.config)
    if not moving or exp.lst is None or exp.lst.distill.teacher != "cached":
        return
    raise UserError(
        "a cached teacher knows each image at one size, flipped or not; this pipeline changes its geometry at random",
        where=where(exp, "lst.distill.teacher"),
        got=f"{', '.join(moving)} in train_pipeline of {exp.detector.config}",
        allowed="teacher: online, or a pipeline of Resize and RandomFlip",
    )


def _masks_need_a_mask_head(exp: Experiment) -> None:
    masks = [iou_type for iou_type in exp.evaluate.iou_types if iou_type != "bbox"]
    if masks and not has_mask_head(exp.detector.config):
        raise UserError(
            "masks are evaluated, but the detector has no mask head",
            where=where(exp, "evaluate.iou_types"),
            got=f"{', '.join(masks)}, and no mask_head in {exp.detector.config}",
            allowed="iou_types: [bbox]",
        )


def _parts_only_once(exp: Experiment) -> None:
    types = [part.type for part in exp.model.parts]
    for index, kind in enumerate(types):
        if kind in types[:index]:
            raise UserError("a part is named twice", where=where(exp, f"model.parts[{index}]"), got=kind)


def _parts_need_class_wise_heads(exp: Experiment) -> None:
    """Parts that work between classes need an output per class in both heads."""
    for index, part in enumerate(exp.model.parts):
        if not catalogue.find("part", part.type).flags.get("needs_class_wise", False):
            continue
        here, config = where(exp, f"model.parts[{index}]"), exp.detector.config
        for option in ("reg_class_agnostic", "class_agnostic"):
            if switched_on(config, option):
                raise UserError(
                    f"{part.type} works on the outputs of every class, but the detector has one output for all",
                    where=here,
                    got=f"{option}=True in {config}",
                    fix=f"set {option}=False in the detector file, or take {part.type} out of `parts`",
                )
        if catalogue.find("mask", exp.model.mask.type).flags.get("needs_class_weight", False):
            raise UserError(
                f"{part.type} needs the mask filters of all classes, which this mask head does not have",
                where=here,
                got=f"model.mask.type: {exp.model.mask.type}",
                allowed="model.mask.type: fcn or normed",
            )


def _second_stage_needs_a_first(exp: Experiment) -> None:
    """What is not trained, or only scaled, has to come from a trained detector."""
    asked = {f"base.{key}": getattr(exp.base, key) for key in ("trained", "fresh")}
    if catalogue.find("classifier", exp.model.classifier.type).flags.get("needs_start", False):
        asked["model.classifier"] = exp.model.classifier.type
    for key, value in asked.items():
        if value and exp.detector.load_from is None:
            raise UserError(
                "this needs a trained detector to start from",
                where=where(exp, key),
                got=f"{list(value) if isinstance(value, tuple) else value}, and no detector.load_from",
                fix="set detector.load_from to a checkpoint, e.g. results/<experiment>/base/model.pth",
            )
    transferred = catalogue.find("mask", exp.model.mask.type).flags.get("needs_class_weight", False)
    if "conv_logits" in (exp.base.trained or ()) and (transferred or not has_mask_head(exp.detector.config)):
        raise UserError(
            "the detector has no mask predictor to train",
            where=where(exp, "base.trained"),
            got=f"conv_logits, with model.mask.type: {exp.model.mask.type} in {exp.detector.config}",
            fix="leave conv_logits out",
        )


def _hybrid_cascades(exp: Experiment) -> None:
    if roi_head_type(exp.detector.config) != "HybridTaskCascadeRoIHead":
        return
    if exp.model.mask.type != "fcn":
        raise UserError(
            "a hybrid task cascade has mask heads of its own, which hand their features on",
            where=where(exp, "model.mask.type"),
            got=exp.model.mask.type,
            allowed="fcn, or a cascade that is not hybrid",
        )
    for index, part in enumerate(exp.model.parts):
        if _holds(catalogue.find("part", part.type).flags.get("needs_same_rois", False), part):
            raise UserError(
                f"{part.type} would give the mask head weights of other RoIs, which a hybrid task cascade draws anew",
                where=where(exp, f"model.parts[{index}]"),
                fix="crat: set mask_weights_from: mask; or use a cascade that is not hybrid",
            )


def _class_rows(exp: Experiment) -> None:
    """Phases and transferred masks need one classifier row per class, in label order."""
    if not catalogue.find("loss", exp.model.loss.type).flags.get("class_rows", True):
        here, got = where(exp, "model.loss"), exp.model.loss.type
        if exp.incremental:
            raise UserError(
                "this loss orders the classifier by groups, which new classes would shift",
                where=here,
                got=f"{got}, with incremental phases",
                fix="use another loss in the phases, and the calibrator `bags` after the last one",
            )
        _no_transferred_masks(exp, here, got)
    for name, calibrator in exp.calibrate.items():
        if not catalogue.find("calibrator", calibrator.type).flags.get("class_rows", True):
            _no_transferred_masks(exp, where(exp, f"calibrate.{name}"), calibrator.type)


def _no_transferred_masks(exp: Experiment, here: str, got: str) -> None:
    if catalogue.find("mask", exp.model.mask.type).flags.get("needs_class_weight", False):
        raise UserError(
            "this mask head makes its filters from the classifier's row of each class, which there would not be",
            where=here,
            got=f"{got}, with model.mask.type: {exp.model.mask.type}",
            allowed="model.mask.type: fcn or normed",
        )


def _calibrators_need_their_inputs(exp: Experiment) -> None:
    loss = catalogue.find("loss", exp.model.loss.type)
    for name, calibrator in exp.calibrate.items():
        flags = catalogue.find("calibrator", calibrator.type).flags
        here = where(exp, f"calibrate.{name}")
        if flags.get("needs_features", True) and exp.features is None and calibrator.checkpoint is None:
            raise UserError(
                "this calibrator is trained on RoI features, which the experiment does not extract",
                where=here,
                got="features: null",
                fix="remove `features: null`",
            )
        if _holds(flags.get("needs_softmax", False), calibrator) and not loss.flags.get("softmax_scores", True):
            raise UserError(
                "this calibrator goes on from a classifier with softmax scores and one output per class and background",
                where=here,
                got=f"{calibrator.type} after model.loss.type: {exp.model.loss.type}",
                fix="train with a softmax loss, or choose a calibrator (or head) that does not copy the classifier",
            )
        if flags.get("needs_cross_entropy", False) and exp.model.loss.type != "cross_entropy":
            raise UserError(
                "this calibrator reweights the logits of a detector trained with softmax cross entropy",
                where=here,
                got=f"{calibrator.type} after model.loss.type: {exp.model.loss.type}",
                allowed="model.loss.type: cross_entropy",
            )
        if flags.get("needs_linear", False) and exp.model.classifier.type != "linear":
            raise UserError(
                "this calibrator rescales a linear classifier",
                where=here,
                got=f"{calibrator.type} after model.classifier.type: {exp.model.classifier.type}",
                allowed="model.classifier.type: linear",
            )


def _stored_level_is_exact(exp: Experiment) -> None:
    spec = exp.features
    if spec is None or spec.storage == "none":
        return
    levels = ("roi", "fc1", "last")
    for name, calibrator in exp.calibrate.items():
        flags = catalogue.find("calibrator", calibrator.type).flags
        lowest: Any = flags.get("lowest_level", "last")
        for option, by_value in lowest.items() if isinstance(lowest, dict) else ():
            lowest = by_value[calibrator.options[option]]
        if (
            flags.get("needs_features", True)
            and calibrator.checkpoint is None
            and levels.index(spec.level) > levels.index(lowest)
        ):
            raise UserError(
                "the stored features would not be those this calibrator trains on, because it trains layers below them",
                where=where(exp, "features.level"),
                got=f"{spec.level}; calibrate.{name} ({calibrator.type}) reads {lowest}",
                allowed=", ".join(levels[: levels.index(lowest) + 1]),
                fix="lower the level, or choose a calibrator (or head) that trains the classifier only",
            )


def _modes_need_two_classifiers(exp: Experiment) -> None:
    asked = {key: getattr(exp.evaluate, key) for key in ("modes", "thresholds") if getattr(exp.evaluate, key)}
    if not asked or any(catalogue.find("calibrator", c.type).flags.get("fuses_scores") for c in exp.calibrate.values()):
        return
    key, values = next(iter(asked.items()))
    raise UserError(
        "no checkpoint of this experiment has two classifiers whose scores could be combined",
        where=where(exp, f"evaluate.{key}"),
        got=f"{list(values)}; calibrators: {', '.join(c.type for c in exp.calibrate.values()) or 'none'}",
        fix="add a calibrator of type simcal, or leave the option out",
    )


def _holds(flag: bool | dict[str, list[str]], choice: Choice) -> bool:
    """Whether a flag holds for a choice: true, or true for the values of one of its options."""
    if isinstance(flag, dict):
        return any(choice.options[option] in values for option, values in flag.items())
    return flag


_COMBINATIONS: tuple[Callable[[Experiment], None], ...] = (
    _distillation_needs_cosine,
    _cached_teacher_needs_fixed_scale,
    _masks_need_a_mask_head,
    _parts_only_once,
    _parts_need_class_wise_heads,
    _second_stage_needs_a_first,
    _hybrid_cascades,
    _class_rows,
    _calibrators_need_their_inputs,
    _stored_level_is_exact,
    check_taken_over,
    _modes_need_two_classifiers,
)


def _check_report(exp: Experiment, experiments: Sequence[str]) -> None:
    evaluated = exp.evaluated_checkpoints()
    for name in exp.report.compare:
        if name == exp.name:
            raise UserError(
                "an experiment cannot be compared with itself", where=where(exp, "report.compare"), got=name
            )
        if name not in experiments:
            raise unknown_name("experiment", name, experiments, where=where(exp, "report.compare"))
    for index, expected in enumerate(exp.report.expected):
        here = where(exp, f"report.expected[{index}]")
        if expected.checkpoint not in evaluated:
            raise unknown_name("checkpoint", expected.checkpoint, evaluated, where=f"{here}.checkpoint")
        if expected.iou_type not in exp.evaluate.iou_types:
            raise unknown_name("IoU type", expected.iou_type, exp.evaluate.iou_types, where=f"{here}.iou_type")
