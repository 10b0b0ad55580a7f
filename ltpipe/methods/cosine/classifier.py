"""Cosine classifier with a learnable scale.

Paper: Learning to Segment the Tail (Hu et al., CVPR 2020, arXiv 2004.00900); repository JoyHuYY1412/LST_LVIS.

    cos(n, c) = <x_n / max(|x_n|, eps), w_c / max(|w_c|, eps)>,  eps = 1e-12
    z(n, c)   = s * cos(n, c)

Acts in place of the linear classifier of the box head. It reads the second fully connected layer *before* its ReLU, so
features may have negative entries, while the box regressor keeps the rectified ones. Background is an ordinary row.
Needs nothing from the data. mmdet's ``NormedLinear`` differs: additive eps of 1e-6 and a fixed temperature.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ltpipe.registry import method

EPS = 1e-12


class _NormalizedRows(torch.autograd.Function):
    """``x / max(|x|, EPS)`` with the backward pass in one expression: the classifier's rows are many and long."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp_(min=EPS)
        rows = vectors / norms
        ctx.save_for_backward(rows, norms)
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        rows, norms = ctx.saved_tensors
        along = torch.linalg.vecdot(grad, rows)[..., None]
        result: Tensor = torch.addcmul(grad, rows, along, value=-1).div_(norms)
        return result


def normalized(vectors: Tensor) -> Tensor:
    """Scale vectors to length one; a zero vector stays zero.

    Args:
        vectors: ``(..., d)`` float. Norms are taken in float32 or better: ``EPS`` is zero in half precision.

    Returns:
        ``(..., d)`` of the same dtype.
    """
    wide = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    rows: Tensor = _NormalizedRows.apply(wide)
    return rows.to(vectors.dtype)


def cosine_similarity(x: Tensor, weight: Tensor) -> Tensor:
    """Return the cosine of every feature with every class row.

    Args:
        x: ``(N, d)`` float features.
        weight: ``(C, d)`` float rows.

    Returns:
        ``(N, C)`` float in [-1, 1].
    """
    return F.linear(normalized(x), normalized(weight))


def cosine_logits(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Return ``scale`` times the cosine similarity.

    Args:
        x: ``(N, d)`` float features.
        weight: ``(C, d)`` float rows.
        scale: ``(1,)`` float.

    Returns:
        ``(N, C)`` float logits.
    """
    return scale * cosine_similarity(x, weight)


@method("classifier", "cosine")
class CosineLinear(nn.Module):
    """Cosine classifier; ``weight`` is ``(C, d)`` with the background row last, ``scale`` is ``(1,)``. No bias.

    Args:
        in_features: Width ``d`` of the features.
        out_features: Number ``C`` of rows.
        scale: Initial value of the learnable factor of the cosine (LST: 10).
    """

    rectify_input = False
    class_rows: ClassVar[dict[str, int | None]] = {"weight": 0, "scale": None}

    def __init__(self, in_features: int, out_features: int, scale: float = 10.0) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.randn(out_features, in_features) * 0.01)
        self.scale = nn.Parameter(torch.tensor([float(scale)]))

    def similarities(self, x: Tensor) -> Tensor:
        """Return the unscaled cosines ``(N, C)`` of features ``(N, d)``, what distillation compares."""
        return cosine_similarity(x, self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, C)`` of features ``(N, d)``."""
        return cosine_logits(x, self.weight, self.scale)

    def extra_repr(self) -> str:
        """Sizes shown when the model is printed."""
        return f"in_features={self.in_features}, out_features={self.out_features}"
