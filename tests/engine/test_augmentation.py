"""Crops, mosaic, mixup and copy-paste: annotations follow, masks fit, and the position alone decides what is seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmdet.datasets.transforms import CachedMixUp, CopyPaste
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from torch.utils.data import DataLoader, SequentialSampler

from ltpipe.config.checks import check_settings
from ltpipe.config.experiment import Experiment
from ltpipe.data.phase import PhaseView
from ltpipe.engine.augmentation import ObjectBank
from ltpipe.engine.augmented import training_samples
from ltpipe.engine.dataset import StreamDataset
from ltpipe.engine.mixing import MixUpImages, PasteObjects
from ltpipe.engine.model_config import with_our_steps
from ltpipe.engine.tracked_labels import TrackedLabels
from ltpipe.errors import UserError
from ltpipe.pipeline.paths import Paths
from tests.helpers.tiny_project import assert_same_state, copied, experiment, kill_here, run_stages, together
from tests.helpers.trainings import cut_short

READ = [
    {"type": "LoadImageFromFile"},
    {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True, "poly2mask": False},
]
JITTER = [
    {"type": "RandomResize", "scale": (64, 64), "ratio_range": (0.5, 2.0), "keep_ratio": True},
    {"type": "RandomCrop", "crop_size": (48, 48), "recompute_bbox": True, "allow_negative_crop": True},
    {"type": "FilterAnnotations", "min_gt_bbox_wh": (0.01, 0.01), "keep_empty": False},
    {"type": "RandomFlip", "prob": 0.5},
]
PIPELINES: dict[str, list[dict[str, Any]]] = {
    "jitter": JITTER,
    "mosaic": [{"type": "Mosaic", "img_scale": (40, 40)}, *JITTER],
    "cached": [
        {"type": "CachedMosaic", "img_scale": (40, 40), "max_cached_images": 40},
        *JITTER,
        {"type": "CachedMixUp", "img_scale": (48, 48), "ratio_range": (1.0, 1.0), "max_cached_images": 20},
    ],
    "mixup": [*JITTER, {"type": "MixUp", "img_scale": (56, 56)}],
    "paste": [*JITTER, {"type": "CopyPaste", "mask_occluded_thr": 20}],
    "rare": [*JITTER, {"type": "ltpipe.PasteObjects", "by_class": True, "mask_occluded_thr": 20}],
}


@pytest.fixture(autouse=True)
def scope() -> None:
    init_default_scope("mmdet")


def stream(exp: Experiment, paths: Paths, steps: list[dict[str, Any]], **more: Any) -> StreamDataset:
    parts = {"store": str(paths.store("train")), "images": str(exp.dataset.train.images), "split": str(paths.split)}
    pipeline = with_our_steps([*READ, *steps, {"type": "PackDetInputs"}])
    return StreamDataset(**parts, num_classes=9, phase=2, seed=3, sampler={"type": "random"}, pipeline=pipeline, **more)


def flat(sample: dict[str, Any]) -> list[Any]:
    gt = sample["data_samples"].gt_instances
    masks = gt.masks.to_ndarray() if len(gt) else np.zeros(0)
    return [sample["inputs"].numpy(), gt.bboxes.tensor.numpy(), gt.labels.numpy(), masks, gt.ann_ids.numpy()]


# ---- annotations follow ----------------------------------------------------------------------------------------------


def test_labels_carry_their_tags() -> None:
    one = TrackedLabels.of(np.array([3, 1, 2]), np.array([[30, 1], [10, 1], [20, 0]]))
    other = TrackedLabels.of(np.array([7]), np.array([[70, 1]]))
    assert np.concatenate([one[[2, 0]], other]).tags[:, 0].tolist() == [20, 30, 70]
    assert one[one > 1].tags[:, 0].tolist() == [30, 20] and one[1:].copy().tags[:, 0].tolist() == [10, 20]
    assert np.hstack([one, other]).tags.shape == (4, 2) and int(one[1]) == 1
    assert np.sort(one).tags is None and (one + 1).tags is None and np.take(one, [0]).tags is None, "lost, not wrong"
    assert np.concatenate([one, np.array([1])]).tolist() == [3, 1, 2, 1]
    assert getattr(np.concatenate([one, np.array([1])]), "tags", None) is None


@pytest.mark.parametrize("name", PIPELINES)
def test_annotations_follow_and_masks_fit(exp: Experiment, paths: Paths, name: str) -> None:
    """Every object is the one whose id it bears: its class, and a mask that fills the box."""
    data = stream(exp, paths, PIPELINES[name])
    label_of = dict(
        zip(
            data.store.ann_ids.tolist(),
            data.split.labels_of(data.store.category_ids)[data.store.ann_category],
            strict=True,
        )
    )
    own = {
        int(i): set(data.store.ann_ids[data.store.ann_image == row].tolist())
        for row, i in enumerate(data.store.image_ids)
    }
    objects = foreign = 0
    overlaps = []
    for place in range(40):
        sample = data[place]
        image, boxes, labels, masks, ids = flat(sample)
        assert image.dtype == np.uint8 and [label_of[i] for i in ids.tolist()] == labels.tolist()
        for box, mask in zip(boxes, masks, strict=True):
            rows, columns = np.nonzero(mask)
            assert mask.shape == image.shape[1:] and (box[2:] > box[:2]).all()
            if len(rows) > 30:  # smaller ones are a matter of rounding
                found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                assert (found[:2] > box[:2] - 2).all() and (found[2:] < box[2:] + 2).all(), (place, box, found)
                overlaps.append(np.prod(found[2:] - found[:2]) / np.prod(box[2:] - box[:2]))
        objects += len(ids)
        foreign += len(set(ids.tolist()) - own[sample["data_samples"].img_id])
    assert np.mean(overlaps) > 0.9 and objects > 40 and (foreign > 10) == (name != "jitter")


@pytest.mark.parametrize("name", PIPELINES)
def test_the_position_alone_decides(exp: Experiment, paths: Paths, name: str) -> None:
    """In any order, and in loader processes; so in resumed runs and any number of processes, too."""
    first = [flat(stream(exp, paths, PIPELINES[name])[place]) for place in (0, 1, 2, 3)]
    data = stream(exp, paths, PIPELINES[name])
    again = {place: flat(data[place]) for place in (3, 1, 0, 2)}
    loader = DataLoader(data, sampler=SequentialSampler(range(4)), num_workers=2, collate_fn=pseudo_collate)
    apart = [flat({"inputs": b["inputs"][0], "data_samples": b["data_samples"][0]}) for b in loader]
    for place in range(4):
        for one, two, three in zip(first[place], again[place], apart[place], strict=True):
            assert np.array_equal(one, two) and np.array_equal(one, three)


# ---- as mmdet --------------------------------------------------------------------------------------------------------


def loaded(exp: Experiment, paths: Paths, count: int, bitmaps: bool = False) -> list[dict[str, Any]]:
    """Images with objects of one size, with polygons or bitmaps."""
    data = stream(exp, paths, [])
    found = []
    for row in range(len(data.store.image_ids)):
        results: Any = data.annotated_info(row)
        for step in data.pipeline.transforms[:2]:
            results = step(results)
        if bitmaps:
            height, width = results["img_shape"]
            results["gt_masks"] = BitmapMasks(results["gt_masks"].to_ndarray(), height, width)
        found += [results] if len(results["gt_bboxes"]) > 1 else []
    return found[:count]


def test_copy_paste_is_mmdets_without_its_faults(exp: Experiment, paths: Paths) -> None:
    ours, theirs = PasteObjects(mask_occluded_thr=20), CopyPaste(mask_occluded_thr=20)
    pasted = 0
    for seed in range(20):
        target, source = loaded(exp, paths, 2, bitmaps=True)
        np.random.seed(seed)
        expected = theirs.transform(
            {**loaded(exp, paths, 1, bitmaps=True)[0], "mix_results": [loaded(exp, paths, 2, bitmaps=True)[1]]}
        )
        np.random.seed(seed)
        found = ours.transform({**target, "partners": [source]})
        assert np.array_equal(found["img"], expected["img"]) and found["img"].dtype == np.uint8
        assert sorted(found["gt_bboxes_labels"].tolist()) == sorted(expected["gt_bboxes_labels"].tolist())
        pasted += len(found["gt_bboxes"])
    assert pasted > 40


def test_what_is_covered_wholly_goes() -> None:
    """mmdet keeps a small one near the origin, with an empty mask and no box."""

    def sample(boxes: list[list[float]], value: int) -> dict[str, Any]:
        masks = np.zeros((len(boxes), 32, 32), np.uint8)
        for mask, (x, y, right, below) in zip(masks, np.array(boxes, int).tolist(), strict=True):
            mask[y:below, x:right] = 1
        tags = np.stack([np.arange(len(boxes)) + value, np.ones(len(boxes), int)], axis=1)
        return {
            "img": np.full((32, 32, 3), value, np.uint8), "gt_bboxes": HorizontalBoxes(np.array(boxes, np.float32)),
            "gt_bboxes_labels": TrackedLabels.of(np.arange(len(boxes)), tags), "gt_masks": BitmapMasks(masks, 32, 32),
            "gt_ignore_flags": np.zeros(len(boxes), bool),
        }  # fmt: skip

    paste = PasteObjects(selected=False, mask_occluded_thr=20)
    found = paste.transform(
        {**sample([[0, 0, 8, 8], [10, 10, 30, 30], [20, 0, 28, 6]], 5), "partners": [sample([[0, 0, 12, 12]], 90)]}
    )
    assert found["gt_bboxes_labels"].tags[:, 0].tolist() == [6, 7, 90]
    assert found["gt_masks"].masks.sum(axis=(1, 2)).tolist() == [400 - 4, 48, 144]
    assert found["gt_bboxes"].tensor[1].tolist() == [20, 0, 28, 6] and found["img"][0, 0, 0] == 90
    empty = paste.transform({**sample([[0, 0, 8, 8]], 5), "partners": []})
    assert len(empty["gt_bboxes"]) == 1


def test_mixup_is_mmdets(exp: Experiment, paths: Paths) -> None:
    options: dict[str, Any] = dict(img_scale=(64, 64), ratio_range=(0.5, 1.5))
    for seed in range(12):
        target, source = loaded(exp, paths, 2)
        theirs = CachedMixUp(max_cached_images=2, random_pop=False, **options)
        theirs.results_cache = [loaded(exp, paths, 2)[1]]
        theirs.get_indexes = lambda cache: 0
        np.random.seed(seed)
        plain = {k: v for k, v in loaded(exp, paths, 1)[0].items() if k != "gt_masks"}
        expected = theirs.transform(plain)
        np.random.seed(seed)
        found = MixUpImages(**options).transform({**target, "partners": [source]})
        assert np.array_equal(found["img"], expected["img"])
        assert np.array_equal(found["gt_bboxes"].tensor, expected["gt_bboxes"].tensor)
        assert np.array_equal(found["gt_bboxes_labels"], expected["gt_bboxes_labels"])


# ---- which objects are pasted ----------------------------------------------------------------------------------------


def test_rare_classes_are_pasted_more_often(exp: Experiment, paths: Paths) -> None:
    data = stream(exp, paths, PIPELINES["rare"])
    bank = ObjectBank(data)
    view = PhaseView(data.store, data.split, 2)
    assert bank.image_counts.tolist() == [len(view.pairs(label)) for label in range(9)]
    rows = [row for row, _ in bank.draw(200, 0.5)]
    assert set(data.split.labels_of(data.store.category_ids)[data.store.ann_category[rows]].tolist()) == set(range(9))
    np.random.seed(0)
    for rarity in (0.0, 1.0):
        drawn = np.bincount([label for _, label in bank.draw(20_000, rarity)], minlength=9) / 20_000
        expected = bank.image_counts**-rarity / (bank.image_counts**-rarity).sum()
        assert np.abs(drawn - expected).max() < 0.01, "four standard deviations"


# ---- what cannot be cut or resized -----------------------------------------------------------------------------------


def test_empty_crops_are_tried_again_and_other_images_take_their_place(exp: Experiment, paths: Paths) -> None:
    small = [{"type": "RandomCrop", "crop_size": (12, 12)}, {"type": "FilterAnnotations", "min_gt_bbox_wh": (2, 2)}]
    data = stream(exp, paths, small)
    samples = [data[place]["data_samples"] for place in range(60)]
    assert all(len(sample.gt_instances) for sample in samples)
    none = [{"type": "FilterAnnotations", "min_gt_bbox_wh": (500, 500)}]
    with pytest.raises(UserError, match="drops every image"):
        stream(exp, paths, none)[0]


def test_thin_images_do_not_crash(exp: Experiment, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """A factor of 0.1 leaves nothing of a strip of three pixels: another factor is drawn."""
    jitter = [{"type": "RandomResize", "scale": (64, 64), "ratio_range": (0.1, 2.0), "keep_ratio": True}]
    data = stream(exp, paths, jitter)
    read = type(data.pipeline.transforms[0]).transform

    def strip(self: Any, results: dict[str, Any]) -> Any:
        found = read(self, results)
        found["img"], found["img_shape"] = found["img"][:3], (3, found["img"].shape[1])
        return found

    monkeypatch.setattr(type(data.pipeline.transforms[0]), "transform", strip)
    heights = {data[place]["inputs"].shape[1] for place in range(20)}
    assert min(heights) >= 1 and max(heights) > 2
    fixed = stream(exp, paths, [{"type": "Resize", "scale": (9, 9), "keep_ratio": True}, *JITTER[1:]])
    with pytest.raises(UserError, match="cannot handle an image") as caught:
        fixed[0]
    assert "image id" in str(caught.value)


def test_a_transform_that_makes_new_labels_is_named(exp: Experiment, paths: Paths) -> None:
    results = loaded(exp, paths, 1)[0]
    results["gt_bboxes_labels"] = np.sort(results["gt_bboxes_labels"])
    results["all_masked"] = False
    packing = stream(exp, paths, []).pipeline.transforms[-1]
    with pytest.raises(UserError, match="new arrays of labels"):
        packing.transform(results)


# ---- checks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ("dict(type='RandomApply', transforms=[dict(type='CopyPaste')])", "inside another transform"),
        ("dict(type='Mosaic', img_scale=(40, 60))", "as high as wide"),
    ],
)
def test_what_cannot_work_is_refused(project: Path, tmp_path: Path, steps: str, words: str) -> None:
    from ltpipe.engine.inspection import inspect_detector

    file = augmented_detector(project, tmp_path, f"train_pipeline[2:2] = [{steps}]\n")
    exp = experiment(project, detector={"config": str(file)}, lst={"distill": {"teacher": "online"}})
    with pytest.raises(UserError, match=words):
        check_settings(exp)
        inspect_detector(exp)


def augmented_detector(project: Path, folder: Path, text: str) -> Path:
    file = folder / "augmented.py"
    file.write_text(
        (project / "detector.py").read_text()
        + "train_pipeline = "
        + repr([*READ, *JITTER, {"type": "PackDetInputs"}])
        + "\n"
        + text
    )
    return file


def test_trainings_resume_bit_by_bit(project: Path, tmp_path: Path) -> None:
    """All of it together, with phases and an online teacher, killed; and in two processes."""
    mixing = "dict(type='MixUp', img_scale=(48, 48)), dict(type='ltpipe.PasteObjects', by_class=True)"
    text = f"train_pipeline[-1:-1] = [{mixing}]\n"
    file = augmented_detector(project, tmp_path, text)
    exp = experiment(project, detector={"config": str(file)}, lst={"distill": {"teacher": "online"}}, calibrate={})
    with pytest.raises(UserError, match="changes its geometry at random"):
        check_settings(experiment(project, detector={"config": str(file)}, calibrate={}))
    paths = run_stages(exp, tmp_path / "whole", "index", "split")
    halves = Paths(copied(tmp_path / "whole", tmp_path / "halves"), exp)
    both = Paths(copied(tmp_path / "whole", tmp_path / "both"), exp)
    run_stages(exp, paths.results, "base", ("lst", 1))
    assert cut_short(exp, halves, "base", None, 2, kill_here) == -9
    run_stages(exp, halves.results, "base")
    assert_same_state(paths.model("base"), halves.model("base"))
    together(lambda: run_stages(exp, both.results, "base") and None, 2)
    assert any(any(sample.foreign) for sample in training_samples(exp, paths, 0, 6))
