"""Strike the tiny project with faults: ``python -m tests.faults --faults 200 --seed 0 --out docs/faults.md``."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path

from tests.faults.driver import Result, run_faults, write_table
from tests.faults.injections import INJECTIONS
from tests.faults.on_slurm import SIZE
from tests.faults.project import Project
from tests.slurm.cluster import Cluster


def show(result: Result) -> None:
    """Print one line per fault, more if it was not recovered from."""
    print(
        f"{result.number:4d} {result.seconds:5.1f} s  {result.injection}, {result.stage.line}: {result.outcome}",
        flush=True,
    )


def main() -> int:
    """Run the faults; exit code 1 if one was not recovered from."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--faults", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slurm", action="store_true", help="on a local Slurm, with the faults of a cluster")
    parser.add_argument("--jobs", type=int, default=1, help="faults at a time; default: %(default)s")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after this time")
    parser.add_argument(
        "--only", action="append", default=[], choices=list(INJECTIONS), help="one kind of fault; may be repeated"
    )
    parser.add_argument("--out", type=Path, help="Markdown file for the table")
    given = parser.parse_args()
    state = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
    ).stdout
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        projects = []
        for number in range(given.jobs):
            place = Path(folder) / str(number)
            cluster = stack.enter_context(Cluster(place / "slurm", **SIZE)) if given.slurm else None
            projects.append(stack.enter_context(closing(Project(place / "project", cluster))))
        results = run_faults(projects, given.faults, given.seed, given.only, show, 60 * given.minutes)
    if given.out:
        write_table(given.out, results, " ".join(["python -m tests.faults", *sys.argv[1:]]), state.strip())
    return int(any(result.outcome not in ("equal", "missed") for result in results))


if __name__ == "__main__":
    sys.exit(main())
