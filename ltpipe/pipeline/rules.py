"""What the Snakemake rules ask: active experiments, their paths and inputs. Rules hold no logic of their own."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ltpipe.config.checks import check_settings, same_data
from ltpipe.config.experiment import Experiment
from ltpipe.config.external_checkpoints import external_checkpoints
from ltpipe.config.loading import list_experiments, load_experiment
from ltpipe.config.start_weights import starting_experiment
from ltpipe.errors import UserError
from ltpipe.pipeline.digests import stage_digest, toy_data_digest
from ltpipe.pipeline.own_stages import add_own_stages
from ltpipe.pipeline.paths import RESULTS, Paths
from ltpipe.pipeline.reruns import Reruns
from ltpipe.pipeline.stage import Key
from ltpipe.pipeline.stage_rules import Rule, stage_rules
from ltpipe.pipeline.stages import TABLE, stage_inputs, stage_keys
from ltpipe.run.changes import is_current

Wildcards = Any
Files = list[str]


def growing(first: int) -> Callable[[Wildcards, int], int]:
    """Resource of a rule, in minutes or MB, that grows with each attempt up to four times that of the first one."""

    def of_attempt(wildcards: Wildcards, attempt: int) -> int:
        return min(first * attempt, 4 * first)

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
        add_own_stages()
        names = active.split(",") if isinstance(active, str) else list(active)
        self.experiments: dict[str, Experiment] = {}
        named = [load_experiment(name.strip()) for name in names if name.strip()]
        self.active = [self._add(one) for exp in named for one in (*exp.runs(), exp)]
        if not self.active:
            raise UserError("no experiment is active", where="configs/pipeline.yaml: experiments", got=active)
        for exp in list(self.active):
            for other in exp.report.compare:
                if other not in self.experiments:
                    found = load_experiment(other)
                    for one in (*found.runs(), found):
                        self._add(one)
        for exp in list(self.experiments.values()):
            self._add_needed(exp)
        self._check_datasets()
        for exp in self.experiments.values():
            self._check_names(exp)
            check_settings(exp, list_experiments())
        self.reruns = Reruns(self.experiments)

    def _add_needed(self, exp: Experiment) -> None:
        """Add the experiments whose results this one shares or starts from, and what they need; seeds have runs."""
        if exp.seeds:
            return
        start = starting_experiment(exp)
        shared = [exp.beside(exp.share)] if exp.share is not None and exp.owners else []
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
            for test_set in (None, *exp.evaluate.sets):
                first = self.dataset(exp.dataset.name, test_set)
                same_data(first, exp, test_set, f"{first.name} describes in {first.file}")

    def _check_names(self, exp: Experiment) -> None:
        """Refuse input files whose names Snakemake would take for patterns."""
        files = {f"{exp.key_of(part)}.annotations": source.annotations for part, source in exp.parts().items()}
        for key, file in {**files, **external_checkpoints(exp)}.items():
            if re.search(r"\{[^{}]*\}", str(file)) and file.is_file():
                where = f"{exp.file}: {key}"
                raise UserError(
                    "Snakemake takes braces in a path for a pattern", where=where, got=file, fix="rename it"
                )

    # ---- rules -------------------------------------------------------------------------------------------------------

    @property
    def phases(self) -> range:
        """Phases that any experiment has."""
        return range(1, max(exp.num_phases() for exp in self.experiments.values()) + 1)

    @property
    def drawn(self) -> list[str]:
        """Names of the data sets that `ltpipe toy-data` draws."""
        data = (exp.dataset for exp in self.experiments.values())
        return sorted({one.name for one in data if one.generate is not None})

    def rules(self) -> Iterator[Rule]:
        """Yield the rules of all stages."""
        return stage_rules(list(self.experiments.values()))

    def dataset(self, name: str, test_set: str | None = None) -> Experiment:
        """The first experiment on a data set, or with a further test set of it, which stands for all of them."""
        on = (exp for exp in self.experiments.values() if exp.dataset.name == name)
        return next(exp for exp in on if test_set is None or test_set in exp.evaluate.sets)

    def resources_by_stage(self, settings: Any) -> None:
        """Give every rule the resources and threads of its stage (``lst`` for ``lst_phase_13``).

        Args:
            settings: Snakemake's ``resource_settings``. What it says of a rule by its own name stays.
        """
        given, threads = settings.overwrite_resources, settings.overwrite_threads
        for name, stage in ((rule.name, rule.stage.name) for rule in self.rules()):
            if name == stage:
                continue
            if stage in given:
                given[name] = type(given[stage])({**given[stage], **given.get(name, {})})
            if stage in threads:
                threads.setdefault(name, threads[stage])

    # ---- functions of wildcards --------------------------------------------------------------------------------------

    def of(self, wildcards: Wildcards) -> tuple[Experiment, Paths]:
        """Experiment and paths that the wildcards mean."""
        if hasattr(wildcards, "dataset"):
            exp = self.dataset(wildcards.dataset, getattr(wildcards, "test_set", None))
        else:
            exp = self.experiments[wildcards.experiment]
        return exp, Paths(RESULTS, exp)

    def command(self, stage: str, key: Key = None) -> Callable[[Wildcards, int], str]:
        """The command line of a job, quoted for a shell.

        A data set has the file of the first active experiment, which is another one from call to call. Snakemake does
        not compare parameters of functions that take ``threads``, so that this reruns nothing.

        Args:
            stage: A stage, or ``toy-data``.
            key: A phase, or the name of the wildcard that holds the key.
        """

        def of_wildcards(wildcards: Wildcards, threads: int) -> str:
            words = ["ltpipe", stage, f"--experiment={self.of(wildcards)[0].reference}"]
            entry, value = TABLE.get(stage), _value(wildcards, key)
            option = None if entry is None else entry.option
            if option is not None and (value is not None or option.kind is int):  # without a number all are meant
                words += [option.flag, str(0 if value is None else value)]
            return shlex.join(words)

        return of_wildcards

    def digest(self, stage: str, key: Key = None) -> Callable[[Wildcards, int], str]:
        """Digest of what a stage reads; arguments as in :meth:`command`.

        It tells the executor whether a job that still runs is the one that is wanted. As with :meth:`command`,
        Snakemake compares nothing.
        """

        def of_wildcards(wildcards: Wildcards, threads: int) -> str:
            exp = self.of(wildcards)[0]
            return stage_digest(exp, stage, _value(wildcards, key)) if stage in TABLE else toy_data_digest(exp)

        return of_wildcards

    def inputs(self, stage: str, key: Key, wildcards: Wildcards) -> dict[str, bool]:
        """Files that a stage reads and a rule makes, and whether they stay; others are compared by ltpipe alone.

        Also has Snakemake run the stage if it is due: this is asked for each job of the graph, before Snakemake decides
        which of them have to run.

        Args:
            stage: A stage, or ``toy-data``.
            key: A phase, or the name of the wildcard that holds the key.
            wildcards: Those of the job.
        """
        exp, paths = self.of(wildcards)
        if stage not in TABLE:
            self.reruns.consider(paths.drawn)
            return {}
        value = _value(wildcards, key)
        self.reruns.consider(paths.record(stage, value))
        known = self.reruns.known(stage_inputs(exp, paths, stage, value).values())
        return {str(file): self.reruns.stays(maker) for file, maker in known.items()}

    # ---- before anything is queued -----------------------------------------------------------------------------------

    def validate(self) -> None:
        """Run ``ltpipe validate`` for every active experiment that has changed since it was checked.

        Raises:
            UserError: One is refused.
        """
        for exp in self.active:
            paths = Paths(RESULTS, exp)
            if ("validate", None) not in stage_keys(exp) or is_current(exp, paths, "validate", None):
                continue
            log = paths.log("validate")
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "w", encoding="utf-8") as handle:
                command = ["ltpipe", "validate", f"--experiment={exp.file}"]
                code = subprocess.run(command, stdout=handle, stderr=subprocess.STDOUT).returncode
            if code:
                message = log.read_text(encoding="utf-8").rpartition("ltpipe validate: ")[2].strip()
                raise UserError(f"{exp.name} is refused before anything is queued\n{message}", fix=f"see {log}")

    def tell_if_nothing_ran(self) -> None:
        """Print, at the end of a Snakemake that had nothing to do, where the reports are."""
        if self.reruns.nothing_ran:
            self.tell()

    def tell(self) -> None:
        """Print where the reports of the active experiments are, those that are there."""
        pages = [page for exp in self.active if (page := Paths(RESULTS, exp).report).is_file()]
        if pages:
            print("\n".join(["", "Reports:", *(f"  {page.resolve()}" for page in pages)]), flush=True)

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

    @property
    def targets(self) -> dict[str, Files]:
        """Records by target: ``all``, ``all_<stage>`` up to a stage, ``phase_<k>`` up to a phase."""
        wanted = {"all": self.records(*(name for name, stage in TABLE.items() if stage.in_all))}
        wanted |= {f"all_{name}": self.records("validate", name) for name in TABLE}
        return wanted | {f"phase_{k}": self.records("validate") + self.records("lst", phase=k) for k in self.phases}


def _value(wildcards: Wildcards, key: Key) -> Key:
    """Return the key that a rule means: the value of a wildcard, or a phase."""
    value: Key = getattr(wildcards, key) if isinstance(key, str) else key
    return value
