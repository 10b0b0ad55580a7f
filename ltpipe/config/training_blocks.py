"""Blocks of the training stages: the model, base training, incremental phases."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from ltpipe.config.fields import Block, Choice, Fraction, InMemory, Iterations, NonNegativeFloat, Seed
from ltpipe.config.schedules import IncrementalSchedule, Schedule


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
        None, description="finished detector, used instead of a training: a file of `ltpipe convert` or of ltpipe"
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
    seed: Seed = Field(0, description="seed of epoch 0; epoch e uses seed + e (0 gives the lists of LST_LVIS)")
    layout: Literal["batch", "legacy"] = Field(
        "batch",
        description="batch: every optimiser step takes the next pairs of the epoch; legacy: the stream is cut into "
        "`rows` contiguous rows and a step takes the next pairs of each, the order of LST_LVIS",
    )
    rows: InMemory = Field(8, description="rows of the legacy layout: the GPUs of LST_LVIS (8)")


class PairedRois(Block):
    """RoI sampling restricted to the class an image is paired with."""

    num: InMemory = Field(200, description="RoIs per image (LST_LVIS, step configs: 200)")
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
    iterations_per_phase: tuple[Iterations, ...] | None = Field(
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
