"""Oracle checks of SimCal's data side: bi-level sampling and class counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.testing import assert_allclose, assert_array_equal

from ltpipe.data.calibration_plan import PlanInfo, class_probabilities, draw_plan
from ltpipe.data.class_images import ClassImages
from ltpipe.data.statistics import count_classes
from ltpipe.frequency import frequency_groups
from tests.published.sampling import legacy_bilevel

METHOD = "simcal"


def check_bilevel(path: Path) -> None:
    """The source's draws exactly; our own generator by class frequencies within five standard deviations."""
    with np.load(path, allow_pickle=False) as file:
        data = dict(file)
    for case in sorted({key.split("_")[0] for key in data}):
        check_bilevel_case({key.split("_", 1)[1]: data[key] for key in data if key.split("_")[0] == case})


def check_bilevel_case(data: dict[str, Any]) -> None:
    """One case."""
    classes = ClassImages(data["image_offsets"], data["image_index"], data["instance_count"])
    tau, nc, size = float(data["tau"]), int(data["nc"]), int(data["batch_size"])
    image, label = legacy_bilevel(
        classes,
        steps=int(data["episodes"]),
        batch_size=size,
        classes_per_step=nc,
        tau=tau,
        seed=int(data["seed"]),
    )
    assert_array_equal(image, data["indices"])
    assert_array_equal(data["class_ids"][label], data["class_per_slot"])

    probability = class_probabilities(classes.annotation_counts, tau)
    assert_allclose(probability, data["expected_class_prob"], rtol=1e-12, atol=0)
    info = PlanInfo(steps=int(data["stat_draws"]) // size, classes_per_step=nc, images_per_class=size // nc, tau=tau)
    plan = draw_plan(classes, info)
    draws = info.steps * nc
    sigma = np.sqrt(probability * (1 - probability) / draws)
    frequency = np.bincount(plan.class_label, minlength=classes.num_classes) / len(plan.class_label)
    assert (np.abs(frequency - probability) <= 5 * sigma).all()
    assert (np.abs(data["stat_class_freq"] - probability) <= 5 * sigma).all()
    assert not frequency[classes.annotation_counts == 0].any()
    for slot in range(0, len(plan.image_id), 97):
        assert plan.image_id[slot] in classes.images_of(plan.class_label[slot])


def check_metadata(path: Path) -> None:
    """Counts and frequency letters of annotations that have the stated number of images and instances per class."""
    with np.load(path, allow_pickle=False) as file:
        data = dict(file)
    for key in (key for key in data if key.endswith("_instances")):
        instances, images = data[key], data[key.replace("_instances", "_images")]
        category = np.repeat(np.arange(len(instances)), instances)
        place = np.arange(len(category)) - np.repeat(np.cumsum(instances) - instances, instances)
        counted = count_classes(place % np.maximum(images, 1)[category], category, len(instances))
        assert_array_equal(counted[0], images)
        assert_array_equal(counted[1], instances)
    assert frequency_groups(data["lvis05_train_images"]) == data["lvis05_frequency"].tolist()
    ids, rows = data["lvis05_index_class1230_img_id"], data["lvis05_index_class1230_row"]
    assert (np.diff(ids) > 0).all() and (np.diff(rows) > 0).all()
    assert len(ids) == data["lvis05_train_images"][1229]
    lists = path.parents[1] / "lst" / "lvis_v05_train_class_images.npz"
    if lists.exists():
        with np.load(lists, allow_pickle=False) as file:
            classes = ClassImages(file["cls_img_ptr"], file["cls_img_flat"], file["ann_num"])
            label = int(np.flatnonzero(file["sorted_cat_id"] == 1230)[0])
        assert_array_equal(classes.images_of(label), ids)
        assert_array_equal(np.searchsorted(np.unique(classes.image_id), ids), rows)


CHECKS = {"bilevel_sampler": check_bilevel, "metadata_counts": check_metadata}
