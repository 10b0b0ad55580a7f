"""YAML, read and written in one way: YAML 1.2's words and numbers, within bounds of size, depth and aliases.

PyYAML reads YAML 1.1, where ``yes`` is true, ``010`` is 8 and ``1:30`` is 90. Here they are a text, 10 and a text. And
it follows aliases wherever they lead: ten lines can stand for a billion values, or for themselves.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from ltpipe.errors import UserError
from ltpipe.input_files import MIB, read_text

LIMIT = 2 * MIB
DEPTH, VALUES, DIGITS = 50, 100_000, 40
_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TextLoader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
# What YAML 1.2 calls null, true or false, a whole number, a real number (chapter 10.3 of its specification).
_CORE = {
    "null": (r"null|Null|NULL|~|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}


class _Loader(_Safe):  # type: ignore[misc]
    yaml_implicit_resolvers: dict[str, Any] = {}


class _Dumper(yaml.SafeDumper):
    """Quotes what either version would not take for text."""


def _number(loader: Any, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    if len(text) > DIGITS:
        raise ConstructorError(None, None, f"a number of {len(text)} digits", node.start_mark)
    try:
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    except ValueError as error:
        raise ConstructorError(None, None, f"{text!r} is no whole number", node.start_mark) from error


def _real(loader: Any, node: yaml.ScalarNode) -> float:
    text = loader.construct_scalar(node)
    try:
        return float(re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", text.lower()))
    except ValueError as error:
        raise ConstructorError(None, None, f"{text[:40]!r} is no number", node.start_mark) from error


for _tag, (_pattern, _first) in _CORE.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
    if _tag in ("int", "float"):
        _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _number)
_Loader.add_constructor("tag:yaml.org,2002:float", _real)


def load_yaml(path: Path, what: str, *, text: bool = False) -> tuple[yaml.Node | None, Any]:
    """Read a YAML file.

    Args:
        path: The file.
        what: What it is, for the error, e.g. ``"the experiment file"``.
        text: Every value stays the text that it is: ``no`` and ``1`` are names of classes.

    Returns:
        The nodes, which know their lines, and the value.

    Raises:
        UserError: The file cannot be read, is no YAML in UTF-8, holds an alias of what the alias is part of, or more
            than this reader takes.
    """
    content = read_text(path, what, limit=LIMIT)
    loader = _TextLoader if text else _Loader
    try:
        _measure(content, path, what)
        node = yaml.compose(content, Loader=loader)
        return node, None if node is None else yaml.load(content, Loader=loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        got = getattr(error, "problem", None) or getattr(error, "reason", None) or " ".join(str(error).split())
        where = f"{path}:{mark.line + 1}" if mark else path
        raise UserError(f"{what} is not valid YAML", where=where, got=got) from error
    except ValueError as error:  # a date that is none, say
        raise UserError(f"{what} is not valid YAML", where=path, got=error) from error


def _measure(content: str, path: Path, what: str) -> None:
    """Refuse what would take long or no end to build: known from the events, before anything is built."""
    sizes: dict[str, int] = {}
    open_: list[tuple[str | None, int]] = []
    values = 0
    for event in yaml.parse(content, Loader=_Safe):
        fault = None
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_):
                fault = f"the alias *{event.anchor} stands inside what it stands for"
            values += sizes.get(str(event.anchor), 1)
        elif isinstance(event, yaml.ScalarEvent):
            values += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_.append((event.anchor, values))
            values += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            if anchor is not None:
                sizes[anchor] = values - before
        if len(open_) > DEPTH:
            fault = f"more than {DEPTH} levels"
        elif values > VALUES:
            fault = f"more than {VALUES} values, those of aliases counted each time"
        if fault is not None:
            assert event.start_mark is not None
            raise UserError(
                f"{what} holds more than can be meant", where=f"{path}:{event.start_mark.line + 1}", got=fault,
                allowed=f"at most {DEPTH} levels, {VALUES} values and {LIMIT // MIB} MiB",
            )  # fmt: skip


def dump_yaml(value: Any) -> str:
    """Return a value as YAML that every reader takes for the same: keys in their order, lines of at most 120."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
