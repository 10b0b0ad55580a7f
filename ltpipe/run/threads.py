"""How many threads a stage computes with: the last bits of sums depend on it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ltpipe.run.files import write_json
from ltpipe.run.records import read_json


@contextmanager
def same_threads(work: Path) -> Iterator[int | None]:
    """Compute with as many threads as the killed run that is continued, so that its results have the same bits.

    A run that begins takes torch's number: ``OMP_NUM_THREADS``, or the cores it may use. On a GPU, where threads hardly
    matter to results, every attempt takes its own.

    Args:
        work: Folder of the stage's resume state.

    Yields:
        The number of threads; None in a stage without torch.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        yield None
        return
    before, file = torch.get_num_threads(), work / "threads.json"
    noted = None if torch.cuda.is_available() else (read_json(file) or {}).get("threads")
    if noted is None:
        write_json(file, {"threads": before})
    elif noted != before:
        print(f"computing with {noted} threads, as before", flush=True)
    # Said or not: once it is set, MKL does not choose a smaller one by itself.
    torch.set_num_threads(noted or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
