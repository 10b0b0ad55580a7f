"""What a stage is: an entry of the table in :mod:`ltpipe.pipeline.stages`, or one of a project's own."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltpipe.config.experiment import Experiment
from ltpipe.errors import UserError
from ltpipe.pipeline.paths import Paths

Key = str | int | None
"""What tells the runs of one stage apart: a phase, the name of a test set, calibrator or measurement, or nothing."""
Slice = dict[str, Any]
Reads = Callable[[Experiment, Mapping[str, Any], Key], Slice]
Inputs = Iterator[tuple[str, Path]]


@dataclass(frozen=True)
class Option:
    """The key of a stage, or of what it makes ``each``, as an option of the command line.

    Attributes:
        flag: The option.
        name: Argument of the stage's ``run``.
        what: What it stands for, in messages and as wildcard of the rule.
        kind: Type of its values: phases are numbers, calibrators and checkpoints names.
        help: What it means.
        allowed: Values that an experiment has.
        required: Whether the stage by hand needs it.
    """

    flag: str
    name: str
    what: str
    kind: type[int] | type[str]
    help: str
    allowed: Callable[[Experiment], Sequence[int] | Sequence[str]]
    required: bool = True


@dataclass(frozen=True)
class Alternative:
    """What the command of a stage does instead of running it, when one of its options is given.

    Attributes:
        option: Name of that option among the parsed arguments.
        add: Adds the options to the command's parser; the group that it also gets, of which one is required, holds the
            ways to name an experiment.
        module: Where its ``run(arguments)`` is found.
    """

    option: str
    add: Callable[[ArgumentParser, Any], None]
    module: str


@dataclass(frozen=True)
class Shown:
    """A result in ``snakemake --report``.

    Attributes:
        caption: File in ``workflow/report``.
        category: Where it is listed.
        label: What it is called; of the files in a folder, the wildcard of their pattern.
        pattern: Pattern of the files in a folder; None: the result is a file.
    """

    caption: str
    category: str
    label: str
    pattern: str | None = None


def reading(*names: str, without: Mapping[str, Collection[str]] | None = None) -> Reads:
    """Return the slice of a stage that reads these dotted keys of the experiment.

    Args:
        *names: Keys, or whole blocks. ``detector`` also stands for what the detector file resolves to.
        without: Keys by block that are left out again.
    """

    def read(exp: Experiment, whole: Mapping[str, Any], key: Key) -> Slice:
        found = {name: _pick(whole, name) for name in names}
        for block, left_out in (without or {}).items():
            if found[block] is not None:
                found[block] = {name: value for name, value in found[block].items() if name not in left_out}
        return found

    return read


def _pick(values: Mapping[str, Any], dotted: str) -> Any:
    """Value at a dotted key; None below a block that is null."""
    current: Any = values
    for part in dotted.split("."):
        if current is None:
            return None
        if part not in current:
            raise UserError("a stage reads a key that experiments do not have", got=dotted, allowed=sorted(current))
        current = current[part]
    return current


def _once(exp: Experiment) -> Iterable[Key]:
    return (None,)


def _no_more(exp: Experiment, paths: Paths, key: Key) -> Sequence[Path]:
    return ()


def _no_seed(exp: Experiment, key: Key) -> int:
    return 0


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: Name of the command, of the rule and of the folders of results and logs.
        help: What it does, for ``--help``.
        title: What a job makes, for Snakemake's messages; ``{key}`` stands for its key.
        reads: What it reads of the experiment, see :func:`reading`. It runs again when that changes.
        inputs: Which files it reads, by what names them: a key of the experiment, or the stage that makes them, perhaps
            with a suffix after ``:``. Names say nothing about folders: results that were moved keep them. Images are
            not among them: the store knows which there are, and each is checked when it is read.
        outputs: Files and folders that it always leaves; only these can be inputs of a rule. Those in its folder go
            into its record by themselves.
        more_outputs: What it leaves in some experiments in addition.
        keys: The keys of an experiment's runs; none where the experiment has no such stage.
        option: The key on the command line; None: there is one run per experiment.
        alternative: What the command can do instead, with options of its own.
        each: What the same command makes once for every phase, or for every further test set.
        seed: Seed of everything random in it.
        batch_size: It trains a detector and may run in several processes, which share batches of this size; None for an
            experiment in which nothing is trained.
        shares_images: Whether it may run in several processes that share out its images.
        resumes: Whether a killed run continues where it stopped.
        torch: Whether it needs torch.
        shared: Whether its results depend on nothing but its part of the experiment and what earlier shared stages have
            made, so that experiments which begin alike can share them.
        over_seeds: Whether it runs for an experiment with several seeds itself, and not only for the run of each.
        in_all: Whether the target ``all`` asks for it; other stages run for those that read their results.
        threads: Threads of a job.
        mem_mb: Memory of a job, in MB; the profile says what jobs with a GPU get.
        runtime: Time of a job, in minutes.
        local: Whether it runs where Snakemake runs, before all others.
        shown: Outputs by name that appear in ``snakemake --report``.
        module: Where its ``run(exp, paths, key)`` is found; by default in ``ltpipe/stages``, or beside the entry.
        plugin: The project's module that brings it, None for ours.
    """

    name: str
    help: str
    title: str
    reads: Reads
    inputs: Callable[[Experiment, Paths, Key], Inputs]
    outputs: Callable[[Paths, Key], Sequence[Path]]
    more_outputs: Callable[[Experiment, Paths, Key], Sequence[Path]] = _no_more
    keys: Callable[[Experiment], Iterable[Key]] = _once
    option: Option | None = None
    alternative: Alternative | None = None
    each: Stage | None = None
    seed: Callable[[Experiment, Key], int] = _no_seed
    batch_size: Callable[[Experiment], int | None] | None = None
    shares_images: bool = False
    resumes: bool = False
    torch: bool = True
    shared: bool = False
    over_seeds: bool = False
    in_all: bool = False
    threads: int = 1
    mem_mb: int = 2000
    runtime: int = 30
    local: bool = False
    shown: Mapping[str, Shown] = field(default_factory=dict)
    module: str = ""
    plugin: str | None = None

    @property
    def in_processes(self) -> bool:
        """Whether it may run in several processes."""
        return self.batch_size is not None or self.shares_images

    def keys_of(self, exp: Experiment) -> Iterable[Key]:
        """The keys of an experiment's runs; see :attr:`keys` and :attr:`over_seeds`."""
        return self.keys(exp) if self.over_seeds or not exp.seeds else ()
