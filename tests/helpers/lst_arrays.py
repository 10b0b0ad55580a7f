"""Arrays of LST's oracles, and our classifier with its weights. There, the background comes first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltpipe.interop.layout import background_last
from ltpipe.methods.cosine.classifier import CosineLinear


def load(path: Path) -> dict[str, np.ndarray]:
    """Return all arrays of an npz file."""
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def tensor(array: np.ndarray) -> Tensor:
    """Return an array as a tensor, float16 widened."""
    return torch.from_numpy(np.array(array, np.float32 if array.dtype == np.float16 else array.dtype))


def near(ours: Any, theirs: np.ndarray, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """Assert equality within the README's tolerance."""
    ours = ours.detach().numpy() if isinstance(ours, Tensor) else np.asarray(ours)
    np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=atol)


def cosine(weight: Tensor, scale: Tensor) -> CosineLinear:
    """Return our classifier with the source's rows (background first) and scale."""
    layer = CosineLinear(weight.shape[1], len(weight))
    layer.load_state_dict({"weight": background_last(weight), "scale": scale})
    return layer
