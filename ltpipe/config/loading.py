"""From an experiment's name to a complete, checked :class:`~ltpipe.config.experiment.Experiment`."""

from __future__ import annotations

from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ltpipe.config import catalogue
from ltpipe.config.choices import choices, replace_choices
from ltpipe.config.experiment import Choice, Experiment
from ltpipe.config.fields import printable
from ltpipe.config.messages import user_error
from ltpipe.config.published import published
from ltpipe.config.seeds import parted, run_of
from ltpipe.config.yaml_positions import Document, Key, expand_variables, read_yaml
from ltpipe.data.samplers import build_sampler
from ltpipe.errors import UserError, listed
from ltpipe.pipeline.sharing import owners

FOLDER = Path("configs") / "experiments"
_MOST_PARENTS = 20
_NULLABLE = frozenset({"features"})
# A child that gives one of these replaces the parent's other one.
_EXCLUSIVE = (({"epochs"}, {"iterations"}), ({"base_classes", "step"}, {"boundaries"}))


def find_experiment(ref: str | Path) -> Path:
    """Return the file of an experiment.

    Args:
        ref: Path of a YAML file, or the name of a file in ``configs/experiments`` with or without ``.yaml``.

    Raises:
        UserError: There is no such file.
    """
    return _find(str(ref))[0]


def _find(ref: str, folder: Path | None = None) -> tuple[Path, int | None]:
    """Return the file of an experiment, and the seed if a run for one of its seeds is meant.

    Args:
        ref: As :func:`find_experiment`, or the name or file of a run: ``toy.seed1``.
        folder: Where to look first.

    Raises:
        UserError: There is no such file.
    """
    run = parted(ref)
    for name, seed in ((ref, None), *([run] if run is not None else [])):
        beside = None if folder is None else folder / f"{name}.yaml"
        if beside is not None and _is_file(beside):
            return beside, seed
        found = Path(name) if _is_file(Path(name)) else _by_name(name, FOLDER)
        if found is not None:
            return found, seed
    names = list_experiments()
    near = get_close_matches(ref, names, n=1)
    raise UserError(
        "no such experiment",
        where=FOLDER,
        got=ref,
        allowed=listed(ref, names) or "a path to a YAML file",
        fix=f"did you mean {near[0]!r}?" if near else f"run from the folder that holds {FOLDER}, or give a path",
    )


def list_experiments() -> list[str]:
    """Names of the files in ``configs/experiments`` and the folders below it."""
    return sorted(file.stem for file in FOLDER.rglob("*.yaml"))


def _is_file(path: Path) -> bool:
    """Whether there is such a file; there is none whose name is longer than a disk can hold."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_experiment(name: str) -> bool:
    """Whether this names an experiment in ``configs/experiments``, or the run of one for one of its seeds."""
    run = parted(name)
    return bool({name, *([run[0]] if run is not None else [])} & set(list_experiments()))


def _by_name(name: str, folder: Path) -> Path | None:
    """Return the file of this name, with or without ``.yaml``, in a folder or below it.

    Raises:
        UserError: There are several.
    """
    file = f"{name.removesuffix('.yaml')}.yaml"
    found = sorted(other for other in folder.rglob("*.yaml") if other.name == file)
    if len(found) > 1:
        raise UserError("several experiments have one name", where=folder, got=", ".join(map(str, found)))
    return found[0] if found else None


def merge(parent: Any, child: Any) -> Any:
    """Deep-merge two YAML values: mappings merge, everything else is replaced, ``null`` removes.

    A mapping whose ``type`` differs from the parent's replaces it whole: options of one method mean nothing to another.
    """
    if not isinstance(parent, dict) or not isinstance(child, dict):
        return child
    if "type" in child and "type" in parent and child["type"] != parent["type"]:
        return child
    merged = dict(parent)
    for one, other in (pair for both in _EXCLUSIVE for pair in (both, both[::-1])):
        if one & child.keys() and not other & child.keys():
            merged = {key: value for key, value in merged.items() if key not in other}
    for key, value in child.items():
        merged[key] = merge(merged[key], value) if key in merged else value
    return merged


def read_merged(path: Path, _seen: tuple[Path, ...] = ()) -> Document:
    """Read an experiment file and its parents.

    Raises:
        UserError: A file cannot be read, or the parents form a circle.
    """
    if len(_seen) == _MOST_PARENTS:
        raise UserError("experiments extend each other", where=_seen[0], got=f"more than {_MOST_PARENTS} times")
    if path.resolve() in _seen:
        raise UserError("experiments extend each other in a circle", where=path, got=" -> ".join(map(str, _seen)))
    document = read_yaml(path)
    parent = document.values.pop("extends", None)
    if parent is None:
        return document
    if not isinstance(parent, str):
        raise UserError("extends names one file", where=document.where(("extends",), path), got=repr(parent))
    # Beside the file, or anywhere below the folder of experiments that holds it.
    folders = [folder for folder in path.absolute().parents if folder.name == FOLDER.name] or [path.parent]
    above = path.parent / parent
    if not _is_file(above):
        above = _by_name(parent, folders[0]) or above
    if not _is_file(above):
        names = sorted(f.name for f in folders[0].rglob("*.yaml") if f != path)
        near = get_close_matches(parent, names, n=1)
        raise UserError(
            "the parent experiment does not exist",
            where=document.where(("extends",), path),
            got=parent,
            allowed=listed(parent, names),
            fix=f"did you mean {near[0]!r}?" if near else None,
        )
    inherited = read_merged(above, (*_seen, path.resolve()))
    inherited.values.pop("name", None)
    inherited.values.pop("description", None)
    return Document(merge(inherited.values, document.values), {**inherited.origin, **document.origin})


def load_experiment(ref: str | Path) -> Experiment:
    """Load, merge, complete and check an experiment, and those it shares results with; the data need not be there.

    Args:
        ref: Path of a YAML file, or the name of a file in ``configs/experiments``; for one of the ``seeds`` of an
            experiment with that behind the name: ``toy.seed1``.

    Raises:
        UserError: Anything is wrong with the file: the message names file, line, key, value and what is allowed.
    """
    return _complete_with_others(*_find(str(ref)))


def _complete_with_others(path: Path, seed: int | None) -> Experiment:
    experiment = _load(path, seed)
    experiment._owners = owners(experiment, _load_beside)
    experiment._beside = _complete_beside
    return experiment


def _complete_beside(exp: Experiment, name: str) -> Experiment:
    return _complete_with_others(*_find_beside(exp, name))


def _load_beside(exp: Experiment, name: str) -> Experiment:
    return _load(*_find_beside(exp, name))


def _find_beside(exp: Experiment, name: str) -> tuple[Path, int | None]:
    return _find(name, exp.file.parent if exp.file is not None else None)


def _load(path: Path, seed: int | None = None) -> Experiment:
    try:
        printable(path)
    except ValueError as error:
        raise UserError(str(error), where="experiment file", got=repr(str(path))) from error
    document = read_merged(path)
    values = _without_nulls(document.values, keep=_NULLABLE)
    values.setdefault("name", path.stem)
    for block in ("dataset", "detector"):
        values[block] = expand_variables(values.get(block))
    if isinstance(values.get("evaluate"), dict) and "sets" in values["evaluate"]:
        values["evaluate"] = {**values["evaluate"], "sets": expand_variables(values["evaluate"]["sets"])}
    try:
        experiment = Experiment.model_validate(values)
    except ValidationError as error:
        raise user_error(error, Experiment, document, path) from error
    experiment = complete(experiment, document, path)
    experiment._file = path
    return experiment if seed is None else run_of(experiment, seed, partial(_load_beside, experiment))


def _without_nulls(values: dict[str, Any], keep: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Remove keys that a child set to ``null``; in the options of a method ``null`` is a value."""
    if "type" in values:
        return values
    return {
        key: _without_nulls(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if value is not None or key in keep
    }


def complete(experiment: Experiment, document: Document, path: Path) -> Experiment:
    """Check every method choice against the catalogue and fill in the options' defaults; so for the toy options."""
    updates: dict[Key, Choice] = {}
    catalogue.add_plugins(experiment.plugins, document.where(("plugins",), path))
    for key, slot, choice in choices(experiment):
        entry = catalogue.find(slot, choice.type, where=document.where((*key, "type"), path))
        if entry.plugin is not None and entry.plugin not in experiment.plugins:
            raise UserError(
                "this method is brought by a plug-in",
                where=document.where((*key, "type"), path),
                got=choice.type,
                fix=f"add `plugins: [{entry.plugin}]`",
            )
        try:
            options = entry.options.model_validate(choice.options)
        except ValidationError as error:
            raise user_error(error, entry.options, document, path, prefix=key, owner=f"{slot} {entry.name}") from error
        if slot == "sampler":
            build_sampler({"type": entry.name, **options.model_dump()}, where=document.where(key, path))
        updates[key] = choice.model_copy(update=options.model_dump())
    experiment = replace_choices(experiment, updates)
    if not experiment.report.expected:
        report = experiment.report.model_copy(update={"expected": published(experiment.name)})
        experiment = experiment.model_copy(update={"report": report})
    if experiment.dataset.generate is None:
        return experiment
    try:
        drawn = catalogue.toy_options().model_validate(experiment.dataset.generate)
    except ValidationError as error:
        key = ("dataset", "generate")
        raise user_error(error, catalogue.toy_options(), document, path, prefix=key, owner="toy-data") from error
    dataset = experiment.dataset.model_copy(update={"generate": drawn.model_dump()})
    return experiment.model_copy(update={"dataset": dataset})
