"""mmengine registries of ltpipe, under the scope ``ltpipe``, and the methods that experiments choose by name.

``dict(type='ltpipe.CosineLinear')`` works in any mmdet config with
``custom_imports = dict(imports=['ltpipe.registry'])``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any, TypeVar

from mmengine import registry as root
from mmengine.registry import Registry

from ltpipe.config.options import describe

_LOCATIONS = ["ltpipe.engine", "ltpipe.methods"]
SLOTS = ("classifier", "loss", "mask", "part", "calibrator")
IMPORTS = ("ltpipe.registry", "ltpipe.engine", "ltpipe.methods")
"""What a config that uses components of ltpipe imports."""

MODELS = Registry("model", parent=root.MODELS, scope="ltpipe", locations=_LOCATIONS)
HOOKS = Registry("hook", parent=root.HOOKS, scope="ltpipe", locations=_LOCATIONS)
FUNCTIONS = Registry("function", parent=root.FUNCTIONS, scope="ltpipe", locations=_LOCATIONS)
DATASETS = Registry("dataset", parent=root.DATASETS, scope="ltpipe", locations=_LOCATIONS)
DATA_SAMPLERS = Registry("data sampler", parent=root.DATA_SAMPLERS, scope="ltpipe", locations=_LOCATIONS)
TRANSFORMS = Registry("transform", parent=root.TRANSFORMS, scope="ltpipe", locations=_LOCATIONS)
METRICS = Registry("metric", parent=root.METRICS, scope="ltpipe", locations=_LOCATIONS)
OPTIM_WRAPPERS = Registry("optim wrapper", parent=root.OPTIM_WRAPPERS, scope="ltpipe", locations=_LOCATIONS)
TASK_UTILS = Registry("task util", parent=root.TASK_UTILS, scope="ltpipe", locations=_LOCATIONS)

METHODS: dict[tuple[str, str], type] = {}
"""Every class under :func:`method` by slot and name, as far as its module has been imported."""

_Class = TypeVar("_Class", bound=type)


def method(slot: str, name: str) -> Callable[[_Class], _Class]:
    """Register a class with :data:`MODELS` and offer it in experiment files as ``{type: name}`` in ``slot``.

    The constructor's parameters are the options (:func:`ltpipe.config.options.describe`): annotate every one with plain
    types and describe it under ``Args:``. Class attributes with plain values are the facts that the checks of an
    experiment read.

    Args:
        slot: ``classifier``, ``loss``, ``mask``, ``part`` or ``calibrator``.
        name: The name users write.

    Raises:
        TypeError: There is no such slot, or another class has the name.
    """
    if slot not in SLOTS:
        raise TypeError(f"unknown slot {slot!r}; there are {', '.join(SLOTS)}")

    def wrap(cls: _Class) -> _Class:
        other = METHODS.setdefault((slot, name), cls)
        if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(f"{slot} {name!r} is defined in {other.__module__} and in {cls.__module__}")
        METHODS[slot, name] = cls
        MODELS.register_module(module=cls)
        return cls

    return wrap


def import_plugins(plugins: Iterable[str]) -> None:
    """Import the modules of an experiment's ``plugins``, which register their components.

    Args:
        plugins: Dotted module names, found from the working directory and in ``PYTHONPATH``.
    """
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)  # a console script does not look into the working directory
    for name in plugins:
        import_module(name)


def catalogue_content() -> dict[str, Any]:
    """Return the content of ``config/catalogue.json``: methods and samplers by slot and name, and the toy data."""
    from ltpipe.data.samplers import SAMPLERS
    from ltpipe.data.toy import write_toy_data

    samplers = {name: {"component": {"type": name}, **describe(cls)} for name, cls in SAMPLERS.items()}
    toy_data = describe(write_toy_data, skip=("folder",), fills=frozenset())
    return {"methods": {**describe_methods(), "sampler": samplers}, "toy_data": toy_data}


def describe_methods(plugin: str | None = None) -> dict[str, dict[str, Any]]:
    """Describe our own methods, or those that a plug-in adds, by slot and name.

    Args:
        plugin: Module name; None: our own.

    Returns:
        As :func:`ltpipe.config.options.describe`, with ``component``, the config that builds the method.
    """
    import_module("ltpipe.engine")
    import_module("ltpipe.methods")
    own = set(METHODS)
    if plugin is not None:
        import_plugins([plugin])
    wanted = own if plugin is None else METHODS.keys() - own
    found: dict[str, dict[str, Any]] = {slot: {} for slot in SLOTS}
    for slot, name in sorted(wanted):
        cls = METHODS[slot, name]
        found[slot][name] = {"component": {"type": f"ltpipe.{cls.__name__}"}, **describe(cls)}
    return found
