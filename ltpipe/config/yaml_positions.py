"""YAML with positions: every key knows its file and line, duplicate keys are errors."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ltpipe.errors import UserError

Key = tuple[str | int, ...]
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]
    """A loader for which names of keys are text: YAML 1.1 reads ``on`` as true."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping of a node."""
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:bool":
                key.tag = "tag:yaml.org,2002:str"
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


@dataclass
class Document:
    """A mapping read from YAML, and where each of its keys stands.

    Attributes:
        values: The mapping.
        origin: ``file:line`` by key path.
    """

    values: dict[str, Any]
    origin: dict[Key, str] = field(default_factory=dict)

    def where(self, key: Key, file: Path) -> str:
        """``file:line: dotted.key`` of the deepest part of ``key`` that is written down."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.origin:
                return f"{self.origin[key[:length]]}: {dotted(key)}"
        return f"{file}: {dotted(key)}" if key else str(file)


def dotted(key: Key) -> str:
    """``('calibrate', 'parts', 0)`` -> ``calibrate.parts[0]``."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def read_yaml(path: Path) -> Document:
    """Read one experiment file.

    Raises:
        UserError: The file is missing, is not YAML, holds no mapping, or repeats a key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError("cannot read the experiment file", where=path, got=error.strerror) from error
    try:
        node = yaml.compose(text, Loader=_Loader)
        values = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else path
        raise UserError("the file is not valid YAML", where=where, got=getattr(error, "problem", error)) from error
    if not isinstance(values, dict) or node is None:
        raise UserError("an experiment file is a mapping of blocks", where=path, got=type(values).__name__)
    origin: dict[Key, str] = {}
    _walk(node, (), path, origin)
    return Document(values, origin)


def _walk(node: yaml.Node, key: Key, path: Path, origin: dict[Key, str]) -> None:
    """Note the position of every key below ``node``."""
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            child: Key = (*key, str(name.value))
            here = f"{path}:{name.start_mark.line + 1}"
            if child in origin:
                raise UserError("a key is given twice", where=f"{here}: {dotted(child)}", got=f"also {origin[child]}")
            origin[child] = here
            _walk(value, child, path, origin)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            origin[(*key, index)] = f"{path}:{value.start_mark.line + 1}"
            _walk(value, (*key, index), path, origin)


def expand_variables(value: Any) -> Any:
    """Replace ``${NAME}`` and ``${NAME:-default}`` in all strings below ``value`` by environment variables.

    A variable that is neither set nor has a default stays as it is: it matters only when the path is needed.
    """
    if isinstance(value, dict):
        return {key: expand_variables(item) for key, item in value.items()}
    if isinstance(value, list):
        return [expand_variables(item) for item in value]
    if isinstance(value, str):
        return _VARIABLE.sub(lambda m: os.environ.get(m[1]) or (m[0] if m[2] is None else m[2]), value)
    return value


def variables(text: str) -> list[str]:
    """Names of the environment variables in ``text``."""
    return [match[1] for match in _VARIABLE.finditer(text)]
