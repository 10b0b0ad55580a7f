"""The report of an experiment with several seeds, over the runs for each of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ltpipe.checkpoint_ids import measured_on
from ltpipe.config.choices import chosen_on_val
from ltpipe.config.experiment import Experiment
from ltpipe.pipeline.paths import Paths
from ltpipe.pipeline.stage_files import runs_shown
from ltpipe.pipeline.stages import stage_keys
from ltpipe.report.over_seeds import Measurement
from ltpipe.report.seeds_page import build_seeds_page
from ltpipe.run.records import read_json
from ltpipe.run.stage_run import stage_run


def run(exp: Experiment, paths: Paths) -> None:
    """Write the page over all seeds, and its tables and figures."""
    shown = runs_shown(exp)
    with stage_run("report", exp, paths) as stage:
        runs = {one.name: Paths(paths.results, one).report for _, members in shown for one in members}
        folder = paths.folder("report")
        stage.outputs += build_seeds_page(
            folder,
            [item for name, members in shown for one in members for item in measurements(name, one, paths.results)],
            title=exp.name,
            subtitle=exp.description,
            runs={name: os.path.relpath(page, folder) for name, page in runs.items()},
            stages=list(records(exp.runs(), paths.results)),
        )


def measurements(name: str, exp: Experiment, results: Path) -> Iterator[Measurement]:
    """Yield everything that was measured of one run.

    Args:
        name: The experiment that it is a run of.
        exp: The run.
        results: Folder of results.
    """
    paths = Paths(results, exp)
    for measurement in exp.measurements():
        checkpoint, part = measured_on(measurement)
        here = part == "val" and chosen_on_val(exp, checkpoint)
        for kind, metrics in json.loads(paths.metrics(measurement).read_text(encoding="utf-8")).items():
            yield Measurement(name, exp.seed, checkpoint, part, kind, metrics, here)


def records(runs: Iterable[Experiment], results: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield run and record of all finished stages whose results the runs have, made by them or by others.

    Args:
        runs: Experiments without `seeds`.
        results: Folder of results.
    """
    for one in runs:
        paths = Paths(results, one)
        for stage, key in stage_keys(one):
            record = read_json(paths.record(stage, key)) if stage != "report" else None
            if record is not None:
                yield one.name, record
