"""What the trainings of a detector share, of the base and of the phases: data, hooks, config, what is measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from ltpipe.checkpoint_ids import checkpoint_of
from ltpipe.config.experiment import Experiment
from ltpipe.data.split import Split
from ltpipe.engine.dataset_configs import known_classes, stream_config, training_order
from ltpipe.engine.detector_facts import facts_of
from ltpipe.engine.extra_images import part_hooks
from ltpipe.engine.inference import build_dataset
from ltpipe.engine.model_config import component_modules
from ltpipe.engine.training import train
from ltpipe.engine.training_config import training_config
from ltpipe.pipeline.paths import Paths
from ltpipe.stages.measuring import validation_hooks


class DetectorTraining:
    """The training of one phase, where 0 is the base.

    Args:
        exp: The experiment.
        paths: Its artefacts.
        split: Its split.
        phase: The phase.
        fragment: The detector file.
        model: Model config as the experiment describes it; what a stage adds to it afterwards is trained, but is no
            fact of the checkpoint.

    Attributes:
        name: The checkpoint that is trained.
        num_classes: Classes that the detector knows.
        classes: The same by name.
        epoch_length: Images that an epoch shows.
        meta: What is stored with the weights.
    """

    def __init__(
        self, exp: Experiment, paths: Paths, split: Split, phase: int, fragment: ConfigDict, model: ConfigDict
    ) -> None:
        assert phase == 0 or exp.lst is not None, "validate refuses phases without an lst block"
        self.exp, self.paths, self.phase, self.fragment, self.model = exp, paths, phase, fragment, model
        self.schedule = exp.lst.schedule if phase and exp.lst is not None else exp.base.schedule
        self.name, self.num_classes = checkpoint_of(phase), split.classes_known(phase)
        self.classes = known_classes(paths, split, self.num_classes)
        order = training_order(exp, paths, phase)
        self.seed: int = order["seed"]
        self.dataset = stream_config(exp, paths, fragment, phase=phase, num_classes=self.num_classes, **order)
        self.epoch_length: int = build_dataset(self.dataset).stream.epoch_length()
        facts = {"experiment": exp.name, "stage": self.name, "detector": facts_of(fragment, model)}
        self.meta = facts | self.classes.meta()

    def config(
        self, iterations: int, work_dir: Path, load_from: Path | None, hooks: Sequence[dict[str, Any]] = ()
    ) -> Config:
        """Return the complete config, with the hooks of a stage before those of the parts."""
        of_parts = part_hooks(
            self.exp,
            self.paths,
            self.fragment,
            phase=self.phase,
            num_classes=self.num_classes,
            seed=self.seed,
            iterations_per_epoch=math.ceil(self.epoch_length / self.schedule.images_per_pass),
        )
        return training_config(
            self.model,
            self.dataset,
            self.schedule,
            iterations=iterations,
            seed=self.seed,
            work_dir=work_dir,
            detector=self.fragment,
            imports=component_modules(self.exp, self.fragment),
            load_from=None if load_from is None else str(load_from),
            hooks=[*hooks, *of_parts],
        )

    def run(self, config: Config) -> dict[str, Any]:
        """Train and write the checkpoint; return facts for the record."""
        watching = validation_hooks(
            self.exp,
            self.paths,
            self.schedule,
            self.model,
            self.fragment,
            checkpoint=self.name,
            num_classes=self.num_classes,
            seed=self.seed,
        )
        made = self.paths.model(self.name), self.paths.config(self.name)
        return train(config, *made, meta=self.meta, watching=watching)
