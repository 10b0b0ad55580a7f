"""FASA's adaptation pass inside mmengine's Runner."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import Dataset

import ltpipe.engine  # noqa: F401  (registers the seeding hook)
from ltpipe.errors import UserError
from ltpipe.methods.fasa.hook import FASAAdaptationHook, untouched
from ltpipe.methods.fasa.part import FASA
from ltpipe.methods.head_parts import BoxBatch
from ltpipe.methods.reductions import world_size
from ltpipe.methods.softmax.baseline import SoftmaxLoss
from tests.helpers.pairs import run_pair

C, D, PER_BATCH = 4, 6, 3
COUNTS = [40, 10, 3, 1]


class Rows(Dataset):
    """``n`` samples of five RoIs each, shifted at random as augmentation."""

    def __init__(self, n: int, seed: int, shift: float = 0.01) -> None:
        self.shift = shift
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(n, 5, D, generator=generator)
        self.y = torch.randint(0, C + 1, (n, 5), generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"x": self.x[i] + self.shift * (float(np.random.rand()) + random.random()), "y": self.y[i]}


class Net(BaseModel):
    """A box head with dropout and batch normalisation in front of its classifier."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(D, D), nn.BatchNorm1d(D), nn.ReLU(), nn.Dropout(0.5))
        self.frozen = nn.BatchNorm1d(D)
        self.fc_cls = nn.Linear(D, C + 1)
        self.loss_cls = SoftmaxLoss()
        self.fasa = FASA(C, COUNTS, COUNTS, instance_prob_scale=3.0, **options)
        self.parts = [self.fasa]
        self.seen: list[tuple[bool, int]] = []

    def train(self, mode: bool = True) -> Net:
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, x: Tensor, y: Tensor, mode: str = "tensor") -> dict[str, Tensor]:
        self.seen.append((self.training, len(x)))
        features = self.features(x.reshape(-1, D))
        labels = y.reshape(-1)
        order = torch.randperm(len(labels))  # stands for RoI sampling
        features, labels = features[order], labels[order]
        logits, weights = self.fc_cls(features), torch.ones(len(labels))
        loss = self.loss_cls(logits, labels, weights, avg_factor=float(len(labels)))
        batch = BoxBatch(features, logits, labels, weights, features, features[:, :5], {"loss_cls": loss})
        return {"loss_cls": loss, **self.parts[0].box_losses(self, batch)}


def loader(dataset: Dataset, endless: bool = False) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "sampler": {"type": "InfiniteSampler" if endless else "DefaultSampler", "shuffle": False},
        "batch_size": PER_BATCH,
        "num_workers": 0,
        "collate_fn": {"type": "default_collate"},
    }


def run(folder: Path, loop: dict[str, Any], hook: dict[str, Any], resume: bool = False, **options: Any) -> Runner:
    """Train the net on 12 samples (4 iterations an epoch), adapting on 7 others."""
    torch.manual_seed(3)
    runner = Runner(
        model=Net(**options),
        work_dir=str(folder),
        train_dataloader=loader(Rows(12, 0, shift=0), endless="by_epoch" not in loop),
        optim_wrapper={"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9}},
        train_cfg=loop,
        default_hooks={"checkpoint": {"type": "CheckpointHook", "by_epoch": "by_epoch" in loop, "interval": 1}},
        custom_hooks=[
            {"type": "ltpipe.StepSeedHook", "seed": 0},
            {"type": "ltpipe.ResumeHook", "interval": 1000},  # what the other one saves is data, too
            {"type": "ltpipe.FASAAdaptationHook", "dataloader": loader(Rows(7, 1)), **hook},
        ],
        randomness={"seed": 0},
        resume=resume,
        experiment_name=f"{folder.name}_{resume}_{len(loop)}_{random.random()}",
        log_level="WARNING",
    )
    runner.train()
    return runner


EPOCHS = {"by_epoch": True, "max_epochs": 3}
ITERATIONS = {"type": "IterBasedTrainLoop", "max_iters": 12}


@pytest.fixture(autouse=True)
def own_scope() -> Iterator[None]:
    """A Runner sets mmengine's default scope for the whole process: put it back."""
    before = dict(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


def arrays(folder: Path, epoch: int) -> dict[str, np.ndarray]:
    with np.load(folder / "history" / "fasa" / f"epoch_{epoch}.npz") as file:
        return dict(file)


def test_epoch_and_iteration_loops_do_the_same(tmp_path: Path) -> None:
    by_epoch = run(tmp_path / "e", EPOCHS, {})
    by_iteration = run(tmp_path / "i", ITERATIONS, {"iterations_per_epoch": 4})
    for folder in (tmp_path / "e", tmp_path / "i"):
        initial = FASA(C, COUNTS, COUNTS, instance_prob_scale=3.0).prob.numpy()
        np.testing.assert_array_equal(arrays(folder, 0)["prob"], initial)
        assert (arrays(folder, 1)["prob"] != initial).any()
    for epoch in range(3):
        for name, value in arrays(tmp_path / "e", epoch).items():
            np.testing.assert_array_equal(value, arrays(tmp_path / "i", epoch)[name])
    logged = {"num_virtual", "p_mean_r", "p_mean_c", "groups", "groups_up", "groups_down"}
    assert {f"fasa/{name}" for name in logged} <= arrays(tmp_path / "e", 2).keys()
    for key, value in by_epoch.model.state_dict().items():
        assert torch.equal(value, by_iteration.model.state_dict()[key]), key
    # 4 training batches, then 3 forward-only batches of the 7 held-out samples
    epoch = [(True, 3)] * 4 + [(False, 3), (False, 3), (False, 1)]
    assert by_epoch.model.seen == by_iteration.model.seen == epoch * 3
    assert by_epoch.model.fasa.epoch == by_iteration.model.fasa.epoch == 2 and int(by_epoch.model.fasa.drawn) > 0


def test_killed_and_resumed_run_ends_the_same(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", ITERATIONS, {"iterations_per_epoch": 4})
    run(tmp_path / "part", {**ITERATIONS, "max_iters": 6}, {"iterations_per_epoch": 4})
    resumed = run(tmp_path / "part", ITERATIONS, {"iterations_per_epoch": 4}, resume=True)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key


def test_interval(tmp_path: Path) -> None:
    run(tmp_path, EPOCHS, {}, interval=2)
    assert [p.name for p in sorted((tmp_path / "history" / "fasa").iterdir())] == ["epoch_1.npz"]


def test_pass_arithmetic(tmp_path: Path) -> None:
    """The class losses are the sums of the classification losses over the number of RoIs."""
    model = Net()
    model.fasa.update(torch.randn(20, D), torch.arange(20) % C)
    data = Rows(7, 1)
    hook, runner = hooked(model, data)
    np.random.seed(0)
    random.seed(0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    hook.adapt(runner, epoch=0)

    model.eval()
    totals, counts = torch.zeros(C + 1), torch.zeros(C + 1)
    features = model.features(data.x.reshape(-1, D) + 0.01)
    with torch.no_grad():
        for row, label in zip(model.fc_cls(features), data.y.reshape(-1), strict=True):
            totals[label] += torch.nn.functional.cross_entropy(row, label)
            counts[label] += 1
    torch.testing.assert_close(model.fasa.prev_loss, totals / counts.sum(), rtol=0.05, atol=0.01)
    after = model.state_dict()
    assert [k for k in before if not torch.equal(before[k], after[k])] == ["fasa.prev_loss"]


def hooked(model: Net, data: Dataset) -> tuple[FASAAdaptationHook, Any]:
    """A hook and what it needs of a runner."""
    batches = torch.utils.data.DataLoader(data, batch_size=PER_BATCH)
    wrapper = SimpleNamespace(optim_context=lambda _: torch.no_grad())
    runner = SimpleNamespace(
        model=model, train_loop=None, optim_wrapper=wrapper, build_dataloader=lambda config, seed: batches
    )
    hook = FASAAdaptationHook({})
    hook.before_train(runner)
    return hook, runner


def two_passes(rank: int) -> dict[str, Tensor]:
    """Both adaptations of a net on seven samples, of which each process sees its part, the last one a repeated one."""
    torch.manual_seed(0)
    model, data = Net(), Rows(7, 1, shift=0)
    own = slice(rank, None, world_size())
    model.fasa.update(torch.randn(20, D, generator=torch.Generator().manual_seed(2))[own], (torch.arange(20) % C)[own])
    hook, runner = hooked(model, data)
    sampler = DefaultSampler(data, shuffle=False)
    batches = torch.utils.data.DataLoader(data, batch_size=1, sampler=sampler)
    runner.build_dataloader = lambda config, seed: batches
    states = {"images": torch.tensor(len(batches))}
    for epoch in range(2):
        (result,) = hook.adapt(runner, epoch)
        states |= {f"{epoch}.{k}": v.clone() for k, v in model.fasa.state_dict().items()}
        states[f"{epoch}.moved"] = torch.tensor([result.raised, result.lowered])
        with torch.no_grad():
            model.fc_cls.weight += 0.3 * torch.arange(C + 1.0)[:, None]
    return states


def test_two_processes_adapt_as_one(tmp_path: Path) -> None:
    """Seven samples on two processes: an image is repeated, which must not count."""
    first, second = run_pair(tmp_path, two_passes)
    one = two_passes(0)
    assert (int(one.pop("images")), int(first.pop("images")), int(second.pop("images"))) == (7, 4, 4)
    for key, value in one.items():
        torch.testing.assert_close(first[key], value, msg=key)
        assert torch.equal(first[key], second[key]), key
    assert one["1.moved"].sum() > 0 and not torch.equal(one["0.prob"], one["1.prob"])


def test_pass_touches_no_weights_statistics_modes_or_generators() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.train()
    sum(model(torch.randn(4, D), torch.tensor([0, 1, 2, C])).values()).backward()
    optimizer.step()
    hook, runner = hooked(model, Rows(7, 1))
    modes = {name: module.training for name, module in model.named_modules()}
    assert modes["features"] and not modes["frozen"]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    momentum = [v["momentum_buffer"].clone() for v in optimizer.state.values()]
    streams = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()

    hook.adapt(runner, epoch=0)
    assert modes == {name: module.training for name, module in model.named_modules()}
    changed = [k for k, v in model.state_dict().items() if not torch.equal(v, state[k])]
    assert changed == ["fasa.prev_loss"]
    assert all(torch.equal(a, v["momentum_buffer"]) for a, v in zip(momentum, optimizer.state.values(), strict=True))
    assert torch.equal(streams[0], torch.get_rng_state()) and streams[2] == random.getstate()
    assert (streams[1] == np.random.get_state()[1]).all()

    first = model.fasa.prev_loss.clone()
    model.fasa.prev_loss.zero_()
    hook.adapt(runner, epoch=0)
    assert torch.equal(first, model.fasa.prev_loss)


def test_an_error_in_the_pass_restores_everything() -> None:
    model = Net()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="stop"), untouched(model, 1):
        assert not model.training and not torch.is_grad_enabled()
        model.frozen.running_mean.add_(1)
        raise RuntimeError("stop")
    assert model.training and torch.is_grad_enabled()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    with untouched(model, 1, kept=[model.frozen]):
        model.frozen.running_mean.add_(1)
    assert torch.equal(model.frozen.running_mean, state["frozen.running_mean"] + 1)


def test_wrong_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="how long an epoch is"):
        run(tmp_path / "a", ITERATIONS, {})
    with pytest.raises(UserError, match="without a FASA part"):
        FASAAdaptationHook({}).before_train(SimpleNamespace(model=nn.Linear(1, 1)))


def test_evaluation_images_are_announced(caplog: pytest.LogCaptureFixture) -> None:
    hooked(Net(preset="repro"), Rows(3, 0))
    assert "evaluation images" in caplog.text
