"""Running a detector over images: order, formats, empty results, and checkpoints that do not fit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from pycocotools import mask as coco_mask
from torch import nn

from ltpipe.config.experiment import Experiment
from ltpipe.data.split import Split
from ltpipe.data.store import AnnotationStore
from ltpipe.engine.dataset_configs import class_counts
from ltpipe.engine.dataset_configs import test_config as config_of_validation
from ltpipe.engine.inference import build_dataset, detections, encode_masks, load_model, rescored_detections
from ltpipe.engine.model_config import assemble_model, read_detector
from ltpipe.engine.training import read_checkpoint, write_checkpoint
from ltpipe.errors import UserError
from ltpipe.pipeline.paths import Paths
from ltpipe.registry import MODELS
from tests.helpers.tiny_project import experiment

CLASSES = 9


def detector_config(exp: Experiment, paths: Paths) -> ConfigDict:
    init_default_scope("mmdet")
    return assemble_model(exp, class_counts(paths, Split.load(paths.split), CLASSES))[1]


def lively(config: ConfigDict) -> nn.Module:
    """Return a detector whose random weights detect something."""
    torch.manual_seed(1)
    model = MODELS.build(copy.deepcopy(config))
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(scope="module")
def model(exp: Experiment, paths: Paths) -> nn.Module:
    return lively(detector_config(exp, paths))


@pytest.fixture(scope="module")
def dataset(exp: Experiment, paths: Paths) -> Any:
    return build_dataset(config_of_validation(exp, paths, read_detector(exp.detector.config).test_pipeline, CLASSES))


@pytest.fixture(scope="module")
def found(model: nn.Module, dataset: Any) -> list[dict[str, Any]]:
    return list(detections(model, dataset))


def test_detections_are_those_of_the_model(model: nn.Module, dataset: Any, found: list[dict[str, Any]]) -> None:
    assert len(found) == len(dataset) == 6
    for i, image in enumerate(found):
        with torch.no_grad():
            sample = model.test_step(pseudo_collate([dataset[i]]))[0]
        expected = sample.pred_instances
        assert len(expected) > 0
        for name in ("labels", "scores", "bboxes"):
            assert np.array_equal(image[name], expected[name].numpy())
        masks = np.stack([coco_mask.decode(mask) for mask in image["masks"]])
        assert np.array_equal(masks.astype(bool), expected.masks.numpy())


def test_images_come_in_the_order_of_the_store(paths: Paths, found: list[dict[str, Any]]) -> None:
    store = AnnotationStore.open(paths.store("val"))
    assert [image["image_id"] for image in found] == store.image_ids.tolist()
    for image, size in zip(found, store.image_sizes.tolist(), strict=True):
        assert list(image["size"]) == size
        assert {tuple(mask["size"]) for mask in image["masks"]} == {tuple(size)}
        assert (image["labels"].dtype, image["scores"].dtype, image["bboxes"].dtype) == (
            np.int64,
            np.float32,
            np.float32,
        )
        boxes = image["bboxes"]
        assert (boxes[:, :2] <= boxes[:, 2:]).all() and boxes.min() >= 0 and boxes.max() <= max(size)
        assert (np.diff(image["scores"]) <= 0).all(), "best first"


def test_batches_do_not_change_detections(model: nn.Module, dataset: Any, found: list[dict[str, Any]]) -> None:
    for one, other in zip(found, detections(model, dataset, batch_size=4), strict=True):
        assert one["image_id"] == other["image_id"] and len(one["labels"]) == len(other["labels"])
        assert np.allclose(one["bboxes"], other["bboxes"], atol=1e-3) and np.allclose(one["scores"], other["scores"])


def test_the_same_scores_give_the_same_detections(model: nn.Module, dataset: Any, found: list[dict[str, Any]]) -> None:
    twice = list(rescored_detections(model, dataset, lambda rois: [rois.scores, rois.scores * 0]))
    for image, (same, nothing) in zip(found, twice, strict=True):
        assert all(np.array_equal(image[name], same[name]) for name in ("labels", "scores", "bboxes"))
        assert [m["counts"] for m in image["masks"]] == [m["counts"] for m in same["masks"]]
        assert len(nothing["labels"]) == 0 and nothing["image_id"] == image["image_id"]


def test_images_without_detections(exp: Experiment, paths: Paths, dataset: Any) -> None:
    config = detector_config(exp, paths)
    config.test_cfg.rcnn.score_thr = 1.0
    for image in detections(lively(config), dataset):
        assert image["labels"].shape == image["scores"].shape == (0,) and image["bboxes"].shape == (0, 4)
        assert image["masks"] == [] and image["bboxes"].dtype == np.float32


def test_detectors_without_masks(project: Path, paths: Paths, dataset: Any) -> None:
    exp = experiment(project, detector={"config": str(project / "boxes.py")})
    assert all(image["masks"] is None for image in detections(lively(detector_config(exp, paths)), dataset))


def test_no_masks_encode_to_nothing() -> None:
    assert encode_masks(torch.zeros(0, 5, 7, dtype=torch.bool)) == []
    mask = torch.zeros(1, 5, 7, dtype=torch.bool)
    mask[0, 1:3, 2:6] = True
    assert coco_mask.area(encode_masks(mask)[0]) == 8


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_in_evaluation_mode(
    exp: Experiment, paths: Paths, tmp_path: Path, model: nn.Module
) -> None:
    file = tmp_path / "model.pth"
    write_checkpoint(file, model.state_dict(), {"category_ids": [1, 2]})
    assert read_checkpoint(file)["meta"] == {"category_ids": [1, 2]}
    loaded = load_model(detector_config(exp, paths), file)
    assert not loaded.training and not any(part.training for part in loaded.modules())
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())


def test_checkpoints_that_do_not_fit_are_refused(
    exp: Experiment, paths: Paths, tmp_path: Path, model: nn.Module
) -> None:
    file = tmp_path / "model.pth"
    state = model.state_dict()
    config = detector_config(exp, paths)

    def error(content: Any) -> str:
        torch.save(content, file)
        with pytest.raises(UserError) as raised:
            load_model(config, file)
        return str(raised.value)

    fewer = {key: value for key, value in state.items() if key != "roi_head.bbox_head.fc_cls.bias"}
    assert "fc_cls.bias" in error({"state_dict": fewer})
    assert "surplus.weight" in error({"state_dict": state | {"surplus.weight": torch.zeros(1)}})
    assert "fc_cls.weight" in error(state | {"roi_head.bbox_head.fc_cls.weight": torch.zeros(3, 24)})
    assert "not a checkpoint" in error([1, 2])
    assert "nothing of it was run" in error({"state_dict": state, "meta": Path("a")})
    file.write_bytes(b"")
    with pytest.raises(UserError, match="unreadable"):
        load_model(config, file)
    file.unlink()
    with pytest.raises(UserError, match="missing checkpoint"):
        load_model(config, file)
