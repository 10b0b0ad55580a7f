"""Our heads: mmdet's where nothing is chosen, call points of parts, empty batches, calibrators, mask transfer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ltpipe.config.catalogue import catalogue, names
from ltpipe.config.experiment import Experiment
from ltpipe.config.fields import Choice
from ltpipe.data.split import Split
from ltpipe.engine.box_heads import LTBBoxHead
from ltpipe.engine.dataset_configs import class_counts
from ltpipe.engine.model_config import REPLACEMENTS, ClassCounts, assemble_model, build_component, read_detector
from ltpipe.engine.roi_heads import LTRoIHead
from ltpipe.methods.head_parts import BoxBatch, HeadPart, MaskBatch
from ltpipe.methods.lst.expansion import expand_checkpoint
from ltpipe.pipeline.paths import Paths
from ltpipe.registry import MODELS
from tests.helpers.detectors import CLASSES, built, detections_of, losses_of, probabilities, total
from tests.helpers.tiny_project import experiment

LOSSES = sorted(name for slot, name in catalogue() if slot == "loss")


def chosen(folder: Path, counts: ClassCounts, **model: Any) -> nn.Module:
    """Return a detector with methods of an experiment."""
    return built(assemble_model(experiment(folder, model=model), counts)[1])


def test_rois_on_objects_of_later_classes_are_left_out(project: Path, counts: ClassCounts) -> None:
    boxes = Tensor([[0, 0, 20, 20], [30, 30, 50, 50], [31, 31, 49, 49], [25, 25, 45, 45], [60, 0, 80, 20]])
    truth = InstanceData(bboxes=boxes[:1], labels=torch.tensor([3]))
    later = InstanceData(bboxes=boxes[1:2], labels=torch.tensor([8]))
    for ignore, expected in ((False, [1, 0, 0, 0, 0]), (True, [1, -1, -1, -1, 0])):
        exp = experiment(project, split={"ignore_future_gt": ignore})
        model = built(assemble_model(exp, counts)[1])
        for head in (model.rpn_head, model.roi_head):
            assigner = head.assigner if hasattr(head, "assigner") else head.bbox_assigner
            assert assigner.assign(InstanceData(priors=boxes), truth, later).gt_inds.tolist() == expected


@pytest.mark.parametrize(("classifier", "mask"), [("linear", "fcn"), ("cosine", "weight_transfer")])
def test_growing_a_detector_changes_nothing_it_knew(
    project: Path, paths: Paths, counts: ClassCounts, classifier: str, mask: str
) -> None:
    exp = experiment(project, model={"classifier": {"type": classifier}, "mask": {"type": mask}})
    old = built(assemble_model(exp, class_counts(paths, Split.load(paths.split), 6))[1]).eval()
    new = built(assemble_model(exp, counts)[1]).eval()
    grown = expand_checkpoint(old.state_dict(), 6, CLASSES - 6, seed=1)
    new.load_state_dict(grown)
    feats = tuple(torch.randn(1, 16, size, size) for size in (16, 8, 4, 2, 1))
    rois = torch.cat([torch.zeros(7, 1), torch.rand(7, 2) * 20, 30 + torch.rand(7, 2) * 30], dim=1)
    with torch.no_grad():
        before, after = (model.roi_head._bbox_forward(feats, rois) for model in (old, new))
        torch.testing.assert_close(after["cls_score"][:, [0, 1, 2, 3, 4, 5, CLASSES]], before["cls_score"])
        torch.testing.assert_close(after["bbox_pred"][:, :24], before["bbox_pred"])
        labels = torch.arange(7) % 6
        before, after = (mask_logits(model, feats, rois, labels) for model in (old, new))
        torch.testing.assert_close(after[:, :6] if mask == "fcn" else after, before)


def mask_logits(model: nn.Module, feats: tuple[Tensor, ...], rois: Tensor, labels: Tensor) -> Tensor:
    with model.roi_head.labelled([labels]):
        return model.roi_head._mask_forward(feats, rois)["mask_preds"]


# ---- mmdet's heads ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("agnostic", [True, False])
def test_a_linear_classifier_without_parts_is_mmdets_head_bit_for_bit(
    exp: Experiment, counts: ClassCounts, batch: dict[str, Any], agnostic: bool
) -> None:
    _, ours = assemble_model(exp, counts)
    theirs = read_detector(exp.detector.config).model
    for config in (ours, theirs):
        config.roi_head.bbox_head.update(reg_class_agnostic=agnostic, num_classes=CLASSES)
        config.roi_head.mask_head.update(class_agnostic=agnostic, num_classes=CLASSES)
    theirs.test_cfg = ours.test_cfg
    plain, model = built(theirs), built(ours)
    assert (type(model.roi_head), type(model.roi_head.bbox_head)) == (LTRoIHead, LTBBoxHead)
    assert {type(plain.roi_head), type(plain.roi_head.bbox_head)} <= set(REPLACEMENTS)
    assert plain.state_dict().keys() == model.state_dict().keys()
    model.load_state_dict(plain.state_dict())
    expected, found = losses_of(plain, batch), losses_of(model, batch)
    assert expected.keys() == found.keys()
    for name in expected:
        pairs = zip(expected[name], found[name], strict=True) if isinstance(expected[name], list) else None
        assert all(torch.equal(a, b) for a, b in pairs or [(expected[name], found[name])]), name
    total(expected).backward()
    total(found).backward()
    for (name, one), other in zip(plain.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name
    for one, other in zip(detections_of(plain, batch), detections_of(model, batch), strict=True):
        assert len(one.pred_instances) == len(other.pred_instances) > 0
        for key in ("bboxes", "scores", "labels", "masks"):
            assert torch.equal(one.pred_instances[key], other.pred_instances[key]), key


# ---- classifiers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classifier", "rectified"), [("linear", True), ("cosine", False)])
def test_the_regressor_reads_rectified_features(
    project: Path, counts: ClassCounts, batch: dict[str, Any], classifier: str, rectified: bool
) -> None:
    head = chosen(project, counts, classifier={"type": classifier}).roi_head.bbox_head
    seen: dict[str, Tensor] = {}
    for name in ("fc_cls", "fc_reg"):
        layer = getattr(head, name)
        layer.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
    scores, deltas = head(torch.randn(6, 16, 7, 7))
    assert scores.shape == (6, CLASSES + 1) and deltas.shape == (6, 4)
    assert (seen["fc_reg"] >= 0).all()
    assert bool((seen["fc_cls"] >= 0).all()) == rectified
    assert torch.equal(seen["fc_cls"].relu(), seen["fc_reg"])
    assert torch.allclose(probabilities(head, scores).sum(dim=1), torch.ones(6))


# ---- parts -----------------------------------------------------------------------------------------------------------


@MODELS.register_module()
class SpyPart(HeadPart):
    """Notes what it is shown."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.seen: dict[str, Any] = {}

    def box_losses(self, head: Any, batch: BoxBatch) -> dict[str, Tensor]:
        self.seen["box"] = (head, batch, dict(batch.losses))
        return {"loss_cls": batch.losses["loss_cls"] * 2, f"loss_{self.name}": batch.cls_score.sum() * 0 + 1}

    def mask_losses(self, head: Any, batch: MaskBatch) -> dict[str, Tensor]:
        self.seen["mask"] = (head, batch)
        return {f"loss_mask_{self.name}": batch.mask_preds.sum() * 0 + 2}

    def image_losses(self, roi_head: Any, feats: tuple[Tensor, ...], samples: list[Any]) -> dict[str, Tensor]:
        self.seen["image"] = (roi_head, feats, samples)
        return {f"loss_image_{self.name}": feats[0].sum() * 0 + 3}


def with_spies(exp: Experiment, counts: ClassCounts, **options: Any) -> nn.Module:
    _, config = assemble_model(exp, counts)
    config.roi_head.parts = [dict(type="ltpipe.SpyPart", name=name) for name in "ab"]
    config.roi_head.update(options)
    return built(config)


def test_parts_see_what_they_are_promised(exp: Experiment, counts: ClassCounts, batch: dict[str, Any]) -> None:
    model = with_spies(exp, counts)
    losses = losses_of(model, batch)
    first, second = model.roi_head.parts
    head, box, before = first.seen["box"]
    rois = len(box.rois)
    assert head is model.roi_head.bbox_head and rois > 0
    shapes = {
        "features": (rois, 24),
        "cls_score": (rois, CLASSES + 1),
        "labels": (rois,),
        "label_weights": (rois,),
        "bbox_feats": (rois, 16, 7, 7),
        "rois": (rois, 5),
        "bbox_pred": (rois, 4),
        "bbox_targets": (rois, 4),
        "bbox_weights": (rois, 4),
    }
    assert {name: tuple(getattr(box, name).shape) for name in shapes} == shapes
    assert set(box.rois[:, 0].tolist()) == {0.0, 1.0} and box.labels.max() <= CLASSES
    assert torch.equal(head.fc_cls(box.features), box.cls_score)
    assert {"loss_cls", "loss_bbox"} <= before.keys()
    # In order, each on the losses of those before.
    assert "loss_a" not in before and "loss_a" in second.seen["box"][2]
    assert torch.equal(losses["loss_cls"], before["loss_cls"] * 4)
    mask_head, mask = first.seen["mask"]
    positives = int((box.labels < CLASSES).sum())
    assert mask_head is model.roi_head.mask_head and mask.mask_preds.shape[:2] == (positives, 1)
    assert len(mask.features) == len(mask.targets) == len(mask.labels) == positives
    assert torch.equal(mask_head.conv_logits(mask.features), mask.mask_preds)
    roi_head, feats, samples = first.seen["image"]
    assert roi_head is model.roi_head and [len(f) for f in feats] == [2] * 4
    assert [sample.img_id for sample in samples] == [sample.img_id for sample in batch["data_samples"]]
    assert [float(losses[f"loss{kind}_{name}"]) for kind in ("", "_mask", "_image") for name in "ab"] == [
        1,
        1,
        2,
        2,
        3,
        3,
    ]
    assert not any("parts" in key for key in model.state_dict()), "spies hold no state"


# ---- empty batches ---------------------------------------------------------------------------------------------------


def proposals(boxes: Tensor) -> InstanceData:
    return InstanceData(bboxes=boxes, scores=torch.ones(len(boxes)), labels=torch.zeros(len(boxes), dtype=torch.long))


def without_objects(sample: DetDataSample) -> DetDataSample:
    empty = copy.deepcopy(sample)
    empty.gt_instances = empty.gt_instances[torch.zeros(0, dtype=torch.long)]
    return empty


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("boxes", [0, 5])
def test_batches_without_rois_or_objects_report_the_same_losses(
    project: Path, counts: ClassCounts, batch: dict[str, Any], kind: str, boxes: int
) -> None:
    """With several processes a loss that one of them leaves out stops all of them."""
    model = chosen(project, counts, loss={"type": kind})
    model.train()
    data = model.data_preprocessor(copy.deepcopy(batch), True)
    feats = model.extract_feat(data["inputs"])
    many = [proposals(torch.rand(20, 2).repeat(1, 2) * 20 + corners_of(20)) for _ in range(2)]
    full = model.roi_head.loss(feats, many, data["data_samples"])
    few = [proposals(corners_of(boxes).clone()) for _ in range(2)]
    empty = model.roi_head.loss(feats, few, [without_objects(sample) for sample in data["data_samples"]])
    assert {key for key in full if "loss" in key} == {key for key in empty if "loss" in key}
    assert all(torch.isfinite(value).all() for value in empty.values())
    total(empty).backward()
    heads = {name: p.grad for name, p in model.roi_head.named_parameters() if p.requires_grad}
    assert [name for name, grad in heads.items() if grad is None] == [], "every weight takes part in every step"


def corners_of(count: int) -> Tensor:
    return torch.tensor([[0.0, 0.0, 24.0, 24.0]]).expand(count, 4)


@pytest.mark.parametrize("found", [(0, 0), (0, 4), (4, 0)])
@pytest.mark.parametrize("agnostic", [True, False])
def test_images_without_proposals_have_no_detections(
    exp: Experiment, counts: ClassCounts, batch: dict[str, Any], found: tuple[int, int], agnostic: bool
) -> None:
    _, config = assemble_model(exp, counts)
    config.roi_head.bbox_head.reg_class_agnostic = agnostic
    model = built(config).eval()
    with torch.no_grad():
        data = model.data_preprocessor(copy.deepcopy(batch), False)
        feats = model.extract_feat(data["inputs"])
        rpn = [proposals(corners_of(count).clone()) for count in found]
        results = model.roi_head.predict(feats, rpn, data["data_samples"], rescale=True)
    for count, result in zip(found, results, strict=True):
        assert (len(result) > 0) == (count > 0)
        assert result.masks.shape[0] == len(result) and result.bboxes.shape == (len(result), 4)


@pytest.mark.parametrize("part", names("part"))
def test_parts_change_nothing_at_test_time(
    exp: Experiment, counts: ClassCounts, batch: dict[str, Any], part: str
) -> None:
    _, config = assemble_model(exp, counts)
    plain = built(config)
    config.roi_head.parts = [build_component("part", Choice(type=part), counts)]
    model = built(config)
    assert not model.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    for one, other in zip(detections_of(plain, batch), detections_of(model, batch), strict=True):
        assert len(one.pred_instances) and torch.equal(one.pred_instances.scores, other.pred_instances.scores)
        assert torch.equal(one.pred_instances.bboxes, other.pred_instances.bboxes)
        assert torch.equal(one.pred_instances.masks, other.pred_instances.masks)


# ---- calibrators -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["base", "dual"])
def test_a_calibrator_fuses_scores_at_test_time(
    exp: Experiment, counts: ClassCounts, batch: dict[str, Any], mode: str
) -> None:
    _, config = assemble_model(exp, counts)
    plain = built(config)
    config.roi_head.calibrator = dict(
        type="ltpipe.DualHead",
        instance_counts=list(counts.instances),
        threshold=6,
        mode=mode,
        in_features=16 * 49,
        hidden=[8],
        num_classes=CLASSES,
    )
    model = built(config)
    missing = model.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing and all(key.startswith("roi_head.calibrator.") for key in missing)
    equal = [
        len(one.pred_instances) == len(other.pred_instances)
        and torch.equal(one.pred_instances.scores, other.pred_instances.scores)
        for one, other in zip(detections_of(plain, batch), detections_of(model, batch), strict=True)
    ]
    assert all(equal) == (mode == "base")
    assert torch.equal(losses_of(plain, batch)["loss_cls"], losses_of(model, batch)["loss_cls"]), (
        "training is as before"
    )


# ---- masks -----------------------------------------------------------------------------------------------------------


def test_transferred_masks_train_and_predict(project: Path, counts: ClassCounts, batch: dict[str, Any]) -> None:
    model = chosen(project, counts, classifier={"type": "cosine"}, mask={"type": "weight_transfer"})
    losses = losses_of(model, batch)
    assert losses["loss_mask"] > 0
    total(losses).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.roi_head.mask_head.parameters())
    found = detections_of(model, batch)
    masks = [result.pred_instances.masks for result in found]
    assert sum(map(len, masks)) > 0
    assert all(mask.shape[1:] == sample.ori_shape for mask, sample in zip(masks, batch["data_samples"], strict=True))
