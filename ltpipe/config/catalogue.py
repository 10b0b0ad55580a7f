"""What can be chosen by name in an experiment, read from the source text of the methods: torch is not imported.

A method is a class in ``ltpipe/methods`` under ``@method(slot, name)``. Its constructor's annotated parameters are the
options users may write; parameters that the pipeline fills in (:data:`INJECTED`) are not. Descriptions come from the
``Args:`` section of the docstring. Constructor, descriptions and flags may also be those of a base class in the same
module. Samplers are the dataclasses of :mod:`ltpipe.data.samplers`.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

from ltpipe.config.experiment import Experiment
from ltpipe.config.fields import Choice
from ltpipe.config.yaml_positions import Key
from ltpipe.errors import unknown_name

PACKAGE = Path(__file__).resolve().parents[1]
SLOTS = ("classifier", "loss", "mask", "part", "calibrator", "sampler")
INJECTED = frozenset(
    {
        "num_classes",
        "image_counts",
        "instance_counts",
        "num_images",
        "num_annotated_images",
        "in_features",
        "out_features",
        "class_features",
        "class_names",
        "class_ranks",
    }
)
_TYPES = {"Any": Any, "Literal": Literal, "Sequence": Sequence}


@dataclass(frozen=True)
class Method:
    """One choosable method.

    Attributes:
        slot: Where it may be chosen, one of :data:`SLOTS`.
        name: The name users write.
        component: The config that builds it, ``{"type": "ltpipe.SeesawLoss"}``; its options are added.
        options: Model of its options.
        summary: First line of its docstring.
        source: File that defines it.
        injected: Constructor parameters that the pipeline fills in.
        flags: Literal class attributes, e.g. ``needs_features``.
    """

    slot: str
    name: str
    component: Mapping[str, Any]
    options: type[BaseModel]
    summary: str = ""
    source: str = "mmdet"
    injected: frozenset[str] = frozenset()
    flags: Mapping[str, Any] = field(default_factory=dict)


def options_model(name: str, fields: Mapping[str, tuple[Any, Any]]) -> type[BaseModel]:
    """Return a model of options that refuses unknown ones."""
    made: type[BaseModel] = create_model(  # type: ignore[call-overload]
        name, __config__=ConfigDict(extra="forbid", frozen=True, protected_namespaces=()), **fields
    )
    return made


@cache
def catalogue() -> Mapping[tuple[str, str], Method]:
    """All methods by slot and name.

    Raises:
        TypeError: Two methods of a slot have the same name, or a constructor cannot be offered to users.
    """
    found = {(m.slot, m.name): m for m in _BUILTIN}
    for file in sorted((PACKAGE / "methods").rglob("*.py")):
        for entry in read_module(file):
            other = found.get((entry.slot, entry.name))
            if other is not None and other.source != "mmdet":
                raise TypeError(f"{entry.slot} {entry.name!r} is defined in {other.source} and in {entry.source}")
            found[entry.slot, entry.name] = entry
    for entry in _samplers():
        found[entry.slot, entry.name] = entry
    return found


def names(slot: str) -> list[str]:
    """Names that may be chosen in a slot."""
    return sorted(name for where, name in catalogue() if where == slot)


def find(slot: str, name: str, where: object | None = None) -> Method:
    """Return a method.

    Raises:
        UserError: The slot has no method of this name.
    """
    entry = catalogue().get((slot, name))
    if entry is None:
        raise unknown_name(slot, name, names(slot), where=where)
    return entry


def component(slot: str, choice: Choice | Mapping[str, Any]) -> dict[str, Any]:
    """Return the mmengine config of a choice, without what the pipeline injects.

    Empty for ``{type: fcn}`` in the slot ``mask``: the detector file's own mask head stays.

    Args:
        slot: One of :data:`SLOTS`.
        choice: ``{type: name, **options}``.
    """
    given = choice.model_dump() if isinstance(choice, Choice) else dict(choice)
    entry = find(slot, given.pop("type"))
    for shared in ("schedule", "seed", "checkpoint"):
        given.pop(shared, None)
    return {**entry.component, **entry.options.model_validate(given).model_dump()}


def choices(exp: Experiment) -> Iterator[tuple[Key, str, Choice]]:
    """All method choices of an experiment: key path, slot, choice."""
    for slot in ("classifier", "loss", "mask"):
        yield ("model", slot), slot, getattr(exp.model, slot)
    for index, part in enumerate(exp.model.parts):
        yield ("model", "parts", index), "part", part
    yield ("base", "sampler"), "sampler", exp.base.sampler
    for name, calibrator in exp.calibrate.items():
        yield ("calibrate", name), "calibrator", calibrator


def extra_images(exp: Experiment) -> str | None:
    """Images that a head part runs over between epochs: ``holdout`` (held out of training), ``val``, or None.

    A part that does names the options that decide in its class attribute ``extra_images``: the first of them whose
    value is listed there.
    """
    for part in exp.model.parts:
        entry = find("part", part.type)
        chosen = entry.options.model_validate(part.options).model_dump()
        for option, values in entry.flags.get("extra_images", {}).items():
            if chosen[option] in values:
                images: str = values[chosen[option]]
                return images
    return None


def replace_choices(exp: Experiment, updates: Mapping[Key, Choice]) -> Experiment:
    """Return the experiment with the choices at these key paths replaced."""

    def replaced(value: Any, key: Key) -> Any:
        if key in updates:
            return updates[key]
        if not any(other[: len(key)] == key for other in updates):
            return value
        if isinstance(value, dict):
            return {name: replaced(item, (*key, name)) for name, item in value.items()}
        if isinstance(value, tuple):
            return tuple(replaced(item, (*key, index)) for index, item in enumerate(value))
        inner = {name: replaced(getattr(value, name), (*key, name)) for name in type(value).model_fields}
        return value.model_copy(update=inner)

    result: Experiment = replaced(exp, ())
    return result


# ---- reading the source ----------------------------------------------------------------------------------------------


def read_module(file: Path) -> Iterator[Method]:
    """Read the methods that one module registers."""
    tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    for node in classes.values():
        for call in node.decorator_list:
            if isinstance(call, ast.Call) and ast.unparse(call.func).split(".")[-1] == "method":
                slot, name = (ast.literal_eval(value) for value in (*call.args, *(k.value for k in call.keywords)))
                if slot not in SLOTS:
                    raise TypeError(f"{file.name}: {node.name} is registered in the unknown slot {slot!r}")
                yield _read_class(file, _lineage(node, classes), slot, name)


def _lineage(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> list[ast.ClassDef]:
    """Return a class and, through first bases, its ancestors in the same module."""
    found = [node]
    while found[-1].bases and (base := classes.get(ast.unparse(found[-1].bases[0]))) is not None:
        found.append(base)
    return found


def _read_class(file: Path, lineage: Sequence[ast.ClassDef], slot: str, name: str) -> Method:
    node, docs = lineage[0], [ast.get_docstring(cls) or "" for cls in lineage]
    methods = [item for cls in lineage for item in cls.body if isinstance(item, ast.FunctionDef)]
    init = next((item for item in methods if item.name == "__init__"), None)
    texts = {key: text for doc in reversed(docs) for key, text in read_args(doc).items()}
    fields, injected = ({}, frozenset()) if init is None else read_signature(init, f"{file.name}: {node.name}", texts)
    return Method(
        slot,
        name,
        {"type": f"ltpipe.{node.name}"},
        options_model(node.name, fields),
        docs[0].partition("\n")[0],
        file.name,
        injected,
        {key: value for cls in reversed(lineage) for key, value in _literal_attributes(cls).items()},
    )


def _literal_attributes(node: ast.ClassDef) -> dict[str, Any]:
    found = {}
    for item in node.body:
        target = (
            item.targets[0]
            if isinstance(item, ast.Assign)
            else item.target
            if isinstance(item, ast.AnnAssign)
            else None
        )
        if isinstance(target, ast.Name) and isinstance(item, ast.Assign | ast.AnnAssign) and item.value is not None:
            try:
                found[target.id] = ast.literal_eval(item.value)
            except ValueError:
                continue
    return found


def read_signature(
    function: ast.FunctionDef,
    owner: str,
    texts: Mapping[str, str] | None = None,
    skip: Sequence[str] = ("self", "cls"),
    fills: frozenset[str] = INJECTED,
) -> tuple[dict[str, tuple[Any, Any]], frozenset[str]]:
    """Return the options of a constructor or function, and the names of its injected parameters.

    Args:
        function: Its syntax tree.
        owner: Name for messages.
        texts: Descriptions of its parameters; those of the function's own docstring go before.
        skip: Parameters that are neither.
        fills: Parameters that the pipeline fills in.

    Raises:
        TypeError: A parameter has no annotation, or one that is not made of plain types.
    """
    texts = {**(texts or {}), **read_args(ast.get_docstring(function) or "")}
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults)) + [*arguments.defaults]
    pairs = [*zip(positional, defaults, strict=True), *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    fields: dict[str, tuple[Any, Any]] = {}
    injected = set()
    for argument, default in pairs:
        if argument.arg in skip:
            continue
        if argument.arg in fills:
            injected.add(argument.arg)
            continue
        fields[argument.arg] = (
            _evaluate(argument, owner),
            Field(... if default is None else ast.literal_eval(default), description=texts.get(argument.arg)),
        )
    return fields, frozenset(injected)


def _evaluate(argument: ast.arg, owner: str) -> Any:
    """Evaluate an annotation made of plain types."""
    if argument.annotation is None:
        raise TypeError(f"{owner}: option {argument.arg!r} has no type")
    code = compile(ast.Expression(argument.annotation), owner, "eval")
    try:
        return eval(code, dict(_TYPES))
    except NameError as error:
        raise TypeError(f"{owner}: option {argument.arg!r} is not of plain types: {error}") from error


def read_args(doc: str) -> dict[str, str]:
    """Return the descriptions in the ``Args:`` (or ``Attributes:``) section of a Google docstring."""
    match = re.search(r"^([ \t]*)(?:Args|Attributes):\n((?:\1[ \t]+.*\n?|[ \t]*\n)+)", doc, re.MULTILINE)
    if match is None:
        return {}
    indent = re.match(r"[ \t]*", match[2])
    assert indent is not None
    entry = re.compile(rf"^{indent[0]}(\w+)[^:\n]*:[ \t]*((?:.*\n?)(?:{indent[0]}[ \t]+.*\n?)*)", re.MULTILINE)
    return {m[1]: " ".join(m[2].split()) for m in entry.finditer(match[2])}


def _samplers() -> Iterator[Method]:
    from ltpipe.data.samplers import SAMPLERS

    for name, cls in SAMPLERS.items():
        hints, texts = get_type_hints(cls), read_args(cls.__doc__ or "")
        fields = {}
        for item in dataclasses.fields(cls):
            if not item.init or item.name in INJECTED:
                continue
            default: Any = ... if item.default is dataclasses.MISSING else item.default
            if item.default_factory is not dataclasses.MISSING:
                default = item.default_factory()
            fields[item.name] = (hints[item.name], Field(default, description=texts.get(item.name)))
        summary = (cls.__doc__ or "").partition("\n")[0]
        yield Method("sampler", name, {"type": name}, options_model(cls.__name__, fields), summary, "samplers.py")


@cache
def toy_options() -> type[BaseModel]:
    """Model of the options of ``ltpipe toy-data``, the block ``dataset.generate``."""
    tree = ast.parse((PACKAGE / "data" / "toy.py").read_text(encoding="utf-8"))
    function = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "write_toy_data")
    fields, _ = read_signature(function, "write_toy_data", skip=("folder",), fills=frozenset())
    return options_model("ToyData", fields)


# What mmdet brings under a name of its own needs no module of ours.
_BUILTIN = (Method("mask", "fcn", {}, options_model("FCN", {}), "The detector file's own mask head."),)
