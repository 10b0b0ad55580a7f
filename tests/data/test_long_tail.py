"""Long-tailed versions of a data set."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltpipe import cli
from ltpipe.data.long_tail import Target, choose_quota, make_long_tailed, read_targets
from ltpipe.errors import UserError
from ltpipe.run.files import sha256_file

ROOT = Path(__file__).parents[2]


def document(federated: bool = False) -> dict[str, Any]:
    """Forty images; class 5 in all, class 2 in every second, class 9 in every fourth; up to three objects each."""
    images = [{"id": 100 + i, "file_name": f"{i}.png", "height": 9, "width": 9, "own": [i]} for i in range(40)]
    annotations = []
    for i in range(40):
        for category, every in ((5, 1), (2, 2), (9, 4)):
            for _ in range((i // every) % 3 + 1 if i % every == 0 else 0):
                box = [0.5, 0, 3, 3.25]
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": 100 + i, "category_id": category, "bbox": box,
                     "area": 9.75, "iscrowd": int(i == 3), "segmentation": [[0, 0, 3, 0, 3, 3.0]]}
                )  # fmt: skip
    if federated:
        for image in images:
            image |= {"neg_category_ids": [], "not_exhaustive_category_ids": [9] if image["id"] == 100 else []}
    extra = {"frequency": "f", "image_count": 1, "instance_count": 2} if federated else {}
    categories = [{"id": i, "name": f"c{i}", "supercategory": "x", **extra} for i in (2, 5, 9)]
    return {"info": {"year": 1}, "images": images, "annotations": annotations[::-1], "categories": categories}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "full.json"
    path.write_text(json.dumps(document()))
    return path


def counts(content: dict[str, Any]) -> Counter[int]:
    return Counter(a["category_id"] for a in content["annotations"])


def test_counts_are_reached_and_only_annotations_go(source: Path, tmp_path: Path) -> None:
    full, out = json.loads(source.read_text()), tmp_path / "lt.json"
    targets = [Target(5, 31), Target(2, 7, 4), Target(9, 3, name="c9")]
    record = make_long_tailed(source, out, targets, seed=3)
    made = json.loads(out.read_text())
    assert counts(made) == {5: 31, 2: 7, 9: 3}
    assert len({a["image_id"] for a in made["annotations"] if a["category_id"] == 2}) == 4
    # What stays is unchanged and in file order; images without annotations are gone.
    assert [a for a in full["annotations"] if a in made["annotations"]] == made["annotations"]
    filled = {a["image_id"] for a in made["annotations"]}
    assert made["images"] == [i for i in full["images"] if i["id"] in filled]
    assert made["categories"] == full["categories"]
    assert made["info"]["long_tail"]["seed"] == 3 and made["info"]["year"] == 1
    stored = json.loads((tmp_path / "lt.json.record.json").read_text())
    assert stored == record
    assert stored["sha256"] == sha256_file(out) and stored["source_sha256"] == sha256_file(source)
    assert {c["id"]: c["instance_count"] for c in stored["classes"]} == {5: 31, 2: 7, 9: 3}
    assert stored["images"] == len(filled) and stored["annotations"] == 41


def test_the_seed_decides(source: Path, tmp_path: Path) -> None:
    targets = [Target(5, 20), Target(2, 7), Target(9, 3)]
    made = []
    for seed in (0, 0, 1):
        make_long_tailed(source, tmp_path / "lt.json", targets, seed=seed)
        made.append(json.loads((tmp_path / "lt.json").read_text())["annotations"])
    assert made[0] == made[1] != made[2]


def test_unreachable_counts(source: Path, tmp_path: Path) -> None:
    targets = [Target(5, 80), Target(2, 7, 30), Target(9, 3)]
    with pytest.raises(UserError) as caught:
        make_long_tailed(source, tmp_path / "lt.json", targets)
    message = str(caught.value)
    assert "2 classes" in message and "5: 80 wanted, 79 in 40 there" in message and "7 in 30 images wanted" in message
    assert not (tmp_path / "lt.json").exists()


def test_targets_of_another_data_set(source: Path, tmp_path: Path) -> None:
    for targets in ([Target(5, 1), Target(2, 1)], [Target(5, 1, name="dog"), Target(2, 1), Target(9, 1)]):
        with pytest.raises(UserError, match="not those of this data set"):
            make_long_tailed(source, tmp_path / "lt.json", targets)


def test_quota_with_images_is_exact_where_it_can_be() -> None:
    """Compare with all choices of a small case."""
    per_image = np.array([1, 1, 2, 5, 7])
    from itertools import combinations

    for images in range(6):
        sums = {int(sum(per_image[list(c)])) for c in combinations(range(5), images)}
        for instances in range(17):
            quota = choose_quota(per_image, instances, images, np.random.default_rng(instances))
            if quota is not None:
                assert quota.sum() == instances and (quota > 0).sum() == images
                assert set((quota / per_image).tolist()) <= {0.0, 1.0}
            assert quota is None or instances in sums
    many = np.random.default_rng(0).integers(1, 9, 3000)
    for images, instances in ((300, 1111), (2999, int(many.sum()) - 1), (10, 10)):
        quota = choose_quota(many, instances, images, np.random.default_rng(1))
        assert quota is not None and quota.sum() == instances and (quota > 0).sum() == images


def test_quota_without_images_splits_at_most_one() -> None:
    per_image = np.random.default_rng(0).integers(3, 9, 50)
    for instances in (0, 1, 2, 50, int(per_image.sum()) - 1, int(per_image.sum())):
        quota = choose_quota(per_image, instances, None, np.random.default_rng(2))
        assert quota is not None and quota.sum() == instances
        assert ((quota > 0) & (quota < per_image)).sum() <= 1
    assert choose_quota(per_image, int(per_image.sum()) + 1, None, np.random.default_rng(2)) is None


def test_a_federated_file_admits_what_it_lost(tmp_path: Path) -> None:
    source, out = tmp_path / "full.json", tmp_path / "lt.json"
    source.write_text(json.dumps(document(federated=True)))
    make_long_tailed(source, out, [Target(5, 79), Target(2, 0), Target(9, 19)])
    made = json.loads(out.read_text())
    lists = {i["id"]: i["not_exhaustive_category_ids"] for i in made["images"]}
    assert lists[100] == [2, 9] and lists[101] == [] and lists[102] == [2]
    assert all(not {"frequency", "image_count", "instance_count"} & set(c) for c in made["categories"])


def test_class_index(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Labels 1..3 are categories 2, 5, 9; listed images keep all annotations of the class."""
    images = {1: [104, 102], 2: [100 + i for i in range(0, 40, 3)], 3: [100]}
    full = json.loads(source.read_text())
    of = {1: 2, 2: 5, 3: 9}
    label = {c: k for k, c in of.items()}
    objects = [(a["category_id"], a["image_id"]) for a in full["annotations"]]
    expected = Counter(c for c, image in objects if image in images[label[c]])
    index = {k: {"category_id": k, "img_id": v, "isntance_count": expected[of[k]]} for k, v in images.items()}
    (tmp_path / "index.pt").write_bytes(pickle.dumps(index))
    wanted = [{"id": c, "instance_count": expected[c], "image_count": len(images[k])} for k, c in of.items()]
    (tmp_path / "counts.json").write_text(json.dumps(wanted))
    arguments = ["make-lt", "--annotations", str(source), "--output", str(tmp_path / "lt.json")]
    arguments += ["--index", str(tmp_path / "index.pt"), "--counts", str(tmp_path / "counts.json")]
    assert cli.main(arguments) == 0
    assert f"{expected.total()} annotations" in capsys.readouterr().out
    assert counts(json.loads((tmp_path / "lt.json").read_text())) == expected

    wanted[0]["instance_count"] += 1
    (tmp_path / "counts.json").write_text(json.dumps(wanted))
    assert cli.main(arguments) == 2
    assert f"c2: {expected[2] + 1} wanted, {expected[2]} found" in capsys.readouterr().err
    index[1]["img_id"] = [104, 7]
    (tmp_path / "index.pt").write_bytes(pickle.dumps(index))
    assert cli.main(arguments) == 2
    assert "1 listed images are not in it, e.g. [7]" in capsys.readouterr().err
    assert cli.main(arguments[:5]) == 2
    assert "give --counts, --index or both" in capsys.readouterr().err


def test_coco_lt_counts() -> None:
    """Totals of SimCal's index, and the sizes of the bins with f = 20, m = 3."""
    targets = read_targets(ROOT / "configs" / "classes" / "coco_lt.json")
    counts = np.array([t.instance_count for t in targets])
    assert len(targets) == 80 and counts.sum() == 666_493
    assert np.bincount(np.searchsorted([20, 400, 8000], counts, side="right")).tolist() == [4, 24, 32, 20]
    named = {t.name: (t.id, t.instance_count, t.image_count) for t in targets}
    assert named["person"] == (1, 262_465, 64_115) and named["fire hydrant"] == (11, 11, 11)
    assert named["toothbrush"] == (90, 15, 14) and named["chair"] == (62, 38_491, 12_774)
    assert all(t.image_count is not None and t.image_count <= t.instance_count for t in targets)


def test_counts_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        read_targets(tmp_path / "none.json")
    (tmp_path / "other.json").write_text('[{"id": 1}]')
    with pytest.raises(UserError, match="instance_count"):
        read_targets(tmp_path / "other.json")
