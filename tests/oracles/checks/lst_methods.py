"""LST on the torch side: classifier, mask transfer, RoI sampling, distillation, expansion, conversion, schedule.

Source layout: label 0 is background, rows and columns of background come first; converted before every comparison.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.models.task_modules.assigners import AssignResult
from mmdet.models.task_modules.samplers import RandomSampler
from mmdet.structures import DetDataSample
from mmengine.optim import LinearLR, MultiStepLR
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional as F

from ltpipe.convert.lst import background_first, background_last, convert_state_dict, rename_key, trim_class_layers
from ltpipe.engine.heads import LTBBoxHead
from ltpipe.engine.schedule import warmup_multistep
from ltpipe.methods.cosine import CosineLinear
from ltpipe.methods.lst_distill import distillation_loss, new_class_boxes
from ltpipe.methods.lst_expand import expand_checkpoint
from ltpipe.methods.lst_freeze import FROZEN_STAGES, freeze
from ltpipe.methods.lst_sampler import ClassRestrictedSampler, paired_positives
from ltpipe.methods.lst_teacher import CachedTeacher, TeacherLogits, read_legacy_json, write_legacy_json
from ltpipe.methods.meta_weight import MetaWeightGenerator
from ltpipe.methods.weight_transfer import MaskXTransferHead
from ltpipe.registry import MODELS

METHOD = "lst"
CLS = "module.roi_heads.box.predictor.cls_score.weight"
REG = "module.roi_heads.box.predictor.bbox_pred."


def load(path: Path) -> dict[str, np.ndarray]:
    """Return all arrays of an npz file."""
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def tensor(array: np.ndarray) -> Tensor:
    """Return an array as a tensor, float16 widened."""
    return torch.from_numpy(np.array(array, np.float32 if array.dtype == np.float16 else array.dtype))


def near(ours: Any, theirs: np.ndarray, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """Assert equality within the README's tolerance."""
    ours = ours.detach().numpy() if isinstance(ours, Tensor) else np.asarray(ours)
    np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=atol)


def cosine(weight: Tensor, scale: Tensor) -> CosineLinear:
    """Return our classifier with the source's rows (background first) and scale."""
    layer = CosineLinear(weight.shape[1], len(weight))
    layer.load_state_dict({"weight": background_last(weight), "scale": scale})
    return layer


def check_cosine(path: Path) -> None:
    """Scores, box deltas, their losses and gradients."""
    d = load(path)
    weight = tensor(d["cls_weight"])
    head = LTBBoxHead(
        num_classes=len(weight) - 1,
        fc_out_channels=weight.shape[1],
        in_channels=1,
        roi_feat_size=1,
        cls_predictor_cfg=dict(type="ltpipe.CosineLinear"),
    )
    head.fc_cls = cosine(weight, tensor(d["scale"]))
    head.fc_reg.load_state_dict({"weight": tensor(d["bbox_weight"])[4:], "bias": tensor(d["bbox_bias"])[4:]})
    # The file starts at the second hidden layer's output, so that layer becomes the identity.
    x = tensor(d["x"]).requires_grad_()
    head.shared_fcs[0], head.shared_fcs[1] = nn.Identity(), _Return(x)
    scores, deltas = head(torch.zeros(len(x), 1, 1, 1))
    near(background_first(scores.T).T, d["scores"])
    near(deltas, d["bbox_deltas"][:, 4:])
    near(background_first(head.probabilities(scores).T).T, d["softmax"])
    labels = (tensor(d["labels"]) - 1) % len(weight)
    ce = F.cross_entropy(scores, labels)
    near(ce, d["ce"])
    # The source's loss also sums the deltas of the background class, which ours does not predict.
    background = F.linear(F.relu(x), tensor(d["bbox_weight"])[:4], tensor(d["bbox_bias"])[:4])
    (ce + 0.01 * ((deltas**2).sum() + (background**2).sum())).backward()
    near(x.grad, d["grad_x"])
    near(background_first(head.fc_cls.weight.grad), d["grad_cls_weight"])
    near(head.fc_cls.scale.grad, d["grad_scale"])
    near(head.fc_reg.weight.grad, d["grad_bbox_weight"][4:])


class _Return(nn.Module):
    """A layer with a fixed output."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, _: Tensor) -> Tensor:
        return self.value


def check_box_loss(path: Path) -> None:
    """Classification and regression loss of the box head, with gradients."""
    d = load(path)
    logits = tensor(d["class_logits"])
    classes, agnostic = logits.shape[1] - 1, bool(d["cls_agnostic"])
    head = LTBBoxHead(num_classes=classes, fc_out_channels=4, in_channels=1, roi_feat_size=1, reg_class_agnostic=agnostic)
    scores = background_last(logits.T).T.clone().requires_grad_()
    deltas = tensor(d["box_regression"])[:, -4 if agnostic else 4 :].clone().requires_grad_()
    labels = (tensor(d["labels"]) - 1) % (classes + 1)
    inside = (labels < classes)[:, None].expand(-1, 4).float()
    targets = tensor(d["regression_targets"]) * inside
    losses = head.loss(scores, deltas, torch.zeros(len(labels), 5), labels, torch.ones(len(labels)), targets, inside)
    near(losses["loss_cls"], d["loss_classifier"])
    near(losses["loss_bbox"], d["loss_box_reg"])
    if "grad_logits" in d:
        (losses["loss_cls"] + losses["loss_bbox"]).backward()
        near(background_first(scores.grad.T).T, d["grad_logits"])
        near(deltas.grad, d["grad_box"][:, -4 if agnostic else 4 :])


def _source_checkpoint(cls: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> dict[str, Tensor]:
    return {CLS: tensor(cls), f"{REG}weight": tensor(weight), f"{REG}bias": tensor(bias)}


def check_expand(path: Path) -> None:
    """Shapes, kept rows and statistics of the new rows."""
    d = load(path)
    base, step, phase = (int(d[key]) for key in ("base_size", "step_size", "step"))
    old, new = base + step * (phase - 1), step
    if "in_cls_score_weight" in d:
        source, target = (
            _source_checkpoint(*(d[f"{side}_{name}"] for name in ("cls_score_weight", "bbox_pred_weight", "bbox_pred_bias")))
            for side in ("in", "out")
        )
        assert len(source[CLS]) == old + 1
    else:
        rows, width = d["in_cls_weight_shape"].tolist()
        assert rows == old + 1
        draw = torch.Generator().manual_seed(0)
        source = _source_checkpoint(
            torch.randn(rows, width, generator=draw).numpy(),
            torch.randn(4 * rows, width, generator=draw).numpy(),
            torch.randn(4 * rows, generator=draw).numpy(),
        )
        source["module.roi_heads.box.predictor.scale_cls"] = tensor(d["scale_cls"])
        source["module.roi_heads.bbox2mask.0.bias"] = torch.zeros(width)
        target = None
    ours = expand_checkpoint(before := convert_state_dict(source), old, new, seed=0)
    cls, reg, bias = (ours[f"roi_head.bbox_head.{k}"] for k in ("fc_cls.weight", "fc_reg.weight", "fc_reg.bias"))
    for key in before.keys() - {f"roi_head.bbox_head.{k}" for k in ("fc_cls.weight", "fc_reg.weight", "fc_reg.bias")}:
        assert torch.equal(ours[key], before[key])
    added = {"cls": cls[old:-1], "bbox": reg[4 * old :], "bias": bias[4 * old :]}
    if target is not None:
        theirs = convert_state_dict(target)
        for key, value in theirs.items():
            assert ours[key].shape == value.shape
        keep = torch.tensor([*range(old), old + new])
        assert torch.equal(cls[keep], theirs["roi_head.bbox_head.fc_cls.weight"][keep])
        assert torch.equal(reg[: 4 * old], theirs["roi_head.bbox_head.fc_reg.weight"][: 4 * old])
        assert torch.equal(bias, theirs["roi_head.bbox_head.fc_reg.bias"])
        expected = {"cls": float(target[CLS][-new:].std()), "bbox": float(target[f"{REG}weight"][-4 * new :].std())}
    else:
        assert list(cls.shape) == d["out_cls_weight_shape"].tolist()
        assert [len(reg) + 4, reg.shape[1]] == d["out_bbox_weight_shape"].tolist()
        assert [len(bias) + 4] == d["out_bbox_bias_shape"].tolist()
        assert ours.keys() == {rename_key(str(key)) for key in d["out_model_keys"]}
        assert bool(d["old_rows_preserved"])
        assert torch.equal(background_first(cls)[: old + 1], source[CLS])
        assert torch.equal(reg[: 4 * old], source[f"{REG}weight"][4:])
        assert float(added["bias"].abs().max()) == float(d["new_bbox_bias_abs_max"])
        expected = {"cls": float(d["new_cls_std"]), "bbox": float(d["new_bbox_std"])}
    for name, std in expected.items():
        size = added[name].numel()
        # Both are samples of the same normal distribution: five standard errors of a standard deviation.
        near(added[name].std(), std, rtol=5 / size**0.5 + 1e-3, atol=0)
        near(added[name].mean(), 0.0, rtol=0, atol=5 * std / size**0.5)


def check_trim(path: Path) -> None:
    """Which keys remain of the COCO checkpoint."""
    d = load(path)
    checkpoint = {"model": {str(k): torch.zeros(1) for k in d["in_model_keys"]}, "optimizer": {}, "iteration": 7}
    trimmed = trim_class_layers(checkpoint)
    assert sorted(trimmed) == sorted(d["out_top_level_keys"].tolist())
    assert sorted(trimmed["model"]) == sorted(d["out_model_keys"].tolist())


def _sample(image: int, flip: Any, labels: Tensor, ann_ids: Tensor, boxes: Tensor | None = None) -> DetDataSample:
    """Return a data sample with 0-based labels."""
    sample = DetDataSample(metainfo={"img_id": image, "flip": bool(flip)})
    boxes = torch.zeros(len(labels), 4) if boxes is None else boxes
    sample.gt_instances = InstanceData(bboxes=boxes, labels=labels, ann_ids=ann_ids)
    return sample


def _teacher(store: TeacherLogits, num_old: int, tmp: Path | None = None, missing: str = "error") -> CachedTeacher:
    """Return a teacher that answers from ``store`` without a file."""
    teacher = CachedTeacher("unused", num_old, missing=missing)
    teacher.__dict__["store"] = store
    return teacher


def check_distill_loss(path: Path) -> None:
    """The rows chosen by flip, the loss and its gradients."""
    d = load(path)
    counts, flips, old = d["boxes_per_image"].tolist(), d["flips"].tolist(), int(d["num_old"])
    images, ann_ids = np.arange(len(counts)), np.arange(sum(counts))
    owner = np.repeat(images, counts)
    passes = [
        [(int(i), ann_ids[owner == i], ann_ids[owner == i] * 0 + old, d[key][owner == i][:, 1:]) for i in images]
        for key in ("teacher_noflip", "teacher_flip")
    ]
    store = TeacherLogits.collect(passes, old, dtype="float32")
    samples = [
        _sample(i, flips[i], torch.full((counts[i],), old), torch.from_numpy(ann_ids[owner == i])) for i in images.tolist()
    ]
    picked = [new_class_boxes(s.gt_instances.labels, old) for s in samples]
    teacher = torch.cat([t for t in _teacher(store, old).targets(samples, picked) if t is not None])
    near(teacher, d["teacher_used"][:, 1:])
    classifier, x = cosine(tensor(d["cls_weight"]), tensor(d["scale"])), tensor(d["x"]).requires_grad_()
    loss = distillation_loss(classifier.similarities(x)[:, :old], teacher)
    near(loss, d["loss"])
    loss.backward()
    near(x.grad, d["grad_x"])
    near(background_first(classifier.weight.grad), d["grad_cls_weight"])
    assert (classifier.scale.grad is None) == bool(d["grad_scale_is_none"])


def check_distill_gating(path: Path) -> None:
    """Which images and which of their boxes are distilled."""
    d = load(path)
    old, n = int(d["num_old"]), int(d["n_images"])
    samples, stored, first = [], [], 0
    for i in range(n):
        labels, image = tensor(d[f"i{i}_labels"]) - 1, int(d[f"i{i}_img_id"])
        ann_ids = torch.arange(first, first := first + len(labels))
        samples.append(_sample(image, d[f"i{i}_flip"], labels, ann_ids, tensor(d[f"i{i}_boxes"])))
        if d[f"i{i}_has_logits"]:
            new = new_class_boxes(labels, old)
            stored.append((image, ann_ids[new].numpy(), labels[new].numpy(), np.zeros((len(new), old))))
    store = TeacherLogits.collect([stored, stored], old)
    picked = [new_class_boxes(s.gt_instances.labels, old) for s in samples]
    targets = _teacher(store, old, missing="skip").targets(samples, picked)
    distilled = [i for i, target in enumerate(targets) if target is not None]
    assert [samples[i].img_id for i in distilled] == d["distilled_img_ids"].tolist()
    assert [int(samples[i].flip) for i in distilled] == d["distilled_flips"].tolist()
    for k, i in enumerate(distilled):
        gt = samples[i].gt_instances[picked[i]]
        assert (gt.labels + 1).tolist() == d[f"d{k}_labels"].tolist()
        near(gt.bboxes, d[f"d{k}_boxes"])
    assert ("loss_distill" in d["loss_keys"].tolist()) == bool(distilled)


def _teacher_passes(d: dict[str, np.ndarray]) -> list[list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]]:
    """Return our similarities of both passes, all columns, background last."""
    old = int(d["num_old"])
    classifier = cosine(tensor(d["cls_weight"]), tensor(d["scale"]))
    passes: list[list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]] = [[], []]
    for f in range(2):
        for i in range(int(d["n_images"])):
            labels = tensor(d[f"f{f}_i{i}_labels"]) - 1
            new = new_class_boxes(labels, old)
            values = classifier.similarities(tensor(d[f"f{f}_i{i}_feat"])[new]).detach().numpy()
            assert (labels[new] + 1).tolist() == d[f"f{f}_i{i}_kept_labels"].tolist()
            near(d[f"f{f}_i{i}_boxes"][new.numpy()], d[f"f{f}_i{i}_kept_boxes"])
            ann_ids = 1000 * i + np.arange(len(labels))[new.numpy()]
            passes[f].append((int(d["img_ids"][i]), ann_ids, labels[new].numpy(), values))
    return passes


def check_teacher(path: Path) -> None:
    """Similarities of both passes, and their way through the store."""
    d = load(path)
    old, passes = int(d["num_old"]), _teacher_passes(d)
    store = TeacherLogits.collect(passes, old, dtype="float32")
    for f in range(2):
        for i, (image, _, _, values) in enumerate(passes[f]):
            theirs = d[f"f{f}_i{i}_logits"]
            near(np.roll(values, 1, axis=1), theirs)
            rows = store.rows(image)
            if rows is not None:
                near(store.logits[f, rows], theirs[:, 1:])
            else:
                assert len(theirs) == 0


def check_legacy_json(path: Path) -> None:
    """The JSON layout is read and written back number for number; where its sources are at hand, recomputed."""
    plain, flipped = json.loads(path.read_text())
    boxes = {int(k): ([10 * int(k) + j for j in range(len(v))], [0] * len(v)) for k, v in plain.items()}
    store = read_legacy_json(path, boxes, dtype="float64")
    scratch = Path(_scratch()) / "rewritten.json"
    write_legacy_json(store, scratch)
    assert json.loads(scratch.read_text()) == [plain, flipped]
    for f, part in enumerate((plain, flipped)):
        for image, rows in part.items():
            assert store.logits[f, store.rows(int(image))].tolist() == [row[1:] for row in rows]
    for sibling in sorted(path.parent.glob("teacher_logits*.npz")):
        d = load(sibling)
        if set(map(str, d["img_ids"].tolist())) == set(plain) and int(d["num_old"]) == store.logits.shape[2]:
            for f, passed in enumerate(_teacher_passes(d)):
                for image, _, _, values in passed:
                    near(np.roll(values, 1, axis=1), np.array([plain, flipped][f][str(image)]).reshape(values.shape))


def _scratch() -> str:
    import tempfile

    return tempfile.mkdtemp()


def check_schedule(path: Path) -> None:
    """mmengine's schedulers, built from our dicts, give the source's rate at every iteration."""
    d = load(path)
    rates = d["lr_at_iteration"]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=float(d["base_lr"]))
    configs = warmup_multistep(
        iterations=len(rates),
        warmup_iterations=int(d["warmup_iters"]),
        warmup_factor=float(d["warmup_factor"]),
        drops=d["milestones"].tolist(),
        gamma=float(d.get("gamma", 0.1)),
    )
    kinds = {"LinearLR": LinearLR, "MultiStepLR": MultiStepLR}
    schedulers = [kinds[config.pop("type")](optimizer, **config) for config in configs]
    ours = []
    for _ in rates:
        ours.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    near(ours, rates)


def check_mask_transfer(path: Path) -> None:
    """Filters, logits of all classes and of each RoI's own class, gradient to the classifier rows."""
    d = load(path)
    cls_weight = background_last(tensor(d["cls_weight"])).requires_grad_()
    x = tensor(d["x"])
    full = "mlp_u" in d
    head = MaskXTransferHead(
        num_convs=0,
        in_channels=x.shape[1],
        conv_out_channels=x.shape[1],
        roi_feat_size=x.shape[2],
        num_classes=len(cls_weight) - 1,
        class_features=cls_weight.shape[1],
        # The full branch of the file has 157 million weights of rank one: the low-rank branch holds them exactly.
        fusion="small" if full else "none",
        fusion_rank=1,
    )
    state = {
        "weight_transfer.0.weight": tensor(d["t0_weight"]),
        "weight_transfer.0.bias": tensor(d["t0_bias"]),
        "weight_transfer.2.weight": tensor(d["t2_weight"]),
        "weight_transfer.2.bias": tensor(d["t2_bias"]),
        "upsample.weight": tensor(d["deconv_weight"]),
        "upsample.bias": tensor(d["deconv_bias"]),
    }
    if full:
        state["mlp_fusion.0.weight"] = tensor(d["mlp_v"])[None]
        state["mlp_fusion.1.weight"] = tensor(d["mlp_u"])[:, None]
        state["mlp_fusion.1.bias"] = tensor(d["mlp_bias"])
    head.load_state_dict(state)
    near(background_first(head.class_filters(cls_weight)), d["mask_weights"], rtol=1e-3)
    logits = head(x, cls_weight)
    near(background_first(logits.transpose(0, 1)).transpose(0, 1), d["mask_logits"], rtol=1e-3)
    labels = torch.arange(len(x)) % (len(cls_weight) - 1)
    own = np.stack([d["mask_logits"][n, 1 + label] for n, label in enumerate(labels.tolist())])
    near(head(x, cls_weight, labels)[:, 0], own, rtol=1e-3)
    (logits**2).mean().backward()
    near(background_first(cls_weight.grad), d["grad_cls_weight"], rtol=1e-3)


def check_generator(path: Path) -> None:
    """The generated row, its gradients, and the default initialisation."""
    d = load(path)
    base = tensor(d["base_weight"]).requires_grad_()
    features = tensor(d["features"]).requires_grad_()
    generator = MetaWeightGenerator(base.shape[1], len(base))
    state = {"keys": tensor(d["keys"]), "scale": tensor(d["scale_att"])}
    for ours, theirs in (("average", "fc_avg"), ("attended", "fc_att"), ("query", "query")):
        state |= {f"{ours}.{name}": tensor(d[f"{theirs}_{name}"]) for name in ("weight", "bias")}
    generator.load_state_dict(state)
    row = generator(features, base)
    near(row, d["novel_weight"])
    near(torch.autograd.grad(row.sum(), features, retain_graph=True)[0], d["grad_features"])
    near(torch.autograd.grad(row.sum(), base)[0], d["grad_base_weight"])


def check_sampler(path: Path) -> None:
    """Candidates and counts with and without the restriction, over several cases."""
    d = load(path)
    options = dict(num=int(d["batch_size_per_image"]), pos_fraction=float(d["positive_fraction"]), add_gt_as_proposals=False)
    for j in range(int(d["n_cases"])):
        case = {key.removeprefix(f"c{j}_"): value for key, value in d.items() if key.startswith(f"c{j}_")}
        source, target = tensor(case["labels"]), int(case["target"]) - 1
        labels, foreground = source - 1, source > 0
        candidates = paired_positives(labels, foreground, target)
        assert candidates.tolist() == case["pos_candidates"].tolist()
        assert bool(case["fallback"]) == (not bool((foreground & (labels == target)).any()))
        torch.manual_seed(int(case["torch_seed"]))
        for sampler, positives, negatives in (
            (ClassRestrictedSampler(**options), int(case["pos_mask"].sum()), int(case["neg_mask"].sum())),
            (RandomSampler(**options), int(case["plain_num_pos"]), int(case["plain_num_neg"])),
        ):
            assigned = AssignResult(1, torch.where(foreground, 1, source.clamp(max=0)), torch.zeros(len(source)), labels)
            gt = InstanceData(bboxes=torch.zeros(1, 4), labels=torch.tensor([target]), metainfo={"replay_label": target})
            drawn = sampler.sample(assigned, InstanceData(priors=torch.zeros(len(source), 4)), gt)
            assert (len(drawn.pos_inds), len(drawn.neg_inds)) == (positives, negatives)
            assert bool((source[drawn.neg_inds] == 0).all())
            if isinstance(sampler, ClassRestrictedSampler):
                assert set(drawn.pos_inds.tolist()) <= set(case["pos_candidates"].tolist())


def _detector(classes: int, width: int, fusion: str) -> nn.Module:
    """Return the LST detector (ResNet-50, FPN) without memory behind its weights."""
    model = dict(
        type="mmdet.MaskRCNN",
        backbone=dict(type="mmdet.ResNet", depth=50, norm_cfg=dict(type="BN", requires_grad=False), style="caffe"),
        neck=dict(type="mmdet.FPN", in_channels=[256, 512, 1024, 2048], out_channels=256, num_outs=5),
        rpn_head=dict(
            type="mmdet.RPNHead",
            in_channels=256,
            feat_channels=256,
            anchor_generator=dict(type="mmdet.AnchorGenerator", scales=[8], ratios=[0.5, 1, 2], strides=[4, 8, 16, 32, 64]),
            bbox_coder=dict(type="mmdet.DeltaXYWHBBoxCoder"),
            loss_cls=dict(type="mmdet.CrossEntropyLoss", use_sigmoid=True),
            loss_bbox=dict(type="mmdet.L1Loss"),
        ),
        roi_head=dict(
            type="ltpipe.LTRoIHead",
            bbox_roi_extractor=_extractor(7),
            bbox_head=dict(
                type="ltpipe.LTBBoxHead",
                in_channels=256,
                roi_feat_size=7,
                fc_out_channels=width,
                num_classes=classes,
                cls_predictor_cfg=dict(type="ltpipe.CosineLinear"),
            ),
            mask_roi_extractor=_extractor(14),
            mask_head=dict(
                type="ltpipe.MaskXTransferHead",
                num_convs=4,
                num_classes=classes,
                class_features=width,
                fusion=fusion,
                loss_mask=dict(type="mmdet.CrossEntropyLoss", use_mask=True),
            ),
        ),
    )
    with torch.device("meta"):
        return MODELS.build(model)


def _extractor(size: int) -> dict[str, Any]:
    layer = dict(type="RoIAlign", output_size=size, sampling_ratio=2)
    strides = [4, 8, 16, 32]
    return dict(type="mmdet.SingleRoIExtractor", roi_layer=layer, out_channels=256, featmap_strides=strides)


def check_keys(path: Path) -> None:
    """Every source key has its place, with the same shape, in our detector; the same parameters train."""
    content = json.loads(path.read_text())
    shapes = content["state_dict"]
    source = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    converted = convert_state_dict(source)
    rows, width = next(shape for key, shape in shapes.items() if key.endswith("cls_score.weight"))
    fusion = "full" if any("MLP_mask" in key for key in shapes) else "none"
    detector = _detector(rows - 1, width, fusion)
    ours = {k: list(v.shape) for k, v in detector.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert Counter({k: tuple(v.shape) for k, v in converted.items()}) == Counter({k: tuple(v) for k, v in ours.items()})
    if "trainable" not in content:
        return
    frozen = {rename_key(key) for key in content["frozen_parameters"]}
    reached = max((key.split(".")[1] for key in frozen if key.startswith("backbone.layer")), default=None)
    freeze(detector, reached or ("stem" if frozen else "none"))
    trained = {name for name, p in detector.named_parameters() if p.requires_grad}
    assert trained == {rename_key(key) for key in content["trainable"]}
    assert frozen.isdisjoint(trained) and (reached is None or reached in FROZEN_STAGES)


CHECKS = {
    "box_head_loss": check_box_loss,
    "checkpoint_expand_": check_expand,
    "checkpoint_trim_": check_trim,
    "cosine_predictor": check_cosine,
    "distill_gating": check_distill_gating,
    "distill_loss": check_distill_loss,
    "distilled_logits": check_legacy_json,
    "lr_schedule": check_schedule,
    "mask_transfer": check_mask_transfer,
    "mwg_forward": check_generator,
    "roi_class_sampler": check_sampler,
    "state_dict_keys": check_keys,
    "teacher_logits": check_teacher,
}
