"""``ltpipe predict``: any images and videos, the detections of `evaluate`, broken files told of at the end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest

import ltpipe
from ltpipe.cli import main
from ltpipe.metrics.predictions import Predictions
from ltpipe.pipeline.paths import Paths
from tests.helpers.tiny_project import run_stages

if TYPE_CHECKING:
    from conftest import Chain


@pytest.fixture(scope="module")
def measured(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """The chain with an evaluation of its last phase."""
    paths = chain.copy(tmp_path_factory.mktemp("measured"))
    return run_stages(chain.exp, paths.results, ("evaluate", "phase2"))


def predict(chain: Chain, paths: Paths, output: Path, *more: object) -> int:
    """Run the command on the last phase."""
    named = [str(chain.exp.file), "--checkpoint", "phase2", "--results", str(paths.results)]
    return main(["predict", *named, "--output", str(output), *map(str, more)])


def written(output: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Detections and images."""
    return tuple(json.loads((output / name).read_text()) for name in ("detections.json", "images.json"))


def test_it_finds_what_evaluate_finds(chain: Chain, measured: Paths, tmp_path: Path) -> None:
    """All of it, in batches of one, under the file names; COCO's own tools read the two files together."""
    assert predict(chain, measured, tmp_path / "out", chain.folder / "data/val", "--score", 0, "--no-pictures") == 0
    found, images = written(tmp_path / "out")
    ids = {i["file_name"]: i["id"] for i in json.loads(chain.exp.dataset.val.annotations.read_text())["images"]}
    known = {Path(name).name: number for name, number in ids.items()}
    theirs = Predictions.open(measured.predictions("phase2"))
    assert theirs.boxes is not None and theirs.masks is not None and len(theirs) == len(found) > 0

    def rows(images: Any, categories: Any, scores: Any, boxes: Any, masks: Any) -> list[tuple[Any, ...]]:
        boxes = [tuple(np.float32(box).tolist()) for box in boxes]
        return sorted(zip(images, categories, np.float32(scores).tolist(), boxes, masks, strict=True))

    columns = zip(*((known[r["file_name"]], r["category_id"], r["score"], r["bbox"],
                     r["segmentation"]["counts"]) for r in found), strict=True)  # fmt: skip
    masks = [text.decode() for text in theirs.masks.counts(np.arange(len(theirs)))]
    expected = rows(theirs.image_ids.tolist(), theirs.category_ids.tolist(), theirs.scores, theirs.boxes, masks)
    assert rows(*columns) == expected
    assert not (tmp_path / "out" / "pictures").exists()

    from pycocotools.coco import COCO

    names = {category["id"]: category["name"] for category in images["categories"]}
    loaded = COCO(str(tmp_path / "out" / "images.json")).loadRes(str(tmp_path / "out" / "detections.json"))
    assert len(loaded.anns) == len(found)
    assert {r["category"] for r in found} == {names[r["category_id"]] for r in found}


def test_thresholds_pictures_and_crops(chain: Chain, measured: Paths, tmp_path: Path) -> None:
    """One score for all classes and another for one; a picture per image, a crop per object."""
    folder = chain.folder / "data/val"
    predict(chain, measured, tmp_path / "all", folder, "--score", 0, "--no-pictures")
    found, _ = written(tmp_path / "all")
    scores = sorted(r["score"] for r in found)
    name, middle = found[0]["category"], scores[len(scores) // 2]
    options = ["--score", f"{name}=1", "--score", middle, "--crops", "--batch-size", 1]
    assert predict(chain, measured, tmp_path / "out", folder, *options) == 0
    kept, images = written(tmp_path / "out")
    wanted = [r for r in found if r["score"] >= middle and r["category"] != name]
    assert [r["score"] for r in kept] == [r["score"] for r in wanted] and 0 < len(kept) < len(found)
    drawn = sorted(file.stem for file in (tmp_path / "out" / "pictures").iterdir())
    assert drawn == sorted(Path(image["file_name"]).stem for image in images["images"])
    picture = cv2.imread(str(next((tmp_path / "out" / "pictures").iterdir())))
    assert max(picture.shape) == 640  # images of 64 pixels have no room for labels
    assert len(list((tmp_path / "out" / "crops").rglob("*.jpg"))) == len(kept)


def test_half_precision(chain: Chain, measured: Paths, tmp_path: Path) -> None:
    """Backbone and heads compute in bfloat16: the best detections stay, their numbers move a little."""
    folder = chain.folder / "data/val"
    best = []
    for precision in ("fp32", "bf16"):
        output = tmp_path / precision
        assert predict(chain, measured, output, folder, "--score", 0, "--no-pictures", "--precision", precision) == 0
        found, _ = written(output)
        best.append(max(found, key=lambda record: record["score"])["score"])
    assert best[0] != best[1] and best[1] == pytest.approx(best[0], rel=0.1)


def test_videos_files_and_patterns(chain: Chain, measured: Paths, tmp_path: Path) -> None:
    """A video frame by frame, beside a file that is named twice."""
    images = sorted((chain.folder / "data/val").iterdir())
    shutil.copy(images[0], tmp_path / "one.png")
    video = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, (64, 64))
    for file in images[:5]:
        video.write(cv2.imread(str(file)))
    video.release()
    given = [tmp_path / "one.png", tmp_path / "*.png", tmp_path / "clip.avi"]
    assert predict(chain, measured, tmp_path / "out", *given, "--every", 2, "--score", 0) == 0
    found, listed = written(tmp_path / "out")
    frames = [f"clip.avi/{number:06d}.jpg" for number in (0, 2, 4)]
    assert [image["file_name"] for image in listed["images"]] == ["one.png", *frames]
    assert [image.get("frame") for image in listed["images"]] == [None, 0, 2, 4]
    assert {r["file_name"] for r in found} == {"one.png", *frames}
    assert (tmp_path / "out/pictures/clip.avi/000004.jpg").is_file()


def test_broken_files_are_told_of_at_the_end(
    chain: Chain, measured: Paths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files that end early, hold something else or nothing, and a video without a frame: the others are done."""
    folder = tmp_path / "images"
    folder.mkdir()
    images = sorted((chain.folder / "data/val").iterdir())
    for place, file in enumerate(images[:2]):
        shutil.copy(file, folder / f"{place}.png")
    whole = cv2.imencode(".jpg", cv2.imread(str(images[0])))[1].tobytes()
    (folder / "a.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "b.png").write_text("no image")
    (folder / "c.jpg").write_bytes(b"")
    (folder / "d.mp4").write_bytes(b"no video")
    (folder / "notes.txt").write_text("not meant")
    assert predict(chain, measured, tmp_path / "out", folder, "--batch-size", 3) == 2
    _, listed = written(tmp_path / "out")
    assert [image["file_name"] for image in listed["images"]] == ["0.png", "1.png"]
    error = capsys.readouterr().err
    assert "4 files or frames could not be read" in error
    assert all(f"{name}: " in error for name in ("a.jpg", "b.png", "c.jpg", "d.mp4")) and "notes" not in error


def test_an_exported_detector_is_one_too(chain: Chain, measured: Paths, tmp_path: Path) -> None:
    """Its labels are in another order; what it finds is the same."""
    named = [str(chain.exp.file), "--checkpoint", "phase2", "--results", str(measured.results)]
    assert main(["export", *named, "--output", str(tmp_path / "exported")]) == 0
    folder = chain.folder / "data/val"
    options = [str(folder), "--score", "0", "--no-pictures"]
    assert main(["predict", str(tmp_path / "exported"), *options, "--output", str(tmp_path / "theirs")]) == 0
    predict(chain, measured, tmp_path / "ours", *options)
    (theirs, _), (ours, _) = written(tmp_path / "theirs"), written(tmp_path / "ours")

    def key(record: dict[str, Any]) -> tuple[Any, ...]:
        return record["file_name"], record["category"], round(record["score"], 5), round(record["bbox"][0], 3)

    assert sorted(map(key, theirs)) == sorted(map(key, ours))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nowhere/*.jpg"], "no image and no video"),
        ([".", "--score", "2"], "a score is a number from 0 to 1"),
        ([".", "--score", "nothing=0.1"], "unknown class"),
        ([".", "--batch-size", "0"], "not a number from 1"),
        ([".", "--precision", "fp16"], "float16 needs a GPU"),
        ([".", "--checkpoint", "phase9"], "unknown checkpoint"),
        ([".", "--output", "."], "the folder holds other files"),
    ],
)
def test_refusals(
    options: list[str],
    message: str,
    chain: Chain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    shutil.copy(next((chain.folder / "data/val").iterdir()), tmp_path)
    named = [str(chain.exp.file), "--checkpoint", "phase2", "--results", str(chain.paths.results), "--output", "out"]
    assert main(["predict", *named, *options]) == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


def test_the_same_in_python(chain: Chain, measured: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the page on Python tells of results and detectors."""
    folder = chain.folder / "data/val"
    predict(chain, measured, tmp_path / "out", folder, "--score", 0, "--no-pictures", "--batch-size", 1)
    found, _ = written(tmp_path / "out")
    exp = ltpipe.load_experiment(chain.exp.file)
    detector = ltpipe.load_detector(chain.exp.file, "phase2", results=measured.results)
    files = sorted(folder.iterdir())
    table = detector(files, score=0.0)
    assert table["score"].tolist() == [r["score"] for r in found]
    assert table["category"].tolist() == [r["category"] for r in found]
    sides = np.stack([table["x2"] - table["x1"], table["y2"] - table["y1"]], axis=1)
    assert np.array_equal(np.column_stack([table["x1"], table["y1"], sides]), np.array([r["bbox"] for r in found]))
    assert [mask["counts"].decode() for mask in table["mask"]] == [r["segmentation"]["counts"] for r in found]
    pixels = detector(cv2.imread(str(files[0])), score=0.0)
    assert pixels["score"].tolist() == table[table["image"] == str(files[0])]["score"].tolist()
    assert pixels["image"].unique().tolist() == [0]
    (tmp_path / "broken.jpg").write_bytes(files[0].read_bytes()[:100])
    with pytest.raises(ltpipe.UserError, match="broken.jpg"):
        detector(tmp_path / "broken.jpg")
    with pytest.raises(ltpipe.UserError, match=r"images\[0\]"):
        detector(np.zeros((4, 4), np.uint8))
    assert ltpipe.read_metrics(exp, "phase2", results=measured.results)["bbox"]["AP"] is not None
    rows = ltpipe.read_per_class(exp, "phase2", results=measured.results)
    tensors = ltpipe.read_tensors(exp, "phase2", results=measured.results)
    for kind, numbers in tensors.items():
        assert sorted(rows[rows["iou_type"] == kind]["category_id"]) == numbers.category_ids.tolist()
    assert ltpipe.plot_class_curve({"phase2": rows[rows["iou_type"] == "bbox"]}, tmp_path / "curve").is_file()
