"""Which tensors of a detector have a row per class: every class states it of its own, nobody knows a method by name.

A component names its class-wise parameters and buffers in the class attribute ``class_rows``: local name (dotted for
those of a child) -> axis; ``(axis, n)`` where each class has ``n`` rows; None for a tensor that only looks class-wise.
A square matrix between classes, whose rows this states, is also named in ``class_columns`` with the axis of its
columns; it cannot grow by new classes, so its component must restart in every phase.
Rows of classes come first and in label order, those of the background or of objectness follow. Components whose rows
are ordered otherwise have ``rows_in_label_order = False`` and reorder the whole head in ``reorder_head``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ltpipe.errors import UserError

Rows = int | tuple[int, int] | None
BOX_HEAD: Mapping[str, Rows] = {"fc_cls.weight": 0, "fc_cls.bias": 0, "fc_reg.weight": (0, 4), "fc_reg.bias": (0, 4)}
"""Of mmdet's box heads. Class-agnostic regressors have the rows of one class, which is told by their number."""
MASK_HEAD: Mapping[str, Rows] = {"conv_logits.weight": 0, "conv_logits.bias": 0}
"""Of mmdet's mask heads."""
_FRAMEWORKS = {"torch", "mmdet", "mmcv", "mmengine"}


def class_tensors(modules: Mapping[str, nn.Module], num_classes: int) -> dict[str, tuple[int, int]]:
    """Return axis and rows per class of every class-wise tensor, by its key in the state dict.

    Args:
        modules: Modules by their prefix in the state dict; ``{"": detector}`` for a whole one.
        num_classes: Foreground classes K.

    Raises:
        UserError: A component has a tensor with K or K + 1 rows that its class says nothing of.
    """
    found: dict[str, tuple[int, int]] = {}
    silent: list[str] = []
    for prefix, path, module in _walk(modules):
        stated: Mapping[str, Rows] = getattr(module, "class_rows", {})
        for name, rows in stated.items():
            if rows is not None:
                found[_key(prefix, path, name)] = (rows, 1) if isinstance(rows, int) else rows
        if type(module).__module__.partition(".")[0] not in _FRAMEWORKS:
            silent += [
                f"{_key(prefix, path, name)} of {type(module).__name__}"
                for name, shape in _own(module)
                if {num_classes, num_classes + 1} & set(shape) and name not in stated
                if _key(prefix, path, name) not in found
            ]
    if silent:
        raise UserError(
            "a tensor may have a row per class, and its class does not say",
            where=", ".join(silent[:3]),
            got=f"{len(silent)} tensors with a dimension of {num_classes} or {num_classes + 1}",
            fix="name it in the class attribute class_rows: {'name': axis}, or {'name': None} if it has none",
        )
    return found


def _walk(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, str, nn.Module]]:
    for prefix, root in modules.items():
        yield from ((prefix, path, module) for path, module in root.named_modules())


def _own(module: nn.Module) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of the tensors in a module's state that are not a child's."""
    state = module.state_dict()
    for name in (*dict(module.named_parameters(recurse=False)), *dict(module.named_buffers(recurse=False))):
        if name in state:
            yield name, tuple(state[name].shape)


def _key(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def reorder_classes(
    state: Mapping[str, Tensor], modules: Mapping[str, nn.Module], known: int, positions: Sequence[int]
) -> dict[str, Tensor]:
    """Return a state whose label ``j`` is the old label ``positions[j]``.

    Args:
        state: Detector state under our names, background last.
        modules: The detector, ``{"": detector}``, or parts of it by prefix; tensors of others stay as they are.
        known: Classes the state knows.
        positions: Old labels in the new order; fewer than ``known`` leave classes out.

    Raises:
        UserError: A class-wise tensor has fewer rows than there are classes, or a component does not state its own.
    """
    tensors = class_tensors(modules, known)
    reordered = dict(state)
    for prefix, path, module in _walk(modules):
        columns = getattr(module, "class_columns", {})
        across = {_key(prefix, path, name): (axis, 1) for name, axis in columns.items()}
        reordered |= _reordered(reordered, across, known, positions)
        if not getattr(module, "rows_in_label_order", True):
            head = _key(prefix, path).rpartition(".")[0] + "."
            own = {key.removeprefix(head): value for key, value in state.items() if key.startswith(head)}
            changed: dict[str, Tensor] = type(module).reorder_head(own, positions)  # type: ignore[attr-defined]
            reordered |= {head + key: value for key, value in changed.items()}
            tensors = {key: rows for key, rows in tensors.items() if key.removeprefix(head) not in changed}
    return reordered | _reordered(reordered, tensors, known, positions)


def reorder_layers(state: Mapping[str, Tensor], known: int, positions: Sequence[int]) -> dict[str, Tensor]:
    """As :func:`reorder_classes`, for a state with mmdet's own heads of which no detector is built."""
    rows = {"bbox_head": BOX_HEAD, "mask_head": MASK_HEAD}
    tensors: dict[str, tuple[int, int]] = {}
    for key in state:
        head = next((kind for kind in rows if f"roi_head.{kind}." in key), None)
        stated = rows[head].get(".".join(key.split(".")[-2:])) if head else None
        if stated is not None:
            tensors[key] = (stated, 1) if isinstance(stated, int) else stated
    return dict(state) | _reordered(state, tensors, known, positions)


def _reordered(
    state: Mapping[str, Tensor], tensors: Mapping[str, tuple[int, int]], known: int, positions: Sequence[int]
) -> dict[str, Tensor]:
    return {key: _in_order(key, state[key], *rows, known, positions) for key, rows in tensors.items() if key in state}


def _in_order(key: str, value: Tensor, axis: int, block: int, known: int, positions: Sequence[int]) -> Tensor:
    length = value.shape[axis]
    if length == block != known * block:
        return value  # one for all classes
    if length < known * block:
        raise UserError(
            "the layer has fewer rows than the checkpoint knows classes",
            where=key,
            got=length,
            allowed=f"{known * block} or more",
        )
    rows = torch.arange(known * block).reshape(known, block)[list(positions)].flatten()
    kept = torch.cat([rows, torch.arange(known * block, length)]).to(value.device)
    return value.index_select(axis, kept)


def restarting(modules: Mapping[str, nn.Module]) -> Iterator[str]:
    """Yield the prefixes of components whose state starts anew in every phase, as they state it."""
    for prefix, path, module in _walk(modules):
        # Statistics of a classification loss are those of its classes.
        if getattr(module, "restarts_per_phase", path.endswith("loss_cls")):
            yield _key(prefix, path) + "."


def is_below(key: str, prefixes: Iterable[str]) -> bool:
    """Whether a key of a state dict belongs to one of the components."""
    return key.startswith(tuple(prefixes))


def grown(old: Tensor, fresh: Tensor, rows: tuple[int, int], num_old: int, num_new: int) -> Tensor:
    """Return a class-wise tensor with the rows of new classes, taken from a fresh model, between the old ones.

    Args:
        old: Of the model that knows ``num_old`` classes.
        fresh: Of a new model that knows ``num_old + num_new``.
        rows: Axis and rows per class.
        num_old: Classes that are known.
        num_new: Classes to add.
    """
    axis, block = rows
    if old.shape[axis] == block != num_old * block:
        return old
    added: Any = fresh.narrow(axis, num_old * block, num_new * block).to(old)
    rest = old.shape[axis] - num_old * block
    return torch.cat([old.narrow(axis, 0, num_old * block), added, old.narrow(axis, num_old * block, rest)], axis)
