"""Datasets on the store: the samples of mmdet's own datasets, and augmentation that depends on the position alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset, LVISV1Dataset
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from torch.utils.data import DataLoader, SequentialSampler

from ltpipe.config.experiment import Experiment
from ltpipe.data.replay import ReplayIndex
from ltpipe.data.split import Split, make_split
from ltpipe.data.store import AnnotationStore
from ltpipe.data.store_writer import build_store
from ltpipe.engine.dataset import AnnotatedDataset, StoreDataset, StreamDataset
from ltpipe.engine.model_config import with_our_steps
from ltpipe.engine.training_stream import StreamSampler
from ltpipe.errors import UserError
from ltpipe.pipeline.paths import Paths
from ltpipe.run.loader_errors import from_loader
from tests.helpers.tiny_project import experiment, run_stages

OF_MMDET = [
    {"type": "LoadImageFromFile"},
    {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True, "poly2mask": False},
    {"type": "Resize", "scale": (96, 80), "keep_ratio": True},
]
LOAD = with_our_steps(OF_MMDET)
RANDOM = [
    LOAD[0],
    LOAD[1],
    {"type": "RandomResize", "scale": [(48, 48), (96, 96)], "keep_ratio": True},
    {"type": "PhotoMetricDistortion"},
    {"type": "RandomFlip", "prob": 0.5},
    {"type": "ltpipe.PackLTInputs"},
]


@pytest.fixture(scope="module", autouse=True)
def scope() -> None:
    init_default_scope("mmdet")


def options(exp: Experiment, paths: Paths, **more: Any) -> dict[str, Any]:
    found = {
        "store": str(paths.store("train")),
        "images": str(exp.dataset.train.images),
        "split": str(paths.split),
        "num_classes": 9,
        "pipeline": [*LOAD, {"type": "ltpipe.PackLTInputs"}],
    }
    return found | more


def instances(sample: dict[str, Any], part: str = "gt_instances") -> dict[str, Any]:
    gt = getattr(sample["data_samples"], part)
    masks = gt.masks.to_ndarray() if len(gt.masks) else np.zeros(0)
    return {"boxes": gt.bboxes.tensor.numpy(), "labels": gt.labels.numpy(), "masks": masks}


# ---- equal to mmdet --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", [CocoDataset, LVISV1Dataset])
def test_samples_are_those_of_mmdet(exp: Experiment, paths: Paths, reference: type) -> None:
    ours = AnnotatedDataset(**options(exp, paths), phase=2)
    store, split = ours.store, ours.split
    images = str(exp.dataset.train.images)
    theirs = reference(
        ann_file=str(exp.dataset.train.annotations),
        data_prefix={"img": images},
        metainfo={"classes": tuple(store.category_names)},
        pipeline=[*OF_MMDET, {"type": "PackDetInputs"}],
        test_mode=True,
    )
    assert len(theirs) == len(ours)
    label_of = {name: i for i, name in enumerate(ours.metainfo["classes"])}
    objects = 0
    for row in range(len(theirs)):
        info = theirs.get_data_info(row)
        if reference is LVISV1Dataset:
            info["img_path"] = f"{images}/{store.image_file(row)}"  # it derives the path from a COCO URL
        expected, found = theirs.pipeline(info), ours[(row, False)]
        assert torch.equal(expected["inputs"], found["inputs"])
        one, other = instances(expected), instances(found)
        assert np.array_equal(one["boxes"], other["boxes"])
        assert [label_of[store.category_names[label]] for label in one["labels"]] == other["labels"].tolist()
        assert np.array_equal(one["masks"], other["masks"])
        for key in ("img_id", "ori_shape", "img_shape", "scale_factor"):
            assert getattr(expected["data_samples"], key) == getattr(found["data_samples"], key)
        objects += len(one["labels"])
    assert objects > 20 and split.num_classes == 9


def test_crowds_ignored_objects_and_boxes_outside(tmp_path: Path) -> None:
    height, width = 40, 60
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((height, width, 3), np.uint8))
    square = [[10, 10, 30, 10, 30, 30, 10, 30]]
    runs = {"size": [height, width], "counts": [100, 50, height * width - 150]}
    common = {"image_id": 1, "category_id": 7, "area": 400.0, "iscrowd": 0, "segmentation": square}
    changes: list[dict[str, Any]] = [
        {"bbox": [10, 10, 20, 20]},
        {"bbox": [10, 10, 20, 20], "iscrowd": 1, "segmentation": runs},
        {"bbox": [70, 10, 20, 20]},  # outside
        {"bbox": [5, 5, 0.5, 20]},  # degenerate
        {"bbox": [50, 30, 20, 20]},  # reaches over the border
    ]
    annotations = [{**common, "id": i, **change} for i, change in enumerate(changes, 1)]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": height, "width": width}],
        "annotations": annotations,
        "categories": [{"id": 7, "name": "thing"}],
    }
    file = tmp_path / "a.json"
    file.write_text(json.dumps(content))
    build_store(file, tmp_path / "store", fmt="coco", image_folder=tmp_path, progress=False)
    split = make_split(np.array([7]), np.array([2]), dataset="a", annotation_sha256="")
    split.save(tmp_path / "split.json")
    common_options: dict[str, Any] = {"pipeline": [*LOAD, {"type": "ltpipe.PackLTInputs"}], "num_classes": 1}
    ours = AnnotatedDataset(
        store=str(tmp_path / "store"),
        images=str(tmp_path),
        split=str(tmp_path / "split.json"),
        phase=0,
        **common_options,
    )
    theirs = CocoDataset(
        ann_file=str(file),
        data_prefix={"img": str(tmp_path)},
        metainfo={"classes": ("thing",)},
        pipeline=[*OF_MMDET, {"type": "PackDetInputs"}],
    )
    found, expected = ours[(0, False)], theirs[0]
    for part, count in (("gt_instances", 2), ("ignored_instances", 1)):
        one, other = instances(expected, part), instances(found, part)
        assert len(one["labels"]) == count
        assert all(np.array_equal(one[key], other[key]) for key in one), part
    assert found["data_samples"].gt_instances.ann_ids.tolist() == [1, 5]


def test_phases_see_their_classes(exp: Experiment, paths: Paths) -> None:
    split = Split.load(paths.split)
    for phase, classes in ((0, 5), (1, 7), (2, 9)):
        data = AnnotatedDataset(**options(exp, paths, num_classes=classes), phase=phase)
        assert data.metainfo["classes"] == tuple(
            data.store.category_names[data.store.category_ids.tolist().index(c)] for c in split.order[:classes]
        )
        labels = {c for row in range(len(data)) for c in instances(data[(row, False)])["labels"].tolist()}
        assert labels == set(range(classes))


def test_objects_of_later_classes_can_be_ignored(exp: Experiment, paths: Paths) -> None:
    plain = AnnotatedDataset(**options(exp, paths, num_classes=5), phase=0)
    data = AnnotatedDataset(**options(exp, paths, num_classes=5), phase=0, ignore_future=True)
    store, later = data.store, 0
    label = Split.load(paths.split).labels_of(store.category_ids)[store.ann_category]
    for row in range(len(data)):
        found, before = data[(row, False)], plain[(row, False)]
        for key, value in instances(found).items():
            assert np.array_equal(value, instances(before)[key])
        gt, ignored = found["data_samples"].gt_instances, found["data_samples"].ignored_instances
        assert gt.ann_ids.tolist() == before["data_samples"].gt_instances.ann_ids.tolist()
        wanted = store.ann_ids[(store.ann_image == row) & (label >= 5)]
        assert sorted(ignored.ann_ids.tolist()) == sorted(wanted.tolist())
        assert not len(before["data_samples"].ignored_instances)
        later += len(wanted)
    assert later > 5


# ---- flips -----------------------------------------------------------------------------------------------------------


def test_fixed_flips_mirror_images_boxes_and_masks(exp: Experiment, paths: Paths) -> None:
    def pipeline(flip: dict[str, Any]) -> list[dict[str, Any]]:
        return [*LOAD, flip, {"type": "ltpipe.PackLTInputs"}]

    fixed = AnnotatedDataset(**options(exp, paths, pipeline=pipeline({"type": "ltpipe.FixedFlip"})), phase=2)
    always = AnnotatedDataset(**options(exp, paths, pipeline=pipeline({"type": "RandomFlip", "prob": 1.0})), phase=2)
    for row in range(6):
        plain, mirrored, expected = fixed[(row, False)], fixed[(row, True)], always[(row, False)]
        assert torch.equal(mirrored["inputs"], expected["inputs"])
        assert torch.equal(mirrored["inputs"], plain["inputs"].flip(-1))
        one, other = instances(mirrored), instances(expected)
        assert all(np.array_equal(one[key], other[key]) for key in one)
        assert (plain["data_samples"].flip, mirrored["data_samples"].flip) == (False, True)
        assert plain["data_samples"].flip_direction is None and mirrored["data_samples"].flip_direction == "horizontal"
        ids = [sample["data_samples"].gt_instances.ann_ids.tolist() for sample in (plain, mirrored)]
        assert ids[0] == ids[1]


# ---- streams ---------------------------------------------------------------------------------------------------------


def stream(exp: Experiment, paths: Paths, seed: int = 5, **more: Any) -> StreamDataset:
    order = {"replay": str(paths.replay(2))} if "phase" in more else {"sampler": {"type": "random"}, "phase": 0}
    return StreamDataset(**options(exp, paths, pipeline=RANDOM, **order, **more), seed=seed)


def facts(sample: dict[str, Any]) -> tuple[Any, ...]:
    data = sample["data_samples"]
    gt = data.gt_instances
    return (
        data.img_id,
        data.flip,
        data.img_shape,
        gt.metainfo,
        gt.ann_ids.tolist(),
        gt.bboxes.tensor.tolist(),
        float(sample["inputs"].double().sum()),
    )


def test_augmentation_depends_on_seed_and_position_only(exp: Experiment, paths: Paths) -> None:
    whole = [facts(stream(exp, paths)[p]) for p in range(12)]
    again = stream(exp, paths)
    np.random.seed(99)
    assert {p: facts(again[p]) for p in (7, 3, 11, 0)} == {p: whole[p] for p in (7, 3, 11, 0)}
    assert {fact[1] for fact in whole} == {True, False} and len({fact[2] for fact in whole}) > 1
    other = [facts(stream(exp, paths, seed=6)[p]) for p in range(12)]
    assert other != whole


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_any_number_of_loader_processes_gives_the_same_batches(exp: Experiment, paths: Paths, workers: int) -> None:
    data = stream(exp, paths)
    loader = DataLoader(
        data,
        batch_size=3,
        sampler=StreamSampler(data, batch_size=3, iterations=4),
        num_workers=workers,
        collate_fn=pseudo_collate,
    )
    found = [
        facts({"inputs": image, "data_samples": sample})
        for batch in loader
        for image, sample in zip(batch["inputs"], batch["data_samples"], strict=True)
    ]
    assert found == [facts(stream(exp, paths)[p]) for p in range(12)]


def test_replay_streams_tell_the_paired_class(exp: Experiment, paths: Paths) -> None:
    data = stream(exp, paths, phase=2)
    for position in range(10):
        row, label = data.stream[position].tolist()
        sample = data[position]["data_samples"]
        assert sample.img_id == data.store.image_ids[row]
        assert sample.gt_instances.metainfo["replay_label"] == label
        assert label in sample.gt_instances.labels, "the image shows the class it was drawn for"
    seeds = {data[p]["data_samples"].gt_instances.metainfo["sample_seed"] for p in range(10)}
    assert len(seeds) == 10


def test_replay_in_the_published_layout(project: Path, exp: Experiment, paths: Paths, tmp_path: Path) -> None:
    lst = {"replay": {"layout": "legacy", "rows": 2}, "schedule": {"iterations": 40, "batch_size": 4}}
    shutil.copytree(paths.results, tmp_path / "results")
    other = run_stages(experiment(project, lst=lst), tmp_path / "results", ("split", 1))
    replay = ReplayIndex.load(other.replay(1))
    assert len(replay.image_id) == 160 and replay.num_epochs > 1
    data = StreamDataset(**options(exp, paths, num_classes=7), phase=1, seed=0, replay=str(other.replay(1)))
    assert data.stream.epoch_length() == len(replay.epoch(0)[0])
    assert [int(data.store.image_ids[data.stream[i][0]]) for i in range(160)] == replay.image_id.tolist()


def test_a_stream_needs_one_order(exp: Experiment, paths: Paths) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        StreamDataset(**options(exp, paths), phase=0, seed=0)


# ---- unreadable images -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n cut off", None])
def test_an_unreadable_image_is_named(
    exp: Experiment, paths: Paths, tmp_path: Path, workers: int, content: bytes | None
) -> None:
    images = Path(shutil.copytree(exp.dataset.train.images, tmp_path / "images"))
    store = AnnotationStore.open(paths.store("train"))
    broken = images / store.image_file(3)
    broken.unlink()
    if content is not None:
        broken.write_bytes(content)
    test_pipeline = [LOAD[0], LOAD[2], {"type": "ltpipe.PackLTInputs", "meta_keys": ("img_id",)}]
    data = StoreDataset(**options(exp, paths, images=str(images), pipeline=test_pipeline))
    loader = DataLoader(data, num_workers=workers, sampler=SequentialSampler(range(5)), collate_fn=pseudo_collate)
    with pytest.raises(UserError) as raised:
        list(loader)
    lines = str(from_loader(raised.value) or raised.value).splitlines()
    assert lines[0] == "unreadable image"
    assert str(broken) in lines[1] and f"image id {store.image_ids[3]}" in lines[2]
    assert len(lines) == 4 and "Traceback" not in "".join(lines)


def test_other_faults_of_a_pipeline_keep_their_traceback(exp: Experiment, paths: Paths) -> None:
    data = StoreDataset(**options(exp, paths, pipeline=[{"type": "Resize", "scale": (8, 8)}]))
    with pytest.raises(KeyError):
        data[0]


def test_ids_do_not_follow_what_a_foreign_loader_reads(exp: Experiment, paths: Paths) -> None:
    """Ours tells labels their ids; after another one, a crop would give ids of other objects."""
    crop = [*OF_MMDET, {"type": "RandomCrop", "crop_size": (24, 24)}, {"type": "ltpipe.PackLTInputs"}]
    data = stream(exp, paths)
    data.pipeline.transforms = AnnotatedDataset(**options(exp, paths, pipeline=crop), phase=0).pipeline.transforms
    with pytest.raises(UserError, match="pipeline drops"):
        for position in range(20):
            data[position]
