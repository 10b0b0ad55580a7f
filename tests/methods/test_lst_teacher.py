"""Stored teacher similarities: files, lookup by annotation id and flip, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from ltpipe.errors import UserError
from ltpipe.methods.lst.teacher import CachedTeacher, TeacherLogits
from tests.published.teacher_json import read_legacy_json, write_legacy_json

OLD = 4


def passes(seed: int = 0, counts: dict[int, int] | None = None) -> list[list[Any]]:
    """Rows of two passes; image ids as given, annotation ids image * 10 + j."""
    rng = np.random.default_rng(seed)
    counts = counts or {30: 2, 7: 3, 12: 1}
    return [
        [
            (image, image * 10 + np.arange(n), np.full(n, OLD + 1), rng.uniform(-1, 1, (n, OLD + 3)).astype(np.float32))
            for image, n in counts.items()
        ]
        for _ in range(2)
    ]


def sample(image: int, ann_ids: list[int], **meta: Any) -> DetDataSample:
    made = DetDataSample(metainfo={"img_id": image, **meta})
    made.gt_instances = InstanceData(
        bboxes=torch.zeros(len(ann_ids), 4),
        labels=torch.full((len(ann_ids),), OLD),
        ann_ids=torch.tensor(ann_ids, dtype=torch.int64),
    )
    return made


def lookup(teacher: CachedTeacher, *samples: DetDataSample) -> list[torch.Tensor | None]:
    return teacher.targets(samples, [torch.arange(len(s.gt_instances)) for s in samples])


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Path, list[list[Any]]]:
    rows = passes()
    # The second pass comes in another order of images and boxes.
    shuffled = [(i, a[::-1].copy(), n, v[::-1].copy()) for i, a, n, v in reversed(rows[1])]
    path = tmp_path / "phase1" / "teacher.npz"
    TeacherLogits.collect([rows[0], shuffled], OLD, {"split": "abc"}, "float32").save(path)
    return path, rows


def test_rows_are_found_by_annotation_id_and_flip(stored: tuple[Path, list[list[Any]]]) -> None:
    path, rows = stored
    teacher = CachedTeacher(str(path), OLD, expected={"split": "abc"})
    got = lookup(
        teacher, sample(7, [72, 70, 71], flip=True), sample(30, [300, 301], flip=False), sample(99, [], flip=False)
    )
    torch.testing.assert_close(got[0], torch.from_numpy(rows[1][1][3][[2, 0, 1], :OLD]))
    torch.testing.assert_close(got[1], torch.from_numpy(rows[0][0][3][:, :OLD]))
    assert got[2] is None


def test_half_precision_file(tmp_path: Path) -> None:
    rows = passes()
    TeacherLogits.collect(rows, OLD).save(tmp_path / "t.npz")
    store = TeacherLogits.load(tmp_path / "t.npz")
    assert store.logits.dtype == np.float16 and store.image_id.tolist() == [7, 12, 30]
    (got,) = lookup(CachedTeacher(str(tmp_path / "t.npz"), OLD), sample(12, [120], flip=False))
    assert got is not None and got.dtype == torch.float32
    torch.testing.assert_close(got, torch.from_numpy(rows[0][2][3][:, :OLD]), rtol=0, atol=5e-4)


@pytest.mark.parametrize(
    ("ann_ids", "meta", "message"),
    [
        ([70, 71], {"flip": False}, "image 7"),
        ([70, 71, 73], {"flip": False}, "image 7"),
        ([70, 71, 72, 72], {"flip": False}, "image 7"),
        ([70, 71, 72], {}, "image 7"),
        ([70, 71, 72], {"flip": True, "flip_direction": "vertical"}, "image 7"),
    ],
)
def test_mismatches_name_the_image(
    stored: tuple[Path, list[list[Any]]], ann_ids: list[int], meta: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        lookup(CachedTeacher(str(stored[0]), OLD), sample(7, ann_ids, **meta))


def test_an_unknown_image_with_new_boxes(stored: tuple[Path, list[list[Any]]]) -> None:
    unknown = sample(8, [80], flip=False)
    with pytest.raises(UserError, match="image 8"):
        lookup(CachedTeacher(str(stored[0]), OLD), unknown)
    assert lookup(CachedTeacher(str(stored[0]), OLD, missing="skip"), unknown) == [None]


def test_files_of_another_phase_are_refused(stored: tuple[Path, list[list[Any]]]) -> None:
    for options in ({"num_old": OLD + 1}, {"num_old": OLD, "expected": {"split": "xyz"}}):
        with pytest.raises(UserError, match="another model, split or phase"):
            _ = CachedTeacher(str(stored[0]), **options).store


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    for content in (None, b"", b"PK\x03\x04 cut off"):
        path = tmp_path / "t.npz"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match="(no|damaged) teacher file"):
            TeacherLogits.load(path)


def test_passes_that_differ_are_refused() -> None:
    with pytest.raises(UserError, match="image 30"):
        TeacherLogits.collect([passes()[0], passes(counts={7: 3, 12: 1})[1]], OLD)
    with pytest.raises(UserError, match="image 12"):
        TeacherLogits.collect([passes()[0], passes(counts={30: 2, 7: 3, 12: 2})[1]], OLD)


def test_a_phase_without_boxes(tmp_path: Path) -> None:
    TeacherLogits.collect([[], []], OLD).save(tmp_path / "t.npz")
    assert TeacherLogits.load(tmp_path / "t.npz").logits.shape == (2, 0, OLD)


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="inconsistent"):
        TeacherLogits(np.array([1, 2]), np.array([0, 1, 3]), np.arange(2), np.arange(2), np.zeros((2, 2, OLD)))


def test_legacy_json(tmp_path: Path) -> None:
    plain, flipped = (
        {"7": [[0.5, 0.25, -1.0], [0.1, 0.2, 0.3]], "30": [[v, 0.0, 1.0]], "8": []} for v in (0.75, 0.125)
    )
    source = tmp_path / "distilled_logits.json"
    source.write_text(json.dumps([plain, flipped]))
    boxes = {7: ([71, 70], [2, 3]), 30: ([300], [2]), 8: ([], [])}
    store, background = read_legacy_json(source, boxes, dtype="float64")
    assert store.logits[1, store.rows(30)].tolist() == [[0.0, 1.0]] and store.ann_id.tolist() == [71, 70, 300]
    write_legacy_json(store, background, tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == [plain, flipped]
    store.save(tmp_path / "t.npz")
    (got,) = lookup(CachedTeacher(str(tmp_path / "t.npz"), 2), sample(7, [70, 71], flip=False))
    torch.testing.assert_close(got, torch.tensor([[0.2, 0.3], [0.25, -1.0]]))


def test_legacy_json_needs_its_annotations(tmp_path: Path) -> None:
    source = tmp_path / "distilled_logits.json"
    source.write_text(json.dumps([{"7": [[0.5, 0.25]]}, {"7": [[0.5, 0.25]]}]))
    with pytest.raises(UserError, match="image 7"):
        read_legacy_json(source, {7: ([70, 71], [2, 2])})


def test_ids_are_stored_in_32_bits_where_they_fit(tmp_path: Path) -> None:
    """Large ids keep their 64 bits, and both come back as they were."""
    for shift in (0, 2**40):
        store = TeacherLogits.collect(passes(), OLD)
        store = replace(store, ann_id=store.ann_id + shift)
        store.save(tmp_path / "t.npz")
        with np.load(tmp_path / "t.npz") as file:
            assert file["image_id"].dtype == np.int32 and file["ann_id"].dtype == (np.int64 if shift else np.int32)
        back = TeacherLogits.load(tmp_path / "t.npz")
        for name in ("image_id", "ptr", "ann_id", "label"):
            assert getattr(back, name).dtype == np.int64
            np.testing.assert_array_equal(getattr(back, name), getattr(store, name))
