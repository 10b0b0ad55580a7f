"""Long passes over images in shards, by one process or several: what a killed job has finished stays where it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TypeVar

from mmengine.dist import get_dist_info

from ltpipe.engine.distributed import of_first, wait_for_all
from ltpipe.run.files import sha256_file, write_json
from ltpipe.run.records import read_json

Result = TypeVar("Result")
# Results per shard. Fixed, so that a run that was killed ends with the same files as one that was not.
SIZE = 200


def share_of(count: int, rank: int, processes: int) -> slice:
    """Return the part of ``count`` items in a row that one of several processes takes; sizes differ by one at most."""
    return slice(count * rank // processes, count * (rank + 1) // processes)


def in_shards(
    folder: Path,
    names: Sequence[str],
    count: int,
    results: Callable[[int, int], Iterable[Result]],
    write: Callable[[list[Path], list[Result]], None],
) -> list[list[Path]]:
    """Compute results and write them shard by shard, each once whatever the number of processes and of attempts.

    A shard counts as whole when all its files have the checksums that were noted after they were written. Those that
    are not yet whole are divided among the processes of a launch, which all return when the last one is.

    Args:
        folder: Work folder of the stage, which belongs to one set of settings and inputs.
        names: Names of the files of a shard, which get its number in front.
        count: Number of results.
        results: ``results(first, stop)`` yields the results from that 0-based one up to, not including, the other.
        write: Writes the results of a shard into its files, one per name.

    Returns:
        Per name its files, in order.
    """
    starts = range(0, count, SIZE)
    shards = [[folder / f"{start:08d}.{name}" for name in names] for start in starts]
    rank, processes = get_dist_info()
    left = of_first(_left(folder, names[0], shards) if rank == 0 else [])
    notes = folder / f"{names[0]}.shards{f'.{rank}' if rank else ''}.json"
    noted: dict[str, str] = read_json(notes) or {}
    for run in _runs(left[share_of(len(left), rank, processes)]):
        stop = min(count, starts[run[-1]] + SIZE)
        waiting: list[Result] = []
        shard = iter(run)
        for result in results(starts[run[0]], stop):
            waiting.append(result)
            if len(waiting) == SIZE:
                _finish(shards[next(shard)], waiting, write, noted, notes)
                waiting = []
        if waiting:
            _finish(shards[next(shard)], waiting, write, noted, notes)
    wait_for_all()
    return [[shard[i] for shard in shards] for i in range(len(names))]


def _finish(
    files: list[Path],
    found: list[Result],
    write: Callable[[list[Path], list[Result]], None],
    noted: dict[str, str],
    notes: Path,
) -> None:
    write(files, found)
    noted.update({file.name: sha256_file(file) for file in files})
    write_json(notes, noted)


def _left(folder: Path, name: str, shards: Sequence[Sequence[Path]]) -> list[int]:
    """Return the numbers of the shards that no process of any attempt has finished."""
    noted: dict[str, str] = {}
    for file in sorted(folder.glob(f"{name}.shards*.json")):
        noted.update(read_json(file) or {})
    return [
        number
        for number, files in enumerate(shards)
        if not all(file.is_file() and noted.get(file.name) == sha256_file(file) for file in files)
    ]


def _runs(numbers: Sequence[int]) -> Iterator[list[int]]:
    """Yield the parts of an ascending list that have no gaps."""
    for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        yield [number for _, number in run]
