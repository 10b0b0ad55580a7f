"""Half precision: the losses and statistics of every method are those of float32, on the CPU with bfloat16."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.runner.amp import autocast
from torch import nn

from ltpipe.config import catalogue
from ltpipe.engine.model_config import ClassCounts, assemble_model
from ltpipe.engine.precision import HalfPrecision, guard, in_float32
from ltpipe.engine.roi_sampling import with_seeded_samplers
from ltpipe.errors import UserError
from tests.helpers.detectors import built, losses_of, total
from tests.helpers.tiny_project import experiment

CLASS_WISE = """
model["roi_head"]["bbox_head"]["reg_class_agnostic"] = False
model["roi_head"]["mask_head"]["class_agnostic"] = False
"""

# FASA draws more; LOCE keeps what does not depend on layers that learn.
OPTIONS = {"fasa": {"instance_prob_scale": 20.0}, "loce": {"memory": "roi"}}


def methods() -> Iterator[tuple[str, str]]:
    for slot in ("classifier", "loss", "mask", "part"):
        yield from ((slot, name) for name in catalogue.names(slot))


@pytest.mark.parametrize(("slot", "name"), list(methods()))
def test_losses_of_every_method(
    project: Path, counts: ClassCounts, batch: dict[str, Any], slot: str, name: str
) -> None:
    (project / "class_wise.py").write_text((project / "detector.py").read_text() + CLASS_WISE)
    choice = {"type": name, **OPTIONS.get(name, {})}
    exp = experiment(
        project,
        detector={"config": str(project / "class_wise.py")},
        model={"classifier": {"type": "linear"}, **({"parts": [choice]} if slot == "part" else {slot: choice})},
    )
    plain = built(with_seeded_samplers(assemble_model(exp, counts)[1]))
    for part in plain.roi_head.parts:
        part.epoch = 1  # FASA draws from the second epoch on
    half = copy.deepcopy(plain)
    guard(half)
    with_boxes_of(plain, half)
    for _ in range(2):  # the second time with the statistics of the first
        expected = losses_of(plain, batch)
        with autocast(dtype=torch.bfloat16):
            found = losses_of(half, batch)
        assert found.keys() == expected.keys()
        assert all(value.dtype == torch.float32 for values in found.values() for value in _flat(values))
        torch.testing.assert_close(total(found), total(expected), rtol=0.02, atol=0)
    for key, value in half.state_dict().items():
        assert value.dtype not in (torch.bfloat16, torch.float16), key
    other = copy.deepcopy(plain)
    other.load_state_dict(half.state_dict())
    assert all(torch.equal(value, half.state_dict()[key]) for key, value in other.state_dict().items())
    total(found).backward()
    gradients = [p.grad for p in half.parameters() if p.grad is not None]
    assert gradients and all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)


def with_boxes_of(model: nn.Module, other: nn.Module) -> None:
    """Have another detector see the proposals of a model, as losses of other boxes cannot be compared."""
    proposals: list[Any] = []
    predict = model.rpn_head.predict_by_feat

    def recorded(*args: Any, **kwargs: Any) -> Any:
        proposals.append(predict(*args, **kwargs))
        return copy.deepcopy(proposals[-1])

    model.rpn_head.predict_by_feat = recorded
    other.rpn_head.predict_by_feat = lambda *args, **kwargs: copy.deepcopy(proposals[-1])


def _flat(value: Any) -> list[torch.Tensor]:
    return list(value) if isinstance(value, list) else [value]


def test_what_is_guarded_computes_in_float32() -> None:
    seen: list[torch.dtype] = []

    def function(x: torch.Tensor, more: dict[str, list[torch.Tensor]]) -> torch.Tensor:
        seen.extend((x.dtype, more["inner"][0].dtype, (x @ x.T).dtype))
        return x

    x = torch.randn(3, 3).bfloat16()
    with autocast(dtype=torch.bfloat16):
        in_float32(function)(x, {"inner": [x]})
        assert (x @ x.T).dtype == torch.bfloat16
    assert seen == [torch.float32] * 3


def test_another_memory_order_gives_the_same_features(exp: Any, counts: ClassCounts, batch: dict[str, Any]) -> None:
    """mmcv's RoIAlign reads memory as if maps lay in the usual order; it gets them so."""
    plain = built(with_seeded_samplers(assemble_model(exp, counts)[1]))
    other = copy.deepcopy(plain)
    guard(other)
    other.to(memory_format=torch.channels_last)
    found, expected = losses_of(other, batch), losses_of(plain, batch)
    torch.testing.assert_close(total(found), total(expected), rtol=1e-4, atol=0)
    total(found).backward()
    total(expected).backward()
    for one, same in zip(other.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, same.grad, rtol=1e-2, atol=1e-4 * float(same.grad.abs().max() + 1))


def test_float16_needs_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UserError, match="float16 needs a GPU"):
        HalfPrecision("float16", optimizer=torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1))
