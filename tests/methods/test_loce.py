"""LOCE as a part: what joins the batch, what the loss is, what the memory holds, on one process and on two."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ltpipe.errors import UserError
from ltpipe.methods.loce.functions import drawn_classes, jittered_boxes, shifted_logits
from ltpipe.methods.loce.part import LOCE
from tests.helpers.contract_cases import BATCHES, CHANNELS, ROI, K, box_batch, box_head, total
from tests.helpers.pairs import run_pair

BOXES = torch.tensor([[10.0, 10, 40, 34], [50, 8, 62, 20], [0, 0, 64, 64]])
LABELS = torch.tensor([3, 1, 3])


def fixed_head() -> Any:
    """A box head whose shared layers are not trained."""
    head = box_head()
    for layer in head.shared_fcs:
        layer.requires_grad_(False)
    return head


def roi_head(head: Any) -> Any:
    """A RoI head whose pooled features follow from the boxes."""

    def pooled(stage: int, rois: Tensor) -> Tensor:
        base = rois[:, 1:].sum(dim=1)[:, None] * torch.linspace(0.1, 1, CHANNELS * ROI * ROI)
        return base.sin().reshape(len(rois), CHANNELS, ROI, ROI)

    return SimpleNamespace(bbox_heads=[head], pooler=lambda feats: pooled)


def sample(rows: slice = slice(None)) -> Any:
    return SimpleNamespace(gt_instances=SimpleNamespace(bboxes=BOXES[rows], labels=LABELS[rows]), img_shape=(64, 64))


def see(part: LOCE, head: Any, rows: slice = slice(None)) -> None:
    part.before_images(roi_head(head), 0, (torch.zeros(1, 1, 2, 2),), [sample(rows)])


def test_the_loss_is_that_of_all_rows_with_shifted_logits() -> None:
    head, part = fixed_head(), LOCE(K, ring_size=20, num_sampled_classes=4, num_sampled_features=3)
    part.mean_score.copy_(torch.tensor([0.5, 1e-4, 0.5, 1e-4, 0.5, 0.5, 0.01]))
    before = part.mean_score.clone()
    see(part, head)
    assert part.memory.written.tolist() == [0, 16, 0, 20, 0, 0], "a call fills a ring once at most"
    batch = box_batch(head, BATCHES["mixed"])
    joined = part.before_losses(head, batch)
    new = joined.labels[len(batch.labels) :]
    assert len(new) == 12 and set(new.tolist()) == {1, 3}, "classes with low scores and with features"
    n = len(batch.labels)
    assert joined.labels[:n].equal(batch.labels) and joined.rois[:n].equal(batch.rois)
    assert joined.label_weights[n:].eq(1).all() and joined.bbox_weights[n:].eq(1).all()

    # Memory rows are what the head makes of jittered copies, and aim at their object.
    features = roi_head(head).pooler(None)(0, joined.rois[n:])
    cls_score, deltas = head(features)
    logits = torch.cat([batch.cls_score, cls_score])
    torch.testing.assert_close(joined.bbox_pred[n:], deltas)
    decoded = head.bbox_coder.decode(joined.rois[n:, 1:], joined.bbox_targets[n:])
    owners = {1: BOXES[1:2], 3: BOXES[[0, 2]]}
    for label, box in zip(new.tolist(), decoded, strict=True):
        assert (owners[label] - box).abs().amax(dim=1).min() < 1e-3

    # Every foreground RoI is an object of its own here; the memory adds an entry per class.
    scores, entries = logits.detach().softmax(dim=1), {c: [] for c in range(K)}
    for row, label in enumerate(batch.labels.tolist()):
        if label < K:
            entries[label].append(float(scores[row, label]))
    for label in set(new.tolist()):
        rows = [float(scores[n + i, label]) for i, other in enumerate(new.tolist()) if other == label]
        entries[label].append(float(np.mean(rows)))
    expected = before.clone()
    for label, values in entries.items():
        if values:
            kept = 0.9 ** len(values)
            expected[label] = kept * before[label] + (1 - kept) * float(np.mean(values))
    torch.testing.assert_close(part.mean_score, expected)
    torch.testing.assert_close(joined.cls_score, logits + expected.log())

    losses = head.losses_of(joined)
    torch.testing.assert_close(losses["loss_cls"], F.cross_entropy(logits + expected.log(), joined.labels))
    total(losses).backward()
    assert head.fc_cls.weight.grad.any() and head.shared_fcs[0].weight.grad is None


def test_both_memories_are_exact_while_shared_layers_are_fixed() -> None:
    found = []
    for memory in ("shared", "roi"):
        head, part = fixed_head(), LOCE(K, memory=memory, ring_size=20)  # type: ignore[arg-type]
        see(part, head)
        found.append(total(head.losses_of(part.before_losses(head, box_batch(head, BATCHES["mixed"])))))
    torch.testing.assert_close(found[0], found[1])


def test_trained_shared_layers_need_pooled_features() -> None:
    head = box_head()
    with pytest.raises(UserError, match="layers that change"):
        see(LOCE(K), head)
    see(LOCE(K, memory="roi"), head)


def test_nothing_happens_outside_of_training() -> None:
    head, part = fixed_head(), LOCE(K).eval()
    state = {key: value.clone() for key, value in part.state_dict().items()}
    see(part, head)
    batch = box_batch(head, BATCHES["mixed"])
    assert part.before_losses(head, batch) is batch
    assert all(value.equal(state[key]) for key, value in part.state_dict().items())
    part.filling = True
    see(part, head)
    assert part.memory.written.any(), "but for the pass before the first step"


def test_a_resumed_part_draws_the_same() -> None:
    head, whole = fixed_head(), LOCE(K)
    batch = box_batch(head, BATCHES["mixed"])
    for _ in range(2):
        see(whole, head)
        whole.before_losses(head, batch)
    resumed = LOCE(K)
    resumed.load_state_dict(whole.state_dict())
    found = []
    for part in (whole, resumed):
        see(part, head)
        found.append(part.before_losses(head, batch))
    assert found[0].cls_score.equal(found[1].cls_score) and found[0].labels.equal(found[1].labels)
    other = LOCE(K, memory="roi")
    with pytest.raises(UserError, match="another head"):
        other.load_state_dict(whole.state_dict())
        see(other, head)


def test_boxes_at_the_border_and_extreme_scores() -> None:
    inside = jittered_boxes(torch.tensor([[60.0, 60, 64, 64]]), torch.ones(4, 16), (64, 64))
    assert inside.min() >= 0 and inside.max() <= 63
    part, head = LOCE(K), fixed_head()
    thin = SimpleNamespace(
        gt_instances=SimpleNamespace(bboxes=torch.tensor([[63.5, 0, 64, 20]]), labels=torch.tensor([2])),
        img_shape=(64, 64),
    )
    part.before_images(roi_head(head), 0, (torch.zeros(1, 1, 2, 2),), [thin])
    assert not part.memory.written.any(), "nothing of it lies inside the image"
    z = torch.tensor([[-200.0, 200.0]], requires_grad=True)
    F.cross_entropy(shifted_logits(z, torch.tensor([0.0, 1.0])), torch.tensor([0])).backward()
    assert z.grad.isfinite().all()
    uniform = torch.tensor([0.999999999, 0.0], dtype=torch.float64)
    assert drawn_classes(torch.ones(3), uniform).tolist()[0] == 0


def _rank_memory(rank: int) -> dict[str, Tensor]:
    head, part = fixed_head(), LOCE(K)
    for step, rows in enumerate((slice(1), slice(1, None)) if rank == 0 else (slice(1, None), slice(0, 0))):
        see(part, head, rows)
        part.before_losses(head, box_batch(head, BATCHES["mixed"][step::2]))
    return part.state_dict()


def test_two_processes_share_memory_and_mean_scores(tmp_path: Path) -> None:
    first, second = run_pair(tmp_path, _rank_memory)
    assert all(value.equal(second[key]) for key, value in first.items())
    # In the first step all three objects, in the second two of them again.
    assert first["memory.written"].tolist() == [0, 32, 0, 48, 0, 0]
    assert not first["mean_score"].eq(0.01).all()
