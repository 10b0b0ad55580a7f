"""Schedules: how long something is trained, with which optimiser, learning rate and arithmetic."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ltpipe.config.fields import (
    Block,
    Fraction,
    InMemory,
    Iterations,
    NonNegative,
    NonNegativeFloat,
    Passes,
    Positive,
    PositiveFloat,
    PositiveFraction,
)


class Steps(Block):
    """Length of a training, learning rate and optimiser; give ``epochs`` or ``iterations``, not both."""

    default_length: ClassVar[dict[str, float]] = {"epochs": 12}

    epochs: Passes | None = Field(None, description="passes over the stage's own epoch list")
    iterations: Iterations | None = Field(None, description="optimiser steps, instead of epochs")
    batch_size: InMemory = Field(16, description="images per optimiser step, over all processes")
    lr: PositiveFloat = Field(0.01, description="learning rate after warm-up, used as it is for every batch size")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="optimiser")
    momentum: Fraction = Field(0.9, description="SGD momentum")
    weight_decay: NonNegativeFloat = Field(1e-4, description="weight decay")
    bias_lr_mult: NonNegativeFloat = Field(1.0, description="learning rate of biases relative to lr")
    bias_decay_mult: NonNegativeFloat = Field(1.0, description="weight decay of biases relative to weight_decay")
    warmup_iterations: NonNegative = Field(500, description="linear warm-up steps")
    warmup_factor: PositiveFraction = Field(1 / 3, description="learning rate factor at the start")
    drops: tuple[PositiveFloat, ...] = Field(
        (0.6, 0.8), max_length=1000, description="where lr is multiplied by gamma: fractions below 1, or iterations"
    )
    gamma: PositiveFraction = Field(0.1, description="factor of each drop")
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


class Average(Block):
    """Moving average of the weights, as mmengine's EMAHook keeps it; the averaged weights are the result."""

    momentum: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.0002, description="share of the newest weights in the average, per optimiser step"
    )
    gamma: Positive | None = Field(
        None,
        description="the share falls to momentum over about so many steps (mmdet's ExpMomentumEMA); null: constant",
    )


class Best(Block):
    """The weights with the best number."""

    best: Annotated[str, Field(pattern=r"^(bbox|segm)/(AP|AP50|AP75|APr|APc|APf)$")] = Field(
        description="number of the validation that decides, e.g. segm/APr"
    )


class Validation(Block):
    """Validation while training; the weights are the same with and without it, unless the best are kept."""

    names: ClassVar[tuple[str, ...]] = ("AP", "AP50", "AP75", "APr", "APc", "APf")

    every: Positive = Field(description="optimiser steps between two validations; there is one at the end, too")
    images: Positive | None = Field(None, description="look at so many images of the validation set, drawn by the seed")
    keep: Literal["last"] | Best = Field("last", description="weights that are the result: last, or {best: segm/APr}")


class Schedule(Steps):
    """Schedule of a detector: what :class:`Steps` has, and how the whole network is trained."""

    later = frozenset(
        {"decay", "final_lr", "power", "lr_mult", "decay_mult", "norm_decay_mult", "precision", "accumulate", "ema"}
        | {"activation_checkpointing", "channels_last", "validation"}
    )

    decay: Literal["steps", "cosine", "polynomial"] = Field(
        "steps", description="how lr falls after warm-up: by gamma at the drops, or steadily until the end"
    )
    final_lr: Fraction = Field(0.0, description="cosine, polynomial: last learning rate relative to lr")
    power: PositiveFloat = Field(1.0, description="polynomial: exponent; 1 falls in a straight line")
    lr_mult: dict[str, NonNegativeFloat] = Field(
        {},
        description="learning rate relative to lr by part, e.g. {backbone.layer1: 0.1}: parameters whose name "
        "contains the text, the longest text counts; such parts have no bias_lr_mult",
    )
    decay_mult: dict[str, NonNegativeFloat] = Field(
        {}, description="weight decay relative to weight_decay by part; such parts have no bias_decay_mult"
    )
    norm_decay_mult: NonNegativeFloat = Field(1.0, description="weight decay of normalisation layers relative to it")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="arithmetic of backbone, neck and heads; losses and statistics are always float32"
    )
    accumulate: Positive = Field(
        1,
        description="passes per optimiser step, each with its share of batch_size: less memory, other batch statistics",
    )
    ema: Average | None = Field(None, description="moving average of the weights; null: none, {}: with its defaults")
    activation_checkpointing: bool = Field(
        False, description="compute the backbone's activations again in the backward pass (with_cp): less memory"
    )
    channels_last: bool = Field(False, description="memory order of convolutions that is faster on recent GPUs")

    validation: Validation | None = Field(None, description="measure every so many steps; null: only in evaluate")

    @model_validator(mode="after")
    def _passes_share_the_batch(self) -> Schedule:
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate: {self.accumulate} passes cannot share a batch of {self.batch_size}")
        if self.decay == "steps" and (self.final_lr, self.power) != (0.0, 1.0):
            raise ValueError("final_lr and power belong to decay: cosine or polynomial")
        if self.decay == "cosine" and self.power != 1.0:
            raise ValueError("power belongs to decay: polynomial")
        if self.decay != "steps" and {"drops", "gamma"} & self.model_fields_set:
            raise ValueError(f"drops and gamma belong to decay: steps; with {self.decay} set them to null")
        return self

    @property
    def images_per_pass(self) -> int:
        """Images of one forward pass, over all processes."""
        return self.batch_size // self.accumulate


class IncrementalSchedule(Schedule):
    """Schedule of an LST phase: the released configuration, 12 epochs of the balanced list."""

    lr: PositiveFloat = Field(0.005, description="learning rate, used as it is for every batch size")
    bias_lr_mult: NonNegativeFloat = Field(2.0, description="learning rate of biases relative to lr")
    bias_decay_mult: NonNegativeFloat = Field(0.0, description="weight decay of biases relative to weight_decay")
    warmup_iterations: NonNegative = Field(0, description="linear warm-up steps")


class CalibrationSchedule(Steps):
    """Schedule of a calibrated head: SimCal's 12,000 steps of plain SGD, drops after 7,000 and 10,000.

    A step is one mini-batch of the calibration plan, whose size ``features`` fixes; a plan shorter than the training is
    used again from its start. An epoch is one pass over the plan.
    """

    default_length: ClassVar[dict[str, float]] = {"iterations": 12000}

    momentum: Fraction = Field(0.0, description="SGD momentum")
    weight_decay: NonNegativeFloat = Field(0.0, description="weight decay")
    warmup_iterations: NonNegative = Field(0, description="linear warm-up steps")
    drops: tuple[PositiveFloat, ...] = Field(
        (0.58333, 0.83333),
        max_length=1000,
        description="where lr is multiplied by gamma: fractions below 1, or iterations",
    )

    @model_validator(mode="after")
    def _plain_sgd(self) -> CalibrationSchedule:
        if self.optimizer != "sgd" or (self.bias_lr_mult, self.bias_decay_mult) != (1.0, 1.0):
            raise ValueError(
                "a calibrator is trained by sgd with one learning rate and weight decay for all parameters: "
                "leave out optimizer, bias_lr_mult and bias_decay_mult"
            )
        return self

    def of_plan(self, steps: int) -> CalibrationSchedule:
        """Return the schedule with its length in iterations.

        Args:
            steps: Steps of the calibration plan, which are one epoch.
        """
        if self.iterations is not None:
            return self
        assert self.epochs is not None
        return self.model_copy(update={"iterations": max(1, math.ceil(self.epochs * steps)), "epochs": None})

    def learning_rates(self) -> list[float]:
        """Learning rate of every step ``i``, counted from 0: ``lr * gamma ** |{d <= i}|`` times the warm-up."""
        assert self.iterations is not None, "epochs have a length with a plan only"
        drops, rates = self.drop_iterations(self.iterations), []
        for step in range(self.iterations):
            rise = min(1.0, (step + 1) / self.warmup_iterations) if self.warmup_iterations else 1.0
            warmup = 1.0 if rise == 1 else self.warmup_factor + (1 - self.warmup_factor) * rise
            rates.append(self.lr * self.gamma ** sum(step >= drop for drop in drops) * warmup)
        return rates
