"""Experiments that are run for several seeds: what their runs are called, and what each of them is."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from ltpipe.config.experiment import Experiment
from ltpipe.errors import UserError

Load = Callable[[str], Experiment]
_RUN = re.compile(r"(.+)\.seed(\d+)(\.yaml)?")


def run_name(experiment: str, seed: int) -> str:
    """Return the name of the run of an experiment for one of its seeds."""
    return f"{experiment}.seed{seed}"


def parted(name: str) -> tuple[str, int] | None:
    """Return the experiment and the seed that the name, or file, of a run stands for; None for other names."""
    match = _RUN.fullmatch(name)
    return (match[1] + (match[3] or ""), int(match[2])) if match else None


def run_of(exp: Experiment, seed: int, load: Load) -> Experiment:
    """Return the run of an experiment for one of its seeds.

    It shares what no seed decides with the run for the first seed. What the experiment shares, starts from or is
    compared with is the run for the same seed, where that experiment has seeds, too.

    Args:
        exp: The experiment, complete.
        seed: One of its seeds.
        load: Loads an experiment that it names.

    Raises:
        UserError: It is not run for this seed.
    """
    if seed not in exp.seeds:
        raise UserError(
            "the experiment is not run for this seed",
            where=exp.where("seeds"),
            got=seed,
            allowed=", ".join(map(str, exp.seeds)) or "an experiment with `seeds`",
        )

    def same(name: str) -> str:
        seeds = load(name).seeds
        return run_name(name, seed if seed in seeds else seeds[0]) if seeds else name

    first, stem = exp.seeds[0], exp.file.stem if exp.file is not None else exp.name
    share = same(exp.share) if exp.share is not None else None if seed == first else run_name(stem, first)
    start = exp.detector.load_from
    if isinstance(start, Path) and len(start.parts) > 1 and start.parts[0] == "results":
        start = _started(start, same)
    run = exp.model_copy(
        update={
            "name": run_name(exp.name, seed),
            "seed": seed,
            "seeds": (),
            "share": share,
            "detector": exp.detector.model_copy(update={"load_from": start}),
            "report": exp.report.model_copy(update={"compare": tuple(map(same, exp.report.compare))}),
        }
    )
    run._run_of = exp.name
    return run


def _started(start: Path, same: Callable[[str], str]) -> Path:
    """Return the checkpoint of the run for the same seed, where it is one of an experiment of ours."""
    try:
        name = same(start.parts[1])
    except UserError:  # the results of something else
        return start
    return Path(start.parts[0], name, *start.parts[2:])
