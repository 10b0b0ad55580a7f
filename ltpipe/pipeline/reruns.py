"""Which stages have to run again: the records decide, not the times and parameters that Snakemake has noted."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from ltpipe.config.experiment import Experiment
from ltpipe.pipeline.digests import toy_data_digest
from ltpipe.pipeline.paths import RESULTS, Paths, index_key
from ltpipe.pipeline.running import Teller
from ltpipe.pipeline.stage_files import of_parts
from ltpipe.pipeline.stage_rules import rule_names
from ltpipe.pipeline.stages import stage_inputs, stage_keys, stage_outputs
from ltpipe.run.changes import changes, is_current
from ltpipe.run.earlier_results import is_asked, keep, put_back
from ltpipe.run.input_checks import check_annotations, check_outside, checked_input
from ltpipe.run.log_progress import holder
from ltpipe.run.records import RECORD, is_cut_off, read_json, recorded_outputs
from ltpipe.run.snakemake_lock import hold_run_lock
from ltpipe.run.stage_lock import wait_for_holder

_TOLD = 4


class Reruns:
    """The stages of several experiments, and what happens around a run of Snakemake.

    Snakemake compares times, and the parameters it has noted for a job's outputs. Times change where contents do not,
    and what it notes for a job that has failed looks as if it belonged to the files that are there. So the rules tell
    it nothing of either, and finished stages that have to run again are named to it as if the user had forced them.

    Args:
        experiments: By name: all that are active, and whose results they use.
    """

    def __init__(self, experiments: Mapping[str, Experiment]) -> None:
        self._experiments = experiments
        self._workflow: Any = None
        self._job: Any = None
        self._lock: IO[str] | None = None
        self._due: dict[Path, list[str]] = {}
        self._kept: list[Path] = []
        self._teller: Teller | None = None

    @cached_property
    def _made(self) -> Mapping[Path, tuple[Experiment, str, str | int | None]]:
        """All stages by record."""
        own = ((exp, one) for exp in self._experiments.values() for one in stage_keys(exp) if one not in exp.owners)
        return {Paths(RESULTS, exp).record(*one): (exp, *one) for exp, one in own}

    @cached_property
    def _outputs(self) -> Mapping[Path, Path]:
        """Records by the outputs that Snakemake knows of, the records themselves included."""
        found = {record: record for record in (*self._made, *self._drawn)}
        for record, (exp, stage, key) in self._made.items():
            found |= dict.fromkeys(stage_outputs(exp, Paths(RESULTS, exp), stage, key), record)
        return found

    @cached_property
    def _drawn(self) -> Mapping[Path, Experiment]:
        """All data sets that `ltpipe toy-data` draws, by the note that it leaves."""
        return {
            Paths(RESULTS, exp).drawn: exp for exp in self._experiments.values() if exp.dataset.generate is not None
        }

    def maker(self, file: Path) -> Path | None:
        """Return the record of the stage, or the note of the toy data, that a file belongs to; None for the user's."""
        if file in self._drawn:
            return file
        drawn = (note for note, exp in self._drawn.items() if file in _annotations(exp))
        made = (record for folder in file.parents if (record := folder / RECORD) in self._made)
        return next(drawn, None) or next(made, None)

    def known(self, files: Iterable[Path]) -> dict[Path, Path]:
        """Return which of these files Snakemake knows of, and the record that each belongs to.

        Of toy data it knows the note and nothing else: it removes what it knows.
        """
        makers = ((file, self.maker(file)) for file in files)
        found = {maker if maker in self._drawn else file: maker for file, maker in makers if maker is not None}
        return {file: maker for file, maker in found.items() if file in self._outputs}

    # ---- what is due -------------------------------------------------------------------------------------------------

    def why_due(self, record: Path) -> list[str]:
        """Why a finished stage has to run again, one text per reason; empty if it has not.

        Args:
            record: The stage's record, or the note of toy data.
        """
        if record not in self._due:
            self._due[record] = []  # nobody waits for oneself
            self._due[record] = ["it was asked for"] if self._is_asked_for(record) else self._changes(record)
        return self._due[record]

    def stays(self, record: Path) -> bool:
        """Whether what a stage has made is complete and no job will make it again.

        Args:
            record: As :meth:`why_due` takes it.
        """
        if self._workflow is None:  # inside a job, whose inputs are complete
            return True
        if self.why_due(record):
            return False
        if record in self._drawn:
            return record.is_file()
        outputs = recorded_outputs(record)
        return record.is_file() and all((record.parent / name).is_file() for name in outputs)

    def _changes(self, record: Path) -> list[str]:
        if record in self._drawn:
            note, today = read_json(record), toy_data_digest(self._drawn[record])
            return [] if note is None or note.get("digest") == today else ["dataset.generate has changed"]
        exp, stage, key = self._made[record]
        paths = Paths(RESULTS, exp)
        if not record.is_file():
            return ["its last run has not ended"] if is_cut_off(record.parent) else []
        # What is gone cannot be compared: somebody may have needed the space.
        found = changes(exp, paths, stage, key, gone=False)
        makers = {self.maker(file) for file in stage_inputs(exp, paths, stage, key).values()}
        again = sorted(self._shown(maker) for maker in makers if maker is not None and self.why_due(maker))
        return found + [f"{maker} is made again" for maker in dict.fromkeys(again)]

    def _shown(self, record: Path) -> str:
        """The folder of a stage's results, or of toy data."""
        return str(self._drawn[record].dataset.folder if record in self._drawn else record.parent)

    def _lost(self, record: Path) -> list[str]:
        """Annotations that were drawn and are gone. They are drawn again as they were, and nothing follows from it."""
        files = _annotations(self._drawn[record]) if record in self._drawn and record.is_file() else ()
        return [f"{file} is gone" for file in files if not file.is_file()]

    def _is_asked_for(self, record: Path) -> bool:
        """Whether ``-R``, ``-f`` or ``-F`` names a stage, by rule or file."""
        if self._workflow is None:
            return False
        asked = self._workflow.dag_settings
        names = {*asked.forcerun, *(asked.targets if asked.forcetargets else ())}
        rules = self._rules(record)
        return asked.forceall or bool(rules & names) or any(self._of_output(Path(name)) == record for name in names)

    def _rules(self, record: Path) -> set[str]:
        """Names by which the user and Snakemake may mean a stage."""
        if record in self._drawn:
            return {"toy_data"}
        exp, stage, key = self._made[record]
        return rule_names(exp, Paths(RESULTS, exp), stage, key)

    def _of_output(self, file: Path) -> Path | None:
        """Return the record of the stage that a file belongs to, which may lie outside its folder."""
        return self._outputs.get(file) or self.maker(file)

    # ---- Snakemake ---------------------------------------------------------------------------------------------------

    def steer(self, workflow: Any) -> None:
        """Decide for this Snakemake, a main one and not one inside a job, what has to run.

        Args:
            workflow: Snakemake's workflow.
        """
        self._workflow = workflow

    def serve(self, workflow: Any) -> None:
        """Stand by this Snakemake, one inside a job: the job was told to run, whatever has become of its stage since.

        Args:
            workflow: Snakemake's workflow.
        """
        self._job = workflow

    def consider(self, record: Path) -> None:
        """Have Snakemake, which is building its graph, run a stage if it is due.

        Args:
            record: As :meth:`why_due` takes it.

        Raises:
            SystemExit: With 0, inside a job that has nothing left to do.
        """
        if self._job is not None and self._is_job_of(record) and self._is_done(record):
            print(f"{self._shown(record)} is complete, with today's settings and inputs: nothing is left to do")
            raise SystemExit(0)
        if self._workflow is None:
            return
        self._take_over()
        forced = self._workflow.dag.forcefiles
        why = self.why_due(record) + self._lost(record)
        if why and str(record) not in forced:
            forced.add(str(record))
            more = f" and {len(why) - _TOLD} more" if len(why) > _TOLD else ""
            print(f"{self._shown(record)} is made again: {'; '.join(why[:_TOLD])}{more}", file=sys.stderr)

    def _is_job_of(self, record: Path) -> bool:
        """Whether the job that this Snakemake runs makes this stage and no other."""
        named = {spec.rulename for spec in self._job.dag_settings.target_jobs}
        return len(named) == len(self._job.dag_settings.target_jobs) == 1 and named <= self._rules(record)

    def _is_done(self, record: Path) -> bool:
        """Whether another job has made what this one would make, perhaps after waiting for it; else it runs.

        A job may start a second time, or late, beside another one for the same stage: Slurm queues it again, or nobody
        knew that it was there. What Snakemake would remove now is read by the stages that follow.
        """
        if record in self._drawn:
            return record.is_file() and not self._changes(record) and not self._lost(record)
        exp, stage, key = self._made[record]
        paths = Paths(RESULTS, exp)
        wait_for_holder(record.parent, stage)
        if is_asked(record.parent) or not is_current(exp, paths, stage, key):
            return False
        return all(file.exists() for file in (*stage_outputs(exp, paths, stage, key), paths.benchmark(stage, key)))

    def _take_over(self) -> None:
        """While the rules are read Snakemake knows neither its settings nor whether anything will run; now it does."""
        settings = self._workflow.dag_settings
        settings.rerun_triggers = frozenset()
        # A stage is complete when its record is there, whether its Snakemake has lived to see it or not.
        self._workflow.dag.ignore_incomplete = True
        if self._lock is None and self._workflow.executor_plugin is not None and not self._workflow.dryrun:
            self._lock = hold_run_lock()

    @property
    def nothing_ran(self) -> bool:
        """Whether this Snakemake was to make something and found everything there; it then calls no handler."""
        if self._lock is None or self._teller is not None:
            return False
        graph = self._workflow.dag
        return bool(graph.targetjobs) and not any(graph.needrun_jobs())

    def begin(self, outputs: Iterable[str]) -> None:
        """Before the first job of a run: check what the jobs will read, and keep what Snakemake will remove.

        Args:
            outputs: Output files of all jobs that will run.

        Raises:
            UserError: An input is missing, or is not as its stage wrote it. Nothing was removed.
        """
        if self._workflow.touch:
            return
        files: dict[Path, list[Path]] = {}
        for output in map(Path, outputs):
            record = self._of_output(output)
            if record is not None:
                files.setdefault(record, []).append(output)
        for record in files.keys() & self._made.keys():
            self._check_inputs(record, files)
        clamp_future_times()
        for note in self._drawn.keys() & files.keys():
            if self._is_asked_for(note):  # nothing is kept of it: without it the job knows that it has to run
                note.unlink(missing_ok=True)
        for record, (exp, stage, key) in self._made.items():
            if self._is_asked_for(record):
                _forget(Paths(RESULTS, exp).work(stage, key))
            if record in files and keep(record.parent, files[record], asked=self._is_asked_for(record)):
                self._kept.append(record.parent)
        due = ((record, self._made[record]) for record in files if record in self._made)
        logs = {record.parent: Paths(RESULTS, exp).log(stage, key) for record, (exp, stage, key) in due}
        self._teller = Teller(logs)
        self._teller.start()

    def _check_inputs(self, record: Path, files: Collection[Path]) -> None:
        """Check those inputs of a stage that lie there and will not be made first."""
        exp, stage, key = self._made[record]
        paths = Paths(RESULTS, exp)
        inputs = stage_inputs(exp, paths, stage, key)
        for name, path in inputs.items():
            check_outside(record.parent, stage, name, path)
            maker = self.maker(path)
            if maker not in files and (maker is None or path.is_file()):
                checked_input(exp, paths, stage, name, path)
        for part in of_parts(inputs):
            if paths.record("index", index_key(part)) not in files:
                check_annotations(exp, paths, stage, part)

    def end(self) -> None:
        """After the last job of a run: put back what stages have left nothing in the place of."""
        if self._teller is not None:
            self._teller.stop()
        for folder in self._kept:
            if holder(folder) is None:
                put_back(folder)


def _annotations(exp: Experiment) -> tuple[Path, Path]:
    return exp.dataset.train.annotations, exp.dataset.val.annotations


def _forget(work: Path) -> None:
    """Remove what a killed stage would continue from: it shall run anew."""
    if work.is_dir() and holder(work.parent) is None:
        shutil.rmtree(work)


def clamp_future_times() -> None:
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
