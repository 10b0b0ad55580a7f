"""pydantic's findings in the words of an experiment file."""

from __future__ import annotations

import types
import typing
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ltpipe.config.yaml_positions import Document, Key
from ltpipe.errors import UserError


def user_error(
    error: ValidationError,
    model: type[BaseModel],
    document: Document,
    path: Path,
    *,
    prefix: Key = (),
    owner: str = "",
) -> UserError:
    """Return the error for the user.

    Args:
        error: What pydantic found; the first finding is told, unknown keys before all others.
        model: The model that was validated.
        document: The merged file, which knows the position of each key.
        path: The experiment file.
        prefix: Key path of the validated block.
        owner: Name of the method whose options were validated.
    """
    findings = sorted(error.errors(), key=lambda finding: finding["type"] != "extra_forbidden")
    detail = findings[0]
    inner, known = _real_keys(model, detail["loc"])
    same = [finding for finding in findings if _real_keys(model, finding["loc"])[0] == inner]
    where = document.where((*prefix, *inner), path)
    kind, context = detail["type"], detail.get("ctx", {})
    of = f" of {owner}" if owner else ""
    if kind == "extra_forbidden":
        return UserError(
            f"unknown key{of}",
            where=where,
            got=repr(inner[-1]),
            allowed=known or "no options",
            fix=_suggestion(str(inner[-1]), known) or "remove it",
        )
    if kind == "missing":
        return UserError(f"a required key{of} is missing", where=where, fix=f"add {inner[-1]!r}")
    got = repr(detail["input"])
    got = got if len(got) <= 120 else f"{got[:117]}..."
    if kind == "value_error":
        return UserError(str(context["error"]), where=where, got=got)
    allowed = [name for finding in same for name in _accepted(finding)]
    fix = _suggestion(str(detail["input"]), allowed)
    return UserError(f"value not allowed{of}", where=where, got=got, allowed=allowed, fix=fix)


def _accepted(finding: ErrorDetails) -> list[str]:
    """What one finding would have accepted: the literals, or ``a valid integer``."""
    if finding["type"] == "literal_error":
        return [part.strip("' ") for part in finding["ctx"]["expected"].replace(" or ", ", ").split(", ")]
    if finding["type"] == "tuple_type":
        return ["a list"]
    return [finding["msg"].removeprefix("Input should be ").removeprefix("Input should ")]


def _suggestion(got: str, allowed: list[str]) -> str | None:
    near = get_close_matches(got, allowed, n=1) if len(got) < 200 else []
    return f"did you mean {near[0]!r}?" if near else None


def _real_keys(model: type[BaseModel], loc: Key) -> tuple[Key, list[str]]:
    """Drop pydantic's own labels of union members from ``loc``; also return the keys allowed beside its last part."""
    keys: list[str | int] = []
    current: Any = model
    siblings: list[str] = []
    for part in loc:
        current = _unwrap(current)
        if isinstance(current, type) and issubclass(current, BaseModel):
            siblings = list(current.model_fields)
            keys.append(part)
            known = current.model_fields.get(str(part))
            current = known.annotation if known else None
        elif isinstance(part, int) or typing.get_origin(current) is dict:
            keys.append(part)
            inner = [a for a in typing.get_args(current) if a is not Ellipsis]
            current = inner[-1] if inner else None
            siblings = []
    return tuple(keys), siblings


def _unwrap(annotation: Any) -> Any:
    """The one structured member of ``X | None``, ``Annotated[X, ...]`` and ``Literal | tuple`` annotations."""
    while True:
        origin = typing.get_origin(annotation)
        if origin is typing.Annotated:
            annotation = typing.get_args(annotation)[0]
        elif origin in (typing.Union, types.UnionType):
            members = [a for a in typing.get_args(annotation) if a is not type(None)]
            structured = [a for a in members if typing.get_origin(a) is not typing.Literal]
            annotation = structured[0] if structured else members[0]
        else:
            return annotation
