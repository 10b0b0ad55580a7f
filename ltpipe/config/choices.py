"""The methods that an experiment chooses: where they stand, and what they ask of the stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from ltpipe.config import catalogue
from ltpipe.config.blocks import Calibrator
from ltpipe.config.experiment import Experiment
from ltpipe.config.fields import Choice
from ltpipe.config.yaml_positions import Key


def choices(exp: Experiment) -> Iterator[tuple[Key, str, Choice]]:
    """All method choices of an experiment: key path, slot, choice."""
    for slot in ("classifier", "loss", "mask"):
        yield ("model", slot), slot, getattr(exp.model, slot)
    for index, part in enumerate(exp.model.parts):
        yield ("model", "parts", index), "part", part
    yield ("base", "sampler"), "sampler", exp.base.sampler
    for name, calibrator in exp.calibrate.items():
        yield ("calibrate", name), "calibrator", calibrator


def extra_images(exp: Experiment) -> str | None:
    """Images that a head part runs over between epochs: ``holdout`` (held out of training), ``val``, or None.

    A part that does names the options that decide in its class attribute ``extra_images``: the first of them whose
    value is listed there.
    """
    for part in exp.model.parts:
        entry = catalogue.find("part", part.type)
        chosen = entry.options.model_validate(part.options).model_dump()
        for option, values in entry.flags.get("extra_images", {}).items():
            if chosen[option] in values:
                images: str = values[chosen[option]]
                return images
    return None


def holds_out(exp: Experiment) -> bool:
    """Whether images are kept out of training: for a head part, or to choose options of a calibrator."""
    return extra_images(exp) == "holdout" or chooses_on(exp, "holdout")


def chooses_on(exp: Experiment, images: str) -> bool:
    """Whether options of a calibrator are chosen on ``holdout`` or ``val`` images."""
    return any(one.choose is not None and one.choose.on == images for one in exp.calibrate.values())


def chosen_on_val(exp: Experiment, checkpoint: str) -> bool:
    """Whether anything of a checkpoint was chosen on the validation images: calibration, weights, a part's own choices.

    Args:
        exp: The experiment.
        checkpoint: ``base``, ``phase<k>`` or the name of a calibrator.
    """
    if checkpoint in exp.calibrate:
        choose = exp.calibrate[checkpoint].choose
        return (choose is not None and choose.on == "val") or chosen_on_val(exp, exp.calibrated_from(checkpoint))
    schedules = [] if exp.base.checkpoint is not None else [exp.base.schedule]
    schedules += [exp.lst.schedule] if exp.lst is not None and checkpoint != "base" else []
    best = any(one.validation is not None and one.validation.keep != "last" for one in schedules)
    return best or (bool(schedules) and extra_images(exp) == "val")


def swept_options(calibrator: Calibrator) -> list[dict[str, float]]:
    """Return the options to try, one dict per combination: what the experiment says, else what the method does."""
    assert calibrator.choose is not None
    values = calibrator.choose.values or catalogue.find("calibrator", calibrator.type).flags.get("sweeps", {})
    return [dict(zip(values, one, strict=True)) for one in product(*values.values())] if values else []


def needs_features(exp: Experiment) -> bool:
    """Whether any calibrator is trained here on RoI features."""
    return any(is_trained_on_features(one.type, one.checkpoint) for one in exp.calibrate.values())


def is_trained_on_features(calibrator_type: str, checkpoint: Path | None) -> bool:
    """Whether a calibrator is trained here, on RoI features.

    Args:
        calibrator_type: Its type.
        checkpoint: A trained head that it uses instead, if any.
    """
    return checkpoint is None and bool(catalogue.find("calibrator", calibrator_type).flags.get("needs_features", True))


def holds(flag: bool | dict[str, list[str]], choice: Choice) -> bool:
    """Whether a flag holds for a choice: true, or true for the values of one of its options."""
    if isinstance(flag, dict):
        return any(choice.options[option] in values for option, values in flag.items())
    return flag


def replace_choices(exp: Experiment, updates: Mapping[Key, Choice]) -> Experiment:
    """Return the experiment with the choices at these key paths replaced."""

    def replaced(value: Any, key: Key) -> Any:
        if key in updates:
            return updates[key]
        if not any(other[: len(key)] == key for other in updates):
            return value
        if isinstance(value, dict):
            return {name: replaced(item, (*key, name)) for name, item in value.items()}
        if isinstance(value, tuple):
            return tuple(replaced(item, (*key, index)) for index, item in enumerate(value))
        inner = {name: replaced(getattr(value, name), (*key, name)) for name in type(value).model_fields}
        return value.model_copy(update=inner)

    result: Experiment = replaced(exp, ())
    return result
