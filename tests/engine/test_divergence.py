"""A loss that is not a number ends the run with advice."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ltpipe.engine.hooks import DivergenceHook
from ltpipe.errors import UserError


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_run(bad: float) -> None:
    outputs = {"loss": torch.tensor(bad), "loss_cls": torch.tensor(bad), "acc": torch.tensor(0.0)}
    with pytest.raises(UserError, match="diverged") as error:
        DivergenceHook().after_train_iter(SimpleNamespace(iter=41), 41, None, outputs)
    assert "iteration 42" in str(error.value) and "loss, loss_cls" in str(error.value) and "acc" not in str(error.value)


def test_finite_losses_pass() -> None:
    DivergenceHook().after_train_iter(SimpleNamespace(iter=0), 0, None, {"loss": torch.tensor(3.0), "acc": 50.0})
