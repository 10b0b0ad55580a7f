"""The complete mmengine config of a training."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from torch import nn

from ltpipe.config.schedules import Schedule
from ltpipe.engine.heads import class_of
from ltpipe.engine.loaders import loader_config
from ltpipe.engine.model_config import custom_imports
from ltpipe.engine.roi_sampling import with_seeded_samplers
from ltpipe.engine.schedule import optimization
from ltpipe.errors import UserError


def training_config(
    model: ConfigDict,
    dataset: dict[str, Any],
    schedule: Schedule,
    *,
    detector: ConfigDict,
    iterations: int,
    seed: int,
    work_dir: Path,
    load_from: str | None,
    hooks: Sequence[dict[str, Any]] = (),
    imports: Sequence[str] = (),
) -> Config:
    """Return the complete config of a training run in one process; mmengine's Runner needs nothing else.

    :func:`ltpipe.engine.training.on_these_processes` spreads it over several.

    Args:
        model: Model config.
        dataset: Config of the training dataset (a :class:`ltpipe.engine.dataset.StreamDataset`).
        schedule: ``Schedule`` of the experiment.
        detector: The detector file: its transforms at test time for the stages that use the trained model, and the
            hooks and the environment that it asks for.
        iterations: Optimiser steps of the run.
        seed: Seed of the run.
        work_dir: Folder of checkpoints and logs.
        load_from: Checkpoint the weights start from.
        hooks: Further hooks.
        imports: Modules with further components: plug-ins, ``custom_imports`` of the detector file.
    """
    passes = iterations * schedule.accumulate
    environment = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0))
    return Config(
        dict(
            default_scope="mmdet",
            custom_imports=custom_imports(imports),
            model=with_seeded_samplers(with_recomputation(model, schedule)),
            train_dataloader=dict(
                batch_size=schedule.images_per_pass,
                **loader_config(2),
                sampler=dict(type="ltpipe.StreamSampler", batch_size=schedule.images_per_pass, iterations=passes),
                dataset=dataset,
            ),
            **optimization(schedule, iterations),
            default_hooks=_default_hooks(iterations, schedule.accumulate),
            custom_hooks=[*_every_training(seed), *schedule_hooks(schedule), *detector.get("custom_hooks", []), *hooks],
            log_processor=dict(type="LogProcessor", window_size=20, by_epoch=False),
            visualizer=dict(type="Visualizer", vis_backends=[dict(type="LocalVisBackend")]),
            randomness=dict(seed=seed),
            env_cfg={**environment, **detector.get("env_cfg", {})},
            test_pipeline=list(detector.test_pipeline),
            log_level="INFO",
            load_from=load_from,
            resume=False,
            work_dir=str(work_dir),
        ),
        format_python_code=False,  # yapf takes a second per checkpoint, and much longer with many classes
    )


def _default_hooks(iterations: int, accumulate: int) -> dict[str, Any]:
    """Return mmengine's hooks, whose intervals count forward passes."""
    return dict(
        timer=dict(type="IterTimerHook"),
        logger=dict(type="LoggerHook", interval=max(1, min(50, iterations // 20)) * accumulate),
        param_scheduler=dict(type="ParamSchedulerHook"),
        checkpoint=dict(type="ltpipe.ResumeHook", interval=max(1, min(1000, math.ceil(iterations / 10))) * accumulate),
    )


def _every_training(seed: int) -> list[dict[str, Any]]:
    """Return the configs of our hooks that no training is without."""
    steps = dict(type="ltpipe.StepSeedHook", seed=seed)
    return [steps, dict(type="ltpipe.DivergenceHook"), dict(type="ltpipe.StopBeforeLimitHook")]


def schedule_hooks(schedule: Schedule) -> list[dict[str, Any]]:
    """Return the configs of the hooks that a schedule asks for."""
    found: list[dict[str, Any]] = []
    again = schedule.activation_checkpointing
    if schedule.precision != "fp32" or schedule.channels_last or again:
        found.append(dict(type="ltpipe.NumericsHook", channels_last=schedule.channels_last, recomputes=again))
    if schedule.ema is not None:
        found.append(dict(type="ltpipe.WeightAverageHook", **schedule.ema.model_dump()))
    return found


def with_recomputation(model: ConfigDict, schedule: Schedule, where: str = "schedule") -> ConfigDict:
    """Return a model config whose backbone computes its activations again in the backward pass, if asked for.

    Raises:
        UserError: The backbone cannot do that.
    """
    if not schedule.activation_checkpointing:
        return model
    backbone = class_of(model.backbone)
    if not any("with_cp" in inspect.signature(base).parameters for base in inspect.getmro(backbone)):
        raise UserError(
            "this backbone cannot compute its activations again",
            where=f"{where}.activation_checkpointing",
            got=f"{backbone.__name__} without an argument with_cp",
            allowed="ResNet, ResNeXt, Swin, HRNet and their like",
        )
    model = copy.deepcopy(model)
    model.backbone.with_cp = True
    return model


def check_parts(schedule: Schedule, detector: nn.Module, where: str) -> None:
    """Refuse parts in ``lr_mult`` and ``decay_mult`` that the detector does not have.

    Args:
        schedule: ``Schedule`` of the experiment.
        detector: The detector, on any device.
        where: Key of the schedule, for the error.

    Raises:
        UserError: No parameter has such a name.
    """
    names = [name for name, _ in detector.named_parameters()]
    for option in ("lr_mult", "decay_mult"):
        for part in getattr(schedule, option):
            if not any(part in name for name in names):
                raise UserError(
                    "no parameter of the detector has this in its name",
                    where=f"{where}.{option}",
                    got=part,
                    allowed=f"parts of names such as {', '.join(names[:: max(1, len(names) // 6)])}",
                )
