"""``ltpipe table``: what experiments have reached over their seeds, as Markdown, printed or put into documents."""

from __future__ import annotations

import re
import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ltpipe.checkpoint_ids import measurement_of
from ltpipe.command_options import table_options
from ltpipe.config.calibrator_table import needs_of
from ltpipe.config.choices import is_trained_on_features
from ltpipe.config.experiment import Experiment
from ltpipe.config.loading import load_experiment
from ltpipe.errors import UserError, unknown_name
from ltpipe.pipeline.paths import Paths
from ltpipe.pipeline.stage_files import complete_checkpoints
from ltpipe.report.differences import CHANCE
from ltpipe.report.html import NOTHING, show
from ltpipe.report.inputs import IOU_NAMES, MARK
from ltpipe.report.over_seeds import means_table, numbers_table, paired, verdict_of
from ltpipe.report.sections_context import duration
from ltpipe.report.seeds_page import shown_mean
from ltpipe.run.changes import changes
from ltpipe.run.files import atomic_path
from ltpipe.run.records import read_json
from ltpipe.stages.report_over_seeds import measurements, records

END = "<!-- end of table -->"
_TABLE = re.compile(rf"(<!-- ltpipe table (.*?) -->\n).*?({re.escape(END)}\n)", re.DOTALL)


def run(arguments: Namespace) -> None:
    """Print a table, or make those of documents anew.

    Raises:
        UserError: There is nothing to show, or a result is missing or not that of today's experiment.
    """
    if bool(arguments.experiments) == bool(arguments.into):
        raise UserError("give experiments, or documents with --into", where="ltpipe table")
    for file in arguments.into or ():
        renew(file, arguments.results)
    if arguments.experiments:
        print(results_table(arguments), end="")


def renew(file: Path, results: Path) -> None:
    """Make all tables of a document anew.

    Args:
        file: The document.
        results: Folder of results.

    Raises:
        UserError: It holds no place for a table.
    """
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    if not _TABLE.search(text):
        raise UserError(
            "there is no place for a table",
            where=file,
            got="no such lines" if file.is_file() else "no such file",
            allowed=f"a line <!-- ltpipe table EXP ... -->, and below it {END}",
        )
    parser = ArgumentParser(prog=f"{file}: ltpipe table")
    table_options(parser)

    def made(found: re.Match[str]) -> str:
        given = parser.parse_args([*shlex.split(found[2]), "--results", str(results)])
        return f"{found[1]}{results_table(given)}{found[3]}"

    renewed = _TABLE.sub(made, text)
    with atomic_path(file) as temporary:
        temporary.write_text(renewed, encoding="utf-8")
    print(f"{file}: {len(_TABLE.findall(text))} tables")


def results_table(given: Namespace) -> str:
    """Return the table in Markdown, and below it what its numbers are and where they come from."""
    named = [load_experiment(name) for name in given.experiments]
    shown = [(exp, exp.runs() or [exp]) for exp in named]
    for exp, runs in shown:
        _check(exp, runs, given)
    found = [
        item
        for exp, runs in shown
        for one in runs
        for item in measurements(exp.name, one, given.results)
        if (item.part, item.iou_type) == (given.part, given.iou_type)
    ]
    numbers = numbers_table(found)
    unknown = [metric for metric in given.metrics if metric not in set(numbers["metric"])]
    if unknown:
        raise unknown_name("metric", unknown[0], sorted(set(numbers["metric"])), where="--metrics")
    marked = {(item.experiment, item.checkpoint) for item in found if item.chosen_here}
    difference = [f"AP to `{given.against}`"] if given.against else []
    rows = [["experiment", "seeds", *given.metrics, *difference, "time", "needs"]]
    rows.append(["---"] * len(rows[0]))
    for exp, runs in shown:
        for checkpoint in complete_checkpoints(exp):
            mark = MARK if (exp.name, checkpoint) in marked else ""
            own = [f"`{exp.name}`: {checkpoint}{mark}", *_numbers(numbers, exp, checkpoint, given)]
            rows.append([*own, _time(runs, checkpoint, given.results), _needs(exp, checkpoint)])
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return f"{table}\n{_below(given, shown, bool(marked))}\n"


def _check(exp: Experiment, runs: Sequence[Experiment], given: Namespace) -> None:
    """Refuse measurements that are not there, or of other settings than today's."""
    if given.against and given.against not in complete_checkpoints(exp):
        raise unknown_name("checkpoint", given.against, complete_checkpoints(exp), where="--against")
    for one in runs:
        if given.part not in ("val", *one.evaluate.sets):
            raise unknown_name("test set", given.part, ["val", *one.evaluate.sets], where="--set")
        paths = Paths(given.results, one)
        for checkpoint in complete_checkpoints(one):
            key = measurement_of(checkpoint, given.part)
            there = paths.record("evaluate", key).is_file()
            reasons = changes(one, paths, "evaluate", key, gone=False) if there else ["it is not there"]
            if reasons:
                raise UserError(
                    "a measurement is not that of the experiment",
                    where=paths.folder("evaluate", key),
                    got="; ".join(reasons),
                    fix=f"snakemake --profile local all --config experiments={exp.name}",
                )


def _numbers(numbers: pd.DataFrame, exp: Experiment, checkpoint: str, given: Namespace) -> Iterator[str]:
    mine = numbers[numbers["experiment"] == exp.name]
    own = mine[mine["checkpoint"] == checkpoint]
    of = {row["metric"]: row for row in means_table(own).to_dict("records")}
    yield str(own["seed"].nunique())
    for metric in given.metrics:
        yield shown_mean(of[metric]) if metric in of else NOTHING
    if given.against:
        found = paired(mine[mine["checkpoint"] == given.against], own, "AP") if checkpoint != given.against else None
        if found is None:
            yield NOTHING
        else:
            value, low, high = (show(getattr(found[0], key), "points") for key in ("mean", "low", "high"))
            text = f"{value} ({low} to {high}), {found[1]} of {found[0].seeds}"
            yield f"*{text}*" if verdict_of(found[0]) == CHANCE else text


def _time(runs: Sequence[Experiment], checkpoint: str, results: Path) -> str:
    """Return the mean time of the stage that made a checkpoint, and that of its features."""

    def mean(stage: str, key: Any) -> str:
        found = [read_json(Paths(results, one).record(stage, key)) for one in runs]
        seconds = [record["seconds"] for record in found if record is not None]
        return duration(sum(seconds) / len(seconds)) if seconds else NOTHING

    text = mean(*Paths(results, runs[0]).producer(checkpoint))
    spec = runs[0].calibrate.get(checkpoint)
    stored = spec is not None and is_trained_on_features(spec.type, spec.checkpoint)
    return f"{text}, features {mean('features', None)}" if stored else text


def _needs(exp: Experiment, checkpoint: str) -> str:
    spec = exp.calibrate.get(checkpoint)
    if spec is None:
        return NOTHING
    images = {"holdout": "; held-out images", "val": "; validation images"}
    return needs_of(spec.type) + ("" if spec.choose is None else images[spec.choose.on])


def _below(given: Namespace, shown: Sequence[tuple[Experiment, Sequence[Experiment]]], marked: bool) -> str:
    """Return what the numbers are, and which machines and commits they come from."""
    seeds = sorted({one.seed for _, runs in shown for one in runs})
    part = "the validation images" if given.part == "val" else f"the test set {given.part}"
    lines = [
        f"In percent, {IOU_NAMES[given.iou_type]}, {part}: mean ± half of its 95 % interval (Student's t) over the "
        f"seeds {', '.join(map(str, seeds))}; time of the stage that made the checkpoint, for one seed."
    ]
    if given.against:
        lines.append(
            "Differences are paired by seed, with their 95 % interval and the number of seeds in favour; in italics "
            "where the interval holds zero."
        )
    if marked:
        lines.append(f"{MARK.strip()}: chosen on the images it is measured on, so too good.")
    found = [record for _, runs in shown for _, record in records(runs, given.results)]
    machines = sorted({str(record.get("device")) for record in found if "device" in record})
    made_by = {(record.get("versions", {}).get("ltpipe"), record.get("commit")) for record in found}
    versions = sorted(f"ltpipe {version}" + (f", commit {commit}" if commit else "") for version, commit in made_by)
    lines.append(f"Made on {' and '.join(machines)} with {' and '.join(versions)}.")
    return " ".join(lines)
