"""No tensor is made on the CPU inside a forward pass, a loss or a hook: what GPUs would show, shown without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.contract_cases import (
    BATCHES,
    MaskPredictor,
    box_batch,
    box_head,
    build,
    logits,
    names,
    pooled,
    run_loss,
    run_part,
    total,
)
from tests.helpers.devices import MadeSomewhere
from tests.helpers.tiny_project import experiment, run_stages


@pytest.mark.parametrize("name", names("loss"))
def test_losses(name: str) -> None:
    loss, labels = build("loss", name), BATCHES["mixed"]
    z = logits(loss, labels).requires_grad_()
    with MadeSomewhere() as found:
        total(run_loss(loss, z, labels)).backward()
        if getattr(loss, "custom_activation", False):
            loss.get_activation(z)
    assert not found.places


@pytest.mark.parametrize("name", names("classifier"))
def test_classifiers(name: str) -> None:
    head = box_head(name)
    with MadeSomewhere() as found:
        head(pooled(4))
    assert not found.places


@pytest.mark.parametrize("name", names("part"))
def test_parts(name: str) -> None:
    head, part, masks = box_head(), build("part", name), MaskPredictor()
    batch = box_batch(head, BATCHES["mixed"])
    with MadeSomewhere() as found:
        for _ in range(2):
            total(run_part(part, head, masks, batch))
    assert not found.places


def test_whole_trainings(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Detector, head, optimiser and hooks; the data come from the loader, on the CPU."""
    from mmengine.runner import IterBasedTrainLoop

    places: set[str] = set()
    usual = IterBasedTrainLoop.run_iter

    def watched(self: IterBasedTrainLoop, batch: object) -> None:
        with MadeSomewhere() as found:
            usual(self, batch)
        places.update(found.places)

    monkeypatch.setattr(IterBasedTrainLoop, "run_iter", watched)
    run_stages(experiment(project), tmp_path / "results", "index", "split", "base", ("distill", 1), ("lst", 1))
    assert not places
