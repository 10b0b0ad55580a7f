"""The table of stages: command line, rules, digests, inputs, sharing, targets and status ask it what a stage is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ltpipe.command_options import cross_check_options, pictures_options
from ltpipe.config.choices import needs_features
from ltpipe.config.experiment import Experiment
from ltpipe.pipeline import stage_files as files
from ltpipe.pipeline.paths import Paths
from ltpipe.pipeline.stage import Alternative, Key, Shown, Stage, reading
from ltpipe.pipeline.stage_options import CALIBRATOR, MEASUREMENT, REPLAY, TEST_SET, phases, phases_with_cached_teacher
from ltpipe.pipeline.stage_options import CHECKPOINT as CHECKPOINT  # for stages of a project's own
from ltpipe.pipeline.stage_options import PHASE as PHASE
from ltpipe.pipeline.stage_reads import (
    LENGTH,
    calibrate_reads,
    evaluate_reads,
    features_reads,
    index_reads,
    report_reads,
    set_reads,
    with_holdout,
    with_iterations,
    with_validation,
)

Inputs = dict[str, Path]


# ---- seeds -----------------------------------------------------------------------------------------------------------


def _replay_seed(exp: Experiment, key: Key) -> int:
    assert exp.lst is not None
    return exp.lst.replay.seed


def _features_seed(exp: Experiment, key: Key) -> int:
    assert exp.features is not None
    return exp.features.seed


def _calibrator_seed(exp: Experiment, key: Key) -> int:
    own = exp.calibrate[str(key)].seed
    return exp.seed if own is None else own


# ---- the table -------------------------------------------------------------------------------------------------------

_STAGES = (
    Stage(
        "validate",
        "check an experiment and its detector in seconds, and write what it resolves to",
        title="check",
        keys=lambda exp: (None,) if exp.run_of is None else (),  # once for all seeds
        reads=lambda exp, whole, key: dict(whole),
        inputs=files.no_inputs,
        outputs=lambda paths, key: [paths.lock],
        mem_mb=1000,
        runtime=10,
        over_seeds=True,
        local=True,
        in_all=True,
    ),
    Stage(
        "index",
        "annotations to columnar stores and class statistics, once per data set",
        title="annotation store",
        reads=index_reads,
        inputs=files.index_inputs,
        outputs=files.index_outputs,
        option=TEST_SET,
        torch=False,
        mem_mb=4000,
        runtime=60,
        each=Stage(
            "index",
            "annotation store of a further test set",
            title="annotation store of test set {key}",
            keys=lambda exp: exp.evaluate.sets,
            option=TEST_SET,
            reads=set_reads,
            inputs=files.set_inputs,
            outputs=files.index_outputs,
            mem_mb=4000,
            runtime=60,
        ),
    ),
    Stage(
        "split",
        "class order, base and phases, replay lists",
        title="class order and phases",
        option=REPLAY,
        reads=with_holdout(reading("split", without={"split": ["ignore_future_gt"]})),
        inputs=files.split_inputs,
        outputs=lambda paths, key: [paths.split],
        more_outputs=files.holdout,
        torch=False,
        shared=True,
        mem_mb=4000,
        each=Stage(
            "split",
            "replay list of one phase",
            title="replay list of phase {key}",
            keys=phases,
            reads=with_holdout(with_iterations(reading("lst.replay", *LENGTH))),
            inputs=files.replay_inputs,
            outputs=lambda paths, key: [paths.replay(int(key or 0))],
            seed=_replay_seed,
            shared=True,
            mem_mb=4000,
        ),
    ),
    Stage(
        "base",
        "base training",
        title="base training",
        reads=with_validation(reading("seed", "detector", "model", "split", "base"), "base"),
        inputs=files.base_inputs,
        outputs=files.model_outputs("base"),
        seed=lambda exp, key: exp.seed,
        batch_size=lambda exp: None if exp.base.checkpoint else exp.base.schedule.images_per_pass,
        resumes=True,
        shared=True,
        threads=8,
        mem_mb=16000,
        runtime=1440,
    ),
    Stage(
        "distill",
        "teacher similarities for one incremental phase",
        title="teacher of phase {key}",
        keys=phases_with_cached_teacher,
        option=PHASE,
        reads=reading("detector", "lst.distill.teacher"),
        inputs=files.distill_inputs,
        outputs=lambda paths, key: [paths.teacher(int(key or 0))],
        shares_images=True,
        resumes=True,
        shared=True,
        threads=4,
        mem_mb=8000,
        runtime=240,
    ),
    Stage(
        "lst",
        "one incremental phase",
        title="LST phase {key}",
        keys=phases,
        option=PHASE,
        reads=with_validation(
            with_iterations(
                reading(
                    *("seed", "detector", "model", "split.ignore_future_gt", "lst"),
                    without={"lst": ["replay", "iterations_per_phase"]},
                )
            ),
            "lst",
        ),
        inputs=files.lst_inputs,
        outputs=files.model_outputs("lst"),
        seed=lambda exp, key: exp.seed + int(key or 0),
        batch_size=lambda exp: exp.lst.schedule.images_per_pass if exp.lst is not None else None,
        resumes=True,
        shared=True,
        threads=8,
        mem_mb=16000,
        runtime=1440,
    ),
    Stage(
        "features",
        "calibration plan and frozen RoI features",
        title="RoI features",
        keys=lambda exp: (None,) if needs_features(exp) else (),
        reads=features_reads,
        inputs=files.features_inputs,
        outputs=lambda paths, key: [paths.plan],
        seed=_features_seed,
        shares_images=True,
        resumes=True,
        shared=True,
        threads=4,
        mem_mb=16000,
        runtime=720,
    ),
    Stage(
        "calibrate",
        "train or compute one calibrator",
        title="calibrator {key}",
        keys=lambda exp: exp.calibrators_in_order(),
        option=CALIBRATOR,
        reads=calibrate_reads,
        inputs=files.calibrate_inputs,
        outputs=files.model_outputs("calibrate"),
        seed=_calibrator_seed,
        resumes=True,
        in_all=True,
        threads=4,
        mem_mb=16000,
        runtime=480,
    ),
    Stage(
        "evaluate",
        "measure one checkpoint",
        title="measurement of {key}",
        keys=lambda exp: exp.measurements(),
        option=MEASUREMENT,
        alternative=Alternative("cross_check", cross_check_options, "ltpipe.stages.cross_check"),
        reads=evaluate_reads,
        inputs=files.evaluate_inputs,
        outputs=files.evaluate_outputs,
        shares_images=True,
        resumes=True,
        threads=4,
        mem_mb=8000,
        runtime=240,
    ),
    Stage(
        "pictures",
        "pictures of the data, and of what complete checkpoints get right and wrong",
        title="pictures",
        alternative=Alternative("annotations", pictures_options, "ltpipe.stages.pictures_of_files"),
        reads=reading("name", "seed", "detector", "split.ignore_future_gt", "base.sampler", "evaluate.checkpoints"),
        inputs=files.pictures_inputs,
        outputs=lambda paths, key: [paths.pictures, paths.highlights],
        mem_mb=8000,
        runtime=120,
    ),
    Stage(
        "report",
        "tables and plots",
        title="report",
        reads=report_reads,
        inputs=files.report_inputs,
        outputs=lambda paths, key: [paths.report, paths.summary, paths.figures],
        torch=False,
        over_seeds=True,
        in_all=True,
        shown={
            "report.html": Shown("page.rst", "Reports", "page"),
            "summary.csv": Shown("summary.rst", "Reports", "table"),
            "figures": Shown("figures.rst", "Figures", "figure", "{figure}.png"),
        },
    ),
)
TABLE = {stage.name: stage for stage in _STAGES}
"""Every stage by name, in the order they run. A new one is an entry and a module in ``ltpipe/stages``; those of a
project are added by :func:`ltpipe.pipeline.own_stages.add_own_stages`."""


def stage_of(name: str, key: Key = None) -> Stage:
    """Return the entry of a stage with this key."""
    entry = TABLE[name]
    return entry.each if entry.each is not None and key is not None else entry


def entries() -> Iterator[Stage]:
    """All entries in the order of the table, what a command makes for each phase or test set on its own."""
    for entry in TABLE.values():
        yield entry
        if entry.each is not None:
            yield entry.each


def stage_keys(exp: Experiment) -> list[tuple[str, Key]]:
    """All stages of an experiment with their keys, in the order they run: phase after phase."""
    found: list[tuple[int, str, Key]] = []
    phase = 0
    for entry in entries():
        if entry.option is PHASE:  # what comes behind it in the table comes behind all phases
            phase = exp.num_phases() + 1
        found += [(key if isinstance(key, int) else phase, entry.name, key) for key in entry.keys_of(exp)]
    return [(name, key) for _, name, key in sorted(found, key=lambda one: one[0])]


def stage_inputs(exp: Experiment, paths: Paths, stage: str, key: Key = None) -> Inputs:
    """Return the files that a stage reads by name, whether they are there or not; see :class:`Stage`.

    Args:
        exp: The experiment.
        paths: Its paths.
        stage: One of :data:`TABLE`.
        key: Its phase, calibrator or checkpoint.
    """
    return dict(stage_of(stage, key).inputs(exp, paths, key))


def stage_outputs(exp: Experiment, paths: Paths, stage: str, key: Key = None) -> list[Path]:
    """Return the files and folders that a stage always leaves in this experiment.

    Args:
        exp: The experiment.
        paths: Its paths.
        stage: One of :data:`TABLE`.
        key: Its phase, calibrator or checkpoint.
    """
    entry = stage_of(stage, key)
    return [*entry.outputs(paths, key), *entry.more_outputs(exp, paths, key)]
