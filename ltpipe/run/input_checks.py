"""Inputs of a stage, compared with what the stages that make them have recorded, before anything reads them."""

from __future__ import annotations

import os
from pathlib import Path

from ltpipe.config.experiment import Experiment
from ltpipe.errors import UserError
from ltpipe.pipeline.paths import Paths, index_key
from ltpipe.pipeline.stage_files import of_parts
from ltpipe.pipeline.stage_rules import rule_name
from ltpipe.pipeline.stages import TABLE, Inputs, stage_keys
from ltpipe.run.changes import changes
from ltpipe.run.checksums import checksum
from ltpipe.run.records import RECORD, is_cut_off, maker_of, read_json, recorded_checksum

_DIGITS = 12


def checked_inputs(exp: Experiment, paths: Paths, stage: str, inputs: Inputs) -> dict[str, str]:
    """Return the checksums of a stage's inputs by name.

    Args:
        exp: The experiment.
        paths: Its paths.
        stage: The stage that reads them.
        inputs: What :func:`~ltpipe.pipeline.stages.stage_inputs` returns.

    Raises:
        UserError: One is missing or is not as its stage wrote it, or the annotations are no longer those that were
            indexed.
    """
    found = {name: checked_input(exp, paths, stage, name, path) for name, path in inputs.items()}
    for part in of_parts(inputs):
        check_annotations(exp, paths, stage, part)
    return found


def checked_input(exp: Experiment, paths: Paths, stage: str, name: str, path: Path) -> str:
    """Return the checksum of one input.

    Args:
        exp: The experiment.
        paths: Its paths.
        stage: The stage that reads it.
        name: Its name in :func:`~ltpipe.pipeline.stages.stage_inputs`.
        path: The file.

    Raises:
        UserError: It is missing, or is not as its stage wrote it.
    """
    maker = name.split(":")[0]
    made = maker in (*TABLE, "toy-data")
    again = _again(exp, paths, maker, path)
    if not path.is_file():
        raise UserError(
            f"missing input of stage {stage}",
            where=path,
            got="no such file",
            fix=f"run {again} first, or let snakemake do it" if made else f"check {name} of the experiment",
        )
    if made and any(is_cut_off(folder) for folder in (path.parent, path.parent.parent)):
        raise UserError(
            f"an input of stage {stage} is of a run that has not ended", where=path, fix=f"run {again}: it continues"
        )
    now, before = checksum(path), recorded_checksum(path)
    if before not in (None, now):
        raise UserError(
            f"damaged input of stage {stage}",
            where=path,
            got=f"{path.stat().st_size} bytes that differ from those its stage wrote, SHA-256 {now[:_DIGITS]}...",
            allowed=f"{before[:_DIGITS]}..., as in {maker_of(path)}" if before else None,
            fix=f"put the file back, or run {again} again; if the change is meant, remove {RECORD} there",
        )
    return now


def check_outside(folder: Path, stage: str, name: str, path: Path) -> None:
    """Refuse a file of the user that lies where a stage writes its results.

    Args:
        folder: The stage's results.
        stage: The stage.
        name: Name of the input in :func:`~ltpipe.pipeline.stages.stage_inputs`.
        path: The file.

    Raises:
        UserError: The stage would replace what it reads.
    """
    if name.split(":")[0] not in TABLE and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise UserError(
            f"an input of stage {stage} lies among the results that it replaces",
            where=path,
            got=f"{name} of the experiment, in {folder}",
            fix="move it out of the results folder and name it there. Nothing was changed",
        )


def check_annotations(exp: Experiment, paths: Paths, stage: str, part: str) -> None:
    """Refuse a store that was made from other annotations than the experiment names.

    Annotations that are not there any more cannot be compared; the store is complete without them.

    Args:
        exp: The experiment.
        paths: Its paths.
        stage: The stage that reads the store.
        part: Which part of the data set, or which further test set.

    Raises:
        UserError: They have changed since, or another experiment has indexed its own under the same name.
    """
    source = exp.parts()[part].annotations
    info = read_json(paths.store(part) / "info.json")
    if not isinstance(info, dict) or not source.is_file():
        return
    now, before = checksum(source), str(info.get("sha256"))
    if (now, exp.dataset.format) == (before, info.get("format")):
        return
    by = (read_json(paths.record("index", index_key(part))) or {}).get("experiment", exp.name)
    raise UserError(
        f"stage {stage} would read annotations that are not those of the experiment",
        where=paths.store(part),
        got=f"made by {by} from {info.get('file')}, {info.get('format')}, SHA-256 {before[:_DIGITS]}...",
        allowed=f"{source}, {exp.dataset.format}, {now[:_DIGITS]}...",
        fix=f"run `ltpipe index --experiment {exp.name}` again, or put the file back"
        if by == exp.name
        else f"give the data set of {exp.name} another dataset.name, then run `ltpipe index --experiment {exp.name}`",
    )


def outdated_makers(exp: Experiment, paths: Paths, inputs: Inputs) -> list[str]:
    """Return what a stage would read that is no longer what the experiment asks for, one text per stage.

    Snakemake makes it again first. By hand it may be meant, to try something, but not without a word.

    Args:
        exp: The experiment.
        paths: Its paths.
        inputs: What :func:`~ltpipe.pipeline.stages.stage_inputs` returns.
    """
    makers, found = {maker_of(path) for path in inputs.values()}, []
    for stage, key in stage_keys(exp):
        if paths.record(stage, key) in makers:
            reasons = changes(exp, paths, stage, key, gone=False)
            found += [f"{paths.folder(stage, key)} is used as it is, although {'; '.join(reasons)}"] if reasons else []
    return found


def _again(exp: Experiment, paths: Paths, maker: str, path: Path) -> str:
    """Return the command lines that make an output, by hand and by Snakemake."""
    owner = path.relative_to(paths.results).parts[0] if path.is_relative_to(paths.results) else exp.name
    command = f"ltpipe {maker} --experiment {exp.name if owner == 'datasets' else owner}"
    option = TABLE[maker].option if maker in TABLE else None
    folder = path.parent.parent if path.parent.name == "history" else path.parent
    if option is None or folder.name == maker or (owner == "datasets" and folder.name not in exp.evaluate.sets):
        return f"`{command}` (or snakemake with `-R {maker.replace('-', '_')}`)"
    key = option.kind(folder.name.removeprefix("phase" if option.kind is int else ""))
    return f"`{command} {option.flag} {key}` (or snakemake with `-R {rule_name(maker, key)}`)"
