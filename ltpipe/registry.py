"""mmengine registries of ltpipe, under the scope ``ltpipe``.

``dict(type='ltpipe.CosineLinear')`` works in any mmdet config with
``custom_imports = dict(imports=['ltpipe.registry'])``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from mmengine import registry as root
from mmengine.registry import Registry

_LOCATIONS = ["ltpipe.engine", "ltpipe.methods"]

MODELS = Registry("model", parent=root.MODELS, scope="ltpipe", locations=_LOCATIONS)
HOOKS = Registry("hook", parent=root.HOOKS, scope="ltpipe", locations=_LOCATIONS)
FUNCTIONS = Registry("function", parent=root.FUNCTIONS, scope="ltpipe", locations=_LOCATIONS)
DATASETS = Registry("dataset", parent=root.DATASETS, scope="ltpipe", locations=_LOCATIONS)
DATA_SAMPLERS = Registry("data sampler", parent=root.DATA_SAMPLERS, scope="ltpipe", locations=_LOCATIONS)
TRANSFORMS = Registry("transform", parent=root.TRANSFORMS, scope="ltpipe", locations=_LOCATIONS)
METRICS = Registry("metric", parent=root.METRICS, scope="ltpipe", locations=_LOCATIONS)
TASK_UTILS = Registry("task util", parent=root.TASK_UTILS, scope="ltpipe", locations=_LOCATIONS)

_Class = TypeVar("_Class", bound=type)


def method(slot: str, name: str) -> Callable[[_Class], _Class]:
    """Register a class with :data:`MODELS` and offer it in experiment files as ``{type: name}`` in ``slot``.

    The catalogue of :mod:`ltpipe.spec` reads this decorator, the constructor's signature and its docstring from the
    source text, so that experiments are checked without importing torch: give literal arguments, annotate every option,
    and describe it under ``Args:``.

    Args:
        slot: ``classifier``, ``loss``, ``mask``, ``part`` or ``calibrator``.
        name: The name users write.
    """

    def wrap(cls: _Class) -> _Class:
        MODELS.register_module(module=cls)
        return cls

    return wrap
