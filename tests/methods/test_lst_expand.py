"""Checkpoint expansion and trimming, freezing."""

from __future__ import annotations

import pytest
import torch
from mmdet.models.backbones import ResNet
from mmdet.models.necks import FPN
from torch import nn

from ltpipe.errors import UserError
from ltpipe.methods.lst.expansion import check_grown, expand_checkpoint, trim_heads, without_restarting
from ltpipe.methods.lst.freezing import freezing_options

HEAD = "roi_head.bbox_head."
MASK = "roi_head.mask_head.conv_logits."


def checkpoint(classes: int, *, extra_rows: int = 1, agnostic: bool = False, mask: int | None = None) -> dict:
    state = {
        "backbone.conv1.weight": torch.randn(4, 3, 3, 3),
        f"{HEAD}fc_cls.weight": torch.randn(classes + extra_rows, 8),
        f"{HEAD}fc_cls.bias": torch.randn(classes + extra_rows),
        f"{HEAD}fc_reg.weight": torch.randn(4 if agnostic else 4 * classes, 8),
        f"{HEAD}fc_reg.bias": torch.randn(4 if agnostic else 4 * classes),
        f"{HEAD}loss_cls.cum_samples": torch.ones(classes + 1),
        "roi_head.parts.0.counts": torch.ones(classes),
    }
    if mask is not None:
        state |= {f"{MASK}weight": torch.randn(mask, 6, 1, 1), f"{MASK}bias": torch.randn(mask)}
    return state


@pytest.mark.parametrize("extra_rows", [0, 1, 2])
def test_new_rows_lie_between_the_old_ones_and_the_background(extra_rows: int) -> None:
    old = checkpoint(5, extra_rows=extra_rows, mask=5)
    new = expand_checkpoint(old, 5, 3, seed=1)
    for name in ("weight", "bias"):
        before, after = old[f"{HEAD}fc_cls.{name}"], new[f"{HEAD}fc_cls.{name}"]
        assert torch.equal(after[:5], before[:5]) and torch.equal(after[8:], before[5:])
        before, after = old[f"{HEAD}fc_reg.{name}"], new[f"{HEAD}fc_reg.{name}"]
        assert len(after) == 32 and torch.equal(after[:20], before)
        before, after = old[f"{MASK}{name}"], new[f"{MASK}{name}"]
        assert len(after) == 8 and torch.equal(after[:5], before)
    for layer in (f"{HEAD}fc_cls.bias", f"{HEAD}fc_reg.bias", f"{MASK}bias"):
        added = new[layer][20:] if "reg" in layer else new[layer][5:8]
        assert (added == 0).all()
    assert torch.equal(new["backbone.conv1.weight"], old["backbone.conv1.weight"])


def test_spread_of_the_new_rows() -> None:
    old = checkpoint(5, mask=5) | {
        f"{HEAD}fc_cls.weight": torch.zeros(6, 8),
        f"{HEAD}fc_reg.weight": torch.zeros(20, 8),
    }
    new = expand_checkpoint(old, 5, 2000, seed=1)
    assert new[f"{HEAD}fc_cls.weight"][5:-1].std().item() == pytest.approx(0.01, rel=0.05)
    assert new[f"{HEAD}fc_reg.weight"][20:].std().item() == pytest.approx(0.001, rel=0.05)


def test_the_seed_fixes_the_new_rows_and_inputs_stay_as_they_are() -> None:
    old = checkpoint(5)
    kept = {key: value.clone() for key, value in old.items()}
    first, second, third = (expand_checkpoint(old, 5, 3, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first[f"{HEAD}fc_cls.weight"], third[f"{HEAD}fc_cls.weight"])
    assert old.keys() == kept.keys() and all(torch.equal(old[key], kept[key]) for key in kept)


def test_two_phases_compose() -> None:
    old = checkpoint(4, mask=4)
    new = expand_checkpoint(expand_checkpoint(old, 4, 2, seed=1), 6, 3, seed=2)
    assert len(new[f"{HEAD}fc_cls.weight"]) == 10 and len(new[f"{HEAD}fc_reg.weight"]) == 36
    assert torch.equal(new[f"{HEAD}fc_cls.weight"][[0, 1, 2, 3, 9]], old[f"{HEAD}fc_cls.weight"])


def test_class_agnostic_layers_do_not_grow_and_statistics_are_dropped() -> None:
    new = expand_checkpoint(checkpoint(5, agnostic=True, mask=1), 5, 3, seed=0)
    assert len(new[f"{HEAD}fc_reg.weight"]) == 4 and len(new[f"{MASK}weight"]) == 1
    assert not any("loss_cls" in key or "parts" in key for key in new)


def test_every_stage_of_a_cascade_grows() -> None:
    one, other = ({k: v for k, v in checkpoint(5, mask=5).items() if "backbone" not in k} for _ in range(2))

    def numbered(key: str, stage: int) -> str:
        for head in ("bbox_head.", "mask_head."):
            key = key.replace(head, f"{head}{stage}.")
        return key

    stages = {numbered(key, k): value for k, state in enumerate((one, other)) for key, value in state.items()}
    new = expand_checkpoint(stages, 5, 3, seed=1)
    for k, state in enumerate((one, other)):
        alone = expand_checkpoint(state, 5, 3, seed=1)
        assert {numbered(key, k) for key in alone} <= new.keys()
        for key, value in alone.items():
            grown = new[numbered(key, k)]
            assert grown.shape == value.shape
            assert torch.equal(grown[:5], value[:5])
    first, second = (new[f"{HEAD}{k}.fc_cls.weight"][5:8] for k in range(2))
    assert not torch.equal(first, second) and not any("loss_cls" in key or "parts" in key for key in new)
    assert trim_heads(stages) == {}


def test_half_precision_weights_stay_so() -> None:
    old = {key: value.half() for key, value in checkpoint(5).items()}
    assert {value.dtype for value in expand_checkpoint(old, 5, 3, seed=0).values()} == {torch.float16}


@pytest.mark.parametrize("num_old", [4, 6])
def test_another_number_of_classes_is_refused(num_old: int) -> None:
    with pytest.raises(UserError, match="another number of classes"):
        expand_checkpoint(checkpoint(5), num_old, 3, seed=0)


def test_trimming_leaves_what_does_not_depend_on_the_classes() -> None:
    state = checkpoint(80, mask=80) | {f"{HEAD}shared_fcs.0.weight": torch.zeros(8, 8)}
    assert sorted(trim_heads(state)) == ["backbone.conv1.weight", f"{HEAD}shared_fcs.0.weight"]


def test_only_per_phase_statistics_may_differ_from_the_model() -> None:
    grown = expand_checkpoint(checkpoint(5, mask=5), 5, 3, seed=0)
    model = expand_checkpoint(checkpoint(8, mask=8), 8, 0, seed=0) | {
        f"{HEAD}loss_cls.pos_grad": torch.zeros(8),
        "roi_head.parts.0.mean": torch.zeros(8, 4),
    }
    model = without_restarting(model)
    check_grown(grown, model)
    bias = f"{HEAD}fc_cls.bias"
    with pytest.raises(UserError, match=r"missing \['roi_head.bbox_head.fc_cls.bias'\]"):
        check_grown({key: value for key, value in grown.items() if key != bias}, model)
    with pytest.raises(UserError, match=r"left over \['neck.extra'\]"):
        check_grown(grown | {"neck.extra": torch.zeros(1)}, model)
    with pytest.raises(UserError, match=r"fc_cls.bias \(7,\) for \(9,\)"):
        check_grown(grown | {bias: torch.zeros(7)}, model)


class Detector(nn.Module):
    """Backbone and neck."""

    def __init__(self, frozen: str) -> None:
        super().__init__()
        self.backbone = ResNet(18, base_channels=4, stem_channels=4, **freezing_options(frozen))
        self.neck = FPN([4, 8, 16, 32], out_channels=4, num_outs=4)


@pytest.mark.parametrize(
    ("level", "moving"),
    [
        ("none", {"conv1", "layer1", "layer4"}),
        ("stem", {"layer1", "layer4"}),
        ("layer1", {"layer4"}),
        ("backbone", set()),
    ],
)
def test_frozen_layers_are_bit_identical_after_training(level: str, moving: set[str]) -> None:
    torch.manual_seed(0)
    model = Detector(level)
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        sum(out.square().mean() for out in model.neck(model.backbone(torch.randn(2, 3, 32, 32)))).backward()
        optimizer.step()
        model.train()
    after = model.state_dict()
    changed = {
        key.split(".")[1] for key in after if key.startswith("backbone.") and not torch.equal(after[key], before[key])
    }
    assert moving <= changed and (moving or not changed)
    assert not any(
        "running" in key or "num_batches" in key for key in after if not torch.equal(after[key], before[key])
    )
    assert any(not torch.equal(after[key], before[key]) for key in after if key.startswith("neck."))


def test_freezing_levels() -> None:
    assert freezing_options("backbone") == {"frozen_stages": 4, "norm_eval": True}
    with pytest.raises(UserError, match="layer1"):
        freezing_options("layer")
