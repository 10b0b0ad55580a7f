"""Distillation: the loss, the part inside a RoI head, teachers, expansion end to end, two processes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ltpipe.engine.roi_heads import LTRoIHead
from ltpipe.errors import UserError
from ltpipe.methods.lst.distillation import (
    LSTDistillation,
    OnlineTeacherHook,
    box_similarities,
    distillation_loss,
    teacher_rows,
)
from ltpipe.methods.lst.expansion import expand_checkpoint
from ltpipe.methods.lst.teacher import TeacherLogits
from ltpipe.registry import MODELS
from tests.helpers.pairs import run_pair

OLD, NEW, CHANNELS, WIDTH = 3, 2, 4, 16


def head_config(classes: int, classifier: str = "ltpipe.CosineLinear", **options: Any) -> dict[str, Any]:
    extractor = dict(
        type="mmdet.SingleRoIExtractor",
        roi_layer=dict(type="RoIAlign", output_size=3, sampling_ratio=2),
        out_channels=CHANNELS,
        featmap_strides=[4],
    )
    return dict(
        type="ltpipe.LTRoIHead",
        bbox_roi_extractor=extractor,
        bbox_head=dict(
            type="ltpipe.LTBBoxHead",
            in_channels=CHANNELS,
            roi_feat_size=3,
            fc_out_channels=WIDTH,
            num_classes=classes,
            cls_predictor_cfg=dict(type=classifier),
        ),
        mask_roi_extractor=extractor,
        mask_head=dict(
            type="ltpipe.MaskXTransferHead",
            num_convs=1,
            in_channels=CHANNELS,
            conv_out_channels=CHANNELS,
            roi_feat_size=3,
            num_classes=classes,
            class_features=WIDTH,
            fusion_rank=2,
            loss_mask=dict(type="mmdet.CrossEntropyLoss", use_mask=True),
        ),
        **options,
    )


def roi_head(classes: int, seed: int = 0, classifier: str = "ltpipe.CosineLinear") -> LTRoIHead:
    torch.manual_seed(seed)
    return MODELS.build(ConfigDict(head_config(classes, classifier)))


def sample(image: int, labels: list[int], flip: bool = False) -> DetDataSample:
    made = DetDataSample(metainfo={"img_id": image, "flip": flip})
    corners = torch.rand(len(labels), 2, generator=torch.Generator().manual_seed(image)) * 20
    made.gt_instances = InstanceData(
        bboxes=torch.cat([corners, corners + 10], dim=1),
        labels=torch.tensor(labels, dtype=torch.int64),
        ann_ids=torch.arange(len(labels)) + 100 * image,
    )
    return made


SAMPLES = [sample(1, [0, 3, 4, 3]), sample(2, [1, 2]), sample(3, [4], flip=True)]


def maps(seed: int = 9, images: int = 3) -> tuple[torch.Tensor, ...]:
    return (torch.randn(images, CHANNELS, 8, 8, generator=torch.Generator().manual_seed(seed)),)


def stored(path: Path, teacher: LTRoIHead, feats: tuple[torch.Tensor, ...], flipped: tuple[torch.Tensor, ...]) -> str:
    rows = [teacher_rows(teacher, f, SAMPLES, OLD) for f in (feats, flipped)]
    TeacherLogits.collect(rows, OLD, dtype="float32").save(path / "teacher.npz")
    return str(path / "teacher.npz")


def part(path: str, **options: Any) -> LSTDistillation:
    return LSTDistillation(OLD, dict(type="ltpipe.CachedTeacher", path=path), **options)


def expanded(teacher: LTRoIHead) -> LTRoIHead:
    prefixed = {f"roi_head.{key}": value for key, value in teacher.state_dict().items()}
    grown = expand_checkpoint(prefixed, OLD, NEW, seed=1)
    student = roi_head(OLD + NEW, seed=2)
    student.load_state_dict({key.removeprefix("roi_head."): value for key, value in grown.items()})
    return student


def test_loss_equals_the_sum_written_out() -> None:
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    total = sum(float(student[b, j] - teacher[b, j]) ** 2 for b in range(3) for j in range(4))
    assert distillation_loss(student, teacher).item() == pytest.approx(total / 3, rel=1e-5)
    assert distillation_loss(student, teacher, 0.5, "mean_classes").item() == pytest.approx(total / 24, rel=1e-5)
    assert distillation_loss(student, student).item() == 0
    twice = distillation_loss(student.repeat(1, 2), teacher.repeat(1, 2))
    assert twice.item() == pytest.approx(2 * total / 3, rel=1e-5)
    half = distillation_loss(student.half(), teacher.half())
    assert half.dtype == torch.float32 and half.item() == pytest.approx(total / 3, rel=1e-2)


def test_loss_without_boxes_is_a_zero_with_a_gradient() -> None:
    student = torch.zeros(0, 4, requires_grad=True)
    loss = distillation_loss(student, torch.zeros(0, 4))
    loss.backward()
    assert loss.item() == 0 and student.grad is not None


def test_similarities_of_boxes_are_those_of_their_features() -> None:
    head, feats = roi_head(OLD), maps()
    boxes = [s.gt_instances.bboxes for s in SAMPLES]
    got = box_similarities(head, feats, boxes)
    first = 0
    for i, one in enumerate(boxes):
        rois = torch.cat([torch.full((len(one), 1), float(i)), one], dim=1)
        x, _ = head.bbox_head.predictor_inputs(head._bbox_forward(feats, rois)["bbox_feats"])
        w = head.bbox_head.fc_cls.weight
        expected = torch.stack([torch.cosine_similarity(x, row[None]) for row in w], dim=1)
        torch.testing.assert_close(got[first : first + len(one)], expected, rtol=1e-4, atol=1e-5)
        first += len(one)
    linear = roi_head(OLD, classifier="mmdet.Linear")
    rois = torch.cat([torch.zeros(4, 1), boxes[0]], dim=1)
    torch.testing.assert_close(
        box_similarities(linear, feats, boxes[:1]), linear._bbox_forward(feats, rois)["cls_score"]
    )


def test_part_equals_a_naive_loop(tmp_path: Path) -> None:
    teacher, student, plain, flipped = roi_head(OLD), roi_head(OLD + NEW, seed=4), maps(), maps(10)
    path = stored(tmp_path, teacher, plain, flipped)
    loss = part(path).image_losses(student, maps(11), SAMPLES)["loss_distill"]
    total, boxes = 0.0, 0
    for i, s in enumerate(SAMPLES):
        seen = flipped if s.flip else plain
        for box, label in zip(s.gt_instances.bboxes, s.gt_instances.labels, strict=True):
            if label < OLD:
                continue
            t = box_similarities(teacher, [f[i : i + 1] for f in seen], [box[None]])[0, :OLD]
            z = box_similarities(student, [f[i : i + 1] for f in maps(11)], [box[None]])[0, :OLD]
            total, boxes = total + float(((t - z) ** 2).sum().detach()), boxes + 1
    assert boxes == 4 and loss.item() == pytest.approx(total / boxes, rel=1e-4)


def test_only_old_rows_and_the_shared_layers_learn(tmp_path: Path) -> None:
    path = stored(tmp_path, roi_head(OLD), maps(), maps(10))
    student = roi_head(OLD + NEW, seed=4)
    part(path).image_losses(student, maps(11), SAMPLES)["loss_distill"].backward()
    grad = student.bbox_head.fc_cls.weight.grad
    assert (grad[:OLD].abs().sum(1) > 0).all() and (grad[OLD:] == 0).all()
    assert student.bbox_head.fc_cls.scale.grad is None
    assert student.bbox_head.shared_fcs[0].weight.grad.abs().sum() > 0
    before = part(path).image_losses(student, maps(11), SAMPLES)["loss_distill"].item()
    with torch.no_grad():
        student.bbox_head.fc_cls.weight[OLD:] += 1
        student.bbox_head.fc_cls.scale += 5
    assert part(path).image_losses(student, maps(11), SAMPLES)["loss_distill"].item() == before


def test_batches_without_new_classes_report_the_same_key(tmp_path: Path) -> None:
    path = stored(tmp_path, roi_head(OLD), maps(), maps(10))
    student = roi_head(OLD + NEW, seed=4)
    losses = part(path).image_losses(student, maps(11, 1), [sample(2, [1, 2])])
    assert list(losses) == ["loss_distill"] and losses["loss_distill"].item() == 0
    losses["loss_distill"].backward()


def test_mixed_precision_compares_in_float32(tmp_path: Path) -> None:
    teacher = roi_head(OLD)
    path = stored(tmp_path, teacher, maps(), maps(10))
    student = roi_head(OLD + NEW, seed=4)
    exact = part(path).image_losses(student, maps(11), SAMPLES)["loss_distill"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = part(path).image_losses(student, maps(11), SAMPLES)["loss_distill"]
    assert mixed.dtype == torch.float32 and mixed.item() == pytest.approx(exact.item(), rel=0.1)


def test_right_after_expansion_nothing_is_lost(tmp_path: Path) -> None:
    teacher = roi_head(OLD).eval()
    student = expanded(teacher)
    path = stored(tmp_path, teacher, maps(), maps(10))
    mixed = (torch.stack([maps()[0][0], maps()[0][1], maps(10)[0][2]]),)  # image 3 is a flipped one
    assert part(path).image_losses(student, mixed, SAMPLES)["loss_distill"].item() < 1e-6
    rois = torch.tensor([[0.0, 1, 2, 20, 25], [1, 4, 4, 30, 12]])
    old, new = teacher._bbox_forward(maps(), rois), student._bbox_forward(maps(), rois)
    torch.testing.assert_close(new["cls_score"][:, [0, 1, 2, OLD + NEW]], old["cls_score"], rtol=0, atol=1e-6)
    torch.testing.assert_close(new["bbox_pred"][:, : 4 * OLD], old["bbox_pred"], rtol=0, atol=1e-6)
    for label in range(OLD):
        masks = []
        for head in (student, teacher):
            with head.labelled([torch.full((2,), label)]):
                masks.append(head._mask_forward(maps(), rois)["mask_preds"])
        torch.testing.assert_close(*masks, rtol=0, atol=1e-6)


class Detector(nn.Module):
    """A detector of one convolution."""

    def __init__(self, roi_head: dict[str, Any]) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, CHANNELS, 4, stride=4)
        self.roi_head = MODELS.build(ConfigDict(roi_head))

    def extract_feat(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.backbone(images),)


@pytest.fixture
def previous(tmp_path: Path) -> tuple[Detector, dict[str, Any]]:
    """The previous detector, and the config of a teacher made from its files."""
    MODELS.register_module(name="TinyDetector", module=Detector, force=True)
    torch.manual_seed(0)
    detector = Detector(head_config(OLD))
    parts = [dict(type="ltpipe.LSTDistillation", num_old=1, teacher=dict(type="ltpipe.CachedTeacher", path="gone.npz"))]
    model = dict(type="ltpipe.TinyDetector", roi_head=head_config(OLD, parts=parts))
    torch.save({"state_dict": detector.state_dict()}, tmp_path / "model.pth")
    yield detector, dict(type="ltpipe.OnlineTeacher", model=model, checkpoint=str(tmp_path / "model.pth"))
    MODELS._module_dict.pop("TinyDetector")


def test_online_teacher_sees_the_students_images(previous: tuple[Detector, dict[str, Any]]) -> None:
    detector, teacher = previous
    student = Detector(
        head_config(OLD + NEW, parts=[dict(type="ltpipe.LSTDistillation", num_old=OLD, teacher=teacher)])
    )
    OnlineTeacherHook().before_train(SimpleNamespace(model=student))
    images = torch.randn(3, 3, 32, 32)
    feats = student.extract_feat(images)
    loss = student.roi_head.parts[0].image_losses(student.roi_head, feats, SAMPLES)["loss_distill"]
    picked = [s.gt_instances.bboxes[s.gt_instances.labels >= OLD] for s in SAMPLES]
    expected = distillation_loss(
        box_similarities(student.roi_head, feats, picked)[:, :OLD],
        box_similarities(detector.roi_head, detector.extract_feat(images), picked)[:, :OLD],
    )
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert not any("teacher" in name for name, _ in student.named_parameters())
    none = student.roi_head.parts[0].image_losses(student.roi_head, feats, [sample(2, [1, 2])])
    assert list(none) == ["loss_distill"] and none["loss_distill"].item() == 0


def test_online_teacher_refuses_a_checkpoint_of_another_detector(
    tmp_path: Path, previous: tuple[Detector, dict[str, Any]]
) -> None:
    state = previous[0].state_dict()
    scale = state.pop("roi_head.bbox_head.fc_cls.scale")
    for damaged in (state, {**state, "roi_head.bbox_head.fc_cls.scale": scale * float("nan")}):
        torch.save({"state_dict": damaged}, tmp_path / "model.pth")
        part = LSTDistillation(OLD, previous[1])
        with pytest.raises(UserError, match="fc_cls.scale"):
            _ = part.teacher.detector


class Student(nn.Module):
    """Only the distillation, and a term that keeps every parameter in the graph."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.head, self.part = roi_head(OLD + NEW, seed=4), part(path)

    def forward(self, feats: tuple[torch.Tensor, ...], samples: list[DetDataSample]) -> dict[str, torch.Tensor]:
        losses = self.part.image_losses(self.head, feats, samples)
        return {**losses, "loss_rest": sum(p.sum() for p in self.parameters()) * 0.01}


def gradients(rank: int, path: str, wrap: bool) -> dict[str, Any]:
    """Gradients of a step in which only process 0 has boxes of new classes."""
    student = Student(path)
    model = DistributedDataParallel(student) if wrap else student
    mine = [SAMPLES[:1], SAMPLES[1:2]][rank]
    losses = model(tuple(f[rank : rank + 1] for f in maps(11)), mine)
    sum(losses.values()).backward()
    return {"keys": sorted(losses), "grads": {name: p.grad for name, p in student.named_parameters()}}


def test_two_processes_report_the_same_keys_and_average_local_losses(tmp_path: Path) -> None:
    path = stored(tmp_path, roi_head(OLD), maps(), maps(10))
    (tmp_path / "pair").mkdir()
    got = run_pair(tmp_path / "pair", gradients, path, True)
    assert got[0]["keys"] == got[1]["keys"] == ["loss_distill", "loss_rest"]
    alone = [gradients(rank, path, False)["grads"] for rank in range(2)]
    for name, grad in got[0]["grads"].items():
        torch.testing.assert_close(grad, got[1]["grads"][name])
        torch.testing.assert_close(grad, (alone[0][name] + alone[1][name]) / 2)
