"""SimCal: proposal selection, head, scores, schedule and conversion against values of the released code."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from mmdet.models.roi_heads import Shared2FCBBoxHead
from mmdet.models.task_modules.coders import LegacyDeltaXYWHBBoxCoder
from torch import Tensor, nn

from ltpipe.config.schedules import CalibrationSchedule
from ltpipe.data.calibration_rois import (
    RoiSampling,
    SlotRois,
    assign_boxes,
    compose_step,
    select_slot,
    slot_generator,
    step_generator,
)
from ltpipe.engine.calibrator_training import train_head
from ltpipe.interop.layout import background_last
from ltpipe.interop.mmdet1 import convert_calibrated_head
from ltpipe.methods.simcal.calibrator import DualHead, SimCal
from ltpipe.methods.simcal.functions import average_stages, fuse_scores, tail_classes
from tests.published.old_layouts import convert_detector

METHOD = "simcal"
Case = dict[str, np.ndarray]


def cases(path: Path) -> list[Case]:
    """Return the cases ``c<k>_...`` of a file."""
    with np.load(path, allow_pickle=False) as file:
        names = sorted({re.match(r"c\d+_", key)[0] for key in file.files}, key=lambda name: int(name[1:-1]))
        return [{k[len(name) :]: file[k] for k in file.files if k.startswith(name)} for name in names]


def close(actual: Tensor, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    """Assert closeness relative to the largest expected value."""
    expected = torch.as_tensor(expected)
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance * scale)


def tensors(case: Case, prefix: str) -> dict[str, Tensor]:
    """Return the arrays below a prefix as a state dict."""
    return {k[len(prefix) :]: torch.from_numpy(v) for k, v in case.items() if k.startswith(prefix)}


def labels_last(labels: np.ndarray, num_classes: int) -> Tensor:
    """Return labels with the background at ``num_classes`` instead of 0."""
    return torch.from_numpy((labels - 1) % (num_classes + 1))


def box_head(fc_cls: np.ndarray, hidden: np.ndarray, x: np.ndarray, **kwargs: object) -> Shared2FCBBoxHead:
    """Return a box head of the sizes of the oracle's layers."""
    return Shared2FCBBoxHead(
        in_channels=x.shape[-3],
        roi_feat_size=x.shape[-1],
        fc_out_channels=hidden.shape[0],
        num_classes=fc_cls.shape[0] - 1,
        **kwargs,
    )


def check_conversion(path: Path) -> None:
    """Converted layers give the old outputs, reordered."""
    for case in cases(path):
        state = convert_detector(tensors(case, "old."))
        x = torch.from_numpy(case["x"])
        agnostic = case["old.bbox_head.fc_reg.weight"].shape[0] == 4
        head = box_head(
            case["old.bbox_head.fc_cls.weight"],
            case["old.bbox_head.shared_fcs.0.weight"],
            case["x"],
            reg_class_agnostic=agnostic,
        )
        prefix = "roi_head.bbox_head."
        head.load_state_dict({k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)})
        logits, deltas = head(x)
        close(logits, case["new_cls"])
        close(deltas, case["new_reg"])
        mask_x = torch.from_numpy(case["mask_x"])
        outputs = {"roi_head.mask_head.conv_logits": "new_mask_logits", "rpn_head.rpn_cls": "new_rpn_cls"}
        for layer, expected in outputs.items():
            out = nn.functional.conv2d(mask_x, state[f"{layer}.weight"], state[f"{layer}.bias"])
            close(out, case[expected])


def check_batch(path: Path) -> None:
    """Assignment is exact; drawn subsets have the right sizes and origin; composition is slot-wise."""
    for case in cases(path):
        sampling = RoiSampling(rois=int(case["num"]), positive_fraction=float(case["pos_fraction"]), box_offset=1.0)
        gt_ptr, ptr = case["gt_offsets"], case["proposal_offsets"]
        pos_ptr = np.concatenate([[0], np.cumsum(case["num_pos"])])
        neg_ptr = np.concatenate([[0], np.cumsum(case["num_neg"])])
        starts = gt_ptr + ptr  # first RoI of an image among [ground truths, proposals] of all images
        given, own = [], []
        for i, slot_class in enumerate(case["slot_class"]):
            gt, gt_labels = case["gt_boxes"][gt_ptr[i] : gt_ptr[i + 1]], case["gt_labels"][gt_ptr[i] : gt_ptr[i + 1]]
            proposals = case["proposals"][ptr[i] : ptr[i + 1]]
            assigned, best = assign_boxes(gt, proposals, offset=1.0)
            np.testing.assert_array_equal(assigned + 1, case["assigned_gt_inds"][ptr[i] : ptr[i + 1]])
            np.testing.assert_allclose(best, case["max_overlaps"][ptr[i] : ptr[i + 1]], atol=1e-6)

            everything = select_slot(
                gt, gt_labels, proposals, None, slot_generator(0, 0, i), RoiSampling(10**6, 0.5, box_offset=1.0)
            )
            drawn = select_slot(gt, gt_labels, proposals, None, slot_generator(1, 0, i), sampling)
            positives, negatives = (
                case[key][p[i] : p[i + 1]] for key, p in (("pos_inds", pos_ptr), ("neg_inds", neg_ptr))
            )
            assert (len(drawn.positives), len(drawn.negatives)) == (len(positives), len(negatives))
            assert set(positives) <= set(everything.positives) and set(negatives) <= set(everything.negatives)
            if len(everything.positives) == len(positives):
                np.testing.assert_array_equal(everything.positives, positives)
            if len(everything.negatives) == len(negatives):
                np.testing.assert_array_equal(everything.negatives, negatives)

            found = np.searchsorted(everything.positives, positives)
            labels, matched = everything.labels[found], everything.matched[found]
            roi_labels = case["roi_labels"][pos_ptr[i] + neg_ptr[i] :][: len(positives) + len(negatives)]
            np.testing.assert_array_equal(np.concatenate([labels, np.zeros(len(negatives), int)]), roi_labels)
            mine = labels == slot_class
            given.append(SlotRois(everything.boxes, positives[mine], labels[mine], matched[mine], negatives))
            own.append(select_slot(gt, gt_labels, proposals, int(slot_class), slot_generator(1, 0, i), sampling))
        check_composition(case, given, starts)
        for slot, slot_class in zip(own, case["slot_class"], strict=True):
            assert (slot.labels == slot_class).all()


def check_composition(case: Case, slots: list[SlotRois], starts: np.ndarray) -> None:
    """The foreground equals the reference's row by row; the background has its size and comes from its pool."""
    rows = compose_step(slots, step_generator(0, 0), num_classes=0)
    uid = starts[rows.slot] + rows.index
    background = int((case["fixed_label"] == 0).sum())
    assert len(uid) == len(case["fixed_uid"])
    np.testing.assert_array_equal(rows.labels, case["fixed_label"])
    np.testing.assert_array_equal(uid[background:], case["fixed_uid"][background:])
    pool = {starts[i] + j for i, slot in enumerate(slots) for j in slot.negatives}
    assert len(set(uid[:background])) == background and set(uid[:background]) <= pool
    assert set(case["fixed_uid"][:background]) <= pool


def check_head(path: Path) -> None:
    """Logits, first gradient, and the trajectory of plain SGD."""
    for case in cases(path):
        kind = str(case["kind"])
        owner = {"3fc": "feat_classifier", "2fc": "feat_extractor"}[kind]
        last = "fc_classifier" if kind == "3fc" else "fc2"
        classes = case[f"init.{last}.weight"].shape[0] - 1
        calibrator = SimCal(classes, [0] * classes, head=f"{kind}_rand")
        calibrator.initialise(box_head(case[f"init.{last}.weight"], case["init.fc1.weight"], case["x"][0]))

        def converted(prefix: str, case: Case = case, owner: str = owner) -> dict[str, Tensor]:
            return convert_calibrated_head({f"{owner}.{k}": v for k, v in tensors(case, prefix).items()}, prefix="")

        calibrator.head.load_state_dict(converted("init."))
        x, y = torch.from_numpy(case["x"]), labels_last(case["y"], classes)
        logits = calibrator(x[0])
        close(logits, background_last(torch.from_numpy(case["logits0"]), dim=1).numpy())
        calibrator.loss(logits, y[0]).backward()
        for name, expected in converted("grad0.").items():
            close(calibrator.head.get_parameter(name).grad, expected.numpy())

        facts: list[dict[str, float]] = []
        train_head(
            calibrator,
            lambda step, x=x, y=y: iter(zip(x[step:], y[step:], strict=True)),
            CalibrationSchedule(iterations=len(x), lr=float(case["lr"]), drops=()),
            report=lambda step, values, facts=facts: facts.append(values),
            report_every=1,
        )
        np.testing.assert_allclose([f["loss"] for f in facts], case["loss"], rtol=1e-5)
        accuracies = [[f["acc"], f["acc_bg"], f["acc_fg"]] for f in facts]
        np.testing.assert_allclose(accuracies, np.nan_to_num(case["acc_all_bg_fg"]), atol=1e-6)
        for name, expected in converted("final.").items():
            close(calibrator.head.get_parameter(name).detach(), expected.numpy())


def check_start(path: Path) -> None:
    """A ``3fc_ft`` head starts with the logits of the box head that it copies."""
    for case in cases(path):
        old = tensors(case, "src.")
        agnostic = old["fc_reg.weight"].shape[0] == 4
        head = box_head(old["fc_cls.weight"], old["shared_fcs.0.weight"], case["x"], reg_class_agnostic=agnostic)
        state = convert_detector({f"bbox_head.{k}": v for k, v in old.items()})
        head.load_state_dict({k.removeprefix("roi_head.bbox_head."): v for k, v in state.items()})
        calibrator = SimCal(head.num_classes, [0] * head.num_classes, head="3fc_ft")
        calibrator.initialise(head)
        logits = calibrator(torch.from_numpy(case["x"]))
        for key in ("cal_logits_bg_first", "orig_logits_bg_first"):
            close(logits.detach(), background_last(torch.from_numpy(case[key]), dim=1).numpy())


def check_scores(path: Path) -> None:
    """Fused scores, through the functions and the module; boxes of the original regressor."""
    for case in cases(path):
        counts = torch.from_numpy(case["train_count"][1:])
        base, calibrated = (
            torch.softmax(background_last(average_stages(list(torch.from_numpy(case[key]))), dim=1), dim=1)
            for key in ("orig_logits", "cal_logits")
        )
        expected = background_last(torch.from_numpy(case["scores"]), dim=1)
        scores = fuse_scores(base, calibrated, tail_classes(counts, float(case["T"])))
        close(scores, expected.numpy())
        head = DualHead(counts.tolist(), float(case["T"]), in_features=1, hidden=[1], num_classes=len(counts))
        assert torch.equal(head.fuse(base, calibrated), scores)
        check_boxes(case)


def check_boxes(case: Case) -> None:
    """mmdet's legacy coder gives the reference's boxes; it leaves out half a pixel on purpose, put back here."""
    coder = LegacyDeltaXYWHBBoxCoder(target_means=(0.0,) * 4, target_stds=tuple(case["target_stds"].tolist()))
    deltas = torch.from_numpy(case["bbox_pred"])
    rois = torch.from_numpy(case["rois"][:, 1:]).repeat_interleave(deltas.shape[1] // 4, dim=0)
    boxes = coder.decode(rois, deltas.reshape(-1, 4)) + torch.tensor([0.5, 0.5, -0.5, -0.5])
    height, width = case["img_shape"].tolist()
    boxes = boxes.clamp(min=0).minimum(torch.tensor([width, height, width, height]) - 1.0)
    close(boxes.reshape(len(deltas), -1) / float(case["scale_factor"]), case["bboxes"])


def check_schedule(path: Path) -> None:
    """The learning rate of every epoch, at its first and last step."""
    with np.load(path, allow_pickle=False) as file:
        steps = int(file["steps_per_epoch"])
        longest = int(file["epoch"].max()) * steps
        rates = CalibrationSchedule(iterations=longest, drops=(7 * steps, 10 * steps)).learning_rates()
        if steps == 1000:
            assert CalibrationSchedule().of_plan(1).learning_rates() == rates[:12000], (
                "the default is what is published"
            )
        for epoch, lr in zip(file["epoch"].tolist(), file["lr"].tolist(), strict=True):
            for step in ((epoch - 1) * steps, epoch * steps - 1):
                np.testing.assert_allclose(rates[step], lr, rtol=1e-12)


CHECKS = {
    "bg_last_conversion": check_conversion,
    "calib_batch": check_batch,
    "calib_head": check_head,
    "calib_head_ft_init": check_start,
    "dual_head_scores": check_scores,
    "lr_schedule": check_schedule,
}
