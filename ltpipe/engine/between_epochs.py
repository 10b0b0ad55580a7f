"""Images that head parts run over between epochs, and the training hooks of those parts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from mmengine.config import ConfigDict

from ltpipe.data.holdout import load_holdout
from ltpipe.data.phase import PhaseView
from ltpipe.engine.config import with_our_steps
from ltpipe.engine.dataset import AnnotatedDataset
from ltpipe.engine.inputs import common_config
from ltpipe.engine.loading import loader_config
from ltpipe.registry import DATASETS, MODELS
from ltpipe.spec.base import Choice
from ltpipe.spec.catalogue import component
from ltpipe.spec.models import Experiment
from ltpipe.spec.paths import Paths


@DATASETS.register_module()
class ExtraImages(AnnotatedDataset):
    """A fixed list of images with the annotations of a phase and the training pipeline.

    Random transforms and RoI sampling depend on the seed and the position only: two passes over an unchanged detector
    give the same losses.

    Args:
        seed: Seed of the augmentation and of RoI sampling.
        only: File of the images of :mod:`ltpipe.data.holdout`; None: all images of the store.
        **kwargs: As :class:`ltpipe.engine.dataset.AnnotatedDataset`. Images without objects of the phase are left out.
    """

    def __init__(self, *, seed: int, only: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seed, self.only = seed, only

    @cached_property
    def view(self) -> PhaseView:
        """All images, held out or not, with the annotations of the phase."""
        return PhaseView(self.store, self.split, self.phase)

    @cached_property
    def rows(self) -> np.ndarray:
        """``(N,)`` int64 store rows of the images."""
        rows = self.view.images
        return rows if self.only is None else rows[np.isin(self.view.image_ids, load_holdout(self.only))]

    def __len__(self) -> int:
        return len(self.rows)

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """Return the image at a position of the list."""
        return {**self.annotated_info(int(self.rows[idx])), "sample_seed": int(self._seeds(idx)[2])}

    def _seeds(self, idx: int) -> np.ndarray:
        return np.random.SeedSequence([self.seed, idx]).generate_state(3)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        state = self._seeds(idx)
        np.random.seed(state[0])
        random.seed(int(state[1]))
        return super().__getitem__(idx)


def extra_loader(
    exp: Experiment, paths: Paths, fragment: ConfigDict, images: str, *, phase: int, num_classes: int, seed: int
) -> dict[str, Any]:
    """Return the config of a loader over held-out or validation images, one image at a time.

    Args:
        exp: The experiment.
        paths: Its artefacts.
        fragment: The detector file.
        images: ``holdout`` or ``val``.
        phase: Phase whose annotations are seen.
        num_classes: Classes of the detector.
        seed: Seed of the augmentation.
    """
    dataset = {
        "type": "ltpipe.ExtraImages",
        **common_config(exp, paths, "train" if images == "holdout" else "val", num_classes),
        "phase": phase,
        "seed": seed,
        "only": str(paths.holdout) if images == "holdout" else None,
        "pipeline": with_our_steps(fragment.train_pipeline),
    }
    return {
        "batch_size": 1,
        **loader_config(2),
        "sampler": {"type": "DefaultSampler", "shuffle": False},
        "dataset": dataset,
    }


def part_hooks(
    exp: Experiment,
    paths: Paths,
    fragment: ConfigDict,
    *,
    phase: int,
    num_classes: int,
    seed: int,
    iterations_per_epoch: int,
) -> list[dict[str, Any]]:
    """Return the configs of the hooks that the experiment's head parts ask for.

    Args:
        exp: The experiment.
        paths: Its artefacts.
        fragment: The detector file.
        phase: Phase that is trained.
        num_classes: Classes of the detector.
        seed: Seed of the training.
        iterations_per_epoch: Iterations that see each training image (or replayed pair) once.
    """

    def loader(images: str) -> dict[str, Any]:
        return extra_loader(exp, paths, fragment, images, phase=phase, num_classes=num_classes, seed=seed)

    parts: Sequence[Choice] = exp.model.parts
    found: list[dict[str, Any]] = []
    for part in parts:
        options = component("part", part)
        found += MODELS.get(options.pop("type")).hooks(options, loader, iterations_per_epoch)
    return found
