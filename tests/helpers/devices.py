"""What can be known of other devices on a machine that has only a CPU: where tensors are made."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

PACKAGE = str(Path(__file__).resolve().parents[2] / "ltpipe")
FACTORIES = {
    getattr(torch, name)
    for name in (
        "arange",
        "as_tensor",
        "empty",
        "eye",
        "from_numpy",
        "full",
        "linspace",
        "ones",
        "rand",
        "randint",
        "randn",
        "randperm",
        "tensor",
        "zeros",
    )
}


class MadeSomewhere(TorchFunctionMode):
    """Notes every tensor that ltpipe makes without saying on which device: on a GPU it would be on the CPU.

    Attributes:
        places: ``file:line: function`` of each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: set[str] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func in FACTORIES and "device" not in given and not (args and isinstance(args[0], torch.Tensor)):
            caller = sys._getframe(1)
            if caller.f_code.co_filename.startswith(PACKAGE):
                name = Path(caller.f_code.co_filename).relative_to(Path(PACKAGE).parent)
                self.places.add(f"{name}:{caller.f_lineno}: torch.{func.__name__}")
        return func(*args, **given)
