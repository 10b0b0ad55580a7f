"""Calibrated heads, fused scores, and the detector that carries both."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ltpipe.engine.box_heads import LTBBoxHead
from ltpipe.engine.roi_heads import LTRoIHead
from ltpipe.errors import UserError
from ltpipe.methods.box_layers import read_features
from ltpipe.methods.simcal.calibrator import DualHead, SimCal
from ltpipe.methods.simcal.functions import average_stages, fuse_scores, tail_classes
from ltpipe.methods.simcal.heads import NearestClassMean, make_head
from ltpipe.registry import MODELS as OURS
from tests.published.simcal_sweep import sweep_thresholds

K, CHANNELS, SIDE, WIDTH = 5, 4, 3, 16
COUNTS = [3, 500, 12, 300, 0]


@OURS.register_module()
class UnrectifiedCosine(nn.Linear):
    """Cosine classifier that reads the last layer before its ReLU."""

    rectify_input = False

    def forward(self, x: Tensor) -> Tensor:
        return 20 * F.linear(F.normalize(x), F.normalize(self.weight))


def head_config(**kwargs: Any) -> dict[str, Any]:
    return {
        "type": "ltpipe.LTBBoxHead",
        "in_channels": CHANNELS,
        "roi_feat_size": SIDE,
        "fc_out_channels": WIDTH,
        "num_classes": K,
        **kwargs,
    }


def box_head(seed: int = 0, **kwargs: Any) -> LTBBoxHead:
    torch.manual_seed(seed)
    head = MODELS.build(head_config(**kwargs))
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.2)
    return head


def features(rows: int = 12, seed: int = 1) -> Tensor:
    return torch.randn(rows, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def calibrator(name: str, head: nn.Module, **kwargs: Any) -> SimCal:
    built = SimCal(K, COUNTS, head=name, **kwargs)
    built.initialise(head)
    return built


COSINE = {"cls_predictor_cfg": {"type": "ltpipe.UnrectifiedCosine"}}


@pytest.mark.parametrize("name", ["3fc_ft", "3fc_ft_freeze1", "cls_ft"])
@pytest.mark.parametrize("options", [{}, COSINE], ids=["linear", "cosine"])
def test_fine_tuned_heads_start_as_the_detector(name: str, options: dict[str, Any]) -> None:
    head, x = box_head(**options), features()
    before = copy.deepcopy(head.state_dict())
    cal = calibrator(name, head)
    expected = head(x)[0]
    torch.testing.assert_close(cal.head(x), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(cal(read_features(head, x, cal.reads)), expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        for parameter in cal.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[key]) for key, value in head.state_dict().items()), "copies, not references"


@pytest.mark.parametrize(
    "name, reads, trained",
    [
        ("2fc_rand", "roi", {"fc1", "fc_cls"}),
        ("3fc_rand", "roi", {"fc1", "fc2", "fc_cls"}),
        ("3fc_ft", "roi", {"fc1", "fc2", "fc_cls"}),
        ("3fc_ft_freeze1", "fc1", {"fc2", "fc_cls"}),
        ("cls_ft", "last", {"fc_cls"}),
        ("cls_rand", "last", {"fc_cls"}),
        ("2fc_ncm", "last", set()),
    ],
)
def test_what_is_trained_and_what_is_read(name: str, reads: str, trained: set[str]) -> None:
    cal = calibrator(name, box_head())
    assert cal.reads == reads
    assert {k.split(".")[1] for k, p in cal.named_parameters() if p.requires_grad} == trained
    assert cal.head(features()).shape == (12, K + 1)


def test_sizes_of_the_published_heads() -> None:
    """Parameter counts of 1230 classes on 256 x 7 x 7 features."""
    head = MODELS.build({"type": "mmdet.Shared2FCBBoxHead", "num_classes": 1230, "reg_class_agnostic": True})
    expected = {"2fc_rand": 14_107_855, "3fc_rand": 15_157_455, "3fc_ft": 15_157_455}
    for name, number in expected.items():
        assert sum(p.numel() for p in make_head(name, head, 1230).parameters()) == number


@pytest.mark.parametrize("name", ["2fc_rand", "3fc_rand", "cls_rand"])
def test_random_layers_have_torch_defaults(name: str) -> None:
    head = box_head()
    cal = calibrator(name, head)
    bound = WIDTH**-0.5
    weight = cal.head.fc_cls.weight
    assert weight.abs().max() <= bound and weight.abs().max() > 0.7 * bound and cal.head.fc_cls.bias.abs().max() > 0
    assert torch.equal(cal.head.fc1.weight, head.shared_fcs[0].weight) == (name == "cls_rand")


def test_nearest_class_mean() -> None:
    head = box_head()
    cal = calibrator("2fc_ncm", head)
    x = read_features(head, features(40), "last").detach()
    labels = torch.randint(0, 4, (40,), generator=torch.Generator().manual_seed(0))
    labels[:5] = K
    assert torch.equal(cal(x), cal(x)[:, :1].expand(-1, K + 1))
    for part in range(0, 40, 10):
        cal.observe(x[part : part + 10], labels[part : part + 10])
    expected = torch.full((40, K + 1), -torch.inf)
    for c in labels.unique():
        expected[:, c] = -(x - x[labels == c].mean(0)).square().sum(1)
    torch.testing.assert_close(cal(x), expected, rtol=1e-4, atol=1e-5)
    assert not cal.scores(cal(x))[:, 4].any() and torch.isfinite(cal.scores(cal(x))).all()
    assert isinstance(cal.head.fc_cls, NearestClassMean)


def test_refusals() -> None:
    group = {"type": "ltpipe.GroupSoftmaxLoss", "num_classes": K, "instance_counts": COUNTS}
    with pytest.raises(UserError, match="cannot be continued"):
        calibrator("3fc_ft", box_head(loss_cls=group))
    calibrator("3fc_rand", box_head(loss_cls=group))
    convolutions = MODELS.build({"type": "mmdet.Shared4Conv1FCBBoxHead", "in_channels": 4, "conv_out_channels": 4})
    with pytest.raises(UserError, match="cannot be copied"):
        calibrator("3fc_ft", convolutions)


def test_loss_is_the_mean_cross_entropy_and_survives_no_rows() -> None:
    cal = calibrator("3fc_rand", box_head())
    x, labels = features(), torch.arange(12) % (K + 1)
    loss = cal.loss(cal(x), labels)
    torch.testing.assert_close(loss, F.cross_entropy(cal.head(x), labels))
    empty = cal.loss(cal(x[:0]), labels[:0])
    empty.backward()
    assert empty == 0 and all(not p.grad.any() for p in cal.parameters())


def test_half_precision() -> None:
    cal = calibrator("3fc_ft", box_head())
    x, labels = features(), torch.arange(12) % (K + 1)
    full = cal.loss(cal(x), labels)
    with torch.autocast("cpu", torch.bfloat16):
        half = cal.loss(cal(x), labels)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=1e-2, atol=1e-2)
    stored = cal.loss(cal(x.half().float()), labels)
    assert abs(stored - full) <= 1e-3


def probabilities(rows: int, seed: int) -> Tensor:
    return torch.randn(rows, K + 1, generator=torch.Generator().manual_seed(seed)).softmax(1)


def test_scores_by_class() -> None:
    base, cal, counts = probabilities(7, 0), probabilities(7, 1), torch.tensor(COUNTS)
    for threshold, inclusive in ((300, False), (300, True), (0, False), (0, True), (1e9, False)):
        scores = fuse_scores(base, cal, tail_classes(counts, threshold, inclusive))
        for j, n in enumerate(COUNTS):
            tail = n <= threshold if inclusive else n < threshold
            assert torch.equal(scores[:, j], (cal if tail else base)[:, j])
        assert torch.equal(scores[:, K], base[:, K])
    tail = tail_classes(counts, 300)
    assert torch.equal(fuse_scores(base, cal, tail_classes(counts, 0)), base)
    assert torch.equal(fuse_scores(base, cal, tail, "base"), base)
    assert torch.equal(fuse_scores(base, cal, tail, "cal"), cal)
    torch.testing.assert_close(fuse_scores(base, cal, tail, "avg"), (base + cal) / 2)
    assert fuse_scores(base[:0], cal[:0], tail).shape == (0, K + 1)
    assert fuse_scores(base.half(), cal.half(), tail).dtype == torch.float32


def test_cascade_averages_logits_not_probabilities() -> None:
    stages = [torch.randn(4, K + 1) * 3 for _ in range(3)]
    average = average_stages(stages).softmax(1)
    torch.testing.assert_close(average, (sum(stages) / 3).softmax(1))
    assert not torch.allclose(average, sum(s.softmax(1) for s in stages) / 3, atol=1e-3)


def test_sweep_visits_every_choice_once() -> None:
    base, cal, counts = probabilities(3, 0), probabilities(3, 1), torch.tensor(COUNTS)
    found = list(sweep_thresholds(base, cal, counts, [1000, 10, 5, 300, 301]))
    assert [same for same, _ in found] == [[5, 10], [300], [301], [1000]]
    for same, scores in found:
        for threshold in same:
            assert torch.equal(scores, fuse_scores(base, cal, tail_classes(counts, threshold)))


ROI_HEAD: dict[str, Any] = {
    "type": "ltpipe.LTRoIHead",
    "bbox_roi_extractor": {
        "type": "mmdet.SingleRoIExtractor",
        "roi_layer": {"type": "RoIAlign", "output_size": SIDE, "sampling_ratio": 2},
        "out_channels": CHANNELS,
        "featmap_strides": [4],
    },
    "test_cfg": {"score_thr": 0.0, "nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 50},
}


def detector(**kwargs: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and weights of a detector that consists of its RoI head."""
    model = {"roi_head": {**ROI_HEAD, "bbox_head": head_config(**kwargs)}}
    return model, {f"roi_head.bbox_head.{k}": v for k, v in box_head(**kwargs).state_dict().items()}


def build(model: dict[str, Any], state: dict[str, Tensor]) -> LTRoIHead:
    roi_head = MODELS.build(ConfigDict(copy.deepcopy(model["roi_head"])))
    roi_head.load_state_dict({k.removeprefix("roi_head."): v for k, v in state.items()})
    return roi_head.eval()


def detect(roi_head: LTRoIHead) -> tuple[InstanceData, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    maps = (torch.randn(1, CHANNELS, 16, 16, generator=generator),)
    corner = torch.rand(6, 2, generator=generator) * 30
    proposals = InstanceData(bboxes=torch.cat([corner, corner + 20], dim=1))
    meta = {"img_shape": (64, 64), "scale_factor": (1.0, 1.0)}
    found: list[dict[str, Tensor]] = []
    forward = roi_head._bbox_forward
    roi_head._bbox_forward = lambda x, rois: found.append(forward(x, rois)) or found[-1]
    with torch.no_grad():
        result = roi_head.predict_bbox(maps, [meta], [proposals], roi_head.test_cfg)[0]
    return result, found[-1]


@pytest.mark.parametrize("options", [{}, COSINE], ids=["linear", "cosine"])
def test_merged_detector(options: dict[str, Any]) -> None:
    """At step 0 it detects as before; later only scores of tail classes change; the detector's weights never do."""
    model, state = detector(**options)
    plain = build(model, state)
    expected, _ = detect(plain)
    cal = calibrator("3fc_ft", plain.bbox_head)
    merged = build(*cal.merge(model, state))
    found, _ = detect(merged)
    for key in ("bboxes", "scores", "labels"):
        assert torch.equal(found[key], expected[key])

    with torch.no_grad():
        for parameter in cal.parameters():
            parameter.mul_(1.5)
    trained_model, trained_state = cal.merge(model, state)
    assert "calibrator" not in model["roi_head"] and all(torch.equal(trained_state[k], v) for k, v in state.items())
    merged = build(trained_model, trained_state)
    found, raw = detect(merged)
    ours = merged.calibrator.calibrated_scores(raw["bbox_feats"])
    scores = merged.calibrator.fuse(raw["cls_score"].softmax(1), ours)
    own, calibrated = raw["cls_score"].softmax(1), cal.head(raw["bbox_feats"]).softmax(1)
    tail = torch.tensor([n < 300 for n in COUNTS] + [False])
    torch.testing.assert_close(scores, torch.where(tail, calibrated, own), rtol=0, atol=1e-6)
    assert not torch.allclose(scores, own, atol=1e-3)


def test_threshold_and_mode_are_options_of_the_config_not_of_the_weights() -> None:
    model, state = detector()
    cal = calibrator("3fc_rand", build(model, state).bbox_head)
    merged_model, merged_state = cal.merge(model, state)
    expected, _ = detect(build(model, state))
    for change in ({"threshold": 0}, {"mode": "base"}):
        changed = copy.deepcopy(merged_model)
        changed["roi_head"]["calibrator"].update(change)
        found, _ = detect(build(changed, merged_state))
        assert torch.equal(found.scores, expected.scores) and torch.equal(found.bboxes, expected.bboxes)


def test_warns_when_the_threshold_splits_no_class(caplog: pytest.LogCaptureFixture, capsys: Any) -> None:
    layers = {"in_features": 4, "hidden": [4], "num_classes": 2}
    DualHead([1, 2], threshold=300, **layers)
    assert "splits no class" in capsys.readouterr().out + caplog.text
    DualHead([1, 2], threshold=2, **layers)
    DualHead([1, 2], threshold=300, mode="avg", **layers)
    assert "splits no class" not in capsys.readouterr().out


def test_copies_the_first_layer_of_a_trained_detector_by_value_only() -> None:
    head = box_head()
    cal = calibrator("3fc_ft", head)
    assert torch.equal(cal.head.fc1.weight, head.shared_fcs[0].weight)
    assert cal.head.fc1.weight.data_ptr() != head.shared_fcs[0].weight.data_ptr()
