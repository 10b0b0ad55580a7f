"""Computing time of a dry run and of a run with nothing to do, over ten experiments, beside an almost empty Snakefile.

Stages are replaced by the stub of the workflow's tests, whose files Snakemake then records as its own, so that
everything is finished without a training. The other side is what starting Snakemake costs at all.

Run from the repository's root, with the environment's programs in PATH:

    python benchmarks/workflow.py [--experiments 10] [--repeats 3]
"""

from __future__ import annotations

import argparse
import contextlib
import re
import resource
import statistics
import sys
import tempfile
import unittest.mock
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from measuring import Row, result_file, write_result

ROOT = Path(__file__).parents[1]
EMPTY = 'rule all:\n    output: "done.txt"\n    shell: "touch {output}"\n'


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write ``benchmarks/results/workflow.json``."""
    sys.path.append(str(ROOT))
    from tests.helpers.workspace import EXPERIMENTS, Workspace

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=result_file, default=Path("benchmarks/results/workflow.json"))
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        workspace = Workspace(Path(name) / "work")
        names = copies(workspace.folder / "configs" / "experiments", EXPERIMENTS, options.experiments)
        (workspace.folder / "configs" / "pipeline.yaml").write_text(f"experiments: [{', '.join(names)}]\n")
        (workspace.folder / "empty.smk").write_text(EMPTY)
        jobs = sum(workspace.dry_run("all").values())

        def dry() -> object:
            return workspace.snakemake("-n", "--quiet", "all")

        def empty() -> object:
            return workspace.snakemake("-n", "--quiet", "-s", "empty.smk")

        dry_seconds, start_seconds = side_by_side([dry, empty], options.repeats)
        finish(workspace)

        def idle() -> object:
            return workspace.snakemake("--cores", "2", "all")

        idle_seconds, _ = side_by_side([idle, empty], options.repeats)
    theirs = f"one rule: {start_seconds:.2g} s"
    rows = [
        Row(f"{work}, {len(names)} experiments, {jobs} jobs", f"{s:.2g} s", theirs, None, f"{aim} s", s < aim, note)
        for work, s, aim, note in (
            ("dry run", dry_seconds, 3, "Snakemake's own start is in both."),
            ("`snakemake all` with nothing to do", idle_seconds, 5, "Snakemake compares every file with its record."),
        )
    ]
    details = {"dry_run": dry_seconds, "nothing_to_do": idle_seconds, "one_rule": start_seconds, "jobs": jobs}
    write_result(__file__, options.output, arguments, rows, details)


def copies(folder: Path, originals: Path, count: int) -> list[str]:
    """Write so many experiments, in turn like those of the tests; return their names."""
    kinds = [originals / "chain.yaml", originals / "joint.yaml"]
    names = []
    for index in range(count):
        kind = kinds[index % len(kinds)]
        names.append(f"{kind.stem}_{index}")
        (folder / f"{names[-1]}.yaml").write_text(kind.read_text(encoding="utf-8"), encoding="utf-8")
    return names


def finish(workspace: Any) -> None:
    """Make all files as the jobs would, in this process, and let Snakemake record them."""
    import stub_ltpipe

    commands = re.findall(r"^Shell command: ltpipe (.*?) > ", workspace.snakemake("-n", "-p", "all"), re.MULTILINE)
    with contextlib.chdir(workspace.folder), unittest.mock.patch.object(sys, "argv", []):
        for command in commands:
            sys.argv[:] = ["ltpipe", *command.split()]
            stub_ltpipe.main()
    workspace.snakemake("--cores", "2", "--touch", "all")
    left = workspace.dry_run("all")
    assert not left, f"not finished: {left}"


def side_by_side(programs: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Run programs in turn; return the median computing time of each, in seconds."""
    seconds: list[list[float]] = [[] for _ in programs]
    for _ in range(repeats):
        for times, program in zip(seconds, programs, strict=True):
            start = _of_children()
            program()
            times.append(_of_children() - start)
    return [statistics.median(times) for times in seconds]


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
