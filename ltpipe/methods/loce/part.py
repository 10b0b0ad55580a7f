"""LOCE: equilibrium loss and memory-augmented feature sampling (ICCV 2021, fcjian/LOCE).

The equations are in :mod:`ltpipe.methods.loce.functions`. In every training step features of jittered copies of all
objects enter the rings of their classes; some of classes with a low mean score are drawn and join the batch of the box
head; the mean scores follow the scores of this step; then the loss is taken of logits shifted by their logarithm. Acts
on the box head in training only: detections are those of the plain softmax. Needs nothing from the data.

Published as a second stage of six epochs on a finished detector, in which the layers below the classifier stay fixed
(``base.trained: [fc_cls, fc_reg, rpn_head, mask_head]``): the memory can then hold their output, which is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from mmdet.structures.bbox import get_box_tensor
from torch import Tensor

from ltpipe.errors import UserError
from ltpipe.methods.head_parts import BoxBatch, HeadPart
from ltpipe.methods.loce.functions import (
    COPIES,
    drawn_classes,
    jittered_boxes,
    memory_scores,
    object_scores,
    shifted_logits,
    updated_mean_score,
)
from ltpipe.methods.loce.memory import FeatureMemory
from ltpipe.methods.reductions import all_reduce_sum, gathered_rows
from ltpipe.methods.seeded_draws import SeededDraws
from ltpipe.registry import method


@method("part", "loce")
class LOCE(SeededDraws, HeadPart):
    """Equilibrium loss and feature memory, for a classifier trained with softmax cross entropy.

    The published rings are those of one process each; here all processes share them, so that a training resumes
    exactly. Every process draws for itself.

    Args:
        num_classes: Foreground classes K.
        memory: What the rings hold: the output of the ``shared`` layers of the box head, which must be fixed (LVIS:
            394 MB), or pooled features of RoIs, ``roi`` (LVIS: 4.8 GB).
        ring_size: Features per class (repository: 80).
        num_sampled_classes: Classes drawn per step and process (repository: 8).
        num_sampled_features: Features per drawn class (repository: 4).
        momentum: Weight of the old mean score per entry (repository: 0.9).
        background_score: Mean score of the background, and of all classes at first (repository: 0.01).
        warm_images: Images of every class that fill the rings before the first step (repository: 5, which is ring_size
            over 16 jittered copies); 0: none.
        seed: Seed of the draws, which also depend on the iteration and the process.

    Raises:
        UserError: An option is out of range.
    """

    class_rows: ClassVar[dict[str, Any]] = {"mean_score": 0}
    losses: ClassVar[list[str]] = ["cross_entropy"]
    needs_fixed_layers = {"memory": ["shared"]}

    mean_score: Tensor

    def __init__(
        self,
        num_classes: int,
        memory: Literal["shared", "roi"] = "shared",
        ring_size: int = 80,
        num_sampled_classes: int = 8,
        num_sampled_features: int = 4,
        momentum: float = 0.9,
        background_score: float = 0.01,
        warm_images: int = 5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        counts = {"ring_size": ring_size, "num_sampled_classes": num_sampled_classes}
        counts |= {"num_sampled_features": num_sampled_features}
        if min(counts.values()) < 1 or not 0 < momentum < 1 or not 0 < background_score < 1 or warm_images < 0:
            raise UserError(
                "LOCE option out of range",
                got=f"{counts}, momentum {momentum}, background_score {background_score}, warm_images {warm_images}",
                allowed="counts of 1 or more, momentum and background_score between 0 and 1, warm_images 0 or more",
            )
        self.num_classes, self.level = num_classes, memory
        self.drawn = (num_sampled_classes, num_sampled_features)
        self.momentum, self.background_score = momentum, background_score
        self.filling = False  # set by the hook while it fills the rings in evaluation mode
        self.memory = FeatureMemory(num_classes, ring_size)
        self.register_buffer("mean_score", torch.full((num_classes + 1,), background_score))
        self.start_draws(seed)
        self._random: torch.Generator | None = None

    @staticmethod
    def hooks(
        options: Mapping[str, Any], dataloader: Callable[..., Mapping[str, Any]], iterations_per_epoch: int | None
    ) -> list[dict[str, Any]]:
        """Configs of the hook that fills the rings before the first step."""
        images = options.get("warm_images", 5)
        if not images:
            return []
        return [{"type": "ltpipe.LOCEWarmUpHook", "dataloader": dataloader("train", per_class=images)}]

    @property
    def acts(self) -> bool:
        """Whether this forward pass counts: one of the training, or of the pass before it."""
        return self.training or self.filling

    @torch.no_grad()
    def before_images(self, roi_head: Any, stage: int, feats: tuple[Tensor, ...], samples: list[Any]) -> None:
        """Put features of jittered copies of all objects into the rings of all processes.

        Raises:
            UserError: The memory is to hold the output of layers that are trained.
        """
        if not self.acts:
            return
        head = roi_head.bbox_heads[stage]
        self._check_fixed(head)
        # One generator for all draws of the step, the later ones in before_losses.
        device = feats[0].device
        self._random = self.generator(device)
        rois, boxes, labels = [], [], []
        for index, sample in enumerate(samples):
            truth = get_box_tensor(sample.gt_instances.bboxes).float()
            uniform = torch.rand(4, COPIES, generator=self._random, device=device)
            copies = jittered_boxes(truth, uniform, sample.img_shape)
            # A box at the border of the image may have nothing left of it.
            whole = (copies[:, 2:] > copies[:, :2]).all(dim=1)
            rois.append(F.pad(copies, (1, 0), value=index)[whole])
            boxes.append(torch.cat([copies, truth.repeat_interleave(COPIES, dim=0)], dim=1)[whole])
            labels.append(sample.gt_instances.labels.repeat_interleave(COPIES)[whole])
        pooled = roi_head.pooler(feats)(stage, torch.cat(rois))
        stored = head.shared_output(pooled) if self.level == "shared" else pooled
        self.memory.add(*(gathered_rows(rows) for rows in (stored.float(), torch.cat(boxes), torch.cat(labels))))

    def before_losses(self, head: Any, batch: BoxBatch) -> BoxBatch:
        """Return the batch with features of the memory and with shifted logits; update the mean scores before.

        In training all processes must call it together.
        """
        if not self.acts:
            return batch
        stored, boxes, labels = self._draw(batch.cls_score.device)
        if not self.memory.features.numel():  # no image seen yet: no rows, but of the right width
            stored = head.shared_output(batch.bbox_feats[:0]) if self.level == "shared" else batch.bbox_feats[:0]
        inputs = head.inputs_of_shared(stored) if self.level == "shared" else head.predictor_inputs(stored)
        both = torch.cat([batch.cls_score, head.fc_cls(inputs[0])])
        self._update(both, batch, labels)
        joined = replace(
            batch,
            cls_score=shifted_logits(both, self.mean_score),
            labels=torch.cat([batch.labels, labels]),
            label_weights=torch.cat([batch.label_weights, torch.ones_like(labels, dtype=torch.float32)]),
            rois=torch.cat([batch.rois, F.pad(boxes[:, :4], (1, 0))]),
        )
        if batch.bbox_pred is None:
            return joined
        assert batch.bbox_targets is not None and batch.bbox_weights is not None
        targets = boxes[:, 4:] if head.reg_decoded_bbox else head.bbox_coder.encode(boxes[:, :4], boxes[:, 4:])
        return replace(
            joined,
            bbox_pred=torch.cat([batch.bbox_pred, head.fc_reg(inputs[1])]),
            bbox_targets=torch.cat([batch.bbox_targets, targets.to(batch.bbox_targets)]),
            bbox_weights=torch.cat([batch.bbox_weights, torch.ones_like(targets).to(batch.bbox_weights)]),
        )

    @torch.no_grad()
    def _draw(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Draw features, boxes and labels from the rings of classes with low mean scores."""
        random = self._random if self._random is not None else self.generator(device)
        self._random = None
        classes = torch.rand(self.drawn[0], generator=random, device=device, dtype=torch.float64)
        uniform = torch.rand(self.drawn, generator=random, device=device)
        return self.memory.draw(drawn_classes(self.mean_score[:-1], classes), uniform)

    @torch.no_grad()
    def _update(self, logits: Tensor, batch: BoxBatch, memory_labels: Tensor) -> None:
        """Let the mean scores follow those of this step, on all processes; the memory's rows come last."""
        assert batch.objects is not None
        scores = logits.detach().float().softmax(dim=1)
        entries = object_scores(scores[: len(batch.labels)], batch.labels, batch.objects, batch.num_objects)
        entries = all_reduce_sum(entries + memory_scores(scores[len(batch.labels) :], memory_labels))
        self.mean_score.copy_(updated_mean_score(self.mean_score, entries, self.momentum, self.background_score))

    def _check_fixed(self, head: Any) -> None:
        below = [*head.shared_convs, *head.shared_fcs]
        if self.level == "shared" and any(p.requires_grad for layer in below for p in layer.parameters()):
            raise UserError(
                "LOCE's memory holds the output of layers that change in this training",
                where="parts: loce",
                got="memory: shared, and shared layers of the box head that are trained",
                fix="set base.trained: [fc_cls, fc_reg, rpn_head, mask_head] as published, or memory: roi",
            )
