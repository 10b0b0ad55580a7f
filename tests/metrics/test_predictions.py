"""Predictions on disk: what goes in comes out, complete or not at all, and broken files are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pycocotools import mask as coco_mask

from ltpipe.errors import UserError
from ltpipe.metrics import predictions_writer as writer_module
from ltpipe.metrics.predictions import MaskColumn, Predictions, concatenate
from ltpipe.metrics.predictions_writer import PredictionWriter, merge_predictions


def images(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return detections image by image, some without any."""
    rng = np.random.default_rng(seed)
    out = []
    for number in range(count):
        n = int(rng.integers(0, 6))
        size = tuple(int(value) for value in rng.integers(5, 40, 2))
        masks = [coco_mask.encode(np.asfortranarray(rng.random(size) < 0.5).astype(np.uint8)) for _ in range(n)]
        out.append(
            {
                "image_id": 2**40 + number,
                "category_ids": rng.integers(1, 9, n),
                "scores": rng.random(n, np.float32),
                "boxes": rng.random((n, 4), np.float32) * 30,
                "mask_counts": [mask["counts"] for mask in masks],
                "mask_size": size,
            }
        )
    return out


def write(path: Path, items: list[dict[str, Any]], **options: Any) -> None:
    """Write images with everything they have."""
    with PredictionWriter(path, masks=True, **options) as out:
        for item in items:
            out.append(**item)
        assert out.rows == sum(len(item["scores"]) for item in items)


def assert_same(ours: Predictions, items: list[dict[str, Any]]) -> None:
    """Compare with the images written."""
    np.testing.assert_array_equal(
        ours.image_ids, np.repeat([i["image_id"] for i in items], [len(i["scores"]) for i in items])
    )
    for name, key in (("category_ids", "category_ids"), ("scores", "scores"), ("boxes", "boxes")):
        np.testing.assert_array_equal(getattr(ours, name), np.concatenate([item[key] for item in items]))
    assert ours.masks is not None
    assert ours.masks.counts(np.arange(len(ours))) == [text for item in items for text in item["mask_counts"]]
    np.testing.assert_array_equal(ours.masks.sizes, [item["mask_size"] for item in items for _ in item["scores"]])


@pytest.mark.parametrize("rows_per_batch", [7, 65536])
def test_round_trip(rows_per_batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also over many record batches; masks can be fetched in any order."""
    monkeypatch.setattr(writer_module, "ROWS_PER_BATCH", rows_per_batch)
    items = images(40)
    write(tmp_path / "p.arrow", items)
    ours = Predictions.open(tmp_path / "p.arrow")
    assert (pa.ipc.open_file(str(tmp_path / "p.arrow")).num_record_batches > 5) == (rows_per_batch == 7)
    assert_same(ours, items)
    ours.checked()
    assert ours.scores.dtype == np.float32
    assert ours.masks is not None
    rows = np.random.default_rng(0).integers(0, len(ours), 300)
    everything = ours.masks.counts(np.arange(len(ours)))
    assert ours.masks.counts(rows) == [everything[row] for row in rows]


def test_one_batch_is_not_copied(tmp_path: Path) -> None:
    """Numbers are views of the mapped file."""
    write(tmp_path / "p.arrow", images(5))
    ours = Predictions.open(tmp_path / "p.arrow")
    assert ours.boxes is not None
    assert not ours.scores.flags.owndata and not ours.scores.flags.writeable
    assert not ours.boxes.flags.writeable


@pytest.mark.parametrize("masks", [False, True])
def test_empty_file(masks: bool, tmp_path: Path) -> None:
    """A run that finds nothing still leaves a readable file."""
    with PredictionWriter(tmp_path / "p.arrow", masks=masks):
        pass
    ours = Predictions.open(tmp_path / "p.arrow")
    ours.checked()
    assert len(ours) == 0 and ours.boxes is not None and ours.boxes.shape == (0, 4)
    assert (ours.masks is not None) == masks


def test_nothing_appears_before_the_end(tmp_path: Path) -> None:
    """A run that fails leaves the old file and no other."""
    path = tmp_path / "p.arrow"
    write(path, images(3))
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="killed"), PredictionWriter(path, masks=True) as out:
        for item in images(50):
            out.append(**item)
        raise RuntimeError("killed")
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["p.arrow"]


def test_merge_keeps_everything_in_order(tmp_path: Path) -> None:
    """The parts of several processes become one file."""
    parts = [images(6, seed) for seed in range(3)]
    paths = [tmp_path / f"part{index}.arrow" for index in range(3)]
    for path, items in zip(paths, parts, strict=True):
        write(path, items)
    merge_predictions(paths, tmp_path / "all.arrow")
    assert_same(Predictions.open(tmp_path / "all.arrow"), [item for items in parts for item in items])
    with PredictionWriter(tmp_path / "boxes.arrow") as out:
        out.append(1, np.array([1]), np.array([0.5]), np.zeros((1, 4)))
    with pytest.raises(UserError, match="different columns"):
        merge_predictions([paths[0], tmp_path / "boxes.arrow"], tmp_path / "bad.arrow")
    with pytest.raises(UserError, match="cannot read a part"):
        merge_predictions([tmp_path / "missing.arrow"], tmp_path / "bad.arrow")


def test_concatenate_blocks() -> None:
    """Joined blocks keep their masks apart."""
    rng = np.random.default_rng(0)
    parts = []
    for n in (3, 0, 4):
        texts = [bytes([48 + i, 50]) for i in rng.integers(0, 9, n)]
        masks = MaskColumn.from_list(texts, np.full((n, 2), 7, np.int32))
        ids = np.arange(n)
        parts.append(Predictions(ids, ids, rng.random(n), None, masks))
    joined = concatenate(parts)
    assert joined.masks is not None and len(joined.masks) == len(joined) == 7
    singly = [part.masks.counts(np.arange(len(part))) for part in parts if part.masks]
    assert joined.masks.counts(np.arange(7)) == [text for texts in singly for text in texts]


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    """Cut off, something else, missing, and an Arrow file of another kind."""
    write(tmp_path / "p.arrow", images(20))
    whole = (tmp_path / "p.arrow").read_bytes()
    (tmp_path / "cut.arrow").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.arrow").write_text("image_id,score\n1,0.5\n")
    (tmp_path / "empty.arrow").write_bytes(b"")
    for name in ("cut", "text", "empty", "missing"):
        with pytest.raises(UserError, match="cannot read the predictions") as caught:
            Predictions.open(tmp_path / f"{name}.arrow")
        assert f"{name}.arrow" in str(caught.value)
    table = pa.table({"a": [1]})
    with pa.ipc.new_file(str(tmp_path / "other.arrow"), table.schema) as out:
        out.write_table(table)
    with pytest.raises(UserError, match="not a predictions file"):
        Predictions.open(tmp_path / "other.arrow")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [0.5, float("nan")]}, "a score is not finite"),
        ({"scores": [0.5, float("inf")]}, "a score is not finite"),
        ({"scores": [0.5]}, "columns of different lengths"),
        ({"boxes": [[0, 0, 1, 1]]}, "columns of different lengths"),
        ({"boxes": [[0, 0, 1, 1], [0, float("nan"), 1, 1]]}, "a box is not finite"),
        ({"mask_counts": [b"`0", b"o"]}, "a mask stops in the middle of a number"),
        ({"mask_counts": [b"`0", b"5"]}, "a mask does not cover the image"),
    ],
)
def test_writer_refuses_bad_detections(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    """At once, naming the detection, and without leaving a file."""
    size = (4, 4)
    good = coco_mask.encode(np.zeros(size, np.uint8, "F"))["counts"]
    item = {"image_id": 7, "category_ids": np.array([1, 2]), "scores": [0.5, 0.25], "boxes": np.zeros((2, 4))}
    item |= {"mask_counts": [good, good], "mask_size": size}
    with pytest.raises(UserError, match=message), PredictionWriter(tmp_path / "p.arrow", masks=True) as out:
        out.append(**item)
        out.append(**(item | change))
    assert list(tmp_path.iterdir()) == []
