"""LST's distillation: teacher similarities, their files, which boxes are distilled, the loss.

Source layout: label 0 is background, and its rows and columns come first; converted before every comparison.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor

from ltpipe.methods.lst.distillation import distillation_loss, new_class_boxes
from ltpipe.methods.lst.teacher import CachedTeacher, TeacherLogits
from tests.helpers.lst_arrays import cosine, load, near, tensor
from tests.published.old_layouts import background_first
from tests.published.teacher_json import read_legacy_json

METHOD = "lst"


def _sample(image: int, flip: Any, labels: Tensor, ann_ids: Tensor, boxes: Tensor | None = None) -> DetDataSample:
    """Return a data sample with 0-based labels."""
    sample = DetDataSample(metainfo={"img_id": image, "flip": bool(flip)})
    boxes = torch.zeros(len(labels), 4) if boxes is None else boxes
    sample.gt_instances = InstanceData(bboxes=boxes, labels=labels, ann_ids=ann_ids)
    return sample


def _teacher(store: TeacherLogits, num_old: int, missing: str = "error") -> CachedTeacher:
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
        _sample(i, flips[i], torch.full((counts[i],), old), torch.from_numpy(ann_ids[owner == i]))
        for i in images.tolist()
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
            if f"f{f}_i{i}_kept_labels" in d:
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
            theirs = d.get(f"f{f}_i{i}_logits", np.empty((0, old + 1))).reshape(-1, old + 1)
            near(np.roll(values, 1, axis=1), theirs)
            near(store.logits[f, store.rows(image)], theirs[:, 1:])


def check_legacy_json(path: Path) -> None:
    """The JSON layout is read number for number; where its sources are at hand, they are recomputed."""
    plain, flipped = json.loads(path.read_text())
    boxes = {int(k): ([10 * int(k) + j for j in range(len(v))], [0] * len(v)) for k, v in plain.items()}
    store, background = read_legacy_json(path, boxes, dtype="float64")
    for f, part in enumerate((plain, flipped)):
        for image, rows in part.items():
            here = store.rows(int(image))
            assert store.logits[f, here].tolist() == [row[1:] for row in rows]
            assert background[f, here].tolist() == [row[0] for row in rows]
    for sibling in sorted(path.parent.glob("teacher_logits*.npz")):
        d = load(sibling)
        if set(map(str, d["img_ids"].tolist())) == set(plain) and int(d["num_old"]) == store.logits.shape[2]:
            for f, passed in enumerate(_teacher_passes(d)):
                for image, _, _, values in passed:
                    near(np.roll(values, 1, axis=1), np.array([plain, flipped][f][str(image)]).reshape(values.shape))


CHECKS = {
    "distill_gating": check_distill_gating,
    "distill_loss": check_distill_loss,
    "distilled_logits": check_legacy_json,
    "teacher_logits": check_teacher,
}
