"""The typed experiment: what every stage of the pipeline is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import Field, PrivateAttr, model_validator

from ltpipe.checkpoint_ids import checkpoint_of, measurement_of, phase_of
from ltpipe.config.blocks import (
    Calibrator,
    Dataset,
    Detector,
    Evaluate,
    Expected,
    Features,
    Holdout,
    Name,
    Report,
    Source,
    Split,
)
from ltpipe.config.class_list import count_classes
from ltpipe.config.fields import Block, Choice, Seed
from ltpipe.config.schedules import CalibrationSchedule, Schedule
from ltpipe.config.training_blocks import Base, Distill, Lst, Model, Replay
from ltpipe.errors import UserError, unknown_name

__all__ = [
    "Base",
    "Block",
    "CalibrationSchedule",
    "Calibrator",
    "Choice",
    "Dataset",
    "Detector",
    "Distill",
    "Evaluate",
    "Expected",
    "Experiment",
    "Features",
    "Lst",
    "Model",
    "Replay",
    "Report",
    "Schedule",
    "Source",
    "Split",
]

RESERVED = {"datasets"}
Owners = dict[tuple[str, str | int | None], str]


class Experiment(Block):
    """One experiment file, merged with its parents and with all defaults filled in."""

    name: Name = Field(description="folder below results; the file's stem unless given")
    description: str = Field("", description="one line for the report")
    seed: Seed = Field(0, description="seed of initialisation and data order")
    seeds: tuple[Seed, ...] = Field(
        (),
        description="run everything once for each of these instead of `seed`, as NAME.seed0, NAME.seed1 ..; the report "
        "of NAME is over all of them",
    )
    plugins: tuple[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")], ...] = Field(
        (), description="Python modules with components of your own, found from the working directory; they are run"
    )
    dataset: Dataset
    detector: Detector
    model: Model = Field(Model(), description="choices shared by all training stages")
    split: Split | None = Field(None, description="base and phases; null: all classes at once")
    base: Base = Field(Base(), description="base training")
    lst: Lst | None = Field(None, description="incremental phases; null for one-shot experiments")
    holdout: Holdout = Field(Holdout(), description="training images kept out of training, if anything asks for them")
    features: Features | None = Field(Features(), description="calibration plan and frozen features")
    calibrate: dict[Name, Calibrator] = Field({}, description="calibrators by name, side by side")
    evaluate: Evaluate = Field(Evaluate(), description="measurement of the checkpoints")
    report: Report = Field(Report(), description="tables and plots")
    share: Name | None = Field(
        None, description="experiment that begins alike: stages up to the first that differs are taken from there"
    )

    _file: Path | None = PrivateAttr(default=None)
    _owners: Owners = PrivateAttr(default_factory=dict)
    _run_of: str | None = PrivateAttr(default=None)
    _beside: Callable[[Experiment, str], Experiment] | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        if self.name in RESERVED:
            raise ValueError(f"the name {self.name!r} is reserved")
        if self.seeds and (len(self.seeds) < 2 or len(set(self.seeds)) < len(self.seeds)):
            raise ValueError("seeds: at least two that differ, e.g. [0, 1, 2]; for a single one there is `seed`")
        if (self.split is None) != (self.lst is None):
            raise ValueError("split and lst belong together: give both for incremental training, neither for one-shot")
        clash = [name for name in self.calibrate if phase_of(name) is not None]
        if clash:
            raise ValueError(f"calibrator name {clash[0]!r} would clash with a checkpoint of the training")
        left = sorted(self.calibrate.keys() - set(self.calibrators_in_order()))
        if left:
            after = self.calibrate[left[0]].after
            raise ValueError(f"calibrate.{left[0]}.after: {after!r} names no calibrator, or they name each other")
        return self

    @property
    def file(self) -> Path | None:
        """The experiment file it was loaded from."""
        return self._file

    @property
    def owners(self) -> Owners:
        """Which experiment makes the results of a stage with its key, for stages that are shared."""
        return self._owners

    @property
    def run_of(self) -> str | None:
        """The experiment with several seeds that this is the run of one of; None for any other."""
        return self._run_of

    @property
    def reference(self) -> str:
        """What loads it again: its file, or that of its seed, which is called like it and is not there."""
        assert self.file is not None, "an experiment that was not loaded from a file cannot be named"
        return str(self.file if self.run_of is None else self.file.with_name(f"{self.file.stem}.seed{self.seed}.yaml"))

    def runs(self) -> list[Experiment]:
        """The runs for each of the seeds; none of an experiment without `seeds`."""
        stem = self.name if self.file is None else self.file.stem
        return [self.beside(f"{stem}.seed{seed}") for seed in self.seeds]

    def where(self, key: str) -> str:
        """``file: key`` for messages."""
        return f"{self.file or self.name}: {key}"

    def beside(self, name: str) -> Experiment:
        """Load an experiment that this one names: from the same folder, or from ``configs/experiments``.

        Raises:
            UserError: There is none, or something is wrong with it.
        """
        assert self._beside is not None, "only an experiment that was loaded from a file has others beside it"
        return self._beside(self, name)

    def parts(self) -> dict[str, Source]:
        """Annotations and images by part: ``train``, ``val``, and further test sets by name."""
        return {"train": self.dataset.train, "val": self.dataset.val, **self.evaluate.sets}

    def key_of(self, part: str) -> str:
        """The key of the experiment that describes a part."""
        return f"evaluate.sets.{part}" if part in self.evaluate.sets else f"dataset.{part}"

    @property
    def incremental(self) -> bool:
        """Whether there are phases after the base training."""
        return self.split is not None

    def num_phases(self, num_classes: int | None = None) -> int:
        """Number of incremental phases; 0 for one-shot experiments.

        Args:
            num_classes: Classes of the data set, if the caller knows; otherwise they are counted in the class list,
                the toy options, or the annotation file.

        Raises:
            UserError: The number of classes cannot be found, or the split does not fit it.
        """
        if self.split is None:
            return 0
        if self.split.boundaries is not None:
            return len(self.split.boundaries) - 1
        total = count_classes(self.dataset) if num_classes is None else num_classes
        assert self.split.base_classes is not None
        if self.split.base_classes >= total:
            raise UserError(
                "the base takes all classes, no phase is left",
                where=self.where("split.base_classes"),
                got=self.split.base_classes,
                allowed=f"1 to {total - 1} of the {total} classes of {self.dataset.name}",
            )
        return len(self.split.phase_boundaries(total)) - 1

    def trainings(self) -> list[tuple[str, int | None]]:
        """Stages that train a detector, with their keys."""
        return [("base", None), *(("lst", phase) for phase in range(1, self.num_phases() + 1))]

    def checkpoints(self) -> list[str]:
        """All checkpoint ids in the order they are made: ``base``, ``phase1`` .. and the calibrators' names."""
        trained = map(checkpoint_of, range(self.num_phases() + 1))
        return [*trained, *self.calibrate]

    def final_checkpoint(self) -> str:
        """The checkpoint that the calibrators start from: the last phase, or the base without phases."""
        return checkpoint_of(self.num_phases())

    def calibrators_in_order(self) -> list[str]:
        """Names of the calibrators, those that others start from before these."""
        found: list[str] = []
        rest = list(self.calibrate)
        while ready := [name for name in rest if self.calibrate[name].after in (None, *found)]:
            found += ready
            rest = [name for name in rest if name not in ready]
        return found

    def calibrated_from(self, name: str) -> str:
        """The checkpoint that a calibrator starts from."""
        return self.calibrate[name].after or self.final_checkpoint()

    def evaluated_checkpoints(self) -> list[str]:
        """The checkpoint ids that ``evaluate.checkpoints`` asks for.

        Raises:
            UserError: An id is asked for that this experiment does not make.
        """
        made = self.checkpoints()
        if self.evaluate.checkpoints == "all":
            return made
        for wanted in self.evaluate.checkpoints:
            if wanted not in made:
                raise unknown_name("checkpoint", wanted, made, where=self.where("evaluate.checkpoints"))
        return [name for name in made if name in self.evaluate.checkpoints]

    def measurements(self) -> list[str]:
        """The evaluated checkpoints on the validation images, then on each further test set, as ``base@minival``."""
        return [
            measurement_of(one, part) for part in ("val", *self.evaluate.sets) for one in self.evaluated_checkpoints()
        ]
