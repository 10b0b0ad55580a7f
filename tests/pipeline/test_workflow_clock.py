"""Results from the future."""

from __future__ import annotations

import os
import time
from pathlib import Path

from ltpipe.pipeline.reruns import clamp_future_times


def test_results_from_the_future_keep_their_order(project: Path) -> None:
    files = [Path("results/small") / name for name in ("past", "last", "first", "together")]
    files[0].parent.mkdir(parents=True)
    now = time.time()
    for file, shift in zip(files, (-50, 90000, 80000, 80000), strict=True):
        file.touch()
        os.utime(file, (now + shift, now + shift))
    past, user = files[0].stat().st_mtime_ns, Path("data/train.json")
    os.utime(user, (now + 90000, now + 90000))
    clamp_future_times()
    times = [file.stat().st_mtime_ns for file in files]
    assert times[0] == past < times[2] == times[3] < times[1] < time.time_ns()
    assert user.stat().st_mtime > time.time(), "not ours to change"
