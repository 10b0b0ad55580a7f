"""Checks of a loaded experiment before any job is queued: data, detector, methods and their combination."""

from __future__ import annotations

from collections.abc import Sequence

from ltpipe.config.blocks import Source
from ltpipe.config.class_list import annotation_categories, generated_classes, read_class_list
from ltpipe.config.combinations import COMBINATIONS
from ltpipe.config.detector import resolve_detector
from ltpipe.config.experiment import Experiment
from ltpipe.config.external_checkpoints import check_external_checkpoints, start_weights
from ltpipe.config.loading import read_merged
from ltpipe.config.seeds import parted
from ltpipe.config.yaml_positions import variables
from ltpipe.data.categories import ONE_LIST, Categories, labels_in
from ltpipe.errors import UserError, unknown_name


def check_experiment(exp: Experiment, experiments: Sequence[str] = ()) -> list[str]:
    """Check everything that can be known before the data are read.

    Args:
        exp: The experiment.
        experiments: Names of all experiments, for ``report.compare``.

    Returns:
        Remarks: what could not be checked yet, one sentence each.

    Raises:
        UserError: The first thing found wrong.
    """
    remarks, num_classes = check_data(exp)
    remarks += check_external_checkpoints(exp, data_missing=bool(remarks))
    _check_phases(exp, num_classes)
    return [*remarks, *check_settings(exp, experiments)]


def check_settings(exp: Experiment, experiments: Sequence[str] = ()) -> tuple[str, ...]:
    """Check what needs no data: the detector file, combinations of methods, the report.

    Args:
        exp: The experiment.
        experiments: Names of all experiments, for ``report.compare``.

    Returns:
        Remarks: what of the detector file is not used, one sentence each.

    Raises:
        UserError: The first thing found wrong.
    """
    detector = resolve_detector(exp.detector.config, exp.where("detector.config"))
    for check in COMBINATIONS:
        check(exp, detector)
    start_weights(exp, detector)
    _check_report(exp, experiments)
    return detector.remarks


def check_data(exp: Experiment) -> tuple[list[str], int]:
    """Check that the data are there, or will be drawn, or that a class list stands for them.

    Returns:
        Remarks, and the number of classes.

    Raises:
        UserError: Files are missing, or class lists do not match.
    """
    data = exp.dataset
    listed = read_class_list(data.class_list) if data.class_list else None
    parts = exp.parts()
    missing = {part: source for part, source in parts.items() if not source.annotations.is_file()}
    if missing and data.generate is not None:
        for part in missing.keys() - {"train", "val"}:
            if parts[part].annotations not in (data.train.annotations, data.val.annotations):
                _check_source(exp, part, parts[part])
        return ["the toy data will be drawn first"], generated_classes(data.generate)
    if missing and listed is not None:
        files = ", ".join(str(source.annotations) for source in missing.values())
        return [f"checked against the class list only: {files} not found"], len(listed)
    for part, source in parts.items():
        _check_source(exp, part, source)
    train = Categories.of_records(annotation_categories(data.train.annotations), "the training annotations")
    for part, source in parts.items():
        if part != "train":
            key = f"{exp.key_of(part)}.annotations"
            own = Categories.of_records(annotation_categories(source.annotations), key)
            labels_in(train, own, where=exp.where(key), fix=ONE_LIST, part=True)
    if listed is not None:
        known = Categories.of_records(listed, "the class list")
        labels_in(known, train, where=exp.where("dataset.class_list"), fix=ONE_LIST)
    return [], len(train.ids)


def same_data(first: Experiment, second: Experiment, test_set: str | None, how: str) -> None:
    """Refuse two descriptions of one data set, or of a further test set of it.

    Args:
        first: An experiment.
        second: Another one on a data set of the same name.
        test_set: Name of the test set; None: the data set itself.
        how: How the first one describes it, for the message.

    Raises:
        UserError: They differ.
    """
    one, other = (exp.dataset if test_set is None else exp.evaluate.sets.get(test_set) for exp in (first, second))
    if one != other and one is not None and other is not None:
        what = second.dataset.name if test_set is None else f"{test_set} of {second.dataset.name}"
        raise UserError(
            f"two experiments describe one {'data' if test_set is None else 'test'} set differently",
            where=f"{second.file}: {'dataset' if test_set is None else second.key_of(test_set)}",
            got=f"{what}, which {how}",
            fix="give the other one another name, or let one experiment extend the other",
        )


def _check_source(exp: Experiment, part: str, source: Source) -> None:
    for key, path, kind in (("annotations", source.annotations, "file"), ("images", source.images, "folder")):
        if path.is_file() if kind == "file" else path.is_dir():
            continue
        fix = f"correct the path, or put the {kind} there"
        for variable in _path_variables(exp, part, key):
            fix = f"set the environment variable {variable} to the data set's folder, or put the {kind} there"
        if key == "annotations" and exp.dataset.class_list is None:
            fix += "; a class list (dataset.class_list) is enough to validate without the data"
        where = exp.where(f"{exp.key_of(part)}.{key}")
        raise UserError(f"missing {kind} of the data set", where=where, got=path, fix=fix)


def _path_variables(exp: Experiment, part: str, key: str) -> list[str]:
    """Environment variables in a path of the data set, as the experiment file has it."""
    if exp.file is None:
        return []
    values = read_merged(exp.file).values
    return variables((values["evaluate"]["sets"] if part in exp.evaluate.sets else values["dataset"])[part][key])


def _check_phases(exp: Experiment, num_classes: int) -> None:
    phases = exp.num_phases(num_classes)
    if exp.split is None or exp.lst is None:
        return
    last = exp.split.phase_boundaries(num_classes)[-1]
    if last != num_classes:
        raise UserError(
            "the last boundary is not the number of classes",
            where=exp.where("split.boundaries"),
            got=last,
            allowed=str(num_classes),
        )
    steps = exp.lst.iterations_per_phase
    if steps is not None and len(steps) != phases:
        raise UserError(
            "one number of iterations per phase is needed",
            where=exp.where("lst.iterations_per_phase"),
            got=f"{len(steps)} numbers",
            allowed=f"{phases}, the number of phases",
        )


def _check_report(exp: Experiment, experiments: Sequence[str]) -> None:
    evaluated = exp.evaluated_checkpoints()
    for name in exp.report.compare:
        if name == exp.name:
            raise UserError("an experiment cannot be compared with itself", where=exp.where("report.compare"), got=name)
        run = parted(name)
        if name not in experiments and (run is None or run[0] not in experiments):
            raise unknown_name("experiment", name, experiments, where=exp.where("report.compare"))
    for index, expected in enumerate(exp.report.expected):
        here = exp.where(f"report.expected[{index}]")
        if expected.checkpoint not in evaluated:
            raise unknown_name("checkpoint", expected.checkpoint, evaluated, where=f"{here}.checkpoint")
        if expected.iou_type not in exp.evaluate.iou_types:
            raise unknown_name("IoU type", expected.iou_type, exp.evaluate.iou_types, where=f"{here}.iou_type")
