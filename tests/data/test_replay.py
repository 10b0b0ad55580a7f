"""Replay lists: counts, the three variants against naive loops, files, and the published layouts."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from ltpipe.data.class_images import ClassImages
from ltpipe.data.phase import PhaseView
from ltpipe.data.published_indices import legacy_replay, legacy_rows, rows_to_stream
from ltpipe.data.replay import ReplayIndex, ReplaySource, build_replay, replay_counts
from ltpipe.data.split import make_split
from ltpipe.errors import UserError
from tests.published.sampling import process_batches, support_schedule

VARIANTS = ("resample", "cyclic", "fixed")
NUM_OLD = 9


def random_classes(seed: int, *, empty: tuple[int, ...] = ()) -> ClassImages:
    """Return 14 classes of falling size; the last five are new."""
    rng = np.random.default_rng(seed)
    sizes = [60, 40, 33, 20, 12, 9, 5, 3, 2, 4, 3, 3, 2, 1]
    lists = [np.sort(rng.choice(500, 0 if c in empty else n, replace=False)) for c, n in enumerate(sizes)]
    counts = [len(images) + int(rng.integers(0, 3 * len(images) + 1)) for images in lists]
    ptr = np.concatenate([[0], np.cumsum([len(images) for images in lists])])
    return ClassImages(ptr, np.concatenate(lists), np.array(counts))


def naive_epoch(classes: ClassImages, num_old: int, variant: str, seed: int, epoch: int) -> list[tuple[int, int]]:
    """Return the pairs of an epoch as the notebooks make them, with PyTorch and lists."""
    target = np.mean(classes.annotation_counts[num_old:])
    lists = [classes.images_of(c).tolist() for c in range(classes.num_classes)]
    pairs = [(image, c) for c in range(num_old, classes.num_classes) for image in lists[c]]
    shuffler = random.Random(seed)
    for images in lists:
        shuffler.shuffle(images)
    generator = torch.Generator().manual_seed(seed if variant == "fixed" else seed + epoch)
    for c in range(num_old):
        images = lists[c] if variant == "cyclic" else classes.images_of(c).tolist()
        if not images:
            continue
        count = max(1, int(np.round(target / (classes.annotation_counts[c] / len(images)))))
        if variant == "cyclic":
            picks = [(epoch * count + j) % len(images) for j in range(count)]
        else:
            picks = torch.randint(0, len(images), (count, 1), generator=generator).squeeze(1).tolist()
        pairs += [(images[i], c) for i in picks]
    return [pairs[i] for i in torch.randperm(len(pairs), generator=generator).tolist()]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", (0, 5))
def test_against_naive_loops(variant: Any, seed: int) -> None:
    classes = random_classes(seed)
    source = ReplaySource(classes, NUM_OLD, variant, seed)
    for epoch in (0, 1, 2, 7, 40):
        image, label = source.epoch(epoch)
        assert image.dtype == np.int64 and label.dtype == np.int32
        assert list(zip(image.tolist(), label.tolist(), strict=True)) == naive_epoch(
            classes, NUM_OLD, variant, seed, epoch
        )


@pytest.mark.parametrize("seed", range(8))
def test_counts_balance_instances(seed: int) -> None:
    classes = random_classes(seed)
    target, nominal, counts = replay_counts(classes, NUM_OLD)
    per_image = classes.annotation_counts[:NUM_OLD] / classes.image_counts[:NUM_OLD]
    assert target == np.mean(classes.annotation_counts[NUM_OLD:])
    close = np.abs(counts * per_image - target) <= per_image / 2 + 1e-9
    assert (close | (counts == 1)).all()
    assert_array_equal(counts, np.maximum(nominal, 1))


def test_rounding_is_half_to_even() -> None:
    """m = 5; a/i = 2 and 10 give the quotients 2.5 and 0.5, which go down; 1.43 gives 3.5, which goes up."""
    classes = ClassImages(np.array([0, 5, 6, 13, 14]), np.arange(14), np.array([10, 10, 10, 5]))
    target, nominal, counts = replay_counts(classes, 3)
    assert (target, nominal.tolist(), counts.tolist()) == (5.0, [2, 0, 4], [2, 1, 4])


@pytest.mark.parametrize("variant", VARIANTS)
def test_epoch_content(variant: Any) -> None:
    classes = random_classes(1)
    source = ReplaySource(classes, NUM_OLD, variant, 3)
    new = {(i, c) for c in range(NUM_OLD, classes.num_classes) for i in classes.images_of(c).tolist()}
    epochs = [list(zip(*(column.tolist() for column in source.epoch(e)), strict=True)) for e in range(4)]
    for pairs in epochs:
        assert len(pairs) == len(source)
        assert Counter(p for p in pairs if p[1] >= NUM_OLD) == Counter(new)
        assert_array_equal(np.bincount([c for _, c in pairs])[:NUM_OLD], source.counts)
        assert all(image in classes.images_of(c) for image, c in pairs)
    assert (epochs[0] == epochs[1]) == (variant == "fixed")
    again = ReplaySource(classes, NUM_OLD, variant, 3).epoch(2)
    assert_array_equal(again[0], source.epoch(2)[0])
    unpermuted = source.epoch(1, permute=False)
    assert sorted(zip(*(c.tolist() for c in unpermuted), strict=True)) == sorted(epochs[1])


def test_cyclic_visits_every_image_before_repeating() -> None:
    classes = random_classes(2)
    source = ReplaySource(classes, NUM_OLD, "cyclic", 0)
    drawn: dict[int, list[int]] = {c: [] for c in range(NUM_OLD)}
    for epoch in range(80):
        for image, c in zip(*(column.tolist() for column in source.epoch(epoch, permute=False)), strict=True):
            if c < NUM_OLD:
                drawn[c].append(image)
    for c, images in drawn.items():
        size = classes.image_counts[c]
        for start in range(0, len(images) - size + 1, size):
            assert sorted(images[start : start + size]) == classes.images_of(c).tolist()


@pytest.mark.parametrize("variant", VARIANTS)
def test_classes_without_images_are_left_out(variant: Any) -> None:
    classes = random_classes(4, empty=(2, 11))
    source = ReplaySource(classes, NUM_OLD, variant, 0)
    assert source.counts[2] == 0 and (np.delete(source.counts, 2) > 0).all()
    for epoch in range(3):
        _, label = source.epoch(epoch)
        assert not np.isin(label, [2, 11]).any()
        assert len(label) == len(source)


def test_nothing_to_train_and_unknown_variant() -> None:
    nothing = ClassImages(np.zeros(4, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(3, dtype=np.int64))
    with pytest.raises(UserError, match="no class of the phase has an image"):
        ReplaySource(nothing, 2)
    with pytest.raises(UserError, match="did you mean 'cyclic'"):
        ReplaySource(random_classes(0), NUM_OLD, "cyclical")  # type: ignore[arg-type]


@pytest.fixture
def view() -> PhaseView:
    rng = np.random.default_rng(0)
    image, category = np.unique(rng.integers(0, [40, 8], (160, 2)), axis=0).T
    table = SimpleNamespace(
        image_ids=rng.permutation(400)[:40],
        image_sizes=np.full((40, 2), 9, dtype=np.int32),
        category_ids=np.arange(1, 9),
        ann_image=image.astype(np.int32),
        ann_category=category.astype(np.int32),
        ann_bbox=np.full((len(image), 4), 5.0),
        ann_iscrowd=np.zeros(len(image), dtype=np.bool_),
        ann_ignore=np.zeros(len(image), dtype=np.bool_),
    )
    return PhaseView(table, make_split(np.arange(1, 9), np.bincount(category), base_classes=4, step=2), 2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_index_and_file(view: PhaseView, variant: Any, tmp_path: Path) -> None:
    index = build_replay(view, variant=variant, seed=6, epochs=3)
    source = ReplaySource(view.class_images, view.num_old, variant, 6)
    path = tmp_path / "replay_phase2.npz"
    index.save(path)
    loaded = ReplayIndex.load(path)
    assert loaded.info == index.info
    assert loaded.info.k_c == source.counts.tolist() and loaded.info.m == source.target
    assert (loaded.info.phase, loaded.info.variant, loaded.info.seed) == (2, variant, 6)
    assert loaded.info.split == view.split.digest
    assert (loaded.image_id.dtype, loaded.label.dtype, loaded.epoch_ptr.dtype) == (np.int64, np.int32, np.int64)
    assert loaded.num_epochs == 3
    for epoch in range(3):
        for ours, expected in zip(loaded.epoch(epoch), source.epoch(epoch), strict=True):
            assert_array_equal(ours, expected)
    with pytest.raises(UserError, match="ends too early"):
        loaded.epoch(3)
    first = path.read_bytes()
    index.save(path)
    assert path.read_bytes() == first and len(list(tmp_path.iterdir())) == 1


def test_damaged_file_and_no_epochs(view: PhaseView, tmp_path: Path) -> None:
    path = tmp_path / "replay_phase2.npz"
    with pytest.raises(UserError, match="no replay list"):
        ReplayIndex.load(path)
    build_replay(view, epochs=1).save(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="damaged replay list"):
        ReplayIndex.load(path)
    np.savez(path, image_id=[1], label=[1], epoch_ptr=[0, 1], metadata="{}")
    with pytest.raises(UserError, match="damaged replay list"):
        ReplayIndex.load(path)
    with pytest.raises(UserError, match="needs an epoch"):
        build_replay(view, epochs=0)


def test_legacy_rows() -> None:
    """Full epochs by nominal length, then the head of the last unpermuted epoch, cut into contiguous rows."""
    source = ReplaySource(random_classes(3), NUM_OLD, "resample")
    assert len(source) == source.num_new_pairs + source.nominal.sum(), "no class is raised to one image here"
    image, label = legacy_rows(source, 2, len(source) + 4)
    expected = [source.epoch(0), source.epoch(1), tuple(column[:8] for column in source.epoch(1, permute=False))]
    assert_array_equal(image.reshape(-1), np.concatenate([e[0] for e in expected]))
    assert_array_equal(label.reshape(-1), np.concatenate([e[1] for e in expected]))
    with pytest.raises(UserError, match="less than one epoch"):
        legacy_rows(source, 1, len(source) - 1)


def test_every_world_size_reads_the_same_stream() -> None:
    """A global batch is the same set of pairs for any number of processes, and a resumed run goes on in it."""
    source = ReplaySource(random_classes(6), NUM_OLD)
    image, _ = source.epoch(0)
    batch, whole = 8, len(image) // 8 * 8
    for world in (1, 2, 8):
        ranks = [process_batches(image, rank, world, batch) for rank in range(world)]
        assert_array_equal(np.concatenate(ranks, axis=1), image[:whole].reshape(-1, batch))
        resumed = process_batches(image[3 * batch :], 0, world, batch)
        assert_array_equal(resumed, ranks[0][3:])


def test_rows_to_stream() -> None:
    rows = np.arange(2 * 7).reshape(2, 7)
    stream = rows_to_stream(rows, 2)
    assert stream.tolist() == [0, 1, 7, 8, 2, 3, 9, 10, 4, 5, 11, 12]
    assert process_batches(stream, 1, 2, 4).tolist() == [[7, 8], [9, 10], [11, 12]]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_phase_in_the_published_layout(view: PhaseView, variant: Any) -> None:
    source = ReplaySource(view.class_images, view.num_old, variant, 3)
    iterations = len(source) // 3 + 2  # more than an epoch of six pairs per step
    replay = legacy_replay(view, variant=variant, seed=3, world_size=3, images_per_process=2, iterations=iterations)
    assert len(replay.image_id) == 6 * iterations and len(replay.epoch(0)[0]) == len(source)
    for stored, rows in zip((replay.image_id, replay.label), legacy_rows(source, 3, 2 * iterations), strict=True):
        for rank in range(3):
            assert_array_equal(process_batches(stored, rank, 3, 6).ravel(), rows[rank])
    with pytest.raises(UserError, match="less than one epoch"):
        legacy_replay(view, variant=variant, seed=3, world_size=3, images_per_process=2, iterations=1)


def test_support_schedule() -> None:
    lists = [[3, 5, 8], [1], [2, 4, 6, 9, 10, 11, 12], [7, 0]]
    ptr = np.concatenate([[0], np.cumsum([len(images) for images in lists])])
    image, label = support_schedule(ptr, np.concatenate(lists), 50, 2, repeats=2)
    assert label.tolist() == [[50, 50, 52, 52] * 2, [51, 51, 53, 53] * 2]
    for c, images in enumerate(lists):
        read = image[c % 2][label[c % 2] == 50 + c].tolist()
        expected: list[int] = []
        for seed in range(4 // len(images)):
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
            expected += [images[i] for i in order.tolist()]
        assert read == (expected + images)[:4]
    with pytest.raises(UserError, match="do not fill"):
        support_schedule(ptr, np.concatenate(lists), 50, 3, repeats=2)
