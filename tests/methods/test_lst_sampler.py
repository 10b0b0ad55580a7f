"""Class-restricted RoI sampling: counts, membership, fallback, uniformity."""

from __future__ import annotations

import pytest
import torch
from mmdet.models.task_modules.assigners import AssignResult
from mmdet.models.task_modules.samplers import RandomSampler, SamplingResult
from mmengine.structures import InstanceData

from ltpipe.methods.lst.roi_sampler import ClassRestrictedSampler, paired_positives


def draw(
    sampler: RandomSampler, gt_inds: torch.Tensor, gt_labels: torch.Tensor, replay_label: int | None
) -> SamplingResult:
    """Sample from proposals assigned to objects ``gt_inds`` (1-based, 0 background, -1 ignored)."""
    labels = torch.where(gt_inds > 0, gt_labels[(gt_inds - 1).clamp(min=0)], -1) if len(gt_labels) else gt_inds * 0 - 1
    assigned = AssignResult(len(gt_labels), gt_inds.clone(), torch.zeros(len(gt_inds)), labels)
    gt = InstanceData(bboxes=torch.rand(len(gt_labels), 4), labels=gt_labels)
    if replay_label is not None:
        gt.set_metainfo({"replay_label": replay_label})
    return sampler.sample(assigned, InstanceData(priors=torch.rand(len(gt_inds), 4)), gt)


@pytest.mark.parametrize("seed", range(4))
def test_counts_and_membership(seed: int) -> None:
    torch.manual_seed(seed)
    gt_labels = torch.tensor([7, 2, 7, 5])
    gt_inds = torch.randint(-1, 5, (int(torch.randint(0, 400, ())),))
    got = draw(ClassRestrictedSampler(num=40, pos_fraction=0.25), gt_inds, gt_labels, 7)
    wanted = int((gt_inds == 1).sum() + (gt_inds == 3).sum()) + 2  # plus the two ground-truth boxes
    assert len(got.pos_inds) == min(wanted, 10)
    assert len(got.neg_inds) == min(int((gt_inds == 0).sum()), 40 - len(got.pos_inds))
    assert (got.pos_gt_labels == 7).all()
    everything = torch.cat([torch.arange(1, 5), gt_inds])
    assert (everything[got.neg_inds] == 0).all()
    assert len(set(got.pos_inds.tolist())) == len(got.pos_inds)


def test_without_the_paired_class_the_first_foreground_rois_stand_in() -> None:
    gt_labels, gt_inds = torch.tensor([3]), torch.tensor([0, 1] * 20)
    got = draw(ClassRestrictedSampler(num=200, pos_fraction=0.25), gt_inds, gt_labels, 8)
    assert got.pos_inds.tolist() == [0, *range(2, 20, 2)]
    assert len(got.neg_inds) == 20


def test_images_without_pair_or_without_objects() -> None:
    gt_labels, gt_inds = torch.tensor([3, 4]), torch.randint(0, 3, (300,))
    torch.manual_seed(0)
    plain = draw(RandomSampler(num=64, pos_fraction=0.25), gt_inds, gt_labels, None)
    torch.manual_seed(0)
    ours = draw(ClassRestrictedSampler(num=64, pos_fraction=0.25), gt_inds, gt_labels, None)
    assert torch.equal(plain.pos_inds, ours.pos_inds) and torch.equal(plain.neg_inds, ours.neg_inds)
    empty = draw(ClassRestrictedSampler(num=64, pos_fraction=0.25), torch.zeros(30).long(), torch.zeros(0).long(), 2)
    assert len(empty.pos_inds) == 0 and len(empty.neg_inds) == 30


def test_every_candidate_is_drawn_equally_often() -> None:
    gt_labels, gt_inds = torch.tensor([1]), torch.ones(20, dtype=torch.long)
    sampler = ClassRestrictedSampler(num=20, pos_fraction=0.25, add_gt_as_proposals=False)
    torch.manual_seed(0)
    hits = torch.zeros(20)
    for _ in range(2000):
        hits[draw(sampler, gt_inds, gt_labels, 1).pos_inds] += 1
    assert hits.min() > 430 and hits.max() < 570  # expected 500, standard deviation 19


def test_candidates_of_background_only() -> None:
    assert len(paired_positives(torch.tensor([4, 4]), torch.tensor([False, False]), 4)) == 0
