"""LST's heads: cosine classifier, box losses, mask transfer, weight generator, RoI sampling.

Source layout: label 0 is background, and its rows and columns come first; converted before every comparison.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from mmdet.models.task_modules.assigners import AssignResult
from mmdet.models.task_modules.samplers import RandomSampler
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional as F

from ltpipe.engine.box_heads import LTBBoxHead
from ltpipe.interop.layout import background_last
from ltpipe.methods.lst.roi_sampler import ClassRestrictedSampler, paired_positives
from ltpipe.methods.weight_transfer.mask_head import MaskXTransferHead
from tests.helpers.detectors import probabilities
from tests.helpers.lst_arrays import cosine, load, near, tensor
from tests.published.old_layouts import background_first
from tests.published.weight_generator import MetaWeightGenerator

METHOD = "lst"


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
    near(background_first(probabilities(head, scores).T).T, d["softmax"])
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
    head = LTBBoxHead(
        num_classes=classes, fc_out_channels=4, in_channels=1, roi_feat_size=1, reg_class_agnostic=agnostic
    )
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
    (row**2).sum().backward()
    near(features.grad, d["grad_features"])
    near(base.grad, d["grad_base_weight"])
    torch.manual_seed(0)
    fresh = MetaWeightGenerator(base.shape[1], len(base))
    identity = torch.eye(base.shape[1])
    for ours, key in (
        (fresh.average.weight - identity, "init_FC_Avg_minus_eye_std"),
        (fresh.query.weight - identity, "init_query_minus_eye_std"),
        (fresh.keys, "init_keys_std"),
    ):
        # Two samples of one normal distribution: five standard errors of a standard deviation each.
        near(ours.std(), d[key], rtol=10 / (2 * ours.numel()) ** 0.5)


def check_sampler(path: Path) -> None:
    """Candidates and counts with and without the restriction, over several cases."""
    d = load(path)
    options = dict(
        num=int(d["batch_size_per_image"]), pos_fraction=float(d["positive_fraction"]), add_gt_as_proposals=False
    )
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
            assigned = AssignResult(
                1, torch.where(foreground, 1, source.clamp(max=0)), torch.zeros(len(source)), labels
            )
            gt = InstanceData(
                bboxes=torch.zeros(1, 4), labels=torch.tensor([target]), metainfo={"replay_label": target}
            )
            drawn = sampler.sample(assigned, InstanceData(priors=torch.zeros(len(source), 4)), gt)
            assert (len(drawn.pos_inds), len(drawn.neg_inds)) == (positives, negatives)
            assert bool((source[drawn.neg_inds] == 0).all())
            if isinstance(sampler, ClassRestrictedSampler):
                assert set(drawn.pos_inds.tolist()) <= set(case["pos_candidates"].tolist())


CHECKS = {
    "box_head_loss": check_box_loss,
    "cosine_predictor": check_cosine,
    "mask_transfer": check_mask_transfer,
    "mwg_forward": check_generator,
    "roi_class_sampler": check_sampler,
}
