"""Two passes find the best detections of every class in a set, without a limit per image."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from ltpipe.config.experiment import Experiment
from ltpipe.engine import per_class
from ltpipe.engine.dataset_configs import test_config as config_of_validation
from ltpipe.engine.inference import build_dataset, detections, rescored_detections
from ltpipe.engine.model_config import read_detector
from ltpipe.engine.per_class import PerClassLimit, per_class_detections
from ltpipe.errors import UserError
from ltpipe.pipeline.paths import Paths
from tests.engine.test_predict import CLASSES, detector_config, lively

K = 4


@pytest.fixture(scope="module")
def dataset(exp: Experiment, paths: Paths) -> Any:
    return build_dataset(config_of_validation(exp, paths, read_detector(exp.detector.config).test_pipeline, CLASSES))


@pytest.fixture(scope="module")
def model(exp: Experiment, paths: Paths) -> nn.Module:
    config = detector_config(exp, paths)
    config.test_cfg.rcnn.update(score_thr=0.05, max_per_img=5)
    return lively(config)


@pytest.fixture(scope="module")
def everything(model: Any, dataset: Any) -> list[dict[str, Any]]:
    """All detections, which no limit cuts."""
    free = copy.deepcopy(model)
    free.roi_head.test_cfg.update(score_thr=1e-7, max_per_img=-1)
    return list(detections(free, dataset))


def best(images: list[dict[str, Any]], count: int) -> dict[int, list[tuple[float, int]]]:
    """Return score and image of the best detections by class."""
    rows = [
        (int(label), -float(score), number)
        for number, image in enumerate(images)
        for label, score in zip(image["labels"], image["scores"], strict=True)
    ]
    return {
        label: [(-score, number) for one, score, number in sorted(rows) if one == label][:count]
        for label in range(CLASSES)
    }


def both_passes(model: Any, dataset: Any, count: int, folder: Path) -> tuple[Any, Any]:
    limit = PerClassLimit(model, count, CLASSES, folder)
    ordinary = [image for (image,) in rescored_detections(model, dataset, limit.watch)]
    limit.start_second_pass()
    return ordinary, list(per_class_detections(model, dataset, limit))


def test_the_best_of_each_class(
    model: Any, dataset: Any, everything: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are among what the second pass yields, which is less than everything; masks come in portions."""
    monkeypatch.setattr(per_class, "MASKS_AT_ONCE", 3)
    plain = list(detections(model, dataset))
    ordinary, found = both_passes(model, dataset, K, tmp_path)
    for one, other in zip(plain, ordinary, strict=True):
        assert all(np.array_equal(one[key], other[key]) for key in ("labels", "scores", "bboxes"))
        assert one["masks"] == other["masks"] and len(one["labels"]) <= 5
    assert best(found, K) == best(everything, K)
    number = [sum(len(image["labels"]) for image in images) for images in (plain, found, everything)]
    assert number[0] < number[1] < number[2] / 2
    known = {
        (one["image_id"], int(label), float(score), *box.tolist()): mask
        for one in everything
        for label, score, box, mask in zip(one["labels"], one["scores"], one["bboxes"], one["masks"], strict=True)
    }
    for one in found:
        assert len(one["masks"]) == len(one["labels"]) == len(one["bboxes"])
        for label, score, box, mask in zip(one["labels"], one["scores"], one["bboxes"], one["masks"], strict=True):
            assert known[one["image_id"], int(label), float(score), *box.tolist()] == mask


def test_a_pass_that_was_cut_off(model: Any, dataset: Any, everything: list[dict[str, Any]], tmp_path: Path) -> None:
    """What the first pass learnt of some images is a lower limit; it is read again by the process after a kill."""
    limit = PerClassLimit(model, K, CLASSES, tmp_path)
    list(rescored_detections(model, dataset, limit.watch, first=3))
    limit.start_second_pass()
    again = PerClassLimit(model, K, CLASSES, tmp_path)
    again.start_second_pass()
    first = list(per_class_detections(model, dataset, limit))
    rest = list(per_class_detections(model, dataset, again, first=2))
    assert best([*first[:2], *rest], K) == best(everything, K)
    with pytest.raises(UserError, match="can choose them anew"):
        PerClassLimit(nn.Linear(1, 1), K, CLASSES, tmp_path)
