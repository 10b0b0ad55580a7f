"""Long passes over images in shards: what a killed job has finished stays in its stage's work folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from ltpipe.run.files import sha256_file, write_json
from ltpipe.run.records import read_json

Result = TypeVar("Result")
# Results per shard. Fixed, so that a run that was killed ends with the same files as one that was not.
SIZE = 200


def in_shards(
    folder: Path,
    names: Sequence[str],
    count: int,
    results: Callable[[int], Iterable[Result]],
    write: Callable[[list[Path], list[Result]], None],
) -> list[list[Path]]:
    """Compute results one after the other and write them shard by shard; continue after the last whole shard.

    A shard counts as whole when all its files have the checksums that were noted after they were written.

    Args:
        folder: Work folder of the stage, which belongs to one set of settings and inputs.
        names: Names of the files of a shard, which get its number in front.
        count: Number of results.
        results: ``results(first)`` yields the results from that 0-based one on.
        write: Writes the results of a shard into its files, one per name.

    Returns:
        Per name its files, in order.
    """
    shards = [[folder / f"{start:08d}.{name}" for name in names] for start in range(0, count, SIZE)]
    notes = folder / f"{names[0]}.shards.json"
    noted: dict[str, str] = read_json(notes) or {}
    done = 0
    while done < len(shards) and all(
        file.is_file() and noted.get(file.name) == sha256_file(file) for file in shards[done]
    ):
        done += 1
    waiting: list[Result] = []

    def finish() -> None:
        write(shards[done], waiting)
        noted.update({file.name: sha256_file(file) for file in shards[done]})
        write_json(notes, noted)

    if done < len(shards):
        for result in results(done * SIZE):
            waiting.append(result)
            if len(waiting) == SIZE:
                finish()
                done, waiting = done + 1, []
        if waiting:
            finish()
    return [[shard[i] for shard in shards] for i in range(len(names))]
