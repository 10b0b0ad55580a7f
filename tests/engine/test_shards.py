"""Passes in shards: what is done again after a kill, and what is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ltpipe.engine import shards
from ltpipe.engine.shards import in_shards


class Pass:
    """Writes the numbers below a count; may end before one of them."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count

    def run(self, end_at: int | None = None) -> tuple[list[int], str]:
        """Return the numbers computed now, and everything that was written."""
        done: list[int] = []

        def results(first: int, stop: int) -> Iterator[int]:
            for number in range(first, stop):
                if number == end_at:
                    raise KeyboardInterrupt
                done.append(number)
                yield number

        def write(files: list[Path], numbers: list[int]) -> None:
            for file, sign in zip(files, (1, -1), strict=True):
                file.write_text("".join(f"{sign * number} " for number in numbers))

        try:
            first, second = in_shards(self.folder, ["plus", "minus"], self.count, results, write)
        except KeyboardInterrupt:
            return done, ""
        return done, "".join(file.read_text() for file in first + second)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SIZE", 3)


@pytest.mark.parametrize("count", [0, 1, 3, 7, 9])
@pytest.mark.parametrize("end_at", [0, 2, 3, 8])
def test_whole_shards_are_kept(tmp_path: Path, count: int, end_at: int) -> None:
    numbers = range(count)
    text = "".join(f"{n} " for n in numbers) + "".join(f"{-n} " for n in numbers)
    one = Pass(tmp_path, count)
    assert one.run(end_at)[0] == list(numbers[:end_at])
    first = 3 * (end_at // 3) if end_at < count else count
    assert one.run() == (list(numbers[first:]), text)
    assert one.run() == ([], text)


@pytest.mark.parametrize(
    ("damaged", "first"), [("00000000.plus", 0), ("00000003.minus", 3), ("00000006.plus", 6), ("plus.shards.json", 0)]
)
@pytest.mark.parametrize("missing", [True, False])
def test_damaged_shards_are_made_again(tmp_path: Path, damaged: str, first: int, missing: bool) -> None:
    one = Pass(tmp_path, 7)
    _, text = one.run()
    (tmp_path / damaged).unlink() if missing else (tmp_path / damaged).write_text("{")
    again = range(7) if damaged == "plus.shards.json" else range(first, min(first + 3, 7))
    assert one.run() == (list(again), text), "other shards stay"
