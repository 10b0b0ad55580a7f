"""The toy data: deterministic, long-tailed, federated, with masks that match what is drawn."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ltpipe.data.statistics import class_statistics
from ltpipe.data.store import AnnotationStore
from ltpipe.data.store_writer import build_store
from ltpipe.data.toy import write_toy_data
from ltpipe.data.toy_draw import SHAPES, STYLES, Thing, draw_scene, outline, polygon_area
from ltpipe.errors import UserError
from ltpipe.frequency import frequency_groups

SMALL = {"num_classes": 12, "train_images": 30, "val_images": 12, "image_size": 64}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default data set."""
    folder = tmp_path_factory.mktemp("toy") / "data"
    write_toy_data(folder)
    return folder


def read(folder: Path, split: str) -> dict[str, Any]:
    return json.loads((folder / f"{split}.json").read_text())


def checksums(folder: Path) -> dict[str, str]:
    """Checksum of every JSON file's bytes and every image's pixels."""
    sums = {}
    for path in sorted(folder.rglob("*.*")):
        content = path.read_bytes() if path.suffix == ".json" else cv2.imread(str(path)).tobytes()
        sums[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return sums


def test_same_seed_same_data_other_seed_other_data(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_toy_data(tmp_path / name, seed=seed, **SMALL)
    first, again, other = (checksums(tmp_path / name) for name in "abc")
    assert len(first) == 3 + SMALL["train_images"] + SMALL["val_images"]
    assert first == again
    assert all(first[file] != other[file] for file in first)


def test_all_groups_of_the_long_tail(toy: Path) -> None:
    content = read(toy, "train")
    images = defaultdict(set)
    for annotation in content["annotations"]:
        images[annotation["category_id"]].add(annotation["image_id"])
    instances = Counter(annotation["category_id"] for annotation in content["annotations"])
    assert len(content["categories"]) == 36
    for category in content["categories"]:
        assert category["image_count"] == len(images[category["id"]])
        assert category["instance_count"] == instances[category["id"]]
    counts = sorted((category["image_count"] for category in content["categories"]), reverse=True)
    assert counts[0] == 450 and counts[-1] == 3
    groups = Counter(category["frequency"] for category in content["categories"])
    assert groups == Counter(frequency_groups(np.array(counts)))
    assert min(groups[letter] for letter in "rcf") >= 8


def test_rare_classes_share_shape_and_style_with_frequent_ones(toy: Path) -> None:
    def parts(letter: str) -> tuple[set[str], set[str]]:
        names = [c["name"].rsplit("_", 1) for c in read(toy, "train")["categories"] if c["frequency"] == letter]
        return {name[0] for name in names}, {name[1] for name in names}

    (rare_styles, rare_shapes), (styles, shapes) = parts("r"), parts("f")
    assert rare_styles <= styles and rare_shapes <= shapes


def test_validation_is_balanced_and_carries_training_counts(toy: Path) -> None:
    content = read(toy, "val")
    assert content["categories"] == read(toy, "train")["categories"]
    instances = Counter(annotation["category_id"] for annotation in content["annotations"])
    images = {pair: 1 for pair in ((a["category_id"], a["image_id"]) for a in content["annotations"])}
    per_class = Counter(category for category, _ in images)
    assert set(per_class.values()) == {per_class[1]} and len(per_class) == 36
    assert min(instances.values()) >= 12 and max(instances.values()) < 2 * min(instances.values())
    assert not {i["id"] for i in content["images"]} & {i["id"] for i in read(toy, "train")["images"]}


@pytest.mark.parametrize("split", ["train", "val"])
def test_federated_lists_are_consistent(toy: Path, split: str) -> None:
    content = read(toy, split)
    shown = defaultdict(set)
    for annotation in content["annotations"]:
        shown[annotation["image_id"]].add(annotation["category_id"])
    for image in content["images"]:
        negative = set(image["neg_category_ids"])
        assert negative and not negative & shown[image["id"]]
        assert set(image["not_exhaustive_category_ids"]) <= shown[image["id"]]
        assert len(negative | shown[image["id"]]) < 36
    assert 0.01 < np.mean([bool(image["not_exhaustive_category_ids"]) for image in content["images"]]) < 0.1


@pytest.mark.parametrize("split", ["train", "val"])
def test_masks_match_area_and_box(toy: Path, split: str) -> None:
    content = read(toy, split)
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    error = []
    for annotation in content["annotations"]:
        height, width = sizes[annotation["image_id"]]
        points = np.concatenate([np.array(p).reshape(-1, 2) for p in annotation["segmentation"]])
        assert (points >= 0).all() and (points <= [width, height]).all()
        x, y, w, h = annotation["bbox"]
        assert w > 1 and h > 1
        np.testing.assert_allclose([*points.min(0), *points.max(0)], [x, y, x + w, y + h], atol=0.011)
        rles = coco_mask.frPyObjects(annotation["segmentation"], height, width)
        error.append(coco_mask.area(coco_mask.merge(rles)) / annotation["area"] - 1)
    assert np.abs(error).max() < 0.2
    assert abs(np.mean(error)) < 0.01


def test_store_accepts_the_toy_data(toy: Path, tmp_path: Path) -> None:
    build_store(toy / "train.json", tmp_path / "store", fmt="lvis", image_folder=toy / "train", progress=False)
    store = AnnotationStore.open(tmp_path / "store")
    table = class_statistics(store).set_index("category_id")
    for category in read(toy, "train")["categories"]:
        row = table.loc[category["id"]]
        assert (row["image_count"], row["instance_count"]) == (category["image_count"], category["instance_count"])
    objects = np.diff(store.image_ptr)
    assert (objects == 0).sum() == 10 and objects[objects > 0].min() >= 1 and 3 <= objects.mean() <= 6
    image = cv2.imread(str(toy / "train" / store.image_file(0)))
    assert image.shape == (96, 96, 3) and image.std() > 5


def test_outline_follows_the_pixel_borders() -> None:
    mask = np.zeros((40, 40), bool)
    mask[8:24, 4:40] = True
    (polygon,) = outline(mask)
    points = np.array(polygon).reshape(-1, 2)
    assert {tuple(point) for point in points.tolist()} == {(1.0, 2.0), (10.0, 2.0), (10.0, 6.0), (1.0, 6.0)}
    assert polygon_area(points) == mask.sum() / 16
    assert outline(np.zeros((40, 40), bool)) == []


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_visible_stays_visible(shape: str) -> None:
    things = [Thing(shape, style) for style in STYLES]
    image, masks = draw_scene(np.random.default_rng(0), 96, things)
    assert image.shape == (96, 96, 3) and image.dtype == np.uint8
    assert (np.sum(masks, axis=0) <= 1).all()
    for mask in masks:
        area = sum(polygon_area(np.array(polygon).reshape(-1, 2)) for polygon in outline(mask))
        assert area == pytest.approx(mask.sum() / 16, rel=0.08)


def test_what_was_drawn_is_replaced_and_other_files_are_safe(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    write_toy_data(folder, **SMALL)
    (folder / "thesis.tex").write_text("mine")
    write_toy_data(folder, **SMALL | {"train_images": 20, "val_images": 5, "seed": 1})
    assert len(list((folder / "train").iterdir())) == 20 and len(list((folder / "val").iterdir())) == 5
    assert (folder / "thesis.tex").read_text() == "mine"
    (folder / "train" / "000001.png").write_bytes(b"mine")
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    with pytest.raises(UserError, match=r"has changed since ltpipe made it[\s\S]*000001.png"):
        write_toy_data(folder, **SMALL)
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"other files[\s\S]*thesis.tex"):
        write_toy_data(tmp_path / "mine", **SMALL)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_classes": 55}, "num_classes"),
        ({"image_size": 20}, "image_size"),
        ({"most_images": 31}, "most_images"),
        ({"fewest_images": 0}, "fewest_images"),
        ({"seed": -1}, "seed"),
        ({"num_classes": 54, "train_images": 12}, "do not fit"),
    ],
)
def test_impossible_options(tmp_path: Path, options: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        write_toy_data(tmp_path / "toy", **SMALL | options)
    assert not (tmp_path / "toy").exists()
