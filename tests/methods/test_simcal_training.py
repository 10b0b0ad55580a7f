"""Training of calibrators on stored rows: trajectory, resume, skipped steps, cached activations, two processes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from pydantic import ValidationError
from torch import Tensor, nn

from ltpipe.config.schedules import CalibrationSchedule
from ltpipe.engine.calibrator_training import Batch, row_accuracies, train_head
from ltpipe.errors import UserError
from ltpipe.methods.bags.group_softmax import BAGS
from ltpipe.methods.box_layers import LEVELS, read_features, stored_features
from ltpipe.methods.calibration import Calibrator
from ltpipe.methods.decoupled.calibrators import CRT, LWS
from ltpipe.methods.simcal.calibrator import SimCal
from tests.helpers.pairs import run_pair

K, STEPS = 5, 6
COUNTS = [3, 500, 12, 300, 0]
SCHEDULE = CalibrationSchedule(iterations=STEPS, lr=0.1, drops=(3, 5))


def box_head() -> nn.Module:
    torch.manual_seed(0)
    head = MODELS.build(
        {"type": "ltpipe.LTBBoxHead", "in_channels": 4, "roi_feat_size": 3, "fc_out_channels": 16, "num_classes": K}
    )
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.2)
    return head


def batch(step: int, rows: int = 12) -> Batch:
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(0, K + 1, (rows,), generator=generator)
    return torch.randn(rows, 4, 3, 3, generator=generator), labels


def boxes_of(labels: Tensor) -> tuple[Tensor, Tensor]:
    """A box per row, and the ground truth beside it."""
    corner = 10.0 * labels[:, None].expand(-1, 2)
    boxes = torch.cat([corner, corner + 20], dim=1)
    return boxes, boxes + torch.tensor([1.0, -2.0, 3.0, 4.0])


def stream(prepare: Callable[[Tensor], Tensor] = lambda x: x) -> Callable[[int], Iterator[Batch]]:
    def batches(first: int) -> Iterator[Batch]:
        for step in range(first, STEPS):
            x, labels = batch(step)
            yield prepare(x), labels, *boxes_of(labels)

    return batches


def make(name: str, **kwargs: Any) -> Calibrator:
    torch.manual_seed(1)
    built = {"bags": BAGS, "bags_head": BAGS, "crt": CRT}.get(name)
    kwargs |= {"trained": "box_head"} if name == "bags_head" else {}
    calibrator = built(K, COUNTS, **kwargs) if built else LWS(K) if name == "lws" else SimCal(K, COUNTS, head=name)
    calibrator.initialise(box_head())
    return calibrator


def reading(calibrator: Calibrator) -> Callable[[Tensor], Tensor]:
    head = box_head()
    return lambda x: read_features(head, x, calibrator.reads).detach()


HEADS = ["2fc_rand", "3fc_rand", "3fc_ft", "3fc_ft_freeze1", "cls_ft", "cls_rand", "2fc_ncm"]
EVERY = [*HEADS, "bags", "bags_head", "crt", "lws"]


def equal_states(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(value, b.state_dict()[key]) for key, value in a.state_dict().items())


def test_trajectory_of_plain_sgd() -> None:
    calibrator = make("3fc_ft")
    naive = copy.deepcopy(calibrator.head)
    rates = []
    train_head(calibrator, stream(), SCHEDULE, report=lambda step, facts: rates.append(facts["lr"]), report_every=1)
    for step, rate in enumerate([0.1, 0.1, 0.1, 0.01, 0.01, 0.001]):
        assert rates[step] == pytest.approx(rate)
        x, labels = batch(step)
        gradients = torch.autograd.grad(F.cross_entropy(naive(x), labels), list(naive.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(naive.parameters(), gradients, strict=True):
                parameter -= rate * gradient
    for key, value in naive.state_dict().items():
        torch.testing.assert_close(calibrator.head.state_dict()[key], value)


@pytest.mark.parametrize("name", EVERY)
def test_resumed_training_equals_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    whole, first, second = (make(name) for _ in range(3))
    changes = {"momentum": 0.9, "weight_decay": 1e-3, "clip_norm": 5.0}
    schedule = SCHEDULE.model_copy(update=changes)
    state = tmp_path / "work" / "head.pth"
    train_head(whole, stream(reading(whole)), schedule)

    def killed(first_step: int) -> Iterator[Batch]:
        for step, rows in enumerate(stream(reading(first))(first_step)):
            if step == 5:
                raise KeyboardInterrupt
            yield rows

    with pytest.raises(KeyboardInterrupt):
        train_head(first, killed, schedule, state=state, save_every=2)
    assert torch.load(state)["step"] == 4
    seen = []
    train_head(
        second, stream(reading(second)), schedule, state=state, report=lambda step, _: seen.append(step), report_every=1
    )
    assert seen == [5, 6] and equal_states(second, whole)
    assert not list(state.parent.glob(".*")), "no temporary file is left"


@pytest.mark.parametrize("name", EVERY)
def test_the_detector_is_not_touched_and_frozen_layers_stay(name: str) -> None:
    head, calibrator = box_head(), make(name)
    before = copy.deepcopy(calibrator.state_dict())
    frozen = {k for k, p in calibrator.named_parameters() if not p.requires_grad}
    train_head(calibrator, stream(reading(calibrator)), SCHEDULE)
    for key, value in calibrator.state_dict().items():
        assert torch.isfinite(value).all()
        if key in frozen:
            assert torch.equal(value, before[key])
        elif key in dict(calibrator.named_parameters()):
            assert not torch.equal(value, before[key])
    assert equal_states(head, box_head())


@pytest.mark.parametrize("name", ["3fc_ft_freeze1", "cls_ft", "cls_rand", "crt", "lws", "bags"])
def test_cached_activations_equal_the_whole_path(name: str) -> None:
    """Rows after the frozen layers give the losses that rows before them give, and half-precision rows nearly so."""
    losses: dict[str, list[float]] = {}
    for storage in (torch.float32, torch.float16):
        calibrator = make(name)
        found = losses.setdefault(str(storage), [])
        train_head(
            calibrator,
            stream(lambda x, c=calibrator, s=storage: reading(c)(x).to(s)),
            SCHEDULE,
            report=lambda _, facts, found=found: found.append(facts["loss"]),
            report_every=1,
        )
    assert losses["torch.float16"] == pytest.approx(losses["torch.float32"], abs=1e-3)
    if name.endswith(("freeze1", "ft")):
        full = SimCal(K, COUNTS, head="3fc_ft")
        full.initialise(box_head())
        frozen = full.head.hidden[: 1 if name.endswith("freeze1") else 2]
        for layer in frozen:
            layer.requires_grad_(False)
        whole: list[float] = []
        train_head(full, stream(), SCHEDULE, report=lambda _, facts: whole.append(facts["loss"]), report_every=1)
        assert losses["torch.float32"] == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_declared_level_is_what_is_read(name: str) -> None:
    """What ``validate`` knows of a calibrator agrees with what it does; features of that level give the same rows."""
    calibrator, head, (x, _) = make(name), box_head(), batch(0)
    lowest = calibrator.lowest_level
    options = {"head": name, "trained": "box_head" if name == "bags_head" else "classifier"}
    for option, by_value in lowest.items() if isinstance(lowest, dict) else ():
        lowest = by_value[options[option]]
    level = lowest
    assert level == calibrator.reads.removesuffix("_raw")
    expected = read_features(head, x, calibrator.reads)
    for stored in LEVELS:
        if LEVELS.index(stored) <= LEVELS.index(level):
            rows = stored_features(head, x, stored)
            torch.testing.assert_close(read_features(head, rows, calibrator.reads, stored), expected)
        else:
            with pytest.raises(UserError, match="trains layers below"):
                read_features(head, stored_features(head, x, stored), calibrator.reads, stored)


def test_a_step_without_rows_changes_nothing() -> None:
    calibrator = make("3fc_ft")
    before = copy.deepcopy(calibrator)
    empty = (torch.zeros(0, 4, 3, 3), torch.zeros(0, dtype=torch.int64))
    assert train_head(calibrator, lambda first: iter([empty] * STEPS), SCHEDULE) == STEPS
    assert equal_states(calibrator, before)

    def with_gap(first: int) -> Iterator[Batch]:
        for step in range(first, STEPS):
            yield empty if step == 2 else batch(step)

    assert train_head(calibrator, with_gap, SCHEDULE) == 1
    assert all(torch.isfinite(p).all() for p in calibrator.parameters())


def test_accuracies() -> None:
    scores = torch.eye(3)[[0, 1, 2, 2]]
    found = row_accuracies(scores, torch.tensor([0, 0, 2, 1]))
    assert found == {"acc": 0.5, "acc_bg": 1.0, "acc_fg": pytest.approx(1 / 3)}
    assert row_accuracies(scores[:2], torch.tensor([0, 0]))["acc_bg"] == 0.0
    assert set(row_accuracies(scores[:0], torch.zeros(0, dtype=torch.int64)).values()) == {0.0}


def test_schedule_of_an_experiment() -> None:
    rates = CalibrationSchedule().of_plan(101).learning_rates()
    assert [(step, rates[step]) for step in range(1, 12000) if rates[step] != rates[step - 1]] == [
        (7000, pytest.approx(0.001)),
        (10000, pytest.approx(0.0001)),
    ], "SimCal's published schedule"
    short = CalibrationSchedule(iterations=120, warmup_iterations=10)
    rates = short.learning_rates()
    assert len(rates) == 120 and short.drop_iterations(120) == [70, 100]
    assert rates[0] == pytest.approx(0.01 * (1 / 3 + 2 / 3 * 0.1))
    assert rates[9] == 0.01 and rates[70] == pytest.approx(0.001)
    assert CalibrationSchedule.model_validate({"epochs": 0.5}).of_plan(101).iterations == 51


@pytest.mark.parametrize("change", [{"optimizer": "adamw"}, {"bias_lr_mult": 2.0}, {"bias_decay_mult": 0.0}])
def test_a_schedule_that_does_not_suit_a_calibrator(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="sgd with one learning rate"):
        CalibrationSchedule.model_validate(change)


def gapped_rows(step: int) -> Batch:
    return batch(step, rows=0 if step == 4 else 12)


def part_of_the_rows(rank: int, names: list[str]) -> dict[str, dict[str, Tensor]]:
    """Train on unequal parts: rank 0 has the first two rows of every step, and none of the second step's."""
    states = {}
    for name in names:
        calibrator = make(name)
        prepare = reading(calibrator)

        def batches(first: int, prepare: Callable[[Tensor], Tensor] = prepare) -> Iterator[Batch]:
            for step in range(first, STEPS):
                x, labels = gapped_rows(step)
                cut = 0 if step == 1 else min(2, len(labels))
                part = slice(0, cut) if rank == 0 else slice(cut, None)
                yield prepare(x[part]), labels[part]

        assert train_head(calibrator, batches, SCHEDULE) == 1
        states[name] = calibrator.state_dict()
    return states


def test_two_processes_equal_one(tmp_path: Path) -> None:
    names = ["3fc_ft", "2fc_ncm", "crt"]
    pair = run_pair(tmp_path, part_of_the_rows, names)
    for name in names:
        calibrator = make(name)
        prepare = reading(calibrator)
        rows = [gapped_rows(step) for step in range(STEPS)]
        train_head(calibrator, lambda first, r=rows, p=prepare: iter([(p(x), y) for x, y in r[first:]]), SCHEDULE)
        for key, value in calibrator.state_dict().items():
            assert torch.equal(pair[0][name][key], pair[1][name][key])
            torch.testing.assert_close(pair[0][name][key], value, rtol=1e-5, atol=1e-6)
