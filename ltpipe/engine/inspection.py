"""A detector built on the meta device: what it is made of, and whether it can be built and trained at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from mmengine.config import ConfigDict
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import DefaultScope
from torch import nn

from ltpipe.config.catalogue import component
from ltpipe.config.class_list import count_classes, read_class_list
from ltpipe.config.detector import has_masks
from ltpipe.config.experiment import Experiment
from ltpipe.config.weight_files import named_weights
from ltpipe.engine.checkpoint_readers import url_of
from ltpipe.engine.heads import as_list
from ltpipe.engine.last_layers import with_trained_layers
from ltpipe.engine.meta_device import without_weights
from ltpipe.engine.model_config import ClassCounts, assemble_model, with_our_steps
from ltpipe.engine.one_stage import is_one_stage
from ltpipe.engine.training_config import check_parts, with_recomputation
from ltpipe.errors import UserError, unknown_name
from ltpipe.registry import HOOKS, MODELS, TRANSFORMS


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        facts: Lines for a person: what the detector consists of.
        detector: The detector, on the meta device where its components allow it.
        num_classes: Classes it knows, those of the base.
    """

    facts: tuple[str, ...]
    detector: nn.Module
    num_classes: int


def inspect_detector(exp: Experiment) -> Inspection:
    """Build the detector and the transforms of an experiment without any memory for weights.

    Args:
        exp: An experiment whose number of classes can be told.

    Raises:
        UserError: A component or an argument does not exist, a package is missing, what the experiment's methods need
            is not there, or layers would stay as random as they start.
    """
    counts = assumed_counts(exp)
    with DefaultScope.overwrite_default_scope("mmdet"):
        fragment, model = assemble_model(exp, counts)
        detector = _build(exp, with_trained_layers(model, exp.base.trained))
        for part in ("train_pipeline", "test_pipeline"):
            for index, step in enumerate(with_our_steps(fragment[part])):
                _made(TRANSFORMS, step, f"{exp.detector.config}: {part}[{index}]")
        for index, hook in enumerate(fragment.get("custom_hooks", [])):
            if not isinstance(hook.get("type"), type) and HOOKS.get(str(hook.get("type"))) is None:
                where = f"{exp.detector.config}: custom_hooks[{index}]"
                raise unknown_name("hook", hook.get("type"), MMENGINE_HOOKS.module_dict, where=where, shown=0)
    for key, schedule in [("base", exp.base.schedule), *([("lst", exp.lst.schedule)] if exp.lst is not None else [])]:
        with_recomputation(model, schedule, exp.where(f"{key}.schedule"))
        check_parts(schedule, detector, exp.where(f"{key}.schedule"))
    for choice in exp.calibrate.values():
        for head in detector.roi_head.bbox_heads:
            MODELS.get(component("calibrator", choice)["type"]).check_head(head)
    _refuse_random_frozen_layers(exp, detector)
    for name in named_weights(model):
        url_of(name, f"{exp.detector.config}: init_cfg")
    return Inspection(tuple(_facts(exp, fragment, model, detector)), detector, len(counts.images))


def assumed_counts(exp: Experiment) -> ClassCounts:
    """Return training counts of the base's classes: those of the class list, or, where there is none, a long tail."""
    listed = read_class_list(exp.dataset.class_list) if exp.dataset.class_list else None
    if listed is not None:
        images = [int(c["image_count"]) for c in listed]
        instances = [int(c["instance_count"]) for c in listed]
    else:
        images = instances = np.geomspace(20_000, 2, count_classes(exp.dataset)).astype(int).tolist()
    if exp.split is not None:
        known = exp.split.phase_boundaries(len(images))[0]
        order = np.argsort(-np.asarray(instances), kind="stable")[:known]
        images, instances = ([counts[index] for index in order] for counts in (images, instances))
    names = [f"class {index}" for index in range(len(images))]
    return ClassCounts(images, instances, max(sum(images), 1), max(sum(images), 1), names, list(range(len(images))))


def _build(exp: Experiment, model: ConfigDict) -> Any:
    try:
        return without_weights(model)
    except Exception as error:
        raise _unbuildable(error, f"{exp.detector.config}: model") from error


def _made(registry: Any, config: Mapping[str, Any], where: str) -> Any:
    try:
        return registry.build(dict(config))
    except Exception as error:
        raise _unbuildable(error, where) from error


def _unbuildable(error: BaseException, where: str) -> UserError:
    """Return what a component's construction failed of, without the registry's wrapping."""
    if isinstance(error, UserError):
        return error
    text = " ".join(str(error).strip("'\"").split())
    if isinstance(error, ImportError) or text.endswith("is not installed"):
        return UserError("a package is missing", where=where, got=text, fix="install it, or leave the component out")
    if isinstance(error, KeyError) and " is not in the " in text:
        name, _, rest = text.partition(" is not in the ")
        known = _registered(rest.partition(" registry")[0])
        return unknown_name("component", name, known, where=where, shown=0)
    return UserError("the detector cannot be built", where=where, got=text[:400], fix="correct the detector file")


def _registered(name: str) -> list[str]:
    registry: Any = {"transform": TRANSFORMS}.get(name.rpartition("::")[2], MODELS)
    found: list[str] = []
    while registry is not None:
        found += list(registry.module_dict)
        found += [key for child in registry.children.values() for key in child.module_dict]
        registry = registry.parent
    return found


def _refuse_random_frozen_layers(exp: Experiment, detector: nn.Module) -> None:
    """A backbone whose first layers never learn needs weights to start from."""
    started = exp.detector.load_from or exp.base.checkpoint or _pretrained(detector)
    frozen = [name for name, p in detector.named_parameters() if name.startswith("backbone.") and not p.requires_grad]
    if frozen and not started:
        raise UserError(
            "layers of the backbone are frozen, but nothing says which weights they have",
            where=f"{exp.detector.config}: model.backbone",
            got=f"{len(frozen)} frozen tensors, {frozen[0]} the first, at random",
            fix="set detector.load_from, an init_cfg of type Pretrained, or frozen_stages=-1 and norms that learn",
        )


def _pretrained(detector: nn.Module) -> bool:
    configs = [
        getattr(module, "init_cfg", None) for name, module in detector.named_modules() if name in ("", "backbone")
    ]
    return any(one.get("type") == "Pretrained" for config in configs for one in as_list(config) if one)


def _facts(exp: Experiment, fragment: ConfigDict, model: ConfigDict, detector: Any) -> list[str]:
    parameters = list(detector.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    sizes = [step.get("scale") or step.get("scales") for step in fragment.train_pipeline if "Resize" in step["type"]]
    start = exp.base.checkpoint or exp.detector.load_from
    if start is None and _pretrained(detector):
        start = next(c.get("checkpoint") for c in as_list(model.backbone.get("init_cfg")) if c)
    return [
        f"detector: {detector.__class__.__name__}, {_heads(exp, model)}",
        f"parameters: {sum(p.numel() for p in parameters) / 1e6:.1f} M, {trained / 1e6:.1f} M of them trained",
        f"starts from: {start or 'random weights'}",
        f"training images: {' or '.join(map(str, sizes)) or 'as they are'}; "
        + ", ".join(str(step["type"]).rpartition(".")[2] for step in fragment.train_pipeline),
    ]


def _heads(exp: Experiment, model: ConfigDict) -> str:
    """Say what the heads of a detector predict."""
    if is_one_stage(model):
        own = exp.model.loss.type == "cross_entropy"
        loss = "of the detector file" if own else exp.model.loss.type
        return f"one-stage, {'with' if has_masks(model) else 'no'} masks, classification loss {loss}"
    boxes, masks = (as_list(model.roi_head.get(kind) or []) for kind in ("bbox_head", "mask_head"))
    of_boxes = "one for all classes" if boxes[0].get("reg_class_agnostic") else "per class"
    of_masks = "one for all classes" if masks and masks[0].get("class_agnostic") else "per class" if masks else "none"
    return f"{len(boxes)} stage{'s' * (len(boxes) > 1)}, boxes {of_boxes}, masks {of_masks}"
