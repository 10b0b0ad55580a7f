"""FASA in two processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from ltpipe.methods.fasa.counters import PerClassLossMeter
from ltpipe.methods.fasa.part import FASA
from ltpipe.methods.head_parts import BoxBatch
from ltpipe.methods.softmax.baseline import SoftmaxLoss
from tests.helpers.pairs import run_pair

C, D, STEPS, ROWS = 5, 4, 4, 10
COUNTS = [50, 20, 5, 2, 1]


def data(step: int) -> tuple[Tensor, Tensor]:
    """The rows of all processes in one iteration; class 3 occurs in the second half only, class 4 never."""
    random = torch.Generator().manual_seed(step)
    labels = torch.randint(0, 3, (2 * ROWS,), generator=random)
    labels[::4] = C
    labels[-2:] = 3
    return torch.randn(2 * ROWS, D, generator=random) * 4 + 50, labels


def half(rank: int) -> Callable[[int], slice]:
    """Rows of one of two processes in each iteration; the second one has no RoIs in iteration 2."""
    return lambda step: slice(0, 0) if rank and step == 2 else slice(rank * ROWS, (rank + 1) * ROWS)


def both(step: int) -> slice:
    """Rows that the two processes have together."""
    return slice(0, ROWS if step == 2 else 2 * ROWS)


def train(rows: Callable[[int], slice], sync: str) -> dict[str, Tensor]:
    """Iterations and two adaptations on the given rows of every batch."""
    torch.manual_seed(0)
    head = SimpleNamespace(fc_cls=nn.Linear(D, C + 1), loss_cls=SoftmaxLoss())
    fasa = FASA(C, COUNTS, COUNTS, sync=sync)
    fasa.hooked, fasa.epoch = True, 1
    drawn = []
    for step in range(STEPS):
        x, y = (value[rows(step)] for value in data(step))
        batch = BoxBatch(x, head.fc_cls(x), y, torch.ones(len(y)), x, torch.zeros(len(y), 5))
        fasa.prob.fill_(0.6)
        drawn.append(fasa.draw()[0].sum())
        fasa.box_losses(head, batch)
    for epoch in range(2):
        fasa.eval()
        meter = PerClassLossMeter(C)
        x, y = (value[rows(10 + epoch)] for value in data(10 + epoch))
        meter.box_losses(head, BoxBatch(x, head.fc_cls(x), y, torch.ones(len(y)), x, torch.zeros(len(y), 5)))
        result = fasa.adapt(*meter.reduced())
    state = {k: v for k, v in fasa.state_dict().items() if k != "drawn"}
    virtual = torch.tensor(fasa.summary()["fasa/num_virtual"])
    return {**state, "groups": result.groups, "uniforms": torch.stack(drawn), "virtual": virtual, "own": fasa.drawn}


def one_of_two(rank: int, sync: str) -> dict[str, Tensor]:
    """What a process of a pair does."""
    return train(half(rank), sync)


def test_synchronised_processes_equal_one(tmp_path: Path) -> None:
    first, second = run_pair(tmp_path, one_of_two, "iter")
    one = train(both, "iter")
    for key in ("mean", "var", "seen", "prob", "prev_loss", "iteration", "groups", "virtual"):
        assert torch.equal(first[key], second[key]), key
    for key in ("mean", "var", "seen", "prob", "prev_loss", "iteration", "groups"):
        torch.testing.assert_close(first[key], one[key], rtol=1e-4, atol=1e-5)
    assert one["seen"].tolist() == [True, True, True, True, False]
    assert not torch.equal(first["uniforms"], second["uniforms"])  # each process draws its own noise
    assert first["virtual"] == first["own"] + second["own"]


def test_unsynchronised_processes_keep_their_own_statistics(tmp_path: Path) -> None:
    first, second = run_pair(tmp_path, one_of_two, "none")
    assert not first["seen"][3] and second["seen"][3]
    assert not torch.equal(first["mean"], second["mean"])
    torch.testing.assert_close(first["prev_loss"], second["prev_loss"])  # only the counters are shared


@pytest.mark.parametrize("sync", ["iter", "none"])
def test_one_process_does_not_depend_on_sync(sync: str) -> None:
    a, b = train(both, sync), train(both, "iter")
    assert all(torch.equal(a[key], b[key]) for key in a)
