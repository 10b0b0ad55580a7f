"""One annotation file parted into training and validation images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltpipe.cli import main
from ltpipe.data.train_val import Groups, Recipe, draw, make_split, sentences
from ltpipe.errors import UserError

COUNTS = (1, 2, 3, 5, 9, 40)  # images of each class


def document(**changes: Any) -> dict[str, Any]:
    """Sixty images, class k in COUNTS[k] of them, some without objects; ids and order as they come."""
    generator = np.random.default_rng(4)
    images = [
        {
            "id": 7 * i + 3,
            "width": 20,
            "height": 10,
            "file_name": f"scene{i % 12}/{i}.jpg",
            "video_id": i // 5,
            "x": [i],
        }
        for i in range(60)
    ]
    annotations: list[dict[str, Any]] = []
    for label, count in enumerate(COUNTS):
        for image in generator.permutation(60)[:count].tolist():
            for _ in range(1 + image % 2):
                annotations.append(
                    {"id": len(annotations), "image_id": images[image]["id"], "category_id": 10 + label, "iscrowd": 0,
                     "bbox": [1, 1, 5, 5.5], "area": 27.5, "segmentation": [[1, 1, 6, 1, 6, 6.5]]}
                )  # fmt: skip
    categories = [{"id": 10 + k, "name": f"c{k}", "frequency": "f", "image_count": n} for k, n in enumerate(COUNTS)]
    whole = {"info": {"year": 2020}, "videos": [{"id": 0}], "images": images[::-1], "annotations": annotations}
    return whole | {"categories": categories} | changes


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "all.json"
    file.write_text(json.dumps(document()))
    return file


def parts(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return json.loads((folder / "train.json").read_text()), json.loads((folder / "val.json").read_text())


def images_per_class(content: dict[str, Any]) -> list[int]:
    pairs = {(a["image_id"], a["category_id"]) for a in content["annotations"]}
    return [sum(category == 10 + k for _, category in pairs) for k in range(len(COUNTS))]


def test_every_record_is_in_one_part(source: Path, tmp_path: Path) -> None:
    record = make_split(source, tmp_path / "split", Recipe(fraction=0.25, seed=1))
    whole, (train, val) = document(), parts(tmp_path / "split")
    for key, ident in (("images", "id"), ("annotations", "id")):
        assert sorted(train[key] + val[key], key=lambda r: r[ident]) == sorted(whole[key], key=lambda r: r[ident])
        for part in (train, val):
            assert part[key] == [one for one in whole[key] if one in part[key]], "in file order"
    for part in (train, val):
        assert {a["image_id"] for a in part["annotations"]} <= {image["id"] for image in part["images"]}
        assert part["categories"] == [{"id": c["id"], "name": c["name"]} for c in whole["categories"]]
        assert part["videos"] == whole["videos"] and part["info"]["year"] == 2020
    assert [c["train"] for c in record["classes"]] == images_per_class(train)
    assert [c["val"] for c in record["classes"]] == images_per_class(val)
    assert record["parts"]["val"] == {"images": len(val["images"]), "annotations": len(val["annotations"])}


@pytest.mark.parametrize("seed", range(5))
def test_rare_classes_are_validated_and_all_have_their_share(source: Path, tmp_path: Path, seed: int) -> None:
    make_split(source, tmp_path / "split", Recipe(fraction=0.25, seed=seed))
    train, val = parts(tmp_path / "split")
    found = images_per_class(val)
    assert found[:4] == [0, 1, 1, 1], "one image trains; of two to five one validates"
    assert abs(found[4] - 2) <= 1 and abs(found[5] - 10) <= 1 and abs(len(val["images"]) - 15) <= 2
    assert images_per_class(train)[0] == 1


def test_seeds(source: Path, tmp_path: Path) -> None:
    def drawn(seed: int) -> bytes:
        make_split(source, tmp_path / "split", Recipe(seed=seed))
        return (tmp_path / "split" / "val.json").read_bytes()

    assert drawn(0) == drawn(0) != drawn(1)


@pytest.mark.parametrize(
    ("recipe", "group"),
    [
        (Recipe(group_by="video_id"), lambda image: image["video_id"]),
        (Recipe(group_by="file_name", group_pattern="^[^/]+"), lambda image: image["file_name"].split("/")[0]),
        (Recipe(group_by="file_name", group_pattern=r"(\d)\.jpg"), lambda image: image["file_name"][-5]),
        (Recipe(group_by="x"), lambda image: image["x"][0]),
    ],
)
def test_groups_stay_together(source: Path, tmp_path: Path, recipe: Recipe, group: Any) -> None:
    record = make_split(source, tmp_path / "split", recipe)
    train, val = ({group(image) for image in part["images"]} for part in parts(tmp_path / "split"))
    assert train and val and not train & val and record["groups"] == len(train | val)
    whole = document()
    owner = {image["id"]: group(image) for image in whole["images"]}
    for label, found in enumerate(record["classes"]):
        several = len({owner[a["image_id"]] for a in whole["annotations"] if a["category_id"] == 10 + label}) > 1
        assert (found["train"] > 0) and (found["val"] > 0) is several, found


def test_large_groups_are_moved_for_classes_that_one_part_lacks() -> None:
    """Class 0 only in two groups of nine images, which training would both take; class 1 everywhere."""
    sizes = np.array([9, 9, 1, 1])
    pairs = np.array([[0, 0, 9], [1, 0, 9], [0, 1, 9], [1, 1, 9], [2, 1, 1], [3, 1, 1]])
    for seed in range(4):
        chosen = draw(Groups(sizes, *pairs.T, num_classes=2), 0.1, seed)
        assert chosen[:2].sum() == 1 and not chosen.all()


def test_no_class_is_taken_from_training() -> None:
    """Classes 0 and 1 share one group; class 2 is in that group and in another that holds all of class 3."""
    pairs = np.array([[0, 0, 1], [0, 1, 1], [0, 2, 1], [1, 2, 1], [1, 3, 1], [2, 4, 1], [3, 4, 1]])
    for seed in range(4):
        chosen = draw(Groups(np.ones(4, np.int64), *pairs.T, num_classes=5), 0.5, seed)
        assert not chosen[:2].any() and chosen[2:].sum() == 1


def test_classes_in_one_part_only_are_named(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["make-split", "--annotations", str(source), "--output", str(tmp_path / "split"), "--fraction", "0.1"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert (
        "1 classes have no image in val (they, or another class of their images, would have none in train): c0" in said
    )
    assert said.splitlines() == sentences(json.loads((tmp_path / "split" / "record.json").read_text()))


def test_federated_files(tmp_path: Path) -> None:
    content = document()
    for image in content["images"]:
        image |= {"neg_category_ids": [11], "not_exhaustive_category_ids": []}
    (tmp_path / "lvis.json").write_text(json.dumps(content))
    make_split(tmp_path / "lvis.json", tmp_path / "split", Recipe())
    train, val = parts(tmp_path / "split")
    assert all(image["neg_category_ids"] == [11] for image in train["images"] + val["images"])
    assert "frequency" not in train["categories"][0]


@pytest.mark.parametrize(
    ("changes", "recipe", "words"),
    [
        ({}, {"group_by": "camera"}, "60 of 60"),
        ({}, {"group_by": "file_name", "group_pattern": "nothing"}, "with nothing in it"),
        ({}, {"group_by": "file_name", "group_pattern": "("}, "no regular expression"),
        ({}, {"group_pattern": "x"}, "a pattern without a key"),
        ({}, {"fraction": 1.0}, "between 0 and 1"),
        ({"images": document()["images"][:1], "annotations": []}, {}, "1 groups of images; 0.2 of them is none"),
        ({"images": document()["images"][:2], "annotations": []}, {"fraction": 0.9}, "leaves none"),
        ({"images": document()["images"][:50]}, {}, "image_id is not in images"),
    ],
)
def test_refusals(tmp_path: Path, changes: dict[str, Any], recipe: dict[str, Any], words: str) -> None:
    file = tmp_path / "all.json"
    file.write_text(json.dumps(document(**changes)))
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        make_split(file, tmp_path / "split", Recipe(**recipe))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.json"]


def test_nothing_of_others_is_replaced(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "split"
    folder.mkdir()
    (folder / "train.json").write_text("mine")
    with pytest.raises(UserError, match="the folder holds other files"):
        make_split(source, folder, Recipe())
    (folder / "train.json").unlink()
    make_split(source, folder, Recipe())
    make_split(source, folder, Recipe(seed=2))
    inside = folder / "train.json"
    with pytest.raises(UserError, match="is an input"):
        make_split(inside, folder, Recipe())
