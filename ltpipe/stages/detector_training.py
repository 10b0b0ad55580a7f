"""What the trainings of a detector share, of the base and of the phases: data, hooks, config, what is measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config, ConfigDict

from ltpipe.checkpoint_ids import checkpoint_of
from ltpipe.config.experiment import Experiment
from ltpipe.data.split import Split
from ltpipe.data.store import AnnotationStore
from ltpipe.engine.dataset_configs import known_classes, stream_config, test_config, training_order
from ltpipe.engine.detector_facts import facts_of
from ltpipe.engine.extra_images import part_hooks
from ltpipe.engine.geometry import last_pixel
from ltpipe.engine.inference import build_dataset
from ltpipe.engine.model_config import component_modules
from ltpipe.engine.training import train
from ltpipe.engine.training_config import training_config
from ltpipe.engine.validation import ValidationHook
from ltpipe.metrics.evaluation import evaluate
from ltpipe.metrics.predictions import Predictions
from ltpipe.metrics.predictions_writer import merge_predictions
from ltpipe.metrics.table import summarize
from ltpipe.metrics.tensors import Tensors
from ltpipe.pipeline.paths import Paths
from ltpipe.stages.evaluate import class_table, write_predictions


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
        self.exp, self.paths, self.split, self.phase = exp, paths, split, phase
        self.fragment, self.model = fragment, model
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
        made = self.paths.model(self.name), self.paths.config(self.name)
        return train(config, *made, meta=self.meta, watching=self.validation_hooks())

    def validation_hooks(self) -> list[ValidationHook]:
        """Return the hook that a schedule with ``validation`` asks for; it measures some images, drawn by the seed."""
        spec = self.schedule.validation
        if spec is None:
            return []
        split, store = self.split, AnnotationStore.open(self.paths.store("val"))
        dataset: Any = build_dataset(test_config(self.exp, self.paths, self.fragment.test_pipeline, self.num_classes))
        rows = np.arange(len(dataset))
        if spec.images is not None and spec.images < len(rows):
            rows = np.sort(np.random.default_rng(self.seed).choice(rows, spec.images, replace=False))
        seen = store.of_images(rows)
        kinds = [kind for kind in self.exp.evaluate.iou_types if kind != "boundary"]
        kinds = [kind for kind in kinds if kind == "bbox" or bool(seen.ann_has_mask.any())]
        masks, longer, classes = "segm" in kinds, last_pixel(self.model), class_table(self.paths, split)

        def write(file: Path, images: Iterable[dict[str, Any]]) -> None:
            write_predictions([file], ([image] for image in images), split=split, masks=masks, longer=longer)

        def measure(files: Sequence[Path]) -> dict[str, float | None]:
            merged = files[0].with_name("all.arrow")
            merge_predictions(files, merged)
            found, known = Predictions.open(merged), split.order[: self.num_classes]
            cap = self.exp.evaluate.max_detections if seen.federated else None
            tensors: dict[str, Tensors] = {
                kind: evaluate(seen, found, kind, max_detections=cap, category_ids=known) for kind in kinds
            }
            numbers = {
                kind: summarize(one, classes, bins=self.exp.evaluate.bins, phase=self.phase)
                for kind, one in tensors.items()
            }
            return {f"{kind}/{name}": numbers[kind][name] for kind in kinds for name in spec.names}

        best = spec.keep.best if spec.keep != "last" else None
        return [ValidationHook(dataset, rows, spec.every * self.schedule.accumulate, write, measure, best)]
