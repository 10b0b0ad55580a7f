"""Box heads of any convolutions and layers: mmdet's where nothing is chosen, and all methods in them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.models.roi_heads import ConvFCBBoxHead
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.config import ConfigDict
from torch import Tensor, nn

from ltpipe.config.fields import Choice
from ltpipe.engine.box_heads import BoxCallPoints
from ltpipe.engine.model_config import ClassCounts, assemble_model, build_component, read_detector
from ltpipe.errors import UserError
from ltpipe.methods.box_layers import hidden_layers, read_features, stored_features
from ltpipe.registry import MODELS
from tests.engine.test_heads import corners_of, proposals, without_objects
from tests.helpers.detectors import CLASSES, built, detections_of, losses_of, probabilities, total
from tests.helpers.tiny_project import experiment

SIZES = {"in_channels": 16, "conv_out_channels": 6, "fc_out_channels": 24, "roi_feat_size": 7}
HEADS: dict[str, dict[str, Any]] = {
    "four convolutions": {"type": "Shared4Conv1FCBBoxHead"},
    "convolutions only": {"type": "ConvFCBBoxHead", "num_shared_convs": 2},
    "one layer": {"type": "ConvFCBBoxHead", "num_shared_fcs": 1},
    "layers of both branches": {"type": "ConvFCBBoxHead", "num_shared_fcs": 1, "num_cls_fcs": 1, "num_reg_fcs": 2},
    "branches alone": {"type": "ConvFCBBoxHead", "num_cls_convs": 1, "num_reg_convs": 2, "num_cls_fcs": 2},
    "averaged": {"type": "ConvFCBBoxHead", "num_shared_convs": 1, "num_shared_fcs": 1, "with_avg_pool": True},
    "averaged branches": {"type": "ConvFCBBoxHead", "num_cls_fcs": 1, "num_reg_fcs": 1, "with_avg_pool": True},
}
every_head = pytest.mark.parametrize("kind", HEADS)


def detector(folder: Path, kind: str, name: str = "detector.py") -> Path:
    """Write a detector file with this box head in every stage."""
    head = {**SIZES, **HEADS[kind]}
    file = folder / f"{kind.replace(' ', '_')}_{name}"
    text = f"""
for _head in model["roi_head"]["bbox_head"] if isinstance(model["roi_head"]["bbox_head"], list) else [
    model["roi_head"]["bbox_head"]
]:
    _head.update({head!r})
del _head
"""
    file.write_text((folder / name).read_text() + text)
    return file


def config_of(folder: Path, counts: ClassCounts, file: Path, **model: Any) -> ConfigDict:
    model = {"classifier": {"type": "linear"}, **model}
    return assemble_model(experiment(folder, detector={"config": str(file)}, model=model), counts)[1]


@every_head
@pytest.mark.parametrize("name", ["detector.py", "cascade.py"])
def test_without_methods_it_is_mmdets_head_bit_for_bit(
    project: Path, counts: ClassCounts, batch: dict[str, Any], kind: str, name: str
) -> None:
    file = detector(project, kind, name)
    ours, theirs = config_of(project, counts, file), read_detector(file).model
    theirs.test_cfg = ours.test_cfg
    heads = theirs.roi_head.bbox_head
    for head in heads if isinstance(heads, list) else [heads]:
        head.update(num_classes=CLASSES, loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0))
    theirs.roi_head.mask_head.num_classes = CLASSES
    plain, model = built(theirs), built(ours)
    assert all(isinstance(head, BoxCallPoints) for head in model.roi_head.bbox_heads)
    assert plain.state_dict().keys() == model.state_dict().keys()
    model.load_state_dict(plain.state_dict())
    expected, found = losses_of(plain, batch), losses_of(model, batch)
    assert expected.keys() == found.keys() and torch.equal(total(expected), total(found))
    total(expected).backward()
    total(found).backward()
    for (key, one), other in zip(plain.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), key
    for one, other in zip(detections_of(plain, batch), detections_of(model, batch), strict=True):
        assert len(one.pred_instances) == len(other.pred_instances) > 0
        for key in ("bboxes", "scores", "labels", "masks"):
            assert torch.equal(one.pred_instances[key], other.pred_instances[key]), key


@every_head
def test_a_part_sees_the_classifiers_input_and_nothing_is_kept(
    project: Path, counts: ClassCounts, batch: dict[str, Any], kind: str
) -> None:
    fasa = {"type": "fasa", "instance_prob_scale": 1000.0, "adapt_split": "val"}
    model = built(config_of(project, counts, detector(project, kind), parts=[fasa]))
    (part,), head, seen = model.roi_head.parts, model.roi_head.bbox_head, []
    part.epoch = 1
    box_losses = part.box_losses
    part.box_losses = lambda head, given: seen.append(given) or box_losses(head, given)
    assert losses_of(model, batch)["loss_fasa"] > 0
    assert torch.equal(head.fc_cls(seen[0].features), seen[0].cls_score)
    assert part.mean.shape == (CLASSES, head.fc_cls.in_features)
    detections_of(model, batch)
    assert head.seen is None and model.roi_head.mask_head.seen is None


@every_head
def test_a_cosine_classifier_reads_before_the_relu(project: Path, counts: ClassCounts, kind: str) -> None:
    file = detector(project, kind)
    if kind == "convolutions only":
        with pytest.raises(UserError, match="before its ReLU, and the box head has none"):
            built(config_of(project, counts, file, classifier={"type": "cosine"}))
        return
    head = built(config_of(project, counts, file, classifier={"type": "cosine"})).roi_head.bbox_head
    seen: dict[str, Tensor] = {}
    head.fc_cls.register_forward_pre_hook(lambda _, inputs: seen.update(read=inputs[0]))
    hidden_layers(head)[-1].register_forward_hook(lambda _, inputs, output: seen.update(raw=output))
    scores, deltas = head(torch.randn(6, 16, 7, 7))
    assert torch.equal(seen["read"], seen["raw"]) and bool((seen["read"] < 0).any())
    assert scores.shape == (6, CLASSES + 1) and deltas.shape == (6, 4)


@every_head
@pytest.mark.parametrize("boxes", [0, 5])
def test_batches_without_rois_or_objects_train_every_weight(
    project: Path, counts: ClassCounts, batch: dict[str, Any], kind: str, boxes: int
) -> None:
    model = built(config_of(project, counts, detector(project, kind), loss={"type": "seesaw"})).train()
    data = model.data_preprocessor(copy.deepcopy(batch), True)
    feats = model.extract_feat(data["inputs"])
    few = [proposals(corners_of(boxes).clone()) for _ in range(2)]
    losses = model.roi_head.loss(feats, few, [without_objects(sample) for sample in data["data_samples"]])
    assert {"loss_cls_classes", "loss_cls_objectness", "loss_bbox", "loss_mask"} <= losses.keys()
    total(losses).backward()
    assert [name for name, p in model.roi_head.named_parameters() if p.grad is None] == []


# ---- calibrators -----------------------------------------------------------------------------------------------------


@every_head
@pytest.mark.parametrize("name", ["crt", "lws", "bags", "iif_retrain"])
def test_classifiers_are_calibrated_from_every_level(project: Path, counts: ClassCounts, kind: str, name: str) -> None:
    config = config_of(project, counts, detector(project, kind))
    model = built(config).eval()
    head = model.roi_head.bbox_head
    calibrator = MODELS.build(build_component("calibrator", Choice(type=name), counts))
    calibrator.initialise(head)
    feats = torch.rand(8, 16, 7, 7)
    with torch.no_grad():
        read = read_features(head, feats, calibrator.reads)
        for level in ("fc1", "last") if len(hidden_layers(head)) > 1 else ("last",):
            stored = stored_features(head, feats, level)
            torch.testing.assert_close(read_features(head, stored, calibrator.reads, level), read)
        merged_config, state = calibrator.merge(config.to_dict(), model.state_dict())
        merged = MODELS.build(ConfigDict(merged_config))
        merged.load_state_dict(state)
        new = merged.eval().roi_head.bbox_head
        torch.testing.assert_close(probabilities(new, new(feats)[0]), calibrator.scores(calibrator(read)))


@every_head
def test_a_second_head_needs_layers_to_copy(project: Path, counts: ClassCounts, kind: str) -> None:
    head = built(config_of(project, counts, detector(project, kind))).roi_head.bbox_head
    calibrator = MODELS.build(build_component("calibrator", Choice(type="simcal", threshold=6), counts))
    if kind in ("one layer", "layers of both branches"):
        calibrator.initialise(head)
        feats = torch.rand(4, 16, 7, 7)
        torch.testing.assert_close(calibrator.head(feats), head(feats)[0])
    else:
        with pytest.raises(UserError, match="cannot be copied"):
            calibrator.initialise(head)


def test_a_level_that_is_not_there_is_refused(project: Path, counts: ClassCounts) -> None:
    head = built(config_of(project, counts, detector(project, "convolutions only"))).roi_head.bbox_head
    with pytest.raises(UserError, match="no fully connected layer"):
        stored_features(head, torch.rand(2, 16, 7, 7), "fc1")


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["layers of both branches", "averaged branches"])
def test_transfer_of_gradients_needs_shared_layers(project: Path, counts: ClassCounts, kind: str) -> None:
    """Branches of equal width look like shared ones, but the regressor reads other features than the classifier."""
    config = config_of(project, counts, detector(project, kind))
    config.roi_head.bbox_head.reg_class_agnostic = config.roi_head.mask_head.class_agnostic = False
    config.roi_head.parts = [build_component("part", Choice(type="crat"), counts)]
    with pytest.raises(UserError, match="plain linear box regressor on the classifier's features"):
        built(config)


class _Wider(ConvFCBBoxHead):
    """A head of a person's own, with mmdet's forward pass."""


class _OwnForward(ConvFCBBoxHead):
    def forward(self, x: Tensor) -> Any:
        return super().forward(2 * x)


def test_heads_of_others_are_taken_or_refused_by_their_class(project: Path, counts: ClassCounts) -> None:
    for cls in (_Wider, _OwnForward):
        MMDET_MODELS.register_module(module=cls, force=True)
    try:
        HEADS["wider"] = {"type": "_Wider", "num_shared_fcs": 2}
        head = built(config_of(project, counts, detector(project, "wider"))).roi_head.bbox_head
        assert isinstance(head, _Wider) and isinstance(head, BoxCallPoints)
        HEADS["wider"] = {"type": "_OwnForward", "num_shared_fcs": 2}
        with pytest.raises(UserError, match="_OwnForward"):
            config_of(project, counts, detector(project, "wider"))
    finally:
        del HEADS["wider"]
        for cls in (_Wider, _OwnForward):
            MMDET_MODELS._module_dict.pop(cls.__name__)


def test_other_roi_heads_keep_their_own_ways(project: Path, counts: ClassCounts) -> None:
    file = project / "other_roi_head.py"
    file.write_text((project / "detector.py").read_text() + 'model["roi_head"]["type"] = "PISARoIHead"\n')
    exp = experiment(project, detector={"config": str(file)})  # with phases and a calibrator
    with pytest.raises(UserError, match="PISARoIHead"):
        assemble_model(exp, counts)
    alone = exp.model_copy(update={"lst": None, "calibrate": {}})
    assert isinstance(built(assemble_model(alone, counts)[1]).roi_head.bbox_head, BoxCallPoints)
    file.write_text(file.read_text() + 'model["roi_head"]["bbox_head"]["type"] = "SABLHead"\n')
    with pytest.raises(UserError, match="SABLHead"):  # the cosine classifier needs what this head does not hand over
        assemble_model(alone, counts)


def test_copies_of_a_detector_call_their_own_parts(project: Path, counts: ClassCounts, batch: dict[str, Any]) -> None:
    """As a moving average of weights makes them."""
    fasa = {"type": "fasa", "instance_prob_scale": 1000.0, "adapt_split": "val"}
    config = config_of(
        project, counts, project / "detector.py", parts=[fasa, {"type": "crat", "mask_weights_from": "mask"}]
    )
    config.roi_head.bbox_head.reg_class_agnostic = config.roi_head.mask_head.class_agnostic = False
    model: nn.Module = built(config)
    copied = copy.deepcopy(model)
    assert all(a is b for a, b in zip(copied.roi_head.bbox_head.parts, copied.roi_head.parts, strict=True))
    losses_of(copied, batch)
    assert not model.roi_head.parts[0].seen.any() and copied.roi_head.parts[0].seen.any()
    assert not model.roi_head.parts[1].mask_bank.seen().any() and copied.roi_head.parts[1].mask_bank.seen().any()
