"""``ltpipe recipes``: the experiments that state published numbers, and what they take.

Estimates are products of the schedule, the size of the data set and throughputs published for the same detectors;
``configs/recipes.yaml`` holds these figures with their source.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltpipe.config.choices import needs_features
from ltpipe.config.class_list import read_class_list
from ltpipe.config.detector import resolve_detector
from ltpipe.config.experiment import Experiment
from ltpipe.config.loading import list_experiments, load_experiment
from ltpipe.errors import UserError
from ltpipe.yaml_files import load_yaml

FIGURES = Path("configs/recipes.yaml")
# Bytes of a row of stored features: 256 x 7 x 7 float16, or one hidden layer of 1024.
ROW_BYTES = {"roi": 256 * 49 * 2, "fc1": 2048, "last": 2048}


@dataclass(frozen=True)
class Recipe:
    """An experiment with published numbers.

    Attributes:
        name: Its name.
        description: Its description.
        published: Metrics, e.g. ``segm AP 26.4``, one per checkpoint.
        hours: Training hours on the listed hardware; None if the data set or detector is not listed.
        gpu_gb: Memory per GPU, likewise.
        disk_gb: Checkpoints and stored features, without the images; likewise.
    """

    name: str
    description: str
    published: tuple[str, ...]
    hours: float | None
    gpu_gb: float | None
    disk_gb: float | None


def recipes(names: Sequence[str] | None = None, figures: Mapping[str, Any] | None = None) -> list[Recipe]:
    """Return the experiments that state published numbers.

    Args:
        names: Experiments to look at; all by default. What cannot be read is told on the error stream and left out.
        figures: Content of ``configs/recipes.yaml``.
    """
    known = _figures() if figures is None else figures
    found = []
    for name in list_experiments() if names is None else names:
        try:
            exp = load_experiment(name)
        except UserError as error:
            # Somebody's unfinished experiment is no reason to show no recipe.
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        if exp.report.expected:
            found.append(_recipe(exp, known))
    return found


def _figures() -> Any:
    return load_yaml(FIGURES, "the table of figures")[1]


def _recipe(exp: Experiment, figures: Mapping[str, Any]) -> Recipe:
    published = tuple(f"{e.checkpoint} {e.iou_type} {e.metric} {e.value:g}" for e in exp.report.expected)
    heads = "mask" if "segm" in exp.evaluate.iou_types else "faster"
    detector = figures["detectors"].get(f"{heads} {resolve_detector(exp.detector.config).backbone}")
    data = figures["datasets"].get(exp.dataset.name)
    if detector is None or data is None:
        return Recipe(exp.name, exp.description, published, None, None, None)
    hours = trained_images(exp, data) / detector["images_per_second"] / 3600
    disk = detector["checkpoint_gb"] * len(exp.checkpoints())
    if needs_features(exp) and exp.features is not None and exp.features.storage == "cached":
        plan = exp.features
        slots = plan.steps * plan.classes_per_step * plan.images_per_class
        disk += slots * figures["rois_per_slot"] * ROW_BYTES[plan.level] / 1e9
    return Recipe(exp.name, exp.description, published, hours, detector["gpu_gb"], disk)


def trained_images(exp: Experiment, data: Mapping[str, Any]) -> int:
    """Return the images that base training and phases see, repeats counted.

    Args:
        exp: The experiment.
        data: ``images`` and ``repeated`` of its data set.
    """
    repeats = exp.base.sampler.type == "repeat_factor"
    schedule = exp.base.schedule
    total = 0
    if exp.base.checkpoint is None:
        total = schedule.total_iterations(data["repeated" if repeats else "images"]) * schedule.batch_size
    for phase in range(1, exp.num_phases() + 1):
        assert exp.lst is not None
        length = phase_length(exp, phase)
        total += exp.lst.phase_iterations(phase, length) * exp.lst.schedule.batch_size
    return total


def phase_length(exp: Experiment, phase: int) -> int:
    """Return the pairs in one epoch of a phase's balanced list, from the counts in the class list (LST, section 4).

    New classes contribute all their images, old ones as many as hold the new classes' mean number of instances.
    """
    assert exp.split is not None and exp.dataset.class_list is not None
    classes = sorted(read_class_list(exp.dataset.class_list), key=lambda c: -c["instance_count"])
    boundaries = exp.split.phase_boundaries(len(classes))
    old, new = classes[: boundaries[phase - 1]], classes[boundaries[phase - 1] : boundaries[phase]]
    mean = sum(c["instance_count"] for c in new) / len(new)
    kept: int = sum(max(1, round(mean * c["image_count"] / c["instance_count"])) for c in old if c["image_count"])
    return kept + sum(int(c["image_count"]) for c in new)


def print_recipes() -> None:
    """Print all recipes as a table."""
    figures = _figures()
    found = recipes(figures=figures)
    width = max(len(recipe.name) for recipe in found)
    print(f"estimates for {figures['hardware']}; disk without the images; see {FIGURES}\n")
    print(f"{'experiment':{width}s}  {'hours':>6s}  {'GPU GB':>6s}  {'disk GB':>7s}  published")
    for recipe in found:
        numbers = [recipe.hours, recipe.gpu_gb, recipe.disk_gb]
        hours, gpu, disk = ("?" if value is None else f"{value:.1f}" for value in numbers)
        shown = [text for text in recipe.published if text.split()[2] in ("AP", "bAP")] or list(recipe.published[:1])
        print(f"{recipe.name:{width}s}  {hours:>6s}  {gpu:>6s}  {disk:>7s}  {', '.join(shown)}")
        print(f"{'':{width}s}  {recipe.description}")
