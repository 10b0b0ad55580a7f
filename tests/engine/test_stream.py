"""The training stream: the same order for any number of processes, and from any point on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from mmengine.runner.loops import _InfiniteDataloaderIterator
from torch.utils.data import DataLoader, Dataset

from ltpipe.data.class_images import ImageLabels
from ltpipe.data.samplers import SAMPLERS, build_sampler
from ltpipe.engine.training_stream import EpochStream, StreamSampler
from ltpipe.errors import UserError


def epochs_of_varying_length(epoch: int) -> np.ndarray:
    """Entries that tell their epoch and place."""
    return 1000 * epoch + np.arange(3 + epoch % 4)


def laid_end_to_end(entries: Callable[[int], np.ndarray], count: int) -> list:
    found: list = []
    epoch = 0
    while len(found) < count:
        found += entries(epoch).tolist()
        epoch += 1
    return found[:count]


def positions(monkeypatch: pytest.MonkeyPatch, rank: int, world: int, **options: int) -> StreamSampler:
    monkeypatch.setattr("ltpipe.engine.training_stream.get_dist_info", lambda: (rank, world))
    return StreamSampler(None, **options)


# ---- positions to entries --------------------------------------------------------------------------------------------


def test_epochs_follow_one_another_whatever_their_length() -> None:
    stream = EpochStream(epochs_of_varying_length)
    expected = laid_end_to_end(epochs_of_varying_length, 50)
    assert [int(stream[p]) for p in range(50)] == expected
    assert stream.epoch_length() == 3


def test_a_stream_can_be_entered_anywhere_and_left_backwards() -> None:
    expected = laid_end_to_end(epochs_of_varying_length, 60)
    for order in (range(59, -1, -1), np.random.default_rng(0).permutation(60).tolist(), [40, 40, 0, 59, 3, 2, 41]):
        stream = EpochStream(epochs_of_varying_length)
        assert [int(stream[p]) for p in order] == [expected[p] for p in order]


def test_pairs_and_the_number_of_draws() -> None:
    drawn: list[int] = []

    def pairs(epoch: int) -> np.ndarray:
        drawn.append(epoch)
        return np.stack([np.arange(4), np.full(4, epoch)], axis=1)

    stream = EpochStream(pairs)
    assert [stream[p].tolist() for p in range(3, 6)] == [[3, 0], [0, 1], [1, 1]]
    assert drawn == [0, 1], "an epoch is drawn once while it is read"


def test_an_empty_epoch_is_refused() -> None:
    with pytest.raises(UserError, match="empty"):
        EpochStream(lambda _: np.empty(0, np.int64))[0]


# ---- processes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize(("batch", "iterations"), [(4, 1), (4, 9), (8, 5)])
def test_any_number_of_processes_sees_the_same_batches(
    monkeypatch: pytest.MonkeyPatch, world: int, batch: int, iterations: int
) -> None:
    shares = [
        list(positions(monkeypatch, rank, world, batch_size=batch, iterations=iterations)) for rank in range(world)
    ]
    size = batch // world
    for t in range(iterations):
        seen = [p for share in shares for p in share[t * size : (t + 1) * size]]
        assert seen == list(range(t * batch, (t + 1) * batch)), "the parts lie in the order of the processes"
    assert all(len(share) == iterations * size for share in shares)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("done", [0, 1, 3, 5])
def test_skipping_leaves_the_rest_as_it_was(monkeypatch: pytest.MonkeyPatch, world: int, done: int) -> None:
    options = {"batch_size": 8, "iterations": 5}
    for rank in range(world):
        whole = list(positions(monkeypatch, rank, world, **options))
        sampler = positions(monkeypatch, rank, world, **options)
        assert len(sampler) == len(whole)
        sampler.skip(done * 8 // world)  # mmengine counts the samples of this process
        assert list(sampler) == whole[done * 8 // world :]


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_in_processes_of_a_run_that_was_killed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Two processes killed inside an epoch and started anew see, together, what one process sees."""
    options = {"combined": {"parts": [{"type": "class_aware"}, {"type": "repeat_factor", "rounding": "stochastic"}]}}
    random = np.random.default_rng(0)
    rows = [np.flatnonzero(random.random(6) < 0.3) for _ in range(40)]
    ptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    labels = ImageLabels(ptr, np.concatenate(rows), 6, np.arange(40) % 2)

    def stream() -> EpochStream:
        sampler = build_sampler({"type": name, **options.get(name, {})})
        return EpochStream(lambda epoch: sampler.epoch(labels, seed=3, epoch=epoch))

    iterations, killed = 35, 13
    expected = [int(stream()[p]) for p in range(4 * iterations)]
    seen: dict[int, int] = {}
    for rank in (0, 1):
        for first in (0, killed):
            sampler = positions(monkeypatch, rank, 2, batch_size=4, iterations=iterations)
            sampler.skip(2 * first)
            entries, count = stream(), 2 * (killed if first == 0 else iterations - killed)
            places = list(sampler)[:count]
            assert seen.keys().isdisjoint(places)
            seen |= {place: int(entries[place]) for place in places}
    assert [seen[p] for p in range(4 * iterations)] == expected


def test_a_batch_that_cannot_be_divided_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="multiple of the number of processes"):
        positions(monkeypatch, 0, 4, batch_size=6, iterations=1)


class Positions(Dataset):
    """Returns its positions."""

    def __getitem__(self, position: int) -> int:
        return position


@pytest.mark.parametrize("workers", [0, 2])
def test_mmengine_resumes_by_the_sampler(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """mmengine's iterator must find `skip`, or it would load and drop all data seen so far."""
    sampler = positions(monkeypatch, 1, 2, batch_size=4, iterations=6)
    loader = DataLoader(Positions(), batch_size=2, sampler=sampler, num_workers=workers)
    iterator = _InfiniteDataloaderIterator(loader)
    iterator.skip_iter(4)
    assert [next(iterator).tolist() for _ in range(2)] == [[18, 19], [22, 23]]
