"""The rules of the workflow, from the table of stages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ltpipe.config.experiment import Experiment
from ltpipe.pipeline.paths import RESULTS, Paths
from ltpipe.pipeline.stage import Key, Stage
from ltpipe.pipeline.stages import TABLE, entries, stage_of


@dataclass(frozen=True)
class Rule:
    """A stage, or a phase of it, in those experiments in which it leaves the same files.

    Attributes:
        name: Name of the rule.
        stage: The stage.
        key: A phase, the name of the wildcard that holds the key, or nothing.
        wildcards: By wildcard what it may stand for.
        outputs: What it leaves, with wildcards; the record comes last.
        log: Its log.
        benchmark: Snakemake's measurements of it.
        message: What Snakemake says of a job.
    """

    name: str
    stage: Stage
    key: Key
    wildcards: Mapping[str, Sequence[str]]
    outputs: Sequence[Path]
    log: Path
    benchmark: Path
    message: str


def stage_rules(experiments: Sequence[Experiment]) -> Iterator[Rule]:
    """Yield the rules of all stages: one for each phase, one with a wildcard for all calibrators or checkpoints.

    Args:
        experiments: Whose stages they run, at least one.
    """
    for entry in entries():
        having: dict[Key, list[Experiment]] = {}
        option, main = entry.option, entry is TABLE[entry.name]
        if option is not None and option.kind is str and (option.required or not main):
            having[option.what] = [exp for exp in experiments if option.allowed(exp) and any(entry.keys_of(exp))]
        else:
            if main and (option is None or not option.required):
                having[None] = []  # a rule can be named on the command line, whether it has jobs or not
            for exp in experiments:
                for key in entry.keys_of(exp):
                    having.setdefault(key, []).append(exp)
        for key, some in having.items():
            if some or main:
                yield from _rules(entry, key, some, experiments)


def _rules(entry: Stage, key: Key, having: Sequence[Experiment], experiments: Sequence[Experiment]) -> Iterator[Rule]:
    """Yield the rule of a stage for the experiments that have it; one more for those in which it leaves more files."""
    inside = f"{{{key}}}" if isinstance(key, str) else key
    groups: dict[tuple[Path, ...], list[Experiment]] = {(): []} if not isinstance(key, int) else {}
    for exp in having:
        groups.setdefault(tuple(entry.more_outputs(*_pattern(exp), inside)), []).append(exp)
    for more, some in groups.items():
        _, paths = _pattern((some or experiments)[0])
        record = paths.record(entry.name, inside)
        whose = "dataset" if "{dataset}" in str(record) else "experiment"
        wildcards = {whose: sorted({exp.dataset.name if whose == "dataset" else exp.name for exp in some})}
        if isinstance(key, str):
            assert entry.option is not None
            wildcards[key] = sorted({str(value) for exp in some for value in entry.option.allowed(exp)})
        what = entry.title.replace("{key}", f"{{wildcards.{key}}}" if isinstance(key, str) else str(key))
        threads = ", {threads} threads" if entry.threads > 1 else ""
        yield Rule(
            name=rule_name(entry.name, key, more),
            stage=entry,
            key=key,
            wildcards=wildcards,
            outputs=[*entry.outputs(paths, inside), *more, record],
            log=paths.log(entry.name, inside),
            benchmark=paths.benchmark(entry.name, inside),
            message=f"{what} of {{wildcards.{whose}}}{threads}; follow it in {{log}}",
        )


def _pattern(exp: Experiment) -> tuple[Experiment, Paths]:
    """Return an experiment, and its paths, whose name and whose data set's name are wildcards."""
    dataset = exp.dataset.model_copy(update={"name": "{dataset}"})
    named = exp.model_copy(update={"name": "{experiment}", "dataset": dataset})
    named._owners = {}  # a rule makes what is the experiment's own
    return named, Paths(RESULTS, named)


def rule_name(stage: str, key: Key = None, more: Iterable[Path] = ()) -> str:
    """Return the name of the rule that runs a stage, where it leaves these files in addition."""
    what = f"phase_{key}" if isinstance(key, int) else "set" if stage_of(stage, key) is not TABLE[stage] else ""
    return "_".join((stage, *filter(None, (what,)), *(file.stem for file in more)))


def rule_names(exp: Experiment, paths: Paths, stage: str, key: Key = None) -> set[str]:
    """Return the names by which the user may mean a stage of this experiment."""
    return {rule_name(stage, key), rule_name(stage, key, stage_of(stage, key).more_outputs(exp, paths, key))}
