"""Normalised classifier and mask predictor with a fixed temperature.

mmdet's ``NormedLinear`` and ``NormedConv2d``, used by Seesaw and by IIF with its "cos" and "norm" configs:

    z = T x / (|x|^s + eps) . W_c / (|W_c|^s + eps) + b_c

Acts in place of the linear classifier of the box head, or of the 1 x 1 mask predictor (norms over the channels at every
position). The bias is not scaled by the temperature. Needs nothing from the data.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from torch import Tensor, nn

from ltpipe.errors import UserError
from ltpipe.registry import method

TINY = 1e-30


def scaled_rows(x: Tensor, power: float, eps: float) -> Tensor:
    """Return ``x / (|x|^power + eps)`` by rows; rows of zeros stay zero and have finite gradients.

    Args:
        x: ``(n, d)`` float. Norms are taken in float32 or better.
        power: Exponent of the norm.
        eps: Added to the norm.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    norm = wide.norm(dim=1, keepdim=True)
    if power != 1:
        norm = norm.clamp(min=TINY).pow(power)
    scaled: Tensor = wide / (norm + eps)
    return scaled.to(x.dtype)


def normed_linear(x: Tensor, weight: Tensor, bias: Tensor, temperature: float, power: float, eps: float) -> Tensor:
    """Return normalised logits.

    Args:
        x: ``(N, d)`` float features.
        weight: ``(C, d)`` float rows.
        bias: ``(C,)`` float.
        temperature: Factor of the cosine.
        power: Exponent of the norms.
        eps: Added to the norms.

    Returns:
        ``(N, C)`` float.
    """
    return F.linear(scaled_rows(x, power, eps) * temperature, scaled_rows(weight, power, eps), bias)


@method("classifier", "normed_linear")
class NormedLinear(nn.Linear):
    """Cosine classifier with a fixed temperature and a bias; weights start as N(0, 0.01^2), the bias as 0.

    Args:
        in_features: Width of the RoI features.
        out_features: Channels the loss asks for.
        temperature: Factor of the cosine (mmdet: 20; IIF with FASA: 8).
        power: Exponent of the norms (mmdet: 1).
        eps: Added to the norms (mmdet: 1e-6).

    Raises:
        UserError: The temperature or ``eps`` is not positive.
    """

    class_rows: ClassVar[dict[str, int]] = {"weight": 0, "bias": 0}

    def __init__(
        self, in_features: int, out_features: int, temperature: float = 20.0, power: float = 1.0, eps: float = 1e-6
    ) -> None:
        super().__init__(in_features, out_features)
        check_positive(temperature=temperature, eps=eps)
        self.temperature, self.power, self.eps = temperature, power, eps
        nn.init.normal_(self.weight, std=0.01)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, C)`` of features ``(N, d)``."""
        return normed_linear(x, self.weight, self.bias, self.temperature, self.power, self.eps)

    def extra_repr(self) -> str:
        """Sizes and temperature, shown when the model is printed."""
        return f"{super().extra_repr()}, temperature={self.temperature}"


@method("mask", "normed")
class NormedMaskHead(FCNMaskHead):
    """mmdet's mask head with a normalised 1 x 1 predictor.

    Args:
        temperature: Factor of the cosine (mmdet: 20).
        eps: Added to the norms (mmdet: 1e-6).
        norm_over_kernel: Normalise the kernel as a whole; the same for a 1 x 1 kernel.
        **kwargs: Passed to mmdet's ``FCNMaskHead``.

    Raises:
        UserError: The temperature or ``eps`` is not positive.
    """

    def __init__(
        self,
        *,
        temperature: float = 20.0,
        eps: float = 1e-6,
        norm_over_kernel: bool = False,
        **kwargs: Any,
    ) -> None:
        check_positive(temperature=temperature, eps=eps)
        predictor = {
            "type": "mmdet.NormedConv2d",
            "temperature": temperature,
            "eps": eps,
            "norm_over_kernel": norm_over_kernel,
        }
        super().__init__(**{**kwargs, "predictor_cfg": predictor})


def check_positive(**options: float) -> None:
    """Refuse options that are not positive.

    Raises:
        UserError: Names the option.
    """
    for name, value in options.items():
        if not value > 0:
            raise UserError(f"{name} of a normalised layer must be positive", where=name, got=value)
