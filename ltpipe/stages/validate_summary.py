"""What ``validate`` says of an experiment: the numbers that a person checks in ten seconds before a job is queued."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from ltpipe.config.class_list import count_classes, read_class_list
from ltpipe.config.experiment import Experiment
from ltpipe.config.schedules import Schedule
from ltpipe.data.tables import read_csv
from ltpipe.frequency import FREQUENCY_LIMITS, FREQUENCY_NAMES, frequency_groups
from ltpipe.pipeline.paths import Paths

# The detectors of mmdetection and detectron2 are published with 0.02 for 16 images per step, SGD.
USUAL_LR, USUAL_BATCH = 0.02, 16


def summary(exp: Experiment, paths: Paths, images: Mapping[str, int]) -> Iterator[str]:
    """Yield lines about data, trainings and what is compared.

    Args:
        exp: The experiment.
        paths: Its artefacts.
        images: Images by part, of the annotation files that are there.
    """
    counts = ", ".join(f"{number} images in {part}" for part, number in images.items()) or "annotations not there yet"
    yield f"data: {exp.dataset.name}, {counts}, {count_classes(exp.dataset)} classes ({_tail(exp, paths)})"
    if exp.base.checkpoint is not None:
        yield f"base: taken over from {exp.base.checkpoint}"
    else:
        # With phases the base sees the images of its classes only, and samplers repeat some: split counts them.
        whole = images.get("train") if exp.split is None and exp.base.sampler.type == "random" else None
        yield f"base: {_schedule(exp.base.schedule, whole)}; sampler {exp.base.sampler.type}"
    if exp.lst is not None:
        yield f"phases: {exp.num_phases()}, each {_schedule(exp.lst.schedule, None)}"
    measured = ", ".join(exp.evaluated_checkpoints())
    beside = f"; beside {', '.join(exp.report.compare)}" if exp.report.compare else ""
    kept = f"at most {exp.evaluate.max_detections} detections per image"
    yield f"compared: {measured} on {' and '.join(exp.evaluate.iou_types)}, {kept}{beside}"


def _tail(exp: Experiment, paths: Paths) -> str:
    """Classes by frequency group, where somebody has counted them."""
    if paths.statistics("train").is_file():
        groups = [str(one) for one in read_csv(paths.statistics("train"))["frequency"]]
    elif exp.dataset.class_list is not None:
        counts = [one["image_count"] for one in read_class_list(exp.dataset.class_list)]
        groups = [str(one) for one in frequency_groups(counts, exp.dataset.frequency_limits or FREQUENCY_LIMITS)]
    else:
        return "`ltpipe index` counts the tail"
    found = Counter(groups)
    return ", ".join(f"{found[letter]} {name.removesuffix(' classes')}" for letter, name in FREQUENCY_NAMES.items())


def _schedule(schedule: Schedule, images: int | None) -> str:
    """Length, batch and learning rate of a training."""
    if schedule.iterations is not None:
        epochs = f" ({schedule.iterations * schedule.batch_size / images:.1f} epochs)" if images else ""
        length = f"{schedule.iterations} iterations{epochs}"
    else:
        steps = f" ({schedule.total_iterations(images)} iterations)" if images else ""
        length = f"{schedule.epochs:g} epochs{steps}"
    usual = f" (usual for this batch: {USUAL_LR * schedule.batch_size / USUAL_BATCH:g})"
    rate = f"{schedule.optimizer} with lr {schedule.lr:g}{usual if schedule.optimizer == 'sgd' else ''}"
    return f"{length} of {schedule.batch_size} images, {rate}"
