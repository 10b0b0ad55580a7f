"""Cascades: mmdet's where nothing is chosen, one stage as the standard head, methods in every stage."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from ltpipe.engine.model_config import ClassCounts, assemble_model, read_detector
from ltpipe.engine.roi_sampling import with_seeded_samplers
from ltpipe.errors import UserError
from ltpipe.methods.head_parts import BoxBatch, HeadPart, MaskBatch
from ltpipe.registry import MODELS
from tests.helpers.detectors import CLASSES, built, detections_of, losses_of, total
from tests.helpers.tiny_project import experiment


def config_of(folder: Path, counts: ClassCounts, file: str, **model: Any) -> ConfigDict:
    model = {"classifier": {"type": "linear"}, **model}
    exp = experiment(folder, detector={"config": str(folder / file)}, model=model, evaluate={"score_threshold": 0.0})
    return assemble_model(exp, counts)[1]


def assert_same_losses(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        pairs = zip(one[name], other[name], strict=True) if isinstance(one[name], list) else [(one[name], other[name])]
        assert all(torch.equal(a, b) for a, b in pairs), name


def assert_same_gradients(one: nn.Module, other: nn.Module) -> None:
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name


def class_wise(config: ConfigDict) -> None:
    for head in [*config.roi_head.bbox_head, *config.roi_head.mask_head]:
        head.update({"reg_class_agnostic" if "fc_out_channels" in head else "class_agnostic": False})


# ---- mmdet's heads ---------------------------------------------------------------------------------------------------


def plain_config(config: ConfigDict, file: Path) -> ConfigDict:
    """Return the config of mmdet's own detector, with our test settings and plain cross entropy."""
    plain = read_detector(file).model
    plain.test_cfg = config.test_cfg
    mask = plain.roi_head.mask_head
    for head in [*plain.roi_head.bbox_head, *(mask if isinstance(mask, list) else [mask])]:
        head.num_classes = CLASSES
    for head in plain.roi_head.bbox_head:
        head.loss_cls = dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0)
    return plain


@pytest.mark.parametrize("agnostic", [True, False])
@pytest.mark.parametrize("file", ["cascade.py", "hybrid.py"])
def test_without_methods_it_is_mmdets_cascade_bit_for_bit(
    project: Path, counts: ClassCounts, batch: dict[str, Any], file: str, agnostic: bool
) -> None:
    ours = config_of(project, counts, file)
    theirs = plain_config(ours, project / file)
    if not agnostic:
        if isinstance(theirs.roi_head.mask_head, dict):
            theirs.roi_head.mask_head = [copy.deepcopy(theirs.roi_head.mask_head) for _ in range(3)]
        class_wise(ours)
        class_wise(theirs)
    plain, model = built(theirs), built(ours)
    assert type(model.roi_head).__name__ == f"LT{type(plain.roi_head).__name__}"
    assert plain.state_dict().keys() == model.state_dict().keys()
    model.load_state_dict(plain.state_dict(), strict=True)
    expected, found = losses_of(plain, batch), losses_of(model, batch)
    assert_same_losses(expected, found)
    total(expected).backward()
    total(found).backward()
    assert_same_gradients(plain, model)
    # mmdet's hybrid cascade takes the masks of its last stage only.
    keys = ("bboxes", "scores", "labels", *(["masks"] if file == "cascade.py" else []))
    for one, other in zip(detections_of(plain, batch), detections_of(model, batch), strict=True):
        assert len(one.pred_instances) == len(other.pred_instances) > 0
        for key in keys:
            assert torch.equal(one.pred_instances[key], other.pred_instances[key]), key


def test_one_stage_of_weight_one_is_the_standard_head(
    project: Path, counts: ClassCounts, batch: dict[str, Any]
) -> None:
    parts = [{"type": "fasa", "adapt_split": "val"}]
    standard = config_of(project, counts, "detector.py", parts=parts)
    cascade = config_of(project, counts, "cascade.py", parts=parts)
    cascade.roi_head.update(
        num_stages=1,
        stage_loss_weights=[1],
        bbox_head=cascade.roi_head.bbox_head[:1],
        mask_head=cascade.roi_head.mask_head[:1],
        parts=[stages[:1] for stages in cascade.roi_head.parts],
    )
    cascade.train_cfg.rcnn = cascade.train_cfg.rcnn[:1]
    models = [built(with_seeded_samplers(config)) for config in (standard, cascade)]
    state = models[0].state_dict()
    assert len(state) == len(models[1].state_dict())
    models[1].load_state_dict({key: staged(state, key) for key in models[1].state_dict()}, strict=True)
    for part in (models[0].roi_head.parts[0], models[1].roi_head.parts[0][0]):
        part.epoch = 1
        part.prob.fill_(1)
    one, other = (losses_of(model, batch) for model in models)
    assert {key.removeprefix("s0.") for key in other} == one.keys() and "s0.loss_fasa" in other
    assert_same_losses(one, {key: other.get(key, other.get(f"s0.{key}")) for key in one})
    total(one).backward()
    total(other).backward()
    grads = [{name: p.grad for name, p in model.named_parameters()} for model in models]
    for name, grad in grads[1].items():
        assert torch.equal(grad, staged(grads[0], name)), name
    for a, b in zip(detections_of(models[0], batch), detections_of(models[1], batch), strict=True):
        assert len(a.pred_instances) > 0
        for key in ("bboxes", "scores", "labels", "masks"):
            assert torch.equal(a.pred_instances[key], b.pred_instances[key]), key


def staged(values: dict[str, Tensor], key: str) -> Tensor:
    """Return the entry of the standard head for a key of a cascade's only stage."""
    for name in ("bbox_head", "mask_head", "parts.0"):
        key = key.replace(f"roi_head.{name}.0.", f"roi_head.{name}.")
    return values[key]


# ---- parts -----------------------------------------------------------------------------------------------------------


@MODELS.register_module()
class StageSpy(HeadPart):
    """Notes what it is shown; adds losses of known size."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.seen: list[tuple[str, Any, Any]] = []

    def box_losses(self, head: Any, batch: BoxBatch) -> dict[str, Tensor]:
        self.seen.append(("box", head, batch))
        return {f"loss_{self.name}": batch.cls_score.sum() * 0 + 1}

    def mask_losses(self, head: Any, batch: MaskBatch) -> dict[str, Tensor]:
        self.seen.append(("mask", head, batch))
        return {f"loss_mask_{self.name}": batch.mask_preds.sum() * 0 + 2}

    def image_losses(self, roi_head: Any, feats: tuple[Tensor, ...], samples: list[Any]) -> dict[str, Tensor]:
        self.seen.append(("image", roi_head, samples))
        return {f"loss_image_{self.name}": feats[0].sum() * 0 + 3}


@pytest.mark.parametrize("file", ["cascade.py", "hybrid.py"])
def test_parts_see_their_own_stage(project: Path, counts: ClassCounts, batch: dict[str, Any], file: str) -> None:
    config = config_of(project, counts, file)
    config.roi_head.parts = [
        [dict(type="ltpipe.StageSpy", name=name) for name in "abc"],
        dict(type="ltpipe.StageSpy", name="whole"),
    ]
    model = built(config)
    losses = losses_of(model, batch)
    head = model.roi_head
    for stage, (spy, weight) in enumerate(zip(head.parts[0], (1, 0.5, 0.25), strict=True)):
        (_, box_head, box), (_, mask_head, mask) = spy.seen
        assert box_head is head.bbox_head[stage] and mask_head is head.mask_head[stage]
        assert torch.equal(box_head.fc_cls(box.features), box.cls_score)
        assert torch.equal(mask_head.conv_logits(mask.features), mask.mask_preds)
        assert len(mask.labels) == len(mask.targets) and (box.labels <= CLASSES).all()
        if file == "cascade.py":
            assert len(mask.labels) == int((box.labels < CLASSES).sum())
        assert float(losses[f"s{stage}.loss_{spy.name}"]) == weight
        assert float(losses[f"s{stage}.loss_mask_{spy.name}"]) == 2 * weight
    assert not any("image" in key for key in losses if key[-1] in "abc"), "parts of a stage see no whole images"
    kinds = [kind for kind, *_ in head.parts[1].seen]
    assert kinds == ["box", "mask"] * 3 + ["image"] and head.parts[1].seen[-1][1] is head
    assert float(losses["loss_image_whole"]) == 3
    rois = [spy.seen[0][2].rois for spy in head.parts[0]]
    assert not any(len(rois[0]) == len(r) and torch.equal(rois[0], r) for r in rois[1:]), "later stages see other boxes"


def test_statistics_and_draws_differ_between_stages(project: Path, counts: ClassCounts, batch: dict[str, Any]) -> None:
    options = {"type": "fasa", "instance_prob_scale": 1000.0, "adapt_split": "val"}
    config = config_of(project, counts, "cascade.py", parts=[options], loss={"type": "group_softmax"})
    assert [head.loss_cls.seed for head in config.roi_head.bbox_head] == [0, 1, 2]
    model = built(with_seeded_samplers(config))
    parts = list(model.roi_head.parts[0])
    for part in parts:
        part.epoch = 1
    losses_of(model, batch)
    keys = [key for key in model.state_dict() if ".parts." in key]
    assert keys[0].startswith("roi_head.parts.0.0.") and keys[-1].startswith("roi_head.parts.0.2.")
    assert len({id(part) for part in parts}) == 3 and [part.seed for part in parts] == [0, 1, 2]
    assert not torch.equal(parts[0].mean, parts[1].mean) and not torch.equal(parts[1].mean, parts[2].mean)


# ---- methods ---------------------------------------------------------------------------------------------------------


def methods() -> Iterator[dict[str, Any]]:
    yield from ({"loss": {"type": kind}} for kind in ("eql", "group_softmax"))
    yield {"classifier": {"type": "normed_linear"}, "loss": {"type": "seesaw"}, "mask": {"type": "normed"}}
    yield {"classifier": {"type": "cosine"}, "mask": {"type": "weight_transfer"}}
    fasa = {"type": "fasa", "instance_prob_scale": 20.0, "adapt_split": "val"}
    yield {"loss": {"type": "iif"}, "parts": [fasa]}
    yield {"loss": {"type": "eqlv2"}, "parts": [{"type": "crat"}]}
    yield {"parts": [fasa, {"type": "crat", "mask_weights_from": "mask"}], "htc": True}
    yield {"loss": {"type": "seesaw"}, "htc": True}


def train_step(model: nn.Module, optimizer: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
    loss, logged = model.parse_losses(losses_of(model, batch))
    assert torch.isfinite(loss), logged
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return logged


@pytest.mark.parametrize("case", list(methods()), ids=lambda case: "-".join(str(value) for value in case.values())[:60])
def test_methods_train_resume_and_predict(
    project: Path, counts: ClassCounts, batch: dict[str, Any], case: dict[str, Any]
) -> None:
    chosen = {name: value for name, value in case.items() if name != "htc"}
    config = config_of(project, counts, "hybrid.py" if "htc" in case else "cascade.py", **chosen)
    class_wise(config)

    def fresh() -> tuple[nn.Module, Any]:
        model = built(with_seeded_samplers(config))
        for stages in model.roi_head.parts:
            for part in stages:
                part.epoch = 1
        return model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    model, optimizer = fresh()
    train_step(model, optimizer, batch)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    logged = train_step(model, optimizer, batch)
    names = {"fasa": "loss_fasa", "crat": "loss_mask_trans"}
    for part in chosen.get("parts", []):
        assert all(f"s{stage}.{names[part['type']]}" in logged for stage in range(3))
    resumed, other = fresh()
    resumed.load_state_dict(saved[0], strict=True)
    other.load_state_dict(saved[1])
    train_step(resumed, other, batch)
    for key, value in model.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    for sample in detections_of(model, batch):
        found = sample.pred_instances
        assert len(found) and int(found.labels.max()) < CLASSES and found.masks.shape[0] == len(found)
        assert 0 <= float(found.scores.min()) and float(found.scores.max()) <= 1


def test_outputs_of_the_stages_are_averaged_before_the_activation(
    project: Path, counts: ClassCounts, batch: dict[str, Any]
) -> None:
    """As in mmdet, SimCal, BAGS and IIF; the mean of the probabilities is another thing."""
    model = built(config_of(project, counts, "cascade.py", loss={"type": "group_softmax"})).eval()
    head = model.roi_head
    outputs: list[Tensor] = []
    for stage in head.bbox_head:
        stage.fc_cls.register_forward_hook(lambda _, inputs, output: outputs.append(output))
    with torch.no_grad():
        data = model.data_preprocessor(copy.deepcopy(batch), False)
        feats = model.extract_feat(data["inputs"])
        rpn = model.rpn_head.predict(feats, data["data_samples"], rescale=False)
        found = head.predict_bbox(feats, [s.metainfo for s in data["data_samples"]], rpn, None)
    scores = torch.cat([one.scores for one in found])
    mean = torch.stack(outputs).mean(dim=0)
    torch.testing.assert_close(scores, head.bbox_head[2].loss_cls.get_activation(mean))
    apart = torch.stack([head.bbox_head[2].loss_cls.get_activation(one) for one in outputs]).mean(dim=0)
    assert not torch.allclose(scores, apart, atol=1e-6)
    assert [one.priors.shape for one in found] == [one.bboxes.shape for one in found] == [(len(r), 4) for r in rpn]


@pytest.mark.parametrize("file", ["cascade.py", "hybrid.py"])
def test_one_run_serves_several_sets_of_scores(
    project: Path, counts: ClassCounts, batch: dict[str, Any], file: str
) -> None:
    model = built(config_of(project, counts, file)).eval()
    with torch.no_grad():
        data = model.data_preprocessor(copy.deepcopy(batch), False)
        feats = model.extract_feat(data["inputs"])
        samples = data["data_samples"]
        rpn = model.rpn_head.predict(feats, samples, rescale=False)
        for i, alone in enumerate(model.roi_head.predict(feats, copy.deepcopy(rpn), samples, rescale=True)):
            maps = tuple(level[i : i + 1] for level in feats)
            sets = model.roi_head.predict_rescored(
                maps, rpn[i], samples[i], lambda found: [found.scores, found.scores.flip(1)]
            )
            same, other = sets
            for key in ("bboxes", "scores", "labels", "masks"):
                assert torch.equal(same[key], alone[key]), key
            assert not torch.equal(same.labels, other.labels)


# ---- hybrid task cascades --------------------------------------------------------------------------------------------


def semantic(config: ConfigDict) -> None:
    """Add a semantic branch."""
    config.roi_head.update(
        semantic_roi_extractor=dict(
            type="SingleRoIExtractor",
            roi_layer=dict(type="RoIAlign", output_size=14, sampling_ratio=1),
            out_channels=16,
            featmap_strides=[8],
        ),
        semantic_head=dict(
            type="FusedSemanticHead",
            num_ins=4,
            fusion_level=1,
            num_convs=1,
            in_channels=16,
            conv_out_channels=16,
            num_classes=5,
            loss_seg=dict(type="CrossEntropyLoss", ignore_index=255, loss_weight=0.2),
        ),
    )


def test_the_semantic_branch_is_mmdets(project: Path, counts: ClassCounts, batch: dict[str, Any]) -> None:
    ours = config_of(project, counts, "hybrid.py")
    theirs = plain_config(ours, project / "hybrid.py")
    for config in (ours, theirs):
        semantic(config)
    plain, model = built(theirs), built(ours)
    model.load_state_dict(plain.state_dict(), strict=True)
    data = model.data_preprocessor(copy.deepcopy(batch), True)
    size = data["inputs"].shape[2]
    torch.manual_seed(3)
    for sample in data["data_samples"]:
        sample.gt_sem_seg = PixelData(sem_seg=torch.randint(0, 5, (1, size, size)))
    found = []
    for one in (plain, model):
        torch.manual_seed(7)
        found.append(one.train()(data["inputs"], copy.deepcopy(data["data_samples"]), mode="loss"))
    assert "loss_semantic_seg" in found[0]
    assert_same_losses(*found)
    for one, other in zip(detections_of(plain, batch), detections_of(model, batch), strict=True):
        assert len(one.pred_instances) > 0
        for key in ("bboxes", "scores", "labels"):
            assert torch.equal(one.pred_instances[key], other.pred_instances[key]), key


def test_masks_of_a_hybrid_cascade_are_the_mean_of_its_stages(
    project: Path, counts: ClassCounts, batch: dict[str, Any]
) -> None:
    model = built(config_of(project, counts, "hybrid.py")).eval()
    head = model.roi_head
    rois = torch.tensor([[0.0, 2, 3, 40, 30], [1.0, 5, 5, 60, 50]])
    with torch.no_grad():
        x = model.extract_feat(model.data_preprocessor(copy.deepcopy(batch), False)["inputs"])
        feats = head.mask_roi_extractor[2](x[:3], rois)
        first, flow = head.mask_head[0](feats)
        second, flow = head.mask_head[1](feats, flow)
        third, _ = head.mask_head[2](feats, flow)
        logits = head._mask_forward(-1, x, rois, training=False)["mask_preds"]
    for got, wanted in zip(logits, (first, second, third), strict=True):
        assert torch.equal(got, wanted)


# ---- empty batches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("boxes", [0, 5])
@pytest.mark.parametrize("file", ["cascade.py", "hybrid.py"])
def test_batches_without_rois_or_objects_report_the_same_losses(
    project: Path, counts: ClassCounts, batch: dict[str, Any], file: str, boxes: int
) -> None:
    model = built(config_of(project, counts, file, loss={"type": "seesaw"})).train()
    data = model.data_preprocessor(copy.deepcopy(batch), True)
    feats = model.extract_feat(data["inputs"])
    full = model.roi_head.loss(feats, proposals(20), data["data_samples"])
    bare = [without_objects(sample) for sample in data["data_samples"]]
    empty = model.roi_head.loss(feats, proposals(boxes), bare)
    assert {key for key in full if "loss" in key} == {key for key in empty if "loss" in key}
    assert all(torch.isfinite(value).all() for value in empty.values())
    total(empty).backward()
    assert [name for name, p in model.roi_head.named_parameters() if p.grad is None] == []


def proposals(count: int) -> list[InstanceData]:
    corners = torch.tensor([[0.0, 0.0, 24.0, 24.0]]).expand(count, 4) + torch.arange(count)[:, None]
    return [InstanceData(bboxes=corners.clone(), scores=torch.ones(count)) for _ in range(2)]


def without_objects(sample: DetDataSample) -> DetDataSample:
    empty = copy.deepcopy(sample)
    empty.gt_instances = empty.gt_instances[torch.zeros(0, dtype=torch.long)]
    return empty


@pytest.mark.parametrize("found", [(0, 0), (0, 4)])
def test_images_without_proposals_have_no_detections(
    project: Path, counts: ClassCounts, batch: dict[str, Any], found: tuple[int, int]
) -> None:
    model = built(config_of(project, counts, "cascade.py")).eval()
    with torch.no_grad():
        data = model.data_preprocessor(copy.deepcopy(batch), False)
        rpn = [proposals(count)[0] for count in found]
        results = model.roi_head.predict(model.extract_feat(data["inputs"]), rpn, data["data_samples"], rescale=True)
    for count, result in zip(found, results, strict=True):
        assert (len(result) > 0) == (count > 0) and result.masks.shape[0] == len(result)


def test_other_heads_in_a_stage_are_refused(project: Path, counts: ClassCounts) -> None:
    text = (project / "cascade.py").read_text().replace("Shared2FCBBoxHead", "DoubleConvFCBBoxHead")
    (project / "other_cascade.py").write_text(text)
    with pytest.raises(UserError, match="DoubleConvFCBBoxHead"):
        config_of(project, counts, "other_cascade.py")
