"""Images beside those of training: held-out ones, those that head parts run over between epochs, and their hooks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from mmengine.config import ConfigDict

from ltpipe.config.catalogue import component
from ltpipe.config.choices import holds_out
from ltpipe.config.experiment import Experiment
from ltpipe.config.fields import Choice
from ltpipe.data.holdout import load_holdout
from ltpipe.data.phase import PhaseView
from ltpipe.engine.dataset import AnnotatedDataset, StoreDataset
from ltpipe.engine.dataset_configs import common_config
from ltpipe.engine.loaders import loader_config
from ltpipe.engine.model_config import with_our_steps
from ltpipe.pipeline.paths import Paths
from ltpipe.registry import DATASETS, MODELS


@DATASETS.register_module()
class HeldOutImages(StoreDataset):
    """The images of a store that are held out of training, for testing.

    Args:
        only: File of the images of :mod:`ltpipe.data.holdout`.
        **kwargs: As :class:`StoreDataset`.
    """

    def __init__(self, *, only: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.only = only

    @cached_property
    def rows(self) -> np.ndarray:
        """``(N,)`` int64 store rows of the images."""
        return np.flatnonzero(np.isin(self.store.image_ids, load_holdout(self.only)))

    def __len__(self) -> int:
        return len(self.rows)

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """Return the image at a position of the list."""
        return super().get_data_info(int(self.rows[idx]))


def held_out_config(
    exp: Experiment, paths: Paths, pipeline: list[dict[str, object]], num_classes: int
) -> dict[str, object]:
    """Return the config of the held-out training images, as at test time."""
    return {
        "type": "ltpipe.HeldOutImages",
        **common_config(exp, paths, "train", num_classes),
        "only": str(paths.holdout),
        "pipeline": with_our_steps(pipeline),
    }


@DATASETS.register_module()
class ExtraImages(AnnotatedDataset):
    """A fixed list of images with the annotations of a phase and the training pipeline.

    Random transforms and RoI sampling depend on the seed and the position only: two passes over an unchanged detector
    give the same losses.

    Args:
        seed: Seed of the augmentation and of RoI sampling.
        only: File of the images of :mod:`ltpipe.data.holdout`; None: all images of the store.
        exclude: The same file, to leave these images out.
        per_class: Images to take of every class, at random; None: all.
        **kwargs: As :class:`ltpipe.engine.dataset.AnnotatedDataset`. Images without objects of the phase are left out.
    """

    def __init__(
        self,
        *,
        seed: int,
        only: str | None = None,
        exclude: str | None = None,
        per_class: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.seed, self.only, self.exclude, self.per_class = seed, only, exclude, per_class

    @cached_property
    def view(self) -> PhaseView:
        """Images with the annotations of the phase, by default held out or not."""
        exclude = None if self.exclude is None else load_holdout(self.exclude)
        return PhaseView(self.store, self.split, self.phase, exclude=exclude)

    @cached_property
    def rows(self) -> np.ndarray:
        """``(N,)`` int64 store rows of the images."""
        rows = self.view.images
        if self.per_class is not None:
            random = np.random.default_rng(self.seed)
            drawn = [random.permutation(self.view.pairs(c))[: self.per_class] for c in range(self.view.num_classes)]
            listed, first = np.unique(np.concatenate(drawn), return_index=True)
            return listed[np.argsort(first)]
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
    exp: Experiment,
    paths: Paths,
    fragment: ConfigDict,
    images: str,
    *,
    phase: int,
    num_classes: int,
    seed: int,
    per_class: int | None = None,
) -> dict[str, Any]:
    """Return the config of a loader over held-out, validation or training images, one image at a time.

    Args:
        exp: The experiment.
        paths: Its artefacts.
        fragment: The detector file.
        images: ``holdout``, ``val`` or ``train``.
        phase: Phase whose annotations are seen.
        num_classes: Classes of the detector.
        seed: Seed of the augmentation.
        per_class: Images to take of every class; None: all.
    """
    held_out = str(paths.holdout) if holds_out(exp) else None
    dataset = {
        "type": "ltpipe.ExtraImages",
        **common_config(exp, paths, "val" if images == "val" else "train", num_classes),
        "phase": phase,
        "seed": seed,
        "only": str(paths.holdout) if images == "holdout" else None,
        "exclude": held_out if images == "train" else None,
        "per_class": per_class,
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

    def loader(images: str, per_class: int | None = None) -> dict[str, Any]:
        facts = {"phase": phase, "num_classes": num_classes, "seed": seed}
        return extra_loader(exp, paths, fragment, images, **facts, per_class=per_class)

    parts: Sequence[Choice] = exp.model.parts
    found: list[dict[str, Any]] = []
    for part in parts:
        options = component("part", part)
        found += MODELS.get(options.pop("type")).hooks(options, loader, iterations_per_epoch)
    return found
