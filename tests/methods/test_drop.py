"""DropLoss, GOL and the Gumbel cross entropy against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ltpipe.methods.eql.drop import DropLoss, GOLLoss
from ltpipe.methods.eql.functions import spared_on_background
from ltpipe.methods.eql.gumbel import GumbelLoss

K = 5
IMAGES = [900, 300, 20, 2, 0]
TAIL = [False, False, False, True, True]
LABELS = torch.tensor([0, 3, K, 2, K, 1])


def made(kind: type[DropLoss] = DropLoss, **options: object) -> DropLoss:
    """A loss with classes 3 and 4 in the tail."""
    return kind(K, IMAGES, IMAGES, num_annotated_images=1000, threshold=0.01, **options)


@pytest.mark.parametrize("kind", [DropLoss, GOLLoss])
def test_value_is_the_sum_of_what_is_not_dropped(kind: type[DropLoss]) -> None:
    torch.manual_seed(0)
    z, loss = torch.randn(len(LABELS), K), made(kind, loss_weight=2.0)
    # The draws of the first step: seed 0, step 1, process 0.
    uniform = torch.rand(len(LABELS), K, generator=made(kind).generator("cpu"))
    expected, dropped_on_background = 0.0, 0
    for n, label in enumerate(LABELS):
        for j in range(K):
            y = float(label == j)
            random = uniform[n, j] > 1 / 4  # one of four foreground RoIs is in the tail
            dropped = TAIL[j] and not y and (label < K or bool(random))
            dropped_on_background += bool(dropped and label == K)
            score = 1 / (1 + math.exp(-z[n, j])) if kind is DropLoss else math.exp(-math.exp(-z[n, j]))
            expected -= 0.0 if dropped else math.log(score if y else 1 - score)
    assert 0 < dropped_on_background < 4, "the case shows both"
    assert loss(z, LABELS).item() == pytest.approx(2 * expected / len(LABELS), rel=1e-5)
    assert loss(z, LABELS).item() != loss(z, LABELS).item(), "every step draws anew"


@pytest.mark.parametrize(("foreground", "share"), [([], 0.0), ([0, 1], 1.0), ([3, 4], 0.0), ([0, 3], 0.5)])
def test_share_of_background_that_is_dropped(foreground: list[int], share: float) -> None:
    """Nothing without foreground (the share of the tail is not a number then), and nothing if all of it is tail."""
    labels = torch.tensor([*foreground, *[K] * 5000])
    uniform = torch.rand(len(labels), K, generator=torch.Generator().manual_seed(0))
    spared = spared_on_background(labels, torch.tensor(TAIL), uniform)
    assert not spared[: len(foreground)].any() and not spared[:, :3].any()
    assert spared[len(foreground) :, 3:].float().mean().item() == pytest.approx(share, abs=0.02)


def test_nothing_is_counted_outside_of_training() -> None:
    whole, paused = made(), made()
    z = torch.zeros(len(LABELS), K)
    whole(z, LABELS)
    paused(z, LABELS)
    for _ in range(3):
        paused.eval()(z, LABELS)
    assert whole(z, LABELS).equal(paused.train()(z, LABELS)) and int(paused.draws) == 2


@pytest.mark.parametrize("loss", [made(GOLLoss), GumbelLoss(K)], ids=["gol", "gumbel"])
def test_gumbel_scores_and_first_weights(loss: GOLLoss | GumbelLoss) -> None:
    channels = loss.get_cls_channels(K)
    z = torch.linspace(-100, 100, channels)[None]
    expected = [math.exp(-math.exp(-value)) for value in z[0].tolist()]
    scores = loss.get_activation(z)[0]
    assert scores.tolist()[:channels] == pytest.approx(expected) and len(scores) == K + 1
    assert channels == K + 1 or not scores[-1]
    layer = nn.Linear(3, channels)
    loss.init_classifier(layer)
    assert (layer.weight == 0.001).all() and (layer.bias == -2).all()


def gradient(z: float, y: bool, **options: float) -> tuple[float, float]:
    """Loss and gradient of one logit among others without loss."""
    loss, logits = GumbelLoss(1, **options), torch.tensor([[z, -60.0 if y else 60.0]], requires_grad=True)
    value = loss(logits, torch.tensor([0 if y else 1]), avg_factor=1.0)
    value.backward()
    assert isinstance(logits.grad, Tensor)
    return value.item(), logits.grad[0, 0].item()


def test_gumbel_gradient_fades_and_ends() -> None:
    for z in (-1.0, 0.0, 2.0):
        u = math.exp(-z)
        assert gradient(z, False)[1] == pytest.approx(u * math.exp(-u) / (1 - math.exp(-u)), rel=1e-4)
    u = math.exp(3.5)
    assert gradient(-2.0, True, loss_weight=2.0)[1] == pytest.approx(-2 * math.exp(2.0), rel=1e-4)
    assert gradient(-3.5, True)[1] == 0.0, "a loss above the cap of 20 has no gradient"
    assert gradient(-3.5, True, loss_weight=3.0)[0] == pytest.approx(60.0), "the cap comes before the weight"
    assert gradient(-4.5, False)[1] == gradient(10.5, False)[1] == 0.0
    rows = torch.tensor([[-3.5, -60.0]], requires_grad=True)
    GumbelLoss(1)(rows, torch.tensor([0]), avg_factor=10.0).backward()
    assert rows.grad[0, 0].item() == pytest.approx(-u * math.exp(-u) / 1e-12 / 10, rel=1e-3)
