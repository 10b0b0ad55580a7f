"""A second training stage on whole images: only the last layers of a trained detector learn."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mmengine.config import ConfigDict
from torch import Tensor, nn

from ltpipe.errors import UserError
from ltpipe.registry import MODELS

# Running statistics of losses and parts are no weights; those of the loss belong to the classifier.
STATISTICS = ("loss_cls", "parts")


def with_trained_layers(model: ConfigDict, trained: Sequence[str] | None) -> ConfigDict:
    """Return the model config with everything but these layers fixed; None changes nothing.

    Args:
        model: mmdet model config.
        trained: Names of layers, such as ``fc_cls``; those of all stages of a cascade are meant.
    """
    if trained is None:
        return model
    return ConfigDict(model, type="ltpipe.partly_trained", detector=model.type, trained=list(trained))


@MODELS.register_module()
def partly_trained(detector: str, trained: Sequence[str], **model: Any) -> nn.Module:
    """Build a detector of which only some layers are trained; its batch normalisation uses stored statistics.

    Args:
        detector: Type of the detector.
        trained: Names of the layers.
        **model: Config of the detector.

    Raises:
        UserError: The detector has no such layer.
    """
    built: Any = MODELS.build({"type": detector, **model})
    for layer in trained:
        if not any(belongs(name, (layer,)) for name, _ in built.named_parameters()):
            raise UserError("the detector has no such layer", where="base.trained", got=layer)
    for name, parameter in built.named_parameters():
        if not belongs(name, trained):
            parameter.requires_grad_(False)
    if hasattr(built.backbone, "norm_eval"):
        built.backbone.norm_eval = True
        built.backbone.train(built.training)
    return built


def belongs(key: str, layers: Collection[str]) -> bool:
    """Return whether a parameter or buffer, by its name in the state dict, is part of one of the layers."""
    return not set(layers).isdisjoint(key.split("."))


def without_layers(state: Mapping[str, Tensor], fresh: Collection[str]) -> dict[str, Tensor]:
    """Return the weights without those of layers that start anew; a new classifier also needs new statistics."""
    left_out = {*fresh, *(STATISTICS[:1] if "fc_cls" in fresh else ())}
    return {key: value for key, value in state.items() if not belongs(key, left_out)}


def check_fixed_layers(model: nn.Module, fresh: Collection[str], where: object) -> None:
    """Refuse a start that lacks weights of layers which are not trained.

    Args:
        model: The detector.
        fresh: Names in its state dict that the checkpoint does not have.
        where: The checkpoint, for the error.

    Raises:
        UserError: Such weights are missing.
    """
    fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    missing = [name for name in fresh if name in fixed]
    if missing:
        raise UserError(
            "the checkpoint lacks weights that the second stage does not train",
            where=where,
            got=f"{len(missing)} tensors missing or of another shape: {', '.join(missing[:4])}",
            fix="start from a checkpoint of the same detector, or add these layers to base.trained",
        )
