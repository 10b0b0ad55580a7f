"""Reading of objects and images for training: nothing that counts is lost, and no image of another size passes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmdet.datasets.transforms import LoadAnnotations
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from PIL import Image
from pycocotools import mask as coco_mask
from torch.utils.data import DataLoader, SequentialSampler

from ltpipe.data.images import check_sample, orientation_remarks
from ltpipe.data.split import make_split
from ltpipe.data.store_writer import build_store
from ltpipe.engine.dataset import AnnotatedDataset, StoreDataset
from ltpipe.engine.hooks import DivergenceHook
from ltpipe.engine.model_config import with_our_steps
from ltpipe.errors import UserError
from ltpipe.registry import TRANSFORMS
from ltpipe.run.loader_errors import from_loader
from tests.helpers.tiny_project import command_lines, experiment, rewritten, run_stages, torchrun

HEIGHT, WIDTH = 40, 60
SQUARE = [[10, 10, 30, 10, 30, 30, 10, 30]]
RING = np.zeros((HEIGHT, WIDTH), np.uint8)
RING[5:25, 20:50] = 1
RING[10:20, 30:40] = 0  # no polygon has a hole
BOX = [20, 5, 30, 20]
STEPS: list[dict[str, Any]] = [
    {"type": "LoadImageFromFile"},
    {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True, "poly2mask": False},
    {"type": "PackDetInputs", "meta_keys": ("img_id", "ori_shape")},
]


@pytest.fixture(autouse=True)
def scope() -> None:
    init_default_scope("mmdet")


def text(mask: np.ndarray) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def numbers(mask: np.ndarray) -> dict[str, Any]:
    flat = np.concatenate([[0], mask.T.ravel(), [1 - mask.T.ravel()[-1]]])
    edges = np.flatnonzero(np.diff(flat))
    return {"size": list(mask.shape), "counts": np.diff(np.concatenate([[0], edges])).tolist()}


def annotation(number: int, segmentation: Any, **more: Any) -> dict[str, Any]:
    box = BOX if isinstance(segmentation, dict) else [10, 10, 20, 20]
    common = {"image_id": 1, "category_id": 7, "area": 400.0, "iscrowd": 0, "bbox": box}
    return {**common, "id": number, "segmentation": segmentation, **more}


def write_data(folder: Path, annotations: list[dict[str, Any]], **image: Any) -> Path:
    """Write an annotation file of one image, and its store and split."""
    record = {"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH, **image}
    content = {"images": [record], "annotations": annotations, "categories": [{"id": 7, "name": "thing"}]}
    (folder / "a.json").write_text(json.dumps(content))
    if not (folder / record["file_name"]).exists():
        cv2.imwrite(str(folder / record["file_name"]), np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
    build_store(folder / "a.json", folder / "store", fmt="coco", image_folder=folder, progress=False)
    make_split(np.array([7]), np.array([2]), dataset="a", annotation_sha256="").save(folder / "split.json")
    return folder


def dataset(folder: Path, steps: list[dict[str, Any]] | None = None) -> AnnotatedDataset:
    parts = {"store": str(folder / "store"), "images": str(folder), "split": str(folder / "split.json")}
    return AnnotatedDataset(**parts, num_classes=1, phase=0, pipeline=steps or with_our_steps(STEPS))


# ---- objects ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", [text, numbers])
def test_run_length_masks_train(tmp_path: Path, spelling: Callable[[np.ndarray], dict[str, Any]]) -> None:
    sample = dataset(write_data(tmp_path, [annotation(1, spelling(RING))]))[(0, False)]["data_samples"]
    assert sample.gt_instances.ann_ids.tolist() == [1] and len(sample.ignored_instances) == 0
    assert sample.gt_instances.has_mask.tolist() == [True]
    assert np.array_equal(sample.gt_instances.masks.to_ndarray(), RING[None])


def test_an_image_with_both_kinds_of_masks_is_drawn(tmp_path: Path) -> None:
    annotations = [annotation(1, SQUARE), annotation(2, text(RING)), annotation(3, numbers(RING), iscrowd=1)]
    sample = dataset(write_data(tmp_path, annotations))[(0, False)]["data_samples"]
    assert sample.gt_instances.ann_ids.tolist() == [1, 2]
    square = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(SQUARE, HEIGHT, WIDTH)))
    assert isinstance(sample.gt_instances.masks, BitmapMasks)
    assert np.array_equal(sample.gt_instances.masks.to_ndarray(), np.stack([square, RING]))


def test_polygons_stay_polygons_beside_a_crowd(tmp_path: Path) -> None:
    annotations = [annotation(1, SQUARE), annotation(2, text(RING), iscrowd=1), annotation(3, text(RING), ignore=1)]
    sample = dataset(write_data(tmp_path, annotations))[(0, False)]["data_samples"]
    assert isinstance(sample.gt_instances.masks, PolygonMasks)
    assert [p.tolist() for p in sample.gt_instances.masks.masks[0]] == SQUARE
    assert sample.gt_instances.ann_ids.tolist() == [1] and sample.ignored_instances.ann_ids.tolist() == [2, 3]


def test_bitmaps_are_those_of_mmdet(tmp_path: Path) -> None:
    folder = write_data(tmp_path, [annotation(1, SQUARE), annotation(2, text(RING)), annotation(3, numbers(RING))])
    steps = [STEPS[0], {**STEPS[1], "poly2mask": True}, STEPS[2]]
    ours = dataset(folder, with_our_steps(steps))[(0, False)]["data_samples"].gt_instances
    theirs = dataset(folder, [STEPS[0], steps[1], {**STEPS[2], "type": "ltpipe.PackLTInputs"}])[(0, False)]
    expected = theirs["data_samples"].gt_instances
    assert np.array_equal(ours.masks.to_ndarray(), expected.masks.to_ndarray()) and len(ours) == 3
    assert torch.equal(ours.bboxes.tensor, expected.bboxes.tensor)


def test_a_step_that_ignores_objects_is_named(tmp_path: Path) -> None:
    """mmdet's own step does: 705 of 705 objects of a data set of run-length masks were ignored."""
    folder = write_data(tmp_path, [annotation(1, SQUARE), annotation(2, text(RING))])
    data = dataset(folder, [STEPS[0], STEPS[1], {**STEPS[2], "type": "ltpipe.PackLTInputs"}])
    with pytest.raises(UserError) as raised:
        data[(0, False)]
    message = str(raised.value)
    assert "fewer objects reach the losses" in message and "1 of 2 after LoadAnnotations" in message
    assert "a.png" in message and "image id 1" in message


@TRANSFORMS.register_module(name="DropsEverything")
class DropsEverything(LoadAnnotations):
    """A step that drops an image."""

    def transform(self, results: dict[str, Any]) -> None:
        return None


def test_a_step_that_drops_an_image_is_an_error(tmp_path: Path) -> None:
    data = dataset(write_data(tmp_path, [annotation(1, SQUARE)]), [{"type": "ltpipe.DropsEverything"}])
    with pytest.raises(UserError, match="drops an image"):
        data[(0, False)]


def test_a_training_on_run_length_masks_learns_them(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were ignored: every loss of boxes and masks was 0 and the stage ended well."""

    def to_runs(_: str, content: dict[str, Any]) -> None:
        sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        for record in content["annotations"]:
            size = sizes[record["image_id"]]
            rle = coco_mask.merge(coco_mask.frPyObjects(record["segmentation"], *size))
            record["segmentation"] = {"size": list(size), "counts": rle["counts"].decode()}

    losses: list[dict[str, float]] = []

    def note(*_: Any, outputs: dict[str, Any], **__: Any) -> None:
        losses.append({name: float(value) for name, value in outputs.items() if "loss" in name})

    monkeypatch.setattr(DivergenceHook, "after_train_iter", note)
    parts = rewritten(project, tmp_path, to_runs)
    exp = experiment(project, dataset={"name": "runs", **parts}, lst=None, split=None, calibrate={})
    run_stages(exp, tmp_path / "results", "index", "split", "base")
    assert len(losses) == 4
    assert all(step[name] > 0 for step in losses for name in ("loss_mask", "loss_bbox", "loss_rpn_bbox"))


# ---- images ----------------------------------------------------------------------------------------------------------


def picture(height: int, width: int) -> np.ndarray:
    ramp = np.add.outer(np.arange(height) * 3, np.arange(width) * 2).astype(np.uint8)
    return np.stack([ramp, ramp // 2, 255 - ramp], axis=2)


def write_picture(path: Path, image: np.ndarray, orientation: int | None = None) -> None:
    """Write RGB pixels without loss, with a camera's orientation beside them."""
    exif = Image.Exif()
    if orientation is not None:
        exif[274] = orientation
    Image.fromarray(image).save(path, exif=exif.tobytes() if orientation else b"")


def read(folder: Path, height: int, width: int, name: str = "a.png") -> torch.Tensor:
    write_data(folder, [annotation(1, SQUARE)], height=height, width=width, file_name=name)
    return dataset(folder)[(0, False)]["inputs"]


@pytest.mark.parametrize(
    ("annotated", "words"),
    [
        ((HEIGHT, WIDTH + 1), ["height 40, width 60", "height 40, width 61"]),
        ((HEIGHT - 5, WIDTH), ["height 40, width 60", "height 35, width 60"]),
        ((2 * HEIGHT, 2 * WIDTH), ["height 40, width 60", "height 80, width 120"]),
        ((WIDTH, HEIGHT), ["height 60, width 40", "height and width are swapped"]),
    ],
)
def test_an_image_of_another_size_is_named(tmp_path: Path, annotated: tuple[int, int], words: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        read(tmp_path, *annotated)
    assert all(word in str(raised.value) for word in [*words, str(tmp_path / "a.png"), "image id 1", "another size"])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_orientation_is_applied_where_the_size_asks_for_it(tmp_path: Path, orientation: int) -> None:
    stored = picture(HEIGHT, WIDTH)
    write_picture(tmp_path / "a.png", stored, orientation)
    upright = np.asarray(Image.open(tmp_path / "a.png"))
    turned = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1]}
    across = upright.transpose(1, 0, 2)
    turned |= {5: across, 6: across[:, ::-1], 7: across[::-1, ::-1], 8: across[::-1]}
    expected = turned[orientation]
    found = read(tmp_path, *expected.shape[:2])
    assert np.array_equal(found.numpy()[::-1], expected.transpose(2, 0, 1)), "mmcv reads blue, green, red"


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_an_orientation_is_left_aside_where_the_stored_pixels_were_annotated(tmp_path: Path, orientation: int) -> None:
    stored = picture(HEIGHT, WIDTH)
    write_picture(tmp_path / "a.png", stored, orientation)
    assert np.array_equal(read(tmp_path, HEIGHT, WIDTH).numpy()[::-1], stored.transpose(2, 0, 1))


def test_an_orientation_that_fits_neither_way_is_an_error(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", picture(HEIGHT, WIDTH), 6)
    with pytest.raises(UserError, match="another size"):
        read(tmp_path, HEIGHT, HEIGHT)


def test_a_sample_of_images_is_checked_before_any_job(tmp_path: Path) -> None:
    sizes = {"plain.png": (40, 60), "turned.png": (60, 40), "stored.png": (40, 60), "square.png": (50, 50)}
    for (name, _), orientation in zip(sizes.items(), (None, 6, 8, 3), strict=True):
        write_picture(tmp_path / name, picture(*((50, 50) if name == "square.png" else (40, 60))), orientation)
    found = check_sample(tmp_path, list(sizes), list(sizes.values()), [1, 2, 3, 4], seed=0)
    assert found == {"sampled": 4, "turned": 1, "as_stored": 1, "unclear": 1}
    assert len(orientation_remarks(found)) == 3
    assert orientation_remarks({"sampled": 4, "turned": 0, "as_stored": 0, "unclear": 0}) == []
    for broken, words in ((b"", "unreadable"), (None, "unreadable"), (b"\xff\xd8\xff\xe0 cut", "unreadable")):
        (tmp_path / "plain.png").unlink(missing_ok=True)
        if broken is not None:
            (tmp_path / "plain.png").write_bytes(broken)
        with pytest.raises(UserError, match=words) as raised:
            check_sample(tmp_path, list(sizes), list(sizes.values()), [1, 2, 3, 4], seed=0)
        assert "plain.png" in str(raised.value) and "image id 1" in str(raised.value)
    write_picture(tmp_path / "plain.png", picture(60, 40))
    with pytest.raises(UserError, match="height and width are swapped"):
        check_sample(tmp_path, list(sizes), list(sizes.values()), [1, 2, 3, 4], seed=0)


def test_the_sample_is_drawn_by_the_seed(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(12)]
    for name in names:
        write_picture(tmp_path / name, picture(8, 9), 3 if name < "2" else None)
    found = [check_sample(tmp_path, names, [(8, 9)] * 12, list(range(12)), seed=seed, count=5) for seed in (0, 0, 1, 2)]
    assert found[0] == found[1] and {f["sampled"] for f in found} == {5}
    assert len({f["unclear"] for f in found}) > 1


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["swapped", "cut"])
def test_loader_processes_say_the_same(tmp_path: Path, workers: int, kind: str) -> None:
    image = picture(WIDTH, HEIGHT) if kind == "swapped" else picture(HEIGHT, WIDTH)
    file = tmp_path / "a.jpg"
    Image.fromarray(image).save(file, quality=90)
    if kind == "cut":
        file.write_bytes(file.read_bytes()[:-200])
    write_data(tmp_path, [annotation(1, SQUARE)], file_name="a.jpg")
    data = StoreDataset(
        store=str(tmp_path / "store"),
        images=str(tmp_path),
        split=str(tmp_path / "split.json"),
        num_classes=1,
        pipeline=with_our_steps([STEPS[0], STEPS[2]]),
    )
    loader = DataLoader(data, num_workers=workers, sampler=SequentialSampler(range(1)), collate_fn=pseudo_collate)
    with pytest.raises(UserError) as raised:
        list(loader)
    lines = str(from_loader(raised.value) or raised.value).splitlines()
    assert (
        lines[0]
        == {"swapped": "the image is of another size than the annotation file says", "cut": "unreadable image"}[kind]
    )
    assert str(file) in lines[1] and "Traceback" not in "".join(lines)


def test_a_distributed_training_names_the_image(project: Path, tmp_path: Path) -> None:
    """It used to end with "the training diverged", or not at all."""

    def swapped(_: str, content: dict[str, Any]) -> None:
        for image in content["images"]:
            image["width"] += 7

    parts = rewritten(project, tmp_path, swapped)
    exp = experiment(project, dataset={"name": "swapped", **parts}, lst=None, split=None, calibrate={})
    paths = run_stages(exp, tmp_path / "results", "index", "split")
    ended = command_lines(torchrun(2), "base", exp.file, "--results", paths.results)
    assert all(code != 0 for code, _ in ended), "a process whose peer has ended ends too"
    told = [error for code, error in ended if code == 2 and "another size than the annotation file says" in error]
    assert told and "Traceback" not in told[0], ended
    assert not any("diverged" in error for _, error in ended)
