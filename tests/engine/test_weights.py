"""What cannot be weights is refused by name, at every reader of checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ltpipe.checkpoints.tensor_checks import check_kinds, check_tensors
from ltpipe.engine.training import fitting_weights, read_checkpoint
from ltpipe.errors import UserError

GOOD = {
    "conv.weight": torch.ones(2, 2),
    "bn.num_batches_tracked": torch.tensor(3),
    "loss_cls.label_map": torch.zeros(2, 2, dtype=torch.int64),
    "parts.0.seen": torch.ones(2, dtype=torch.bool),
    "half.weight": torch.ones(2, dtype=torch.float16),
}
BAD: dict[str, Any] = {
    "nan": torch.tensor([1.0, float("nan")]),
    "inf": torch.tensor([float("-inf"), 1.0]),
    "half": torch.tensor([float("inf"), 1.0], dtype=torch.float16),
    "integer": torch.tensor([1, 2]),
    "boolean": torch.tensor([True, False]),
    "complex": torch.tensor([1 + 1j, 2]),
}


@pytest.mark.parametrize("kind", BAD)
def test_the_tensor_is_named(tmp_path: Path, kind: str) -> None:
    check_tensors(GOOD, "here")
    state = {**GOOD, "head.fc.bias": BAD[kind]}
    for content in ({"state_dict": state, "meta": {}}, state):
        torch.save(content, tmp_path / "model.pth")
        with pytest.raises(UserError, match="1 of 6 tensors: head.fc.bias"):
            read_checkpoint(tmp_path / "model.pth")


def test_many_are_counted() -> None:
    state = {f"layer{i}.weight": BAD["nan"] for i in range(9)}
    with pytest.raises(UserError, match=r"9 of 9 tensors: layer0.weight \(1 of 2 values .*layer3.weight .*\.\.\."):
        check_tensors(state, "here")


def test_a_buffer_of_another_kind() -> None:
    model = torch.nn.BatchNorm1d(2)
    model.register_buffer("sums", torch.zeros(2))
    state = {**model.state_dict(), "sums": torch.zeros(2, dtype=torch.int64)}
    check_tensors(state, "here")
    for refused in (lambda: check_kinds(state, model.state_dict(), "here"), lambda: fitting_weights(state, model, "")):
        with pytest.raises(UserError, match=r"another kind.*\n.*\n?.*sums \(torch.int64\)"):
            refused()
    fits, fresh = fitting_weights({**state, "sums": torch.ones(2)}, model, "")
    assert "num_batches_tracked" in fits and not fresh
