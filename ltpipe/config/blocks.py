"""Blocks of the stages around the training: data set, detector, split, features, calibration, evaluation, report."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from ltpipe.config.checkpoint_addresses import downloaded, published_checkpoint
from ltpipe.config.fields import Block, Choice, Fraction, InMemory, NonNegativeFloat, Number, Positive, Real, Seed
from ltpipe.config.schedules import CalibrationSchedule
from ltpipe.frequency import BIN_EDGES, FREQUENCY_LIMITS

IouType = Literal["bbox", "segm", "boundary"]


# The workflow has a rule for each.
MOST_PHASES = 1000


def _not_periodic(name: str) -> str:
    if re.search(r"(.+?)\1{19}$", name):
        raise ValueError("the name ends with twenty equal parts")
    return name


# Names become names of folders and wildcards of Snakemake, which refuses texts that end with twenty equal parts.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100), AfterValidator(_not_periodic)]


class Source(Block):
    """Annotations and images of one part of a data set; relative paths start at the working directory."""

    annotations: Path = Field(description="COCO- or LVIS-format JSON")
    images: Path = Field(description="folder of the image files")


class Dataset(Block):
    """A data set, indexed once and shared by all experiments that name it."""

    name: Name = Field(description="folder below results/datasets")
    format: Literal["lvis", "coco"] = Field("lvis", description="annotation format")
    faults: Literal["refuse", "drop"] = Field(
        "refuse", description="records that cannot be used: refuse the file, or leave them out and count them"
    )
    train: Source = Field(description="training part")
    val: Source = Field(description="validation part")
    class_list: Path | None = Field(
        None, description="JSON list of {id, name, image_count, instance_count}; enough to validate without the data"
    )
    frequency_limits: tuple[Positive, Positive] | None = Field(
        None,
        description="most training images of a rare and of a common class; null: the groups that the annotations name, "
        f"else {FREQUENCY_LIMITS[0]} and {FREQUENCY_LIMITS[1]} as in LVIS",
    )
    generate: dict[str, Any] | None = Field(None, description="options of `ltpipe toy-data`, which then draws the data")

    @model_validator(mode="after")
    def _drawn_where_expected(self) -> Dataset:
        if self.generate is None:
            return self
        for part, source in (("train", self.train), ("val", self.val)):
            if source != Source(annotations=self.folder / f"{part}.json", images=self.folder / part):
                raise ValueError(f"toy data are drawn into data/{self.name}: {part}.json beside the folder {part}")
        return self

    @field_validator("frequency_limits")
    @classmethod
    def _rare_below_common(cls, limits: tuple[int, int] | None) -> tuple[int, int] | None:
        if limits is not None and limits[0] >= limits[1]:
            raise ValueError("frequency_limits must ascend, e.g. [10, 100]")
        return limits

    @property
    def folder(self) -> Path:
        """Where toy data are drawn."""
        return Path("data") / self.name


class Detector(Block):
    """The detector: a plain mmengine config fragment without data sets and schedule."""

    config: str = Field(
        description="mmengine config with model, train_pipeline and test_pipeline: a file, or mmdet::FOLDER/FILE.py"
    )
    load_from: Path | Annotated[str, Field(pattern=r"^(mmdet|https?://\S+)$")] | None = Field(
        None,
        description="checkpoint to start base training from: a file, an address that is downloaded once into "
        "checkpoints/, or mmdet, the one that mmdet's model index publishes for config",
    )
    geometry: Literal["modern", "mmdet1", "benchmark"] = Field(
        "modern",
        description="arithmetic of boxes: modern, or that of converted weights, mmdetection 0.6 and 1.x (SimCal, BAGS) "
        "or maskrcnn-benchmark (LST): anchors, box sizes with +1, RoIAlign without the half-pixel shift",
    )

    @property
    def address(self) -> str | None:
        """Where the start checkpoint is downloaded from; None for files.

        Raises:
            UserError: mmdet publishes none for the config.
        """
        if not isinstance(self.load_from, str):
            return None
        return published_checkpoint(self.config) if self.load_from == "mmdet" else self.load_from

    @property
    def start(self) -> Path | None:
        """The file of the start checkpoint, downloaded or not; None: there is none."""
        address = self.address
        return downloaded(address) if address is not None else None if self.load_from is None else Path(self.load_from)


class Split(Block):
    """Base classes and incremental phases, in the order of falling instance counts."""

    base_classes: Positive | None = Field(None, description="classes of the base, with step")
    step: Positive | None = Field(None, description="classes per phase; the last phase takes the remainder")
    boundaries: tuple[Positive, ...] | None = Field(
        None,
        max_length=MOST_PHASES,
        description="classes known after base, phase 1, ...; instead of base_classes and step",
    )
    ignore_future_gt: bool = Field(
        False,
        description="anchors and RoIs on objects of classes that come later are left out of training instead of being "
        "background (LST_LVIS: background)",
    )

    @model_validator(mode="after")
    def _one_rule(self) -> Split:
        stepped = self.base_classes is not None and self.step is not None
        if self.boundaries is None and not stepped:
            raise ValueError("give base_classes and step, or boundaries")
        if self.boundaries is not None:
            if self.step is not None or self.base_classes is not None:
                raise ValueError("give base_classes and step, or boundaries, not both")
            if len(self.boundaries) < 2 or list(self.boundaries) != sorted(set(self.boundaries)):
                raise ValueError("boundaries must be at least two ascending class counts, so that no phase is empty")
        return self

    def phase_boundaries(self, num_classes: int) -> list[int]:
        """Classes known after the base and after each phase, ``[K_0, ..., K_T]``.

        Args:
            num_classes: Classes of the data set.
        """
        if self.boundaries is not None:
            return list(self.boundaries)
        assert self.base_classes is not None and self.step is not None
        return [*range(self.base_classes, num_classes, self.step), num_classes]


class Features(Block):
    """The calibration plan and the frozen RoI features it asks for, shared by all calibrators."""

    storage: Literal["cached", "none"] = Field("cached", description="none: computed anew in every calibration step")
    dtype: Literal["float16", "float32"] = Field("float16", description="of the stored features")
    level: Literal["roi", "fc1", "last"] = Field(
        "roi",
        description="what is stored: pooled RoI features, or the first or last hidden layer of the box head, which are "
        "some 12 times smaller and suit calibrators that train only the layers above",
    )
    draw: Literal["classes", "images"] = Field(
        "classes",
        description="classes: an image is drawn for a class and gives objects of that class (SimCal); images: each "
        "image once per pass, with the objects of all classes, as in a detector's training (BAGS)",
    )
    classes_per_step: InMemory = Field(16, description="classes drawn per mini-batch")
    images_per_class: InMemory = Field(
        1, description="images drawn per drawn class; with draw: images a mini-batch has classes_per_step times as many"
    )
    steps: Annotated[int, Field(gt=0), Number(10**7, "the plan of all steps is in memory")] = Field(
        12000, description="mini-batches in the plan"
    )
    rois: InMemory = Field(512, description="RoIs sampled per image")
    positive_fraction: Fraction = Field(0.25, description="largest share of positives per image")
    neg_iou_min: Fraction = Field(0.1, description="smallest overlap of a negative with its best ground truth")
    bg_ratio: NonNegativeFloat | None = Field(
        1.0, description="background rows per foreground row; null: all that were sampled"
    )
    cap_before_filter: bool = Field(True, description="cap positives before those of other classes are discarded")
    tau: NonNegativeFloat = Field(0.0, description="exponent of min(count, 100) in the class draw")
    seed: Seed = Field(0, description="seed of the plan")


class Choose(Block):
    """How options of a calibrator are chosen: every value is scored from one run of the detector, the best is kept."""

    on: Literal["holdout", "val"] = Field(
        "holdout",
        description="images that decide: a part of the training images that nothing is trained on (see `holdout`), or "
        "the validation images, on which the numbers are then too good",
    )
    metric: Literal["AP", "AP50", "AP75", "APr", "APc", "APf", "bAP"] = Field(
        "AP", description="number that decides; of equal ones the first"
    )
    iou_type: Literal["bbox", "segm"] = Field(
        "bbox", description="what it is measured on; masks are made anew for every value, boxes are not"
    )
    values: dict[str, tuple[Real, ...]] = Field(
        {}, description="values to try by option, all combinations of several; none: those of the method"
    )


class Holdout(Block):
    """Training images that are kept out of training, for methods and choices that ask for some."""

    images_per_class: Positive = Field(
        1, description="images of every class, which keeps at least as many for training; rarest class first"
    )
    largest_share: Annotated[float, Field(gt=0, lt=1)] = Field(0.05, description="most of all images")
    seed: Seed = Field(0, description="seed of the choice")


class Calibrator(Choice):
    """A calibrator chosen by name, with its options and, if it is trained, its schedule."""

    schedule: CalibrationSchedule = Field(CalibrationSchedule(), description="length and optimiser")
    checkpoint: Path | None = Field(
        None, description="trained calibrator, used instead of a training: a file of `ltpipe convert`"
    )
    seed: Seed | None = Field(None, description="seed of random layers; null: the experiment's")
    choose: Choose | None = Field(None, description="how options are chosen; null: they are those given")
    after: Name | None = Field(
        None,
        description="calibrator whose checkpoint it starts from; null: the trained detector",
    )


class Evaluate(Block):
    """How every checkpoint is measured."""

    iou_types: tuple[IouType, ...] = Field(
        ("bbox", "segm"),
        min_length=1,
        description="what to match: boxes, masks, masks and their contours (Boundary AP, arXiv 2103.16562, band 0.02)",
    )
    max_detections: InMemory = Field(300, description="detections kept per image")
    score_threshold: Fraction = Field(1e-4, description="detections with this score or less are dropped")
    nms: Fraction = Field(0.5, description="overlap above which the weaker detection of a class is dropped")
    bins: tuple[Positive, ...] = Field(
        BIN_EDGES, max_length=100, description="limits of the training instance count bins"
    )
    checkpoints: Literal["all"] | tuple[str, ...] = Field("all", description="all, or base, phase1, calibrator names")
    modes: tuple[Literal["base", "cal", "dual", "avg"], ...] = Field(
        (), description="checkpoints with two classifiers: also these ways to combine their scores, from the same run"
    )
    thresholds: tuple[NonNegativeFloat, ...] = Field(
        (), max_length=1000, description="and dual at these instance counts, below which the calibrated score is taken"
    )
    detections_per_class: Positive | None = Field(
        None,
        description="for AP_fixed and AP_pool: the best so many detections of each class in the whole set, without a "
        "limit per image; the detector runs a second time. Default: they are measured on the stored detections",
    )
    sets: dict[Name, Source] = Field(
        {},
        description="further test sets by name, in the format and with the classes of the data set: checkpoints are "
        "measured on them as well, and nothing is trained again",
    )
    oracle_labels: bool = Field(
        False, description="upper bound: proposals get the labels of the objects they overlap, not the predicted ones"
    )

    @field_validator("bins")
    @classmethod
    def _ascending(cls, bins: tuple[int, ...]) -> tuple[int, ...]:
        if not bins or list(bins) != sorted(set(bins)):
            raise ValueError("bins must ascend: at least one limit, e.g. [10, 100, 1000]; COCO-LT has [20, 400, 8000]")
        return bins

    @field_validator("sets")
    @classmethod
    def _not_of_the_data_set(cls, sets: dict[str, Source]) -> dict[str, Source]:
        if sets.keys() & {"train", "val"}:
            raise ValueError("train and val are the parts of the data set: give the other test set another name")
        return sets

    @model_validator(mode="after")
    def _labels_or_scores(self) -> Evaluate:
        if self.oracle_labels and (self.modes or self.thresholds):
            raise ValueError("with oracle_labels there are no scores to combine: leave out modes and thresholds")
        if self.detections_per_class is not None and (self.oracle_labels or self.modes or self.thresholds):
            raise ValueError("detections_per_class are those of one set of scores: leave out modes and thresholds")
        return self


class Expected(Block):
    """A published number, shown beside ours."""

    checkpoint: str = Field(description="checkpoint it is compared with")
    iou_type: IouType = Field(description="bbox, segm or boundary")
    metric: str = Field(description="name in metrics.json, e.g. APr")
    value: Real = Field(description="published value")
    tolerance: NonNegativeFloat = Field(description="accepted difference")
    source: str = Field(description="where it was published")


class Report(Block):
    """Tables and plots."""

    compare: tuple[Name, ...] = Field((), description="other experiments to show beside this one")
    expected: tuple[Expected, ...] = Field((), description="published numbers")
