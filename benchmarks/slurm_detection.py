"""Seconds from the submission of a trivial job to its noticed end, on a local Slurm, and how often Slurm is asked.

Ours: a chain of trivial rules through Snakemake and the executor ``ltslurm``, with its default settings. The other
side, on the same cluster: ``sbatch`` of a trivial command, and ``squeue`` once a second until it has ended. What a job
of Snakemake does between start and end, two more Snakemakes, is no detection; the times that Slurm notes tell it apart.
Calls of ``squeue`` are counted while the chain runs and while one job sleeps. These are times on the clock, so that on
a busy machine the whole benchmark should have priority (``nice -n -15 python ...``).

Needs root and Debian's packages (docs/cluster.md). Run from the repository's root:

    python benchmarks/slurm_detection.py [--jobs 6] [--sleep 240]
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from measuring import Row, result_file, write_result

if TYPE_CHECKING:
    from tests.slurm.cluster import Cluster

ROOT = Path(__file__).parents[1]
AIM = 8.0
SNAKEFILE = """
rule all:
    input: "{last}.txt", "long.txt"

rule first:
    output: "0.txt"
    resources: mem_mb=600, runtime=5
    shell: "echo x > {{output}}"

rule long:
    input: "{last}.txt"
    output: "long.txt"
    resources: mem_mb=600, runtime=60
    shell: "sleep {sleep}; echo x > {{output}}"
"""
LINK = """
rule link_{number}:
    input: "{before}.txt"
    output: "{number}.txt"
    resources: mem_mb=600, runtime=5
    shell: "echo x > {{output}}"
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write ``benchmarks/results/slurm_detection.json``."""
    sys.path.append(str(ROOT))
    from tests.slurm.cluster import Cluster

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--sleep", type=int, default=240, help="seconds of the long job; default: %(default)s")
    parser.add_argument("--output", type=result_file, default=Path("benchmarks/results/slurm_detection.json"))
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name, Cluster(Path(name) / "slurm") as cluster:
        folder = Path(name) / "work"
        folder.mkdir()
        calls = count_calls(cluster)
        plain = [sbatch_and_poll(cluster, folder) for _ in range(options.jobs)]
        calls.write_text("")
        ours = chain(cluster, folder, options.jobs, options.sleep)
        asked = [float(line) for line in calls.read_text().split()]
    short, (start, _, end) = ours[:-1], ours[-1]
    noticed = [seen - submitted for submitted, _, seen in short]
    working = [ended - submitted for submitted, ended, _ in short]
    lags = [seen - ended for _, ended, seen in short]
    busy = per_minute(asked, short[0][0], short[-1][2])
    quiet = per_minute(asked, start, end)
    seconds, work, lag = map(statistics.median, (noticed, working, lags))
    theirs = f"sbatch and squeue every second: {statistics.median(plain):.2g} s"
    note = f"on the clock; {work:.2g} s of it before Slurm's end of the job, {lag:.2g} s after; "
    note += f"{busy:.2g} calls of squeue a minute"
    rows = [
        Row(
            f"trivial job, {len(short)} in a chain", f"{seconds:.2g} s", theirs, None, f"{AIM:g} s", seconds < AIM, note
        ),
        Row(
            f"one job of {options.sleep} s",
            f"{quiet:.2g} calls of squeue a minute",
            "squeue every second: 60",
            None,
            "10",
            quiet < 10,
            f"noticed {end - ours[-1][1]:.2g} s after its end",
        ),
    ]
    details = {"noticed": noticed, "until_slurms_end": working, "after_slurms_end": lags, "sbatch_and_poll": plain}
    write_result(__file__, options.output, arguments, rows, {**details, "load": os.getloadavg()[0]})


def count_calls(cluster: Cluster) -> Path:
    """Let every call of the cluster's ``squeue`` note its time; return the file."""
    calls, shim = cluster.folder / "squeue_calls", cluster.folder / "bin" / "squeue"
    shim.write_text(shim.read_text().replace("SLURM_CONF", f"date +%s.%N >> {calls}\nSLURM_CONF", 1))
    return calls


def per_minute(times: Sequence[float], start: float, end: float) -> float:
    """Events per minute between two times."""
    return 60 * sum(start <= one <= end for one in times) / (end - start)


def sbatch_and_poll(cluster: Cluster, folder: Path) -> float:
    """Seconds until a script that asks once a second has seen the end of a trivial job."""
    start = time.monotonic()
    number = cluster.ask("sbatch", "--parsable", "--mem=600", f"--output={folder}/plain.txt", "--wrap=echo x").strip()
    assert number, "sbatch failed"
    while cluster.ask("squeue", "-h", "--states=all", f"--jobs={number}", "-o", "%T").strip() != "COMPLETED":
        time.sleep(1)
    return time.monotonic() - start


def chain(cluster: Cluster, folder: Path, jobs: int, sleep: int) -> list[tuple[float, float, float]]:
    """Run the chain; return the times of submission, of Slurm's end and of the noticed end of every job in order."""
    links = "".join(LINK.format(number=one, before=one - 1) for one in range(1, jobs))
    (folder / "Snakefile").write_text(SNAKEFILE.format(last=jobs - 1, sleep=sleep) + links)
    submitted: list[tuple[str, float]] = []
    noticed: list[float] = []
    command = [sys.executable, "-m", "snakemake", "--executor", "ltslurm", "--jobs", "9", "--latency-wait", "20"]
    with subprocess.Popen(
        [*command, "--default-resources", "slurm_partition=cpu"],
        cwd=folder,
        env={**cluster.environment, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            now, found = time.time(), re.search(r"submitted with SLURM jobid (\d+)", line)
            if found is not None:
                submitted.append((found[1], now))
            elif line.startswith("Finished jobid") and len(noticed) < len(submitted):
                noticed.append(now)
    assert process.returncode == 0 and len(submitted) == len(noticed) == jobs + 1, (process.returncode, submitted)
    return [(when, ended(cluster, number), seen) for (number, when), seen in zip(submitted, noticed, strict=True)]


def ended(cluster: Cluster, number: str) -> float:
    """When a job ended, as Slurm notes it: to the second."""
    found = re.search(r"EndTime=(\S+)", cluster.ask("scontrol", "show", "job", number))
    assert found is not None, f"job {number} is not known"
    return datetime.fromisoformat(found[1]).timestamp()


if __name__ == "__main__":
    main()
