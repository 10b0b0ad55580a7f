"""What the Snakemake rules ask: active experiments, their paths and inputs. Rules hold no logic of their own."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

from ltpipe.config.checks import check_settings
from ltpipe.config.choices import extra_images
from ltpipe.config.experiment import Experiment
from ltpipe.config.loading import list_experiments, load_beside, load_experiment
from ltpipe.config.outside_checkpoints import given_checkpoints
from ltpipe.config.start_weights import starting_experiment
from ltpipe.errors import UserError
from ltpipe.pipeline.digests import stage_digest
from ltpipe.pipeline.inputs import is_made_always, stage_inputs
from ltpipe.pipeline.paths import RESULTS, Paths
from ltpipe.pipeline.reruns import Reruns
from ltpipe.pipeline.stage_keys import stage_keys
from ltpipe.pipeline.stages import TABLE
from ltpipe.run.records import is_current

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
        self.reruns = Reruns(self.experiments)

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

    stages = tuple(TABLE)
    """Names of all stages."""

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

    def digest(self, stage: str, key: str | int | None = None) -> Callable[[Wildcards, int], str]:
        """Digest of what a stage reads; ``key`` is a phase, or the name of the wildcard that holds the key.

        It tells the executor whether a job that still runs is the one that is wanted. As with :meth:`file`, Snakemake
        compares nothing.
        """

        def of_wildcards(wildcards: Wildcards, threads: int) -> str:
            value = getattr(wildcards, key) if isinstance(key, str) else key
            return stage_digest(self.of(wildcards)[0], stage, value)

        return of_wildcards

    def inputs(self, stage: str, key: str | int | None, wildcards: Wildcards) -> dict[str, bool]:
        """Files that a stage reads and a rule makes, and whether they stay; others are compared by ltpipe alone.

        Also has Snakemake run the stage if it is due: this is asked for each job of the graph, before Snakemake decides
        which of them have to run.

        Args:
            stage: A stage, or ``toy_data``.
            key: A phase, or the name of the wildcard that holds the key.
            wildcards: Those of the job.
        """
        exp, paths = self.of(wildcards)
        if stage == "toy_data":
            self.reruns.consider(paths.drawn)
            return {}
        value = getattr(wildcards, key) if isinstance(key, str) else key
        self.reruns.consider(paths.record(stage, value))
        files = filter(is_made_always, stage_inputs(exp, paths, stage, value).values())
        makers = {file: maker for file in files if (maker := self.reruns.maker(file)) is not None}
        known = {maker if self.reruns.is_note(maker) else file: maker for file, maker in makers.items()}
        return {str(file): self.reruns.stays(maker) for file, maker in known.items()}

    # ---- before anything is queued -----------------------------------------------------------------------------------

    def validate(self) -> None:
        """Run ``ltpipe validate`` for every active experiment that has changed since it was checked.

        Raises:
            UserError: One is refused.
        """
        for exp in self.active:
            paths = Paths(RESULTS, exp)
            if is_current(exp, paths, "validate", None):
                continue
            log = paths.log("validate")
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "w", encoding="utf-8") as handle:
                command = ["ltpipe", "validate", f"--experiment={exp.file}"]
                code = subprocess.run(command, stdout=handle, stderr=subprocess.STDOUT).returncode
            if code:
                message = log.read_text(encoding="utf-8").rpartition("ltpipe validate: ")[2].strip()
                raise UserError(f"{exp.name} is refused before anything is queued\n{message}", fix=f"see {log}")

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
