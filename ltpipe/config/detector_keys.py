"""What becomes of everything else that mmdet users write into a config: it is used, or named with what replaces it.

A file of the user that assigns what ltpipe does not take from a detector is refused. What mmdet's own files bring along
(optimisers, runtimes, evaluators) is nothing that anybody has asked for: ``validate`` remarks on what matters.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ltpipe.errors import UserError

USED = ("model", "train_pipeline", "test_pipeline", "custom_hooks", "custom_imports", "env_cfg")
"""Variables of a config that are used. The first three make a detector, the others may be missing."""
_SCHEDULE = "base.schedule and lst.schedule"
_DATA = "dataset, base.sampler and schedule.batch_size"
_EVALUATE = "dataset.val and evaluate"
REPLACED: Mapping[str, str] = {
    "auto_scale_lr": "schedule.lr, which is used as it is",
    "default_hooks": "schedule.validation, and loggers in configs/pipeline.yaml",
    "load_from": "detector.load_from",
    "log_level": "loggers in configs/pipeline.yaml",
    "log_processor": "loggers in configs/pipeline.yaml",
    "optim_wrapper": f"{_SCHEDULE}: optimizer, lr, momentum, weight_decay, clip_norm, lr_mult, precision, accumulate",
    "param_scheduler": f"{_SCHEDULE}: warmup_iterations, drops, gamma, decay",
    "randomness": "seed",
    "resume": "nothing: a killed stage always continues",
    "test_cfg": _EVALUATE,
    "test_dataloader": _EVALUATE,
    "test_evaluator": _EVALUATE,
    "train_cfg": f"{_SCHEDULE}: epochs or iterations",
    "train_dataloader": _DATA,
    "train_dataset": f"{_DATA}; train_pipeline for the steps of both pipelines, those of several images among them",
    "tta_model": "nothing: there is no test-time augmentation",
    "tta_pipeline": "nothing: there is no test-time augmentation",
    "val_cfg": _EVALUATE,
    "val_dataloader": _EVALUATE,
    "val_evaluator": _EVALUATE,
    "val_pipeline": "test_pipeline",
    "vis_backends": "loggers in configs/pipeline.yaml",
    "visualizer": "loggers in configs/pipeline.yaml",
}
"""Variables of mmdet's configs that are not used, and what takes their place in an experiment."""
KNOWN = frozenset([*USED, *REPLACED, "default_scope"])
"""What mmdet's configs assign. Other names are helpers of the file, unless they look like one of these misspelt."""
_BY_EPOCH = "nothing: trainings count iterations, and the pipeline stays the same"
REPLACED_HOOKS: Mapping[str, str] = {
    "CheckpointHook": "schedule.validation.keep",
    "DetVisualizationHook": "loggers in configs/pipeline.yaml",
    "EMAHook": "schedule.ema",
    "EarlyStoppingHook": "schedule.validation.keep",
    "LoggerHook": "loggers in configs/pipeline.yaml",
    "PipelineSwitchHook": _BY_EPOCH,
    "YOLOXModeSwitchHook": _BY_EPOCH,
}
"""Entries of ``custom_hooks`` that are not used, and what takes their place."""
# Nobody misses these: experiments always say as much, or mmdet's defaults are ltpipe's.
_EXPECTED = frozenset(REPLACED) - {"optim_wrapper", "param_scheduler", "train_dataset", "tta_model"}


def used_hooks(values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the entries of ``custom_hooks`` that a training keeps."""
    return [hook for hook in values.get("custom_hooks") or [] if hook_name(hook) not in REPLACED_HOOKS]


def hook_name(hook: Mapping[str, Any]) -> str:
    """Return the class of a hook without its module or scope."""
    return str(hook.get("type", "")).rpartition(".")[2]


def refuse_replaced(source: str | Path, values: Mapping[str, Any]) -> tuple[str, ...]:
    """Refuse what a file of the user assigns in vain, and return remarks on what mmdet's own files bring.

    Args:
        source: The file, or ``mmdet::...``.
        values: What it resolves to.

    Raises:
        UserError: The file, or a base of it outside mmdet, assigns something that ltpipe does not use.
    """
    own = own_assignments(Path(source)) if "::" not in str(source) else {}
    vain = {name: text for name, text in REPLACED.items() if values.get(name)}
    if values.get("default_scope", "mmdet") != "mmdet":
        vain["default_scope"] = "the scope in the name of a component: type='mmdet.ResNet'"
    hooks = {
        name: REPLACED_HOOKS[name]
        for name in map(hook_name, values.get("custom_hooks") or ())
        if name in REPLACED_HOOKS
    }
    found = [f"{own[name]}: {name} -> {text}" for name, text in vain.items() if name in own]
    if "custom_hooks" in own:
        found += [f"{own['custom_hooks']}: {name} in custom_hooks -> {text}" for name, text in hooks.items()]
        hooks = {}
    if found:
        raise UserError(
            "the detector file says what an experiment says otherwise, and would not be heard",
            where=source,
            got="\n           ".join(found),
            allowed=", ".join(USED),
            fix="take these lines out and set what stands behind the arrow in the experiment",
        )
    missed = {name: text for name, text in vain.items() if name not in _EXPECTED}
    return tuple(f"{source}: {name} is not used; instead: {text}" for name, text in {**missed, **hooks}.items())


def own_assignments(file: Path) -> dict[str, str]:
    """Return ``file:line`` of the variables that a config assigns itself or through bases outside mmdet."""
    found: dict[str, str] = {}
    for base in _read(file, {}):
        found.update(base)
    return found


def own_files(file: Path) -> list[Path]:
    """Return a config and its bases outside mmdet, as far as their names are written down."""
    seen: dict[Path, Path] = {}
    for _ in _read(file, seen):
        pass
    return list(seen.values())


def _read(file: Path, seen: dict[Path, Path]) -> Iterator[dict[str, str]]:
    """Yield the assignments of a config and of its bases, these first; note the files by their resolved names."""
    if file.resolve() in seen or ".mim" in file.parts:
        return
    seen[file.resolve()] = file
    names: dict[str, str] = {}
    for node in _statements(ast.parse(file.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.ImportFrom):
            base = _imported(file, node)
            if base is not None and base.is_file():
                yield from _read(base, seen)
            continue
        targets: Sequence[ast.expr] = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            while isinstance(target, ast.Subscript | ast.Attribute):  # model["backbone"] = ..., optim_wrapper.lr = ...
                target = target.value
            if isinstance(target, ast.Name):
                names[target.id] = f"{file}:{node.lineno}"
                if target.id == "_base_":
                    for base in _bases(file, node.value):
                        yield from _read(base, seen)
    yield names


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.Assign | ast.AnnAssign | ast.AugAssign | ast.ImportFrom]:
    """Yield assignments and imports of a module, also those inside ``with``, ``if``, ``for`` and ``try``."""
    for node in body:
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.ImportFrom):
            yield node
        elif not isinstance(node, ast.FunctionDef | ast.ClassDef):
            for name in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(node, name, []))


def _bases(file: Path, value: ast.expr | None) -> Iterator[Path]:
    """Yield the files of ``_base_`` that are written down as text."""
    entries = value.elts if isinstance(value, ast.List | ast.Tuple) else [value]
    for entry in entries:
        if isinstance(entry, ast.Constant) and isinstance(entry.value, str) and "::" not in entry.value:
            base = file.parent / entry.value
            if base.is_file() and base.suffix == ".py":
                yield base


def _imported(file: Path, node: ast.ImportFrom) -> Path | None:
    """Return the file of a relative import, as in ``with read_base(): from .base import *``."""
    if node.level == 0:
        return None
    folder = file.parents[node.level - 1]
    return folder.joinpath(*(node.module or "").split(".")).with_suffix(".py")
