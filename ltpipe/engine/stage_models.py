"""The detector of every checkpoint, as the experiment describes it.

Stages build detectors from the experiment and its detector file alone. The ``config.py`` beside a checkpoint says the
same to people and to mmengine, but it is Python, so no stage reads it: results may come from somebody else.
"""

from __future__ import annotations

import copy
import csv
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from torch import nn

from ltpipe.checkpoint_ids import phase_of
from ltpipe.config.choices import swept_options
from ltpipe.config.experiment import Experiment
from ltpipe.data.split import Split
from ltpipe.engine.dataset_configs import class_counts, known_classes
from ltpipe.engine.detector_facts import facts_of
from ltpipe.engine.heads import as_list
from ltpipe.engine.inference import load_model
from ltpipe.engine.last_layers import with_trained_layers
from ltpipe.engine.model_config import assemble_model, build_component, custom_imports, of_stage
from ltpipe.errors import UserError
from ltpipe.methods.calibration import Calibrator
from ltpipe.methods.lst.freezing import freezing_options
from ltpipe.pipeline.paths import Paths
from ltpipe.registry import MODELS
from ltpipe.run.files import atomic_path


def classes_of(split: Split, checkpoint: str) -> int:
    """Return the number of classes that a checkpoint knows."""
    phase = phase_of(checkpoint)
    return split.num_classes if phase is None else split.classes_known(phase)


def model_of(exp: Experiment, paths: Paths, split: Split, checkpoint: str) -> tuple[ConfigDict, ConfigDict]:
    """Return the detector file's variables and the model config of a checkpoint.

    Args:
        exp: The experiment.
        paths: Its artefacts.
        split: Its split.
        checkpoint: ``base``, ``phase<k>`` or the name of a calibrator.
    """
    if checkpoint in exp.calibrate:
        fragment, model = model_of(exp, paths, split, exp.calibrated_from(checkpoint))
        return fragment, _calibrated(exp, paths, split, checkpoint, model)
    fragment, model = assemble_model(exp, class_counts(paths, split, classes_of(split, checkpoint)))
    if checkpoint == "base":
        return fragment, with_trained_layers(model, exp.base.trained)
    lst = exp.lst
    assert lst is not None, "validate refuses phases without an lst block"
    model.backbone.update(freezing_options(lst.freeze))
    for stage in as_list(model.train_cfg.rcnn):
        stage.sampler.update(
            type="ltpipe.ClassRestrictedSampler", num=lst.rois.num, pos_fraction=lst.rois.positive_fraction
        )
    return fragment, model


def _calibrated(exp: Experiment, paths: Paths, split: Split, name: str, model: ConfigDict) -> ConfigDict:
    """Return the model config with a calibrator in it; calibrators decide on it before they are trained."""
    spec = exp.calibrate[name]
    if spec.choose is not None:
        spec = spec.model_copy(update=chosen_options(paths.choice(name), swept_options(spec)[0]))
    component = build_component("calibrator", spec, class_counts(paths, split, split.num_classes))
    init_default_scope("mmdet")
    detector: Any = MODELS.build(copy.deepcopy(model))
    merged: dict[str, Any] = model.to_dict()
    state, cascade = detector.state_dict(), isinstance(merged["roi_head"]["bbox_head"], list)
    for k, head in enumerate(detector.roi_head.bbox_heads):
        calibrator: Calibrator = MODELS.build(of_stage(component, k))
        calibrator.initialise(head)
        merged, state = calibrator.merge(merged, state, k if cascade else None)
    return ConfigDict(merged)


def chosen_options(file: Path, options: Collection[str]) -> dict[str, float]:
    """Return the options of a calibrator that were chosen.

    Args:
        file: Numbers of every value that was tried, of the stage ``calibrate``.
        options: Their names.

    Raises:
        UserError: The file is missing or damaged.
    """
    try:
        with open(file, encoding="utf-8", newline="") as rows:
            (chosen,) = (row for row in csv.DictReader(rows) if row["configured"] == "True")
        return {option: float(chosen[option]) for option in options}
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(
            "it is not known which options were chosen", where=file, got=error, fix="run the stage calibrate again"
        ) from error


def detector_of(exp: Experiment, paths: Paths, split: Split, checkpoint: str) -> Any:
    """Return the detector of a checkpoint with its weights, in evaluation mode.

    Raises:
        UserError: The weights cannot be read, or belong to a detector that the experiment no longer describes.
    """
    return loaded(model_of(exp, paths, split, checkpoint), paths, split, checkpoint)


def loaded(described: tuple[ConfigDict, ConfigDict], paths: Paths, split: Split, checkpoint: str) -> nn.Module:
    """As :func:`detector_of`, for what :func:`model_of` has returned."""
    fragment, model = described
    classes = known_classes(paths, split, classes_of(split, checkpoint))
    return load_model(model, paths.model(checkpoint), classes, facts_of(fragment, model))


def write_config(path: Path, model: Mapping[str, Any], fragment: ConfigDict, modules: Sequence[str]) -> None:
    """Write the config of a detector that is only used, for people and mmengine.

    Args:
        path: Where to.
        model: Model config.
        fragment: The detector file.
        modules: Plug-ins and ``custom_imports`` that the model needs.
    """
    config = Config(
        dict(
            default_scope="mmdet",
            custom_imports=custom_imports(modules),
            model=model,
            test_pipeline=list(fragment.test_pipeline),
        ),
        format_python_code=False,
    )
    with atomic_path(path) as temporary:
        config.dump(str(temporary))
