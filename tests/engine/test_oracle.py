"""Scores made from the ground truth."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from mmengine.structures import InstanceData

from ltpipe.engine.oracle_labels import OracleLabels, oracle_scores

# Two objects of labels 2 and 0; halves of the first overlap it by exactly one half.
OBJECTS = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 40]])
LABELS = torch.tensor([2, 0])


def test_best_object_above_one_half() -> None:
    boxes = torch.tensor(
        [[0.0, 0, 10, 10], [0, 0, 5, 10], [0, 0, 4.9, 10], [20, 20, 30, 40], [50, 50, 60, 60], [18, 20, 30, 40]]
    )
    scores = oracle_scores(boxes, OBJECTS, LABELS, 3)
    assert scores.shape == (6, 4) and scores.dtype == torch.float32
    assert scores.argmax(dim=1).tolist() == [2, 2, 3, 0, 3, 0]
    assert torch.equal(scores.sum(dim=1), torch.ones(6)) and set(scores.unique().tolist()) == {0.0, 1.0}


def test_the_object_overlapped_most_decides() -> None:
    near = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10]])
    scores = oracle_scores(torch.tensor([[0.9, 0, 10.9, 10]]), near, torch.tensor([1, 2]), 3)
    assert scores.argmax(dim=1).tolist() == [2]


def test_nothing_to_match() -> None:
    boxes = torch.rand(3, 4)
    assert oracle_scores(boxes, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 2)[:, 2].tolist() == [1, 1, 1]
    assert oracle_scores(torch.zeros(0, 4), OBJECTS, LABELS, 3).shape == (0, 4)


def test_objects_of_an_image() -> None:
    """Category 9 is label 0, category 5 label 1; category 7 is not known yet and one object is a crowd."""
    store = SimpleNamespace(
        image_ids=np.array([40, 30]),
        category_ids=np.array([5, 7, 9]),
        image_ptr=np.array([0, 4, 5]),
        ann_category=np.array([2, 0, 1, 0, 0]),
        ann_iscrowd=np.array([False, False, False, True, False]),
        ann_bbox=np.array([[1.0, 2, 3, 4], [0, 0, 5, 5], [0, 0, 9, 9], [0, 0, 8, 8], [2, 2, 2, 2]]),
    )
    dataset = SimpleNamespace(store=store, split=SimpleNamespace(order=np.array([9, 5, 7])), num_classes=2)
    oracle = OracleLabels(dataset)
    boxes, labels = oracle.objects(40, (2.0, 3.0))
    assert labels.tolist() == [0, 1]
    assert boxes.tolist() == [[2, 6, 8, 18], [0, 0, 10, 15]]
    rois = torch.tensor([[2.0, 6, 8, 18], [40, 40, 50, 50]])
    (scores,) = oracle(InstanceData(metainfo={"img_id": 40, "scale_factor": (2.0, 3.0)}, priors=rois))
    assert scores.argmax(dim=1).tolist() == [0, 2]
    other = InstanceData(metainfo={"img_id": 30, "scale_factor": (1.0, 1.0)}, priors=torch.tensor([[2.0, 2, 4, 4]]))
    (scores,) = oracle(other)
    assert scores.argmax(dim=1).tolist() == [1]
