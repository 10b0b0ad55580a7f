"""Blocks of the training stages: schedules, base training, incremental phases."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ltpipe.config.fields import Block, Choice, Fraction, NonNegative, Positive

PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]


class Schedule(Block):
    """Length of a training and its optimiser; give ``epochs`` or ``iterations``, not both."""

    default_length: ClassVar[dict[str, float]] = {"epochs": 12}

    epochs: PositiveFloat | None = Field(None, description="passes over the stage's own epoch list")
    iterations: Positive | None = Field(None, description="optimiser steps, instead of epochs")
    batch_size: Positive = Field(16, description="images per optimiser step, over all processes")
    lr: PositiveFloat = Field(0.01, description="learning rate after warm-up, used as it is for every batch size")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="optimiser")
    momentum: Fraction = Field(0.9, description="SGD momentum")
    weight_decay: NonNegativeFloat = Field(1e-4, description="weight decay")
    bias_lr_mult: NonNegativeFloat = Field(1.0, description="learning rate of biases relative to lr")
    bias_decay_mult: NonNegativeFloat = Field(1.0, description="weight decay of biases relative to weight_decay")
    warmup_iterations: NonNegative = Field(500, description="linear warm-up steps")
    warmup_factor: Annotated[float, Field(gt=0, le=1)] = Field(1 / 3, description="learning rate factor at the start")
    drops: tuple[PositiveFloat, ...] = Field(
        (0.6, 0.8), description="where lr is multiplied by gamma: fractions below 1, or iterations"
    )
    gamma: Annotated[float, Field(gt=0, le=1)] = Field(0.1, description="factor of each drop")
    clip_norm: PositiveFloat | None = Field(None, description="largest gradient norm; null: no clipping")

    @model_validator(mode="before")
    @classmethod
    def _one_length(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given = [key for key in ("epochs", "iterations") if data.get(key) is not None]
        if len(given) > 1:
            raise ValueError("give either epochs or iterations, not both")
        return data if given else {**data, **cls.default_length}

    @field_validator("drops")
    @classmethod
    def _ascending(cls, drops: tuple[float, ...]) -> tuple[float, ...]:
        if list(drops) != sorted(set(drops)):
            raise ValueError("drops must ascend")
        if len({drop < 1 for drop in drops}) > 1:
            raise ValueError("drops are all fractions below 1, or all iterations")
        return drops

    def total_iterations(self, epoch_length: int) -> int:
        """Optimiser steps of the whole training.

        Args:
            epoch_length: Images (or pairs) in one epoch of the stage.
        """
        if self.iterations is not None:
            return self.iterations
        assert self.epochs is not None
        return max(1, math.ceil(self.epochs * epoch_length / self.batch_size))

    def drop_iterations(self, total: int) -> list[int]:
        """Steps after which the learning rate falls, for a training of ``total`` steps."""
        return [round(drop * total) if drop < 1 else round(drop) for drop in self.drops]


class IncrementalSchedule(Schedule):
    """Schedule of an LST phase: the released configuration, 12 epochs of the balanced list."""

    lr: PositiveFloat = Field(0.005, description="learning rate, used as it is for every batch size")
    bias_lr_mult: NonNegativeFloat = Field(2.0, description="learning rate of biases relative to lr")
    bias_decay_mult: NonNegativeFloat = Field(0.0, description="weight decay of biases relative to weight_decay")
    warmup_iterations: NonNegative = Field(0, description="linear warm-up steps")


class CalibrationSchedule(Schedule):
    """Schedule of a calibrated head: SimCal's 12,000 steps of plain SGD, drops after 7,000 and 10,000.

    A step is one mini-batch of the calibration plan, whose size ``features`` fixes; a plan shorter than the training is
    used again from its start. An epoch is one pass over the plan.
    """

    default_length: ClassVar[dict[str, float]] = {"iterations": 12000}

    momentum: Fraction = Field(0.0, description="SGD momentum")
    weight_decay: NonNegativeFloat = Field(0.0, description="weight decay")
    warmup_iterations: NonNegative = Field(0, description="linear warm-up steps")
    drops: tuple[PositiveFloat, ...] = Field(
        (0.58333, 0.83333), description="where lr is multiplied by gamma: fractions below 1, or iterations"
    )


class Model(Block):
    """Choices that every training stage shares."""

    classifier: Choice = Field(Choice(type="linear"), description="classification layer of the box head")
    loss: Choice = Field(Choice(type="cross_entropy"), description="classification loss")
    mask: Choice = Field(Choice(type="fcn"), description="mask head; ignored by detectors without one")
    parts: tuple[Choice, ...] = Field((), description="extensions of the head, e.g. fasa, crat")
    loss_average: Literal["process", "batch"] = Field(
        "process",
        description="what box, mask and distillation losses are averaged over: the RoIs of each process (mmdet, "
        "LST_LVIS) or those of the whole batch, so that the number of processes does not matter; parts other than "
        "distillation keep to their process",
    )


LastLayer = Literal["fc_cls", "fc_reg", "conv_logits", "rpn_head", "mask_head"]


class Base(Block):
    """Base training: all classes of a one-shot experiment, the base classes of an incremental one.

    With ``trained`` it is the second stage of a decoupled training on whole images: the detector comes from
    ``detector.load_from``, often the result of another experiment, and only its last layers learn.
    """

    sampler: Choice = Field(Choice(type="random"), description="order and repetition of the images of an epoch")
    schedule: Schedule = Field(Schedule(), description="length and optimiser")
    trained: tuple[LastLayer, ...] | None = Field(
        None,
        min_length=1,
        description="train these layers only: classifier, box regressor, mask predictor, RPN, mask head "
        "(tztztztztz/eqlv2, its cRT, LWS and group softmax: [fc_cls]; LOCE: [fc_cls, fc_reg, rpn_head, mask_head]); "
        "everything else stays as in detector.load_from; null: train all",
    )
    fresh: tuple[LastLayer, ...] = Field(
        (), description="last layers that start anew although detector.load_from has them (cRT: [fc_cls])"
    )
    checkpoint: Path | None = Field(
        None, description="finished detector to take over instead of training: a file of `ltpipe convert` or of ltpipe"
    )

    @model_validator(mode="after")
    def _fresh_layers_are_trained(self) -> Base:
        idle = [layer for layer in self.fresh if self.trained is not None and layer not in self.trained]
        if idle:
            raise ValueError(f"{idle[0]} would start anew and never be trained: add it to `trained`")
        return self


class Replay(Block):
    """Balanced replay of old classes in every phase."""

    variant: Literal["resample", "cyclic", "fixed", "none"] = Field(
        "resample",
        description="how the old part is drawn: resample, cyclic and fixed as in JoyHuYY1412/LST_LVIS; "
        "none: plain fine-tuning on the new classes, for comparison",
    )
    seed: NonNegative = Field(0, description="seed of epoch 0; epoch e uses seed + e (0 gives the lists of LST_LVIS)")
    layout: Literal["batch", "legacy"] = Field(
        "batch",
        description="batch: every optimiser step takes the next pairs of the epoch; legacy: the stream is cut into "
        "`rows` contiguous rows and a step takes the next pairs of each, the order of LST_LVIS",
    )
    rows: Positive = Field(8, description="rows of the legacy layout: the GPUs of LST_LVIS (8)")


class PairedRois(Block):
    """RoI sampling restricted to the class an image is paired with."""

    num: Positive = Field(200, description="RoIs per image (LST_LVIS, step configs: 200)")
    positive_fraction: Fraction = Field(0.25, description="largest share of positives (LST_LVIS: 0.25)")


class Distill(Block):
    """Distillation of the previous phase's model on ground-truth boxes of new classes."""

    teacher: Literal["cached", "online", "none"] = Field(
        "cached",
        description="cached: similarities computed once by the distill stage, as in LST_LVIS; online: a frozen copy, "
        "for other augmentation than flips; none: off",
    )
    weight: NonNegativeFloat = Field(1.0, description="loss weight (LST, arXiv 2004.00900: 1)")
    reduction: Literal["sum_classes", "mean_classes"] = Field(
        "sum_classes", description="over the old classes; LST_LVIS sums"
    )


class Lst(Block):
    """Incremental phases of LST."""

    replay: Replay = Field(Replay(), description="balanced replay")
    schedule: IncrementalSchedule = Field(IncrementalSchedule(), description="length and optimiser of each phase")
    iterations_per_phase: tuple[Positive, ...] | None = Field(
        None, description="steps of phase 1, 2, ...; replaces the schedule's length (blank in LST_LVIS)"
    )
    rois: PairedRois = Field(PairedRois(), description="class-restricted RoI sampling (LST, arXiv 2004.00900)")
    distill: Distill = Field(Distill(), description="distillation")
    freeze: Literal["none", "stem", "layer1", "layer2", "layer3", "layer4", "backbone"] = Field(
        "backbone", description="what stays fixed in the phases (LST_LVIS: backbone, earlier layer3)"
    )

    @model_validator(mode="after")
    def _rows_share_the_batch(self) -> Lst:
        if self.replay.layout == "legacy" and self.schedule.batch_size % self.replay.rows:
            raise ValueError(
                f"replay.rows: a batch of {self.schedule.batch_size} cannot be shared by {self.replay.rows} rows"
            )
        return self

    def phase_iterations(self, phase: int, epoch_length: int) -> int:
        """Optimiser steps of one phase.

        Args:
            phase: 1-based.
            epoch_length: Pairs in one epoch of the phase's replay list.
        """
        if self.iterations_per_phase is not None:
            return self.iterations_per_phase[phase - 1]
        return self.schedule.total_iterations(epoch_length)
