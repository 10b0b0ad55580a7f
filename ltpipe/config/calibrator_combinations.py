"""Calibrators that cannot work after a detector, a loss or a classifier, or on stored features, and why."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from ltpipe.config import catalogue
from ltpipe.config.choices import holds, swept_options
from ltpipe.config.experiment import Experiment
from ltpipe.config.external_checkpoints import check_finished_checkpoints
from ltpipe.errors import UserError


def check_calibrators(exp: Experiment, *, has_masks: bool) -> None:
    """Check that every calibrator gets what it needs, and that the losses before it fit.

    Args:
        exp: The experiment.
        has_masks: Whether the detector has a mask head.

    Raises:
        UserError: One does not.
    """
    _rows_in_label_order(exp)
    _calibrators_need_their_inputs(exp)
    _stored_level_is_exact(exp)
    _order_of_calibrators(exp)
    _choices_can_be_made(exp, has_masks)
    check_finished_checkpoints(exp)
    _modes_need_two_classifiers(exp)


def _rows_in_label_order(exp: Experiment) -> None:
    """Phases and transferred masks need one classifier row per class, in label order."""
    if not catalogue.find("loss", exp.model.loss.type).flags.get("rows_in_label_order", True):
        here, got = exp.where("model.loss"), exp.model.loss.type
        if exp.incremental:
            raise UserError(
                "this loss orders the classifier by groups, which new classes would shift",
                where=here,
                got=f"{got}, with incremental phases",
                fix="use another loss in the phases, and the calibrator `bags` after the last one",
            )
        _no_transferred_masks(exp, here, got)
    for name, calibrator in exp.calibrate.items():
        if not catalogue.find("calibrator", calibrator.type).flags.get("rows_in_label_order", True):
            _no_transferred_masks(exp, exp.where(f"calibrate.{name}"), calibrator.type)


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
        here = exp.where(f"calibrate.{name}")
        if flags.get("needs_features", True) and exp.features is None and calibrator.checkpoint is None:
            raise UserError(
                "this calibrator is trained on RoI features, which the experiment does not extract",
                where=here,
                got="features: null",
                fix="remove `features: null`",
            )
        if holds(flags.get("needs_softmax", False), calibrator) and not loss.flags.get("softmax_scores", True):
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
        in_order = loss.flags.get("rows_in_label_order", True)
        if flags.get("needs_class_logits", False) and not in_order:
            raise UserError(
                "this calibrator changes the logit of every class, and this classifier scores classes in groups",
                where=here,
                got=f"{calibrator.type} after model.loss.type: {exp.model.loss.type}",
                fix="train with a softmax, sigmoid or Seesaw loss, or choose another calibrator",
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
                where=exp.where("features.level"),
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
        where=exp.where(f"evaluate.{key}"),
        got=f"{list(values)}; calibrators: {', '.join(c.type for c in exp.calibrate.values()) or 'none'}",
        fix="add a calibrator of type simcal, or leave the option out",
    )


def _order_of_calibrators(exp: Experiment) -> None:
    """Calibrators after others need no features, and find one classifier there."""
    for name, calibrator in exp.calibrate.items():
        if calibrator.after is None:
            continue
        kinds = calibrator.type, exp.calibrate[calibrator.after].type
        own, before = (catalogue.find("calibrator", kind).flags for kind in kinds)
        got = " after ".join(kinds)
        if own.get("needs_features", True):
            raise UserError(
                "only a calibrator that is computed can start from another one: features are those of the detector",
                where=exp.where(f"calibrate.{name}.after"),
                got=got,
                fix="leave `after` out, or exchange the two",
            )
        if before.get("fuses_scores", False) or not before.get("rows_in_label_order", True):
            raise UserError(
                "there is not one classifier with a logit per class to start from",
                where=exp.where(f"calibrate.{name}.after"),
                got=got,
                fix="start from the detector, or from a calibrator with one classifier, such as crt",
            )


def _choices_can_be_made(exp: Experiment, has_masks: bool) -> None:
    """Options that are to be chosen can be swept from one run, and there are values and masks to choose by."""
    for name, calibrator in exp.calibrate.items():
        spec, entry = calibrator.choose, catalogue.find("calibrator", calibrator.type)
        if spec is None:
            continue
        here, sweeps = exp.where(f"calibrate.{name}.choose"), entry.flags.get("sweeps", {})
        unknown = [option for option in spec.values if option not in sweeps]
        if not sweeps or unknown:
            raise UserError(
                "this cannot be chosen from one run of the detector",
                where=here,
                got=f"{calibrator.type}: {', '.join(unknown) or 'no option'}",
                allowed=", ".join(sweeps) or "methods with such an option, e.g. norcal, logit_adjustment, fracal",
            )
        if len(swept_options(calibrator)) < 2:
            raise UserError("there is nothing to choose from", where=f"{here}.values", got="fewer than two values")
        if spec.iou_type == "segm" and not has_masks:
            raise UserError("the detector has no masks to choose by", where=f"{here}.iou_type", got="segm")
        for options in swept_options(calibrator):
            try:
                entry.options.model_validate({**calibrator.options, **options})
            except ValidationError as error:
                raise UserError(
                    "a value to choose from does not suit the option",
                    where=f"{here}.values",
                    got=options,
                    allowed=error.errors()[0]["msg"],
                ) from error
