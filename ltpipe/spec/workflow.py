"""What the Snakemake rules ask: active experiments, their paths and digests. Rules hold no logic of their own."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from ltpipe.errors import UserError
from ltpipe.spec.catalogue import extra_images
from ltpipe.spec.checks import check_settings
from ltpipe.spec.digest import stage_digest
from ltpipe.spec.given import given_checkpoints
from ltpipe.spec.load import list_experiments, load_beside, load_experiment
from ltpipe.spec.models import Experiment
from ltpipe.spec.paths import RESULTS, Paths
from ltpipe.spec.progress import holder
from ltpipe.spec.start import starting_experiment
from ltpipe.spec.status import needs_features, stage_keys

Wildcards = Any
Files = list[str]


def growing(first: int, limit: int | None = None) -> Callable[[Wildcards, int], int]:
    """Resource of a rule that grows with each attempt.

    Args:
        first: Value of the first attempt (minutes or MB).
        limit: Largest value; four times the first by default. A cap keeps retries below a partition's maximum.
    """

    def of_attempt(wildcards: Wildcards, attempt: int) -> int:
        return min(first * attempt, 4 * first if limit is None else limit)

    return of_attempt


class Pipeline:
    """The active experiments, those they are compared with and those they start from.

    Methods whose names are verbs in the rules return functions of wildcards, as Snakemake calls them.

    Args:
        active: Names or files of the experiments, a list or text separated by commas.

    Raises:
        UserError: An experiment is wrong, or two of them contradict each other.
    """

    def __init__(self, active: Iterable[str] | str) -> None:
        names = active.split(",") if isinstance(active, str) else list(active)
        self.experiments: dict[str, Experiment] = {}
        self.active = [self._add(load_experiment(name.strip())) for name in names if name.strip()]
        if not self.active:
            raise UserError("no experiment is active", where="configs/pipeline.yaml: experiments", got=active)
        for exp in list(self.active):
            for other in exp.report.compare:
                if other not in self.experiments:
                    self._add(load_experiment(other))
        for exp in list(self.experiments.values()):
            self._add_needed(exp)
        self._check_datasets()
        for exp in self.experiments.values():
            self._check_names(exp)
            check_settings(exp, list_experiments())

    def _add_needed(self, exp: Experiment) -> None:
        """Add the experiments whose results this one shares or starts from, and what they need."""
        start = starting_experiment(exp)
        shared = [load_beside(exp, exp.share)] if exp.share is not None and exp.owners else []
        for other in (*shared, *([start] if start is not None else [])):
            if other.name not in self.experiments:
                self._add_needed(self._add(other))

    def _add(self, exp: Experiment) -> Experiment:
        other = self.experiments.setdefault(exp.name, exp)
        if other.file != exp.file:
            raise UserError(
                "two experiments have one name", where=f"{exp.file}: name", got=f"{exp.name}, as {other.file}"
            )
        return other

    def _check_datasets(self) -> None:
        for exp in self.experiments.values():
            first = self.dataset(exp.dataset.name)
            if exp.dataset != first.dataset:
                raise UserError(
                    "two experiments describe one data set differently",
                    where=f"{exp.file}: dataset",
                    got=f"{exp.dataset.name}, as in {first.file}",
                    fix="give the other data set another name, or let one experiment extend the other",
                )

    def _check_names(self, exp: Experiment) -> None:
        """Refuse input files whose names Snakemake would take for patterns."""
        data = exp.dataset
        files = {f"dataset.{p}.annotations": s.annotations for p, s in (("train", data.train), ("val", data.val))}
        for key, file in {**files, **given_checkpoints(exp)}.items():
            if re.search(r"\{[^{}]*\}", str(file)) and file.is_file():
                where = f"{exp.file}: {key}"
                raise UserError(
                    "Snakemake takes braces in a path for a pattern", where=where, got=file, fix="rename it"
                )

    # ---- names for wildcard constraints ------------------------------------------------------------------------------

    @cached_property
    def num_phases(self) -> Mapping[str, int]:
        """Incremental phases by experiment."""
        return {name: exp.num_phases() for name, exp in self.experiments.items()}

    @property
    def phases(self) -> range:
        """Phases that any experiment has."""
        return range(1, max(self.num_phases.values()) + 1)

    @cached_property
    def calibrators(self) -> list[str]:
        """Names of all calibrators."""
        return sorted({name for exp in self.experiments.values() for name in exp.calibrate})

    @cached_property
    def checkpoints(self) -> list[str]:
        """All checkpoint ids."""
        return sorted({c for name, exp in self.experiments.items() for c in exp.checkpoints()})

    @cached_property
    def datasets(self) -> list[str]:
        """Names of all data sets."""
        return sorted({exp.dataset.name for exp in self.experiments.values()})

    @cached_property
    def drawn(self) -> list[str]:
        """Names of the data sets that `ltpipe toy-data` draws."""
        return [name for name in self.datasets if self.dataset(name).dataset.generate is not None]

    def with_phase(self, phase: int) -> list[str]:
        """Experiments that have this phase."""
        return [name for name, phases in self.num_phases.items() if phases >= phase]

    def with_holdout(self, held_out: bool) -> list[str]:
        """Experiments that hold images out of training, or those that do not."""
        return [name for name, exp in self.experiments.items() if (extra_images(exp) == "holdout") == held_out]

    def with_cached_teacher(self, phase: int) -> list[str]:
        """Experiments whose distill stage runs in this phase."""
        return [
            name for name in self.with_phase(phase) if ("distill", phase) in set(stage_keys(self.experiments[name]))
        ]

    def dataset(self, name: str) -> Experiment:
        """The first experiment on a data set, which stands for all of them."""
        return next(exp for exp in self.experiments.values() if exp.dataset.name == name)

    # ---- functions of wildcards --------------------------------------------------------------------------------------

    def of(self, wildcards: Wildcards) -> tuple[Experiment, Paths]:
        """Experiment and paths that the wildcards mean."""
        exp = (
            self.dataset(wildcards.dataset) if hasattr(wildcards, "dataset") else self.experiments[wildcards.experiment]
        )
        return exp, Paths(RESULTS, exp)

    def file(self, wildcards: Wildcards, threads: int) -> str:
        """The experiment's file, for the command line.

        A data set has that of the first active experiment, which is another one from call to call. Snakemake does not
        compare parameters of functions that take ``threads``, so that this reruns nothing.
        """
        return str(self.of(wildcards)[0].file)

    def digest(self, stage: str, key: str | int | None = None) -> Callable[[Wildcards], str]:
        """Digest of what a stage reads; ``key`` is a phase, or the name of the wildcard that holds the key."""

        def of_wildcards(wildcards: Wildcards) -> str:
            value = getattr(wildcards, key) if isinstance(key, str) else key
            return stage_digest(self.of(wildcards)[0], stage, value)

        return of_wildcards

    def annotations(self, wildcards: Wildcards) -> Files:
        """Annotation files of a data set; only those that exist or are drawn, so that a dry run needs no data."""
        data = self.of(wildcards)[0].dataset
        files = [data.train.annotations, data.val.annotations]
        return [str(file) for file in files if data.generate is not None or file.is_file()]

    def store(self, part: str) -> Callable[[Wildcards], Files]:
        """Marker and statistics of an annotation store."""

        def of_wildcards(wildcards: Wildcards) -> Files:
            _, paths = self.of(wildcards)
            folder = paths.store(cast(Any, part))
            return [str(folder / "info.json"), str(folder / "statistics.csv")]

        return of_wildcards

    def start(self, wildcards: Wildcards) -> Files:
        """Checkpoints that the base starts from or takes over: made by another experiment, or there already."""
        exp, _ = self.of(wildcards)
        made = starting_experiment(exp) is not None
        given = {key: path for key, path in given_checkpoints(exp).items() if not key.startswith("calibrate.")}
        return [str(path) for key, path in given.items() if path.is_file() or (made and key == "detector.load_from")]

    def head(self, wildcards: Wildcards) -> Files:
        """The trained head that a calibrator takes over, if it is there already."""
        file = self.of(wildcards)[0].calibrate[wildcards.calibrator].checkpoint
        return [] if file is None or not file.is_file() else [str(file)]

    def split(self, wildcards: Wildcards) -> str:
        """Class order and phases."""
        return str(self.of(wildcards)[1].split)

    def before(self, phase: int) -> Callable[[Wildcards], Files]:
        """Weights and config that a phase starts from."""
        previous = "base" if phase == 1 else f"phase{phase - 1}"

        def of_wildcards(wildcards: Wildcards) -> Files:
            _, paths = self.of(wildcards)
            return [str(paths.model(previous)), str(paths.config(previous))]

        return of_wildcards

    def replay(self, phase: int) -> Callable[[Wildcards], str]:
        """Replay list of a phase."""
        return lambda wildcards: str(self.of(wildcards)[1].replay(phase))

    def holdout(self, wildcards: Wildcards) -> Files:
        """The list of the images held out of training, if the experiment has one."""
        exp, paths = self.of(wildcards)
        return [str(paths.holdout)] if extra_images(exp) == "holdout" else []

    def teacher(self, phase: int) -> Callable[[Wildcards], Files]:
        """The cached teacher of a phase, if the experiment uses one."""

        def of_wildcards(wildcards: Wildcards) -> Files:
            exp, paths = self.of(wildcards)
            return [str(paths.teacher(phase))] if ("distill", phase) in set(stage_keys(exp)) else []

        return of_wildcards

    def model(self, wildcards: Wildcards) -> Files:
        """Weights and config of the checkpoint that the wildcard names, or of the one the calibrators start from."""
        exp, paths = self.of(wildcards)
        checkpoint = getattr(wildcards, "checkpoint", exp.final_checkpoint())
        return [str(paths.model(checkpoint)), str(paths.config(checkpoint))]

    def features(self, wildcards: Wildcards) -> Files:
        """The features, if the calibrator is trained on them."""
        exp, paths = self.of(wildcards)
        only = exp.model_copy(update={"calibrate": {wildcards.calibrator: exp.calibrate[wildcards.calibrator]}})
        return [str(paths.plan), str(paths.record("features"))] if needs_features(only) else []

    def measurements(self, wildcards: Wildcards) -> Files:
        """Metrics of the experiment and of those it is compared with."""
        exp, _ = self.of(wildcards)
        files = []
        for name in (exp.name, *exp.report.compare):
            other, paths = self.of(SimpleNamespace(experiment=name))
            for checkpoint in other.evaluated_checkpoints():
                files += [str(paths.metrics(checkpoint)), str(paths.per_class(checkpoint))]
        return files

    # ---- clocks ------------------------------------------------------------------------------------------------------

    def bring_to_the_past(self) -> None:
        """Give results from the future, made while a clock was ahead, times just before now, in the same order.

        Snakemake takes a job for failed, and deletes its results, when an input is younger than they are.
        """
        now = time.time_ns()
        times = {file: file.stat().st_mtime_ns for file in Path(RESULTS).rglob("*") if file.is_file()}
        ahead = sorted((file for file, when in times.items() if when > now), key=times.__getitem__)
        distinct = sorted({times[file] for file in ahead})
        for file in ahead:
            when = now - 1000 * (len(distinct) - distinct.index(times[file]))
            os.utime(file, ns=(when, when))

    # ---- from scratch ------------------------------------------------------------------------------------------------

    def forget(self, forced: Collection[str], *, everything: bool = False) -> None:
        """Remove what killed stages would continue from, for stages that shall run anew.

        Args:
            forced: Rules and output files, as ``-R`` takes them.
            everything: All stages, as with ``-F``.
        """
        folders = {Path(name).parent for name in forced}
        for exp in self.experiments.values():
            paths = Paths(RESULTS, exp)
            for stage, key in stage_keys(exp):
                rule = f"{stage}_phase_{key}" if isinstance(key, int) else stage
                folder, work = paths.folder(stage, key), paths.work(stage, key)
                if (everything or rule in forced or folder in folders) and work.is_dir() and holder(folder) is None:
                    shutil.rmtree(work)

    # ---- targets -----------------------------------------------------------------------------------------------------

    def records(self, *stages: str, phase: int | None = None) -> Files:
        """Records of stages in all active experiments.

        Args:
            *stages: Stages.
            phase: Only this phase.
        """
        found = []
        for exp in self.active:
            paths = Paths(RESULTS, exp)
            for stage, key in stage_keys(exp):
                if stage in stages and phase in (None, key):
                    found.append(str(paths.record(stage, key)))
        return list(dict.fromkeys(found))
