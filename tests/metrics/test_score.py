"""``ltpipe score``: the numbers of the official packages from the files people have, tables, a page, clear errors."""

from __future__ import annotations

import contextlib
import copy
import csv
import gzip
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ltpipe
from ltpipe.cli import main
from ltpipe.errors import UserError
from tests.helpers.detection_cases import GROUND_TRUTH

ORACLES = Path(__file__).parents[1] / "oracles" / "data"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
Make = Callable[[str, str, int], list[dict[str, Any]]]
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
RECALLS = {"AR": "AR@300", "ARs": "ARs@300", "ARm": "ARm@300", "ARl": "ARl@300"}


def write(path: Path, content: Any) -> Path:
    """Write JSON."""
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture
def found(make_detections: Make, tmp_path: Path) -> dict[str, Path]:
    """Results files of boxes and masks."""
    return {kind: write(tmp_path / f"{kind}_found.json", make_detections("ties", kind, 3)) for kind in ("bbox", "segm")}


def test_equals_lvis_to_the_last_digit(
    found: dict[str, Path], gt_path: Path, official_lvis_evaluation: Any, tmp_path: Path
) -> None:
    """Several files side by side, each on what it holds."""
    command = ["score", "--annotations", str(gt_path), *map(str, found.values()), "--json", str(tmp_path / "out.json")]
    assert main(command) == 0
    scores = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert {stem: list(kinds) for stem, kinds in scores.items()} == {
        "bbox_found": ["bbox"],
        "segm_found": ["segm", "boundary"],
    }
    for kind, path in found.items():
        evaluation = official_lvis_evaluation(gt_path, json.loads(path.read_text()), kind)
        official, ours = evaluation.get_results(), scores[path.stem][kind]
        expected = {name: official[RECALLS.get(name, name)] for name in (*NAMES, *RECALLS)}
        assert {name: ours[name] for name in expected} == expected
        assert ours["bAP"] is None and not any(name.startswith("bin/") for name in ours)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_equals_pycocotools_to_the_last_digit(
    iou_type: str, found: dict[str, Path], gt_document: dict[str, Any], tmp_path: Path
) -> None:
    """Plain COCO annotations; and the COCO protocol forced upon federated ones."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    plain = copy.deepcopy(gt_document)
    for ann in plain["annotations"]:
        ann["iscrowd"] = 0
    federated = write(tmp_path / "federated.json", plain)
    for image in plain["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    path = write(tmp_path / "plain.json", plain)
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO(str(path))
        official = COCOeval(gt, gt.loadRes(str(found[iou_type])), iou_type)
        official.evaluate()
        official.accumulate()
        official.summarize()
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    expected = [*official.stats[:6], *official.stats[8:12]]
    for file, options in ((path, {}), (federated, {"protocol": "coco"})):
        ours = ltpipe.score(file, found[iou_type], iou_types=[iou_type], **options)[f"{iou_type}_found"][iou_type]
        assert [ours[name] for name in (*names, "AR", "ARs", "ARm", "ARl")] == expected


def test_groups_and_bins_count_the_training_annotations(
    found: dict[str, Path], gt_path: Path, gt_document: dict[str, Any], official_lvis_evaluation: Any, tmp_path: Path
) -> None:
    """By what is in the training file, not by what categories say of themselves; crowds do not count."""
    train = copy.deepcopy(gt_document)
    image, categories = train["images"][0], [category["id"] for category in train["categories"]]
    template = train["annotations"][0] | {"image_id": image["id"], "iscrowd": 0}
    train["images"] = [image | {"id": number, "file_name": f"{number}.jpg"} for number in range(1, 130)]
    anns = [
        template | {"category_id": category, "image_id": number}
        for place, category in enumerate(categories)
        for number in range(1, (5, 10, 11, 100, 101)[place % 5] + 1)
        for _ in range(1 + place % 2)
    ]
    anns += [template | {"category_id": categories[0], "image_id": number, "iscrowd": 1} for number in range(1, 120)]
    train["annotations"] = [ann | {"id": number} for number, ann in enumerate(anns, 1)]
    groups = dict(zip(categories, "rrccf" * len(categories), strict=False))
    gt = copy.deepcopy(gt_document)
    for category in gt["categories"]:
        category["frequency"] = groups[category["id"]]
    changed, path = write(tmp_path / "changed.json", gt), write(tmp_path / "train.json", train)
    official = official_lvis_evaluation(changed, json.loads(found["bbox"].read_text()), "bbox").get_results()
    ours = ltpipe.score(gt_path, found["bbox"], train=path, bins=[10, 100])["bbox_found"]["bbox"]
    assert {name: ours[name] for name in NAMES} == {name: official[name] for name in NAMES}
    assert ours["bAP"] == pytest.approx((ours["bin/0-10"] + ours["bin/10-100"] + ours["bin/100+"]) / 3)
    wider = ltpipe.score(gt_path, found["bbox"], train=path, frequency_limits=[9, 100])["bbox_found"]["bbox"]
    assert wider["APr"] != ours["APr"] and wider["APf"] == ours["APf"]

    train["categories"][3]["name"] = "something else"
    with pytest.raises(UserError, match="the classes of the training annotations are not those of"):
        ltpipe.score(gt_path, found["bbox"], train=write(path, train))


def test_without_frequency_there_are_no_groups(
    found: dict[str, Path], gt_document: dict[str, Any], tmp_path: Path
) -> None:
    """Validation counts are never taken for training counts."""
    gt = copy.deepcopy(gt_document)
    for category in gt["categories"]:
        del category["frequency"]
    ours = ltpipe.score(write(tmp_path / "gt.json", gt), found["bbox"])["bbox_found"]["bbox"]
    assert ours["AP"] > 0 and (ours["APr"], ours["APc"], ours["APf"]) == (None, None, None)


def test_output_folder(found: dict[str, Path], gt_path: Path, tmp_path: Path, capsys: Any) -> None:
    """A page, tables and figures; a second run replaces them, a folder of others' files is left alone."""
    folder = tmp_path / "out"
    command = ["score", "--annotations", str(gt_path), "--train", str(gt_path), *map(str, found.values())]
    for _ in range(2):
        assert main([*command, "--output", str(folder)]) == 0
    assert "Boundaries, percent" in (text := capsys.readouterr().out) and text.count("segm_found") >= 2
    record = json.loads((folder / "record.json").read_text())
    assert all((folder / name).is_file() for name in record["files"]) and len(record["files"]) > 3
    assert set(record["inputs"]) == {"annotations", "train", "detections:bbox_found", "detections:segm_found"}
    with open(folder / "per_class.csv", newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert {(row["checkpoint"], row["iou_type"]) for row in rows} == {
        ("bbox_found", "bbox"),
        ("segm_found", "segm"),
        ("segm_found", "boundary"),
    }
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "bbox_found" in page and 'id="bins"' in page and "band of 0.02" in page
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "report.html").write_text("my own")
    assert main([*command, "--output", str(tmp_path / "mine")]) == 2
    assert (tmp_path / "mine" / "report.html").read_text() == "my own"
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["report.html"]
    for other in (found["bbox"], gt_path, write(tmp_path / "mine.json", {"AP": {"a": 1}})):
        before = other.read_bytes()
        assert main([*command, "--json", str(other)]) == 2
        assert other.read_bytes() == before
    assert main([*command, "--json", str(tmp_path / "new.json")]) == 0
    assert main([*command, "--json", str(tmp_path / "new.json")]) == 0


@pytest.mark.parametrize("name", ["fixed_bbox_small_k5", "fixed_segm_small", "pool_bbox_small", "pool_segm_small"])
def test_limits_per_class(name: str, tmp_path: Path) -> None:
    """The published cases: ordinary AP, AP-fixed where its limit does not cut, AP-pool."""
    method = "ap_fixed" if name.startswith("fixed") else "ap_pool"
    case = json.loads((ORACLES / method / f"{name}.json").read_text(encoding="utf-8"))
    gt, found = write(tmp_path / "gt.json", case["ground_truth"]), write(tmp_path / "found.json", case["predictions"])
    ours = ltpipe.score(gt, found, iou_types=[case["iou_type"]])["found"][case["iou_type"]]
    letters: dict[str, str]
    if method == "ap_fixed":
        expected = case["results_300_per_image"]
        letters = {key: key for key in NAMES if key != "APl"}
        letters |= {} if "k5" in name else {key: f"{key}_fixed" for key in ("AP", "APr", "APc", "APf")}
    else:
        expected = case["results"]
        letters = {f"AP-pooled-{pool}": f"AP{'' if pool == 'all' else pool}_pool" for pool in ("all", "r", "c", "f")}
    for published, own in letters.items():
        assert ours[own] == pytest.approx(expected[published], abs=1e-9), own


def test_what_goes_wrong(tmp_path: Path) -> None:
    """A confusion, an object nobody sees, one seen twice, one out of place; costs belong to the classes of objects."""
    images = [
        {"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 100, "not_exhaustive_category_ids": []}
        | {"neg_category_ids": [1, 2, 3]}
        for i in range(1, 5)
    ]
    boxes = [(1, 1, [0, 0, 20, 20]), (2, 1, [0, 0, 20, 20]), (3, 2, [50, 50, 30, 30]), (4, 3, [10, 10, 40, 40])]
    anns = [
        {"id": n, "image_id": image, "category_id": category, "bbox": [x, y, w, h], "area": w * h}
        | {"segmentation": [[x, y, x + w, y, x + w, y + h]]}
        for n, (image, category, (x, y, w, h)) in enumerate(boxes, 1)
    ]
    names = [(1, "cat", "r"), (2, "dog", "c"), (3, "cow", "f")]
    categories = [{"id": i, "name": name, "frequency": letter} for i, name, letter in names]
    gt = write(tmp_path / "gt.json", {"images": images, "annotations": anns, "categories": categories})
    found = [
        (1, 1, 0.9, [0, 0, 20, 20]),
        (1, 1, 0.8, [1, 0, 20, 20]),  # seen twice
        (2, 2, 0.7, [0, 0, 20, 20]),  # a cat taken for a dog
        (2, 3, 0.5, [0, 0, 20, 20]),  # and, less, for a cow
        (1, 2, 0.65, [0, 0, 20, 20]),  # the cat that is found, less, for a dog
        (4, 3, 0.6, [30, 10, 40, 40]),  # out of place
    ]  # nothing comes near the dog
    keys = ("image_id", "category_id", "score", "bbox")
    detections = write(tmp_path / "found.json", [dict(zip(keys, item, strict=True)) for item in found])
    ours = ltpipe.score(gt, detections, output=tmp_path / "out")["found"]["bbox"]
    # Half of the cats are found, which is 51 of 101 recalls; no dog, no cow.
    assert ours["AP50"] == pytest.approx(51 / 101 / 3)
    # The second cat comes after the one that was seen twice.
    assert ours["dAP_Cls"] == pytest.approx(2 / 3 * 50 / 101 / 3)
    assert ours["dAP_Cls_r"] == pytest.approx(2 / 3 * 50 / 101)
    assert (ours["dAP_Cls_c"], ours["dAP_Cls_f"]) == (0.0, 0.0)
    assert ours["dAP_Loc"] == pytest.approx(1 / 3) and ours["dAP_Loc_f"] == pytest.approx(1.0)
    assert ours["dAP_Dupe"] == ours["dAP_Both"] == ours["dAP_Bkg"] == 0.0
    assert ours["dAP_Miss_c"] is None, "without the dog that is missed there is none"
    with open(tmp_path / "out" / "confusions.csv", newline="", encoding="utf-8") as handle:
        rows = [(row["meant"], row["taken_for"], row["count"]) for row in csv.DictReader(handle)]
    assert rows == [("cat", "dog", "1")]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "What goes wrong" in page and "<li><b>cat</b> taken for <b>dog</b> once</li>" in page


def test_nothing_found_is_measured_like_the_others(found: dict[str, Path], gt_path: Path, tmp_path: Path) -> None:
    scores = ltpipe.score(gt_path, [write(tmp_path / "none.json", []), found["segm"]])
    assert scores["none"]["segm"]["AP"] == 0.0 and set(scores["none"]) == {"segm", "boundary"}
    assert ltpipe.score(gt_path, tmp_path / "none.json")["none"]["bbox"]["AP"] == 0.0


def test_torch_is_not_loaded(gt_path: Path, found: dict[str, Path]) -> None:
    """Neither by the function nor by the command, nor anything at all by the package itself."""
    run = [sys.executable, "-c"]
    code = (
        "import sys, ltpipe\n"
        "assert not {'numpy', 'pandas'} & set(sys.modules)\n"
        f"scores = ltpipe.score({str(gt_path)!r}, {str(found['bbox'])!r}, train={str(gt_path)!r})\n"
        f"from ltpipe.cli import main; main(['score', '--annotations', {str(gt_path)!r}, {str(found['bbox'])!r}])\n"
        "print({'torch', 'mmengine', 'mmdet', 'mmcv', 'hotcoco', 'vernier'} & set(sys.modules))"
    )
    done = subprocess.run([*run, code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
    with pytest.raises(AttributeError, match="no attribute 'scores'"):
        _ = ltpipe.scores


def change(content: list[dict[str, Any]], **keys: Any) -> list[dict[str, Any]]:
    """Change the first two detections."""
    return [item | keys for item in content[:2]] + content[2:]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda d, gt: change(d, image_id=-5), ["2 of {n} detections with 1 unknown image ids: -5", "100 images"]),
        (lambda d, gt: change(d, category_id=77777, image_id=3), ["1 unknown image ids: 3;", "category ids: 77777"]),
        (lambda d, gt: change(d, category_id="acornn"), ["unknown category ids: 'acornn'", "did you mean 'acorn'"]),
        (lambda d, gt: gt, ["these are annotations, not detections"]),
        (lambda d, gt: {"AP": 0.5}, ["not a results file", "keys AP"]),
        (lambda d, gt: "text", ["not a results file", "begins with"]),
        (lambda d, gt: [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}], ["missing required field `score`"]),
        (lambda d, gt: change(d, score=float("nan")), ["not finite", "NaN at byte"]),
    ],
)
def test_wrong_detections(
    content: Any, words: list[str], make_detections: Make, gt_path: Path, gt_document: Any, tmp_path: Path, capsys: Any
) -> None:
    """One clear error, with counts, exit code 2."""
    detections = make_detections("plain", "bbox", 1)
    path = write(tmp_path / "found.json", content(detections, gt_document))
    assert main(["score", "--annotations", str(gt_path), str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ltpipe score: ") and "found.json" in error
    for word in words:
        assert word.format(n=len(detections)) in error, error


def test_wrong_files(found: dict[str, Path], gt_path: Path, tmp_path: Path) -> None:
    """No JSON, cut off, missing, damaged gzip, detections as annotations, two files of one name, no such option."""
    text = found["bbox"].read_text()
    (tmp_path / "cut.json").write_text(text[:500])
    (tmp_path / "model.pth").write_bytes(b"PK\x03\x04")
    (tmp_path / "damaged.json.gz").write_bytes(gzip.compress(text.encode())[:300])
    (tmp_path / "empty.json").write_text("")
    (tmp_path / "other").mkdir()
    again = tmp_path / "other" / found["bbox"].name
    again.write_text(text)
    for files, message in (
        ("cut.json", "cut off"),
        ("model.pth", "not a results file"),
        ("damaged.json.gz", "damaged gzip file"),
        ("empty.json", "is empty"),
        ("missing.json", "cannot read the results file"),
        ([found["bbox"], again], "two files of detections have one name"),
        ([], "no file of detections"),
    ):
        paths = tmp_path / files if isinstance(files, str) else files
        with pytest.raises(UserError, match=message):
            ltpipe.score(gt_path, paths)
    with pytest.raises(UserError, match="annotation file"):
        ltpipe.score(found["bbox"], found["bbox"])
    with pytest.raises(UserError, match="no masks to evaluate"):
        ltpipe.score(gt_path, found["bbox"], iou_types=["segm"])
    with pytest.raises(UserError, match="unknown IoU type"):
        ltpipe.score(gt_path, found["bbox"], iou_types=["keypoints"])  # type: ignore[list-item]
    with pytest.raises(UserError, match="image folder not found"):
        ltpipe.score(gt_path, found["bbox"], images=tmp_path / "nowhere")
    plain = json.loads(GROUND_TRUTH.read_text())
    for image in plain["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    with pytest.raises(UserError, match="LVIS protocol needs"):
        ltpipe.score(write(tmp_path / "plain.json", plain), found["bbox"], protocol="lvis")
