"""One description of what users may choose by name: the constructor of the class, as plain JSON.

:func:`describe` reads a class (or a function), :func:`options_model` makes the model that checks what users write. The
two may run in different processes: descriptions of our own methods are committed as ``catalogue.json``, since reading
them needs torch and checking an experiment must not.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, create_model
from pydantic.errors import PydanticSchemaGenerationError

from ltpipe.config.fields import Real, Whole

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
        "class_frequency",
        "class_names",
        "class_ranks",
        "fractal_dimension",
    }
)
"""Constructor parameters that the pipeline fills in from the data and the detector; users cannot set them."""

Description = dict[str, Any]
_PLAIN: Mapping[str, Any] = {"boolean": bool, "integer": Whole, "number": Real, "string": str, "object": dict[str, Any]}
_FOREIGN = ("builtins", "torch", "mmdet", "mmengine", "mmcv")


def describe(cls: Callable[..., Any], *, skip: tuple[str, ...] = (), fills: frozenset[str] = INJECTED) -> Description:
    """Describe what users may choose of a class or function.

    Args:
        cls: A class whose constructor's parameters are options: annotated with plain types, documented under ``Args:``
            in its docstring or in that of a base class.
        skip: Parameters that are no options.
        fills: Parameters that the pipeline fills in.

    Returns:
        ``summary``, ``options`` (name -> JSON schema with ``description`` and, unless required, ``default``),
        ``injected`` (names) and ``facts`` (public class attributes with plain values: what the method needs or has).

    Raises:
        TypeError: A parameter has no annotation, or one that is not made of plain types.
    """
    lineage = [base for base in inspect.getmro(cls) if _ours(base)] if inspect.isclass(cls) else [cls]
    texts: dict[str, str] = {}
    for base in reversed(lineage):
        texts |= read_args(inspect.getdoc(base) or "")
    init = cls.__init__ if inspect.isclass(cls) else cls
    foreign = inspect.isclass(cls) and not any("__init__" in vars(base) for base in lineage)
    fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    made = {item.name: item.default_factory() for item in fields if callable(item.default_factory)}
    options, injected = {}, []
    for name, parameter in {} if foreign else inspect.signature(init).parameters.items():
        if name in ("self", *skip) or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if name in fills:
            injected.append(name)
            continue
        owner = f"{cls.__module__}.{cls.__qualname__}: option {name!r}"
        if parameter.annotation is parameter.empty:
            raise TypeError(f"{owner} has no type")
        try:
            schema = TypeAdapter(get_type_hints(init)[name]).json_schema()
        except (NameError, PydanticSchemaGenerationError) as error:
            raise TypeError(f"{owner} is not of plain types: {error}") from error
        if name in texts:
            schema["description"] = texts[name]
        if parameter.default is not parameter.empty:
            schema["default"] = made.get(name, parameter.default)
        options[name] = schema
    summary = (inspect.getdoc(cls) or "").partition("\n")[0]
    facts = {
        key: value
        for base in reversed(lineage)
        for key, value in vars(base).items()
        if key not in options and _plain_fact(key, value)
    }
    found = {"summary": summary, "options": options, "injected": sorted(injected), "facts": facts}
    return dict(json.loads(json.dumps(found)))


def _ours(base: type) -> bool:
    """Whether a class is not one of the frameworks' own."""
    return base.__module__.partition(".")[0] not in _FOREIGN


def _plain_fact(name: str, value: object) -> bool:
    if name.startswith("_") or isinstance(value, property | staticmethod | classmethod) or callable(value):
        return False
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def options_model(name: str, options: Mapping[str, Mapping[str, Any]]) -> type[BaseModel]:
    """Return a model of described options, which refuses unknown ones.

    Args:
        name: Name of the model.
        options: ``options`` of :func:`describe`.
    """
    fields = {
        key: (annotation(schema), Field(schema.get("default", ...), description=schema.get("description")))
        for key, schema in options.items()
    }
    made: type[BaseModel] = create_model(  # type: ignore[call-overload]
        name, __config__=ConfigDict(extra="forbid", frozen=True, protected_namespaces=()), **fields
    )
    return made


def annotation(schema: Mapping[str, Any]) -> Any:
    """Return the type of a JSON schema as :func:`describe` writes it: plain types, unions, lists and literals."""
    if "anyOf" in schema:
        return Union[tuple(annotation(one) for one in schema["anyOf"])]  # noqa: UP007 - members known at run time only
    if "enum" in schema or "const" in schema:
        return Literal[tuple(schema.get("enum", [schema.get("const")]))]
    kind = schema.get("type")
    if kind == "array":
        return list[annotation(schema.get("items", {}))]  # type: ignore[misc]
    return None if kind == "null" else _PLAIN.get(str(kind), Any)


def read_args(doc: str) -> dict[str, str]:
    """Return the descriptions in the ``Args:`` (or ``Attributes:``) section of a Google docstring."""
    match = re.search(r"^([ \t]*)(?:Args|Attributes):\n((?:\1[ \t]+.*\n?|[ \t]*\n)+)", doc, re.MULTILINE)
    if match is None:
        return {}
    indent = re.match(r"[ \t]*", match[2])
    assert indent is not None
    entry = re.compile(rf"^{indent[0]}(\w+)[^:\n]*:[ \t]*((?:.*\n?)(?:{indent[0]}[ \t]+.*\n?)*)", re.MULTILINE)
    return {m[1]: " ".join(m[2].split()) for m in entry.finditer(match[2])}
