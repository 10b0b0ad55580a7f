"""What can be chosen by name in an experiment, without importing torch.

Descriptions of our own methods are the committed file ``catalogue.json`` beside this module, written by
``ltpipe schema --write`` from the classes themselves (:mod:`ltpipe.config.options`). Methods of an experiment's
``plugins`` are described in a process of their own, which imports them, and remembered until their files change.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ltpipe import __version__
from ltpipe.config.fields import Choice
from ltpipe.config.options import Description, options_model
from ltpipe.errors import UserError, unknown_name
from ltpipe.run.files import write_json

FILE = Path(__file__).with_name("catalogue.json")
PLUGINS = Path(".ltpipe") / "plugins"
SLOTS = ("classifier", "loss", "mask", "part", "calibrator", "sampler")
# What mmdet brings under a name of its own needs no module of ours.
_OF_MMDET: Description = {"summary": "The detector file's own mask head.", "options": {}, "injected": [], "facts": {}}


@dataclass(frozen=True)
class Method:
    """One choosable method.

    Attributes:
        slot: Where it may be chosen, one of :data:`SLOTS`.
        name: The name users write.
        component: The config that builds it, ``{"type": "ltpipe.SeesawLoss"}``; its options are added.
        options: Model of its options.
        summary: First line of its docstring.
        injected: Constructor parameters that the pipeline fills in.
        flags: Class attributes with plain values, e.g. ``needs_features``.
        plugin: The plug-in that brings it, None for our own.
    """

    slot: str
    name: str
    component: Mapping[str, Any]
    options: type[BaseModel]
    summary: str
    injected: frozenset[str] = frozenset()
    flags: Mapping[str, Any] = field(default_factory=dict)
    plugin: str | None = None


def _method(slot: str, name: str, found: Description, plugin: str | None = None) -> Method:
    options = options_model(f"{slot}_{name}", found["options"])
    injected = frozenset(found["injected"])
    return Method(slot, name, found.get("component", {}), options, found["summary"], injected, found["facts"], plugin)


@cache
def catalogue() -> dict[tuple[str, str], Method]:
    """All methods by slot and name; plug-ins are added by :func:`add_plugins`."""
    found = {("mask", "fcn"): _method("mask", "fcn", _OF_MMDET)}
    for slot, methods in described()["methods"].items():
        found |= {(slot, name): _method(slot, name, one) for name, one in methods.items()}
    return found


@cache
def described() -> Description:
    """The committed descriptions: ``methods`` by slot and name, and ``toy_data``."""
    return dict(json.loads(FILE.read_text(encoding="utf-8")))


@cache
def toy_options() -> type[BaseModel]:
    """Model of the options of ``ltpipe toy-data``, the block ``dataset.generate``."""
    return options_model("ToyData", described()["toy_data"]["options"])


def add_plugins(plugins: Iterable[str], where: object | None = None) -> None:
    """Add the methods of plug-ins to the catalogue.

    Args:
        plugins: Dotted names of modules, which are found from the working directory and in ``PYTHONPATH``.
        where: File and key of the experiment.

    Raises:
        UserError: A module cannot be found or imported, or one of its methods has a name that is taken.
    """
    known = {entry.plugin for entry in catalogue().values()}
    for plugin in plugins:
        if plugin not in known:
            for slot, methods in _described_plugin(plugin, where).items():
                for name, one in methods.items():
                    catalogue()[slot, name] = _method(slot, name, one, plugin)


def plugin_files(plugin: str, where: object | None = None) -> list[Path]:
    """Return the source files of a plug-in: its module, or all modules of its package.

    Raises:
        UserError: There is no such module.
    """
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)  # a console script does not look into the working directory
    try:
        spec = importlib.util.find_spec(plugin)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        raise UserError(
            "the plug-in cannot be found",
            where=where,
            got=plugin,
            allowed="a Python module in the working directory, in PYTHONPATH or installed",
        )
    file = Path(spec.origin)
    return sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]


def plugin_digest(plugin: str) -> str:
    """SHA-256 of a plug-in's source files."""
    digest = hashlib.sha256()
    for file in plugin_files(plugin):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _described_plugin(plugin: str, where: object | None) -> Description:
    """Return the methods of a plug-in by slot and name; another process imports it, which takes torch and seconds."""
    plugin_files(plugin, where)
    key = f"{plugin_digest(plugin)} {hashlib.sha256(FILE.read_bytes()).hexdigest()} {__version__}"
    kept = PLUGINS / f"{plugin}.json"
    if kept.is_file():
        content = json.loads(kept.read_text(encoding="utf-8"))
        if content["key"] == key:
            return dict(content["methods"])
    code = "import json, sys; from ltpipe.registry import describe_methods as d; print(json.dumps(d(sys.argv[1])))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), os.getcwd()])}
    asked = subprocess.run([sys.executable, "-c", code, plugin], capture_output=True, text=True, env=environment)
    if asked.returncode:
        raise UserError(
            "the plug-in cannot be used",
            where=where,
            got=f"{plugin}: {(asked.stderr.strip().splitlines() or ['killed'])[-1]}",
            fix=f"try `python -c 'import ltpipe.methods, {plugin}'`",
        )
    methods: Description = json.loads(asked.stdout.splitlines()[-1])
    write_json(kept, {"key": key, "methods": methods})
    return methods


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
    for shared in ("schedule", "seed", "checkpoint", "choose", "after"):
        given.pop(shared, None)
    return {**entry.component, **entry.options.model_validate(given).model_dump()}
