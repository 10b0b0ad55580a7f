"""Commands that work on one experiment: which one is meant, and how its stages run by hand."""

from __future__ import annotations

import importlib
import os
import pickle
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from ltpipe.config.experiment import Experiment
from ltpipe.config.loading import load_experiment
from ltpipe.errors import UserError, unknown_name
from ltpipe.pipeline.paths import Paths
from ltpipe.pipeline.stage import Key, Option, Stage
from ltpipe.pipeline.stages import TABLE
from ltpipe.run.launch import join, launch, launch_on_nodes, processes_for
from ltpipe.run.slurm import nodes as nodes_of_job
from ltpipe.run.stage_lock import AlreadyRunning, is_done
from ltpipe.run.stage_run import forget
from ltpipe.run.time_limit import STOPPED, set_deadline


def experiment_of(arguments: Namespace, *, over_seeds: bool = False) -> tuple[Experiment, Paths]:
    """Return the experiment that a command names, and its paths.

    Args:
        arguments: Those of the command line.
        over_seeds: Whether an experiment with several seeds will do, and not only the run for one of them.

    Raises:
        UserError: There is none, or it has several seeds.
    """
    exp = load_experiment(arguments.experiment or arguments.option)
    return exp if over_seeds else one_run(exp), Paths(arguments.results, exp)


def one_run(exp: Experiment) -> Experiment:
    """Return an experiment without several seeds.

    Raises:
        UserError: It has several.
    """
    if exp.seeds:
        raise UserError(
            "the experiment has several seeds, and this is done for the run of one of them",
            where=exp.where("seeds"),
            got=exp.name,
            allowed=", ".join(one.name for one in exp.runs()),
        )
    return exp


def check_key(exp: Experiment, option: Option, key: Key) -> None:
    """Refuse a phase, calibrator or checkpoint that the experiment does not have.

    Raises:
        UserError: It does not have it.
    """
    allowed = option.allowed(exp)
    if key in allowed:
        return
    if option.kind is str:
        raise unknown_name(option.what, str(key), map(str, allowed), where=option.flag)
    possible = f"{allowed[0]} to {allowed[-1]}" if exp.incremental else "none: the experiment is one-shot"
    raise UserError(f"no such {option.what}", where=option.flag, got=key, allowed=possible)


def run_stage(arguments: Namespace) -> int:
    """Run the stage that a command line names, or what its options ask for instead.

    Returns:
        Exit code.
    """
    stage = TABLE[arguments.verb]
    instead = stage.alternative
    if instead is not None and getattr(arguments, instead.option) not in (None, False):
        importlib.import_module(instead.module).run(arguments)
        return 0
    exp, paths = experiment_of(arguments, over_seeds=stage.over_seeds)
    keys = _keys(stage, exp, arguments)
    # Without a phase `split` makes several results; phase 0 is that without a key.
    owner = None if None in keys.values() else exp.owners.get((stage.name, next(iter(keys.values()), None) or None))
    if owner is not None:
        print(f"{exp.name} takes this stage from {owner}, where it runs")
        exp = exp.beside(owner)
        paths = Paths(arguments.results, exp)
    join()
    launched = "WORLD_SIZE" in os.environ
    if not launched:
        folder = paths.folder(stage.name, *keys.values())
        fresh = stage.resumes and arguments.fresh
        if fresh:
            forget(stage.name, folder)
        if is_done(exp, paths, stage.name, keys, fresh=fresh):
            return 0
    if stage.batch_size is not None:
        set_deadline(arguments.time_limit)
    batch_size = None if stage.batch_size is None else stage.batch_size(exp)
    if not launched and (batch_size is not None or stage.shares_images):
        code = _launch(arguments, batch_size, folder)
        if code is not None:
            return code
    _run_here(stage, exp, paths, keys, launched=launched)
    return 0


def _keys(stage: Stage, exp: Experiment, arguments: Namespace) -> dict[str, Any]:
    """Return the checked key of the run, by the name that the stage's ``run`` has for it."""
    if stage.option is None:
        return {}
    key = getattr(arguments, stage.option.name)
    if key is not None:
        check_key(exp, stage.option, key)
    return {stage.option.name: key}


def _launch(arguments: Namespace, batch_size: int | None, folder: Path) -> int | None:
    """Run a stage in several processes, which share a batch if there is one; None if it shall run in this one."""
    nodes = nodes_of_job()
    processes = processes_for(batch_size, nodes) if arguments.processes is None else arguments.processes
    _check_processes(processes, batch_size, nodes)
    if nodes > 1:
        code = launch_on_nodes(arguments.given, nodes, processes, folder)
        if code == STOPPED:  # below what srun has said
            print(f"ltpipe {arguments.verb}: stopped; the next attempt continues", file=sys.stderr)
        return code
    return launch(arguments.given, processes) if processes > 1 else None


def _check_processes(processes: int, batch_size: int | None, nodes: int) -> None:
    """Refuse a number of processes that cannot share the batch, before any of them starts.

    Raises:
        UserError: It is such a number, or none.
    """
    if processes < 1:
        raise UserError("not a number of processes", where="--processes", got=processes, allowed="1 and more")
    if batch_size is not None and batch_size % (processes * nodes):
        possible = [n for n in range(1, batch_size + 1) if batch_size % (n * nodes) == 0]
        on = f" on each of {nodes} nodes" if nodes > 1 else ""
        raise UserError(
            "the processes cannot share a batch equally",
            where="--processes",
            got=f"{processes} processes{on} for {batch_size} images per pass",
            allowed=possible or f"none on {nodes} nodes",
            fix="choose one of these, or a batch_size that the processes divide",
        )


def _run_here(stage: Stage, exp: Experiment, paths: Paths, keys: dict[str, Any], *, launched: bool) -> None:
    """Run a stage in this process, unless the same stage of another process has just become complete."""
    if stage.torch:
        load_formatter()
    run = importlib.import_module(stage.module or f"ltpipe.stages.{stage.name}").run
    try:
        run(exp, paths, **keys)
    except AlreadyRunning:
        if launched:
            raise
        # Both were started at the same moment, and the other one was faster.
        if not is_done(exp, paths, stage.name, keys):
            run(exp, paths, **keys)


def load_formatter() -> None:
    """Import yapf, which mmengine needs, even while another process writes yapf's cache.

    At its first use yapf writes its parsed grammar into the user's cache folder, in place: of several jobs that start
    at once on a fresh installation, some would read it half-written and fail.
    """
    for _ in range(40):
        try:
            importlib.import_module("yapf.yapflib.yapf_api")
            return
        except (EOFError, pickle.UnpicklingError):
            time.sleep(0.5)
