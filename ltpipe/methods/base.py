"""What methods share: the call points of the heads, calibrators of a frozen detector, and reductions over processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ltpipe.errors import UserError

Reads = Literal["roi", "fc1", "last", "last_raw"]
Level = Literal["roi", "fc1", "last"]
State = dict[str, Tensor]


@dataclass
class BoxBatch:
    """One training batch of the box head, after its ordinary losses.

    Attributes:
        features: ``(N, d)`` float, input of the classifier.
        cls_score: ``(N, C)`` float, output of the classifier.
        labels: ``(N,)`` int64, 0..K-1 foreground, K background.
        label_weights: ``(N,)`` float.
        bbox_feats: ``(N, c, h, w)`` float, pooled RoI features.
        rois: ``(N, 5)`` float, batch index then xyxy in pixels of the network input.
        losses: Losses computed so far, by name.
        bbox_pred: ``(N, 4K)`` or ``(N, 4)`` float, box deltas, or None.
        bbox_targets: ``(N, 4)`` float regression targets, or None.
        bbox_weights: ``(N, 4)`` float, or None.
    """

    features: Tensor
    cls_score: Tensor
    labels: Tensor
    label_weights: Tensor
    bbox_feats: Tensor
    rois: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    bbox_pred: Tensor | None = None
    bbox_targets: Tensor | None = None
    bbox_weights: Tensor | None = None


@dataclass
class MaskBatch:
    """One training batch of the mask head, after its ordinary loss.

    Attributes:
        features: ``(P, c, h, w)`` float, input of the mask predictor (after the upsampling layer).
        mask_preds: ``(P, K or 1, h, w)`` float logits.
        targets: ``(P, h, w)`` float in {0, 1}.
        labels: ``(P,)`` int64 foreground labels.
        kept: Those of the box head's positives, bool, whose object has a mask and which are these; None: all.
        losses: Losses computed so far, by name.
    """

    features: Tensor
    mask_preds: Tensor
    targets: Tensor
    labels: Tensor
    kept: Tensor | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)


class HeadPart(nn.Module):
    """Extension of a head, called at fixed points during training. Every call point does nothing by default.

    Parameters and buffers of a part live in the detector's ``state_dict`` under ``roi_head.parts.<i>``. A cascade has
    one per stage, ``roi_head.parts.<i>.<stage>``, which sees the heads of that stage and no whole images. A part must
    return the same loss keys on every process and in every iteration (a zero that touches the graph where it has
    nothing to add), because the training loop reduces them over processes.
    """

    # Whether both heads must have an output per class. The catalogue reads this and the next one from the class body.
    needs_class_wise: ClassVar[bool] = False
    # Whether (or with which values of its options) the mask head must see the box head's positive RoIs.
    needs_same_rois: ClassVar[bool | dict[str, list[str]]] = False
    # Options that decide over which images a hook of the part runs between epochs, in order: {option: {value: images}},
    # images being "holdout" or "val".
    extra_images: ClassVar[dict[str, dict[str, str]]] = {}

    @staticmethod
    def hooks(
        options: Mapping[str, Any], dataloader: Callable[[str], Mapping[str, Any]], iterations_per_epoch: int | None
    ) -> list[dict[str, Any]]:
        """Return the configs of the training hooks that the part needs.

        Args:
            options: The constructor's options.
            dataloader: Called with ``holdout`` or ``val``: config of a finite dataloader over those images with
                annotations and the training pipeline.
            iterations_per_epoch: Iterations that see each training image once; None for epoch-based loops.
        """
        return []

    def box_losses(self, head: Any, batch: BoxBatch) -> dict[str, Tensor]:
        """Return losses to add to (or, under an existing name, to put in place of) ``batch.losses``.

        Args:
            head: The box head; ``head.fc_cls`` is its classifier, ``head.loss_cls`` its classification loss.
            batch: What the head computed.
        """
        return {}

    def mask_losses(self, head: Any, batch: MaskBatch) -> dict[str, Tensor]:
        """As :meth:`box_losses`, for the mask head."""
        return {}

    def image_losses(self, roi_head: Any, feats: tuple[Tensor, ...], samples: list[Any]) -> dict[str, Tensor]:
        """Return losses of whole images.

        Args:
            roi_head: The RoI head.
            feats: FPN maps, each ``(B, c, h, w)``.
            samples: ``B`` data samples with ``gt_instances`` (``bboxes`` xyxy in pixels of the network input) and
                ``metainfo``.
        """
        return {}

    def class_affinity(self) -> dict[str, Tensor]:
        """Return how alike the classes are to this part after training, in label order; empty if it does not say.

        Returns:
            ``cosine`` ``(K, K)`` float32, 0 for unseen classes; ``nearest`` ``(K, n)`` int64 labels of the classes most
            like each class, -1 for none; ``similarity`` ``(K, n)`` float32, their cosines; ``effective`` ``(K,)``
            float32, the number of classes over which a RoI of the class spreads its weights.
        """
        return {}


def world_size() -> int:
    """Number of processes of the default group; 1 outside distributed training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def batch_share(count: int, device: torch.device) -> Tensor:
    """Return what turns a mean over this process's items into its share of the mean over those of all processes.

    Averaging over processes, as distributed training does, then gives the mean over the whole batch. Every process must
    call it.

    Args:
        count: Items of this process.
        device: Of the result.

    Returns:
        Scalar float32: ``count * processes / all items``; zero where there is no item at all.
    """
    here = torch.tensor(float(count), device=device)
    return here * world_size() / all_reduce_sum(here).clamp(min=1)


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Return ``tensor`` summed over all processes (a new tensor; the argument itself in a single process)."""
    if world_size() == 1:
        return tensor
    reduced = tensor.detach().clone()
    dist.all_reduce(reduced)
    return reduced


def touch(*tensors: Tensor) -> Tensor:
    """Return a zero that depends on every tensor, so that no parameter is left without a gradient."""
    return torch.stack([t.sum() * 0 for t in tensors]).sum()


def mean_over_processes(rows: Tensor) -> Tensor:
    """Return the mean of ``rows`` ``(n,)`` over the rows of all processes, for gradients that are then averaged.

    The local sum is scaled by the number of processes over the number of all rows, so that averaging the gradients over
    processes gives the gradient of the global mean however the rows are spread. No rows give a zero with a graph.
    """
    if world_size() == 1:
        return rows.sum() * (1 / max(len(rows), 1))
    total = all_reduce_sum(torch.tensor(float(len(rows)), device=rows.device)).clamp(min=1)
    return rows.sum() * (world_size() / total)


LEVELS: tuple[Level, ...] = ("roi", "fc1", "last")


class Calibrator(nn.Module):
    """A classification that is trained, or derived, for a trained detector whose other weights stay as they are.

    Life: construct, :meth:`initialise` from the box head of the loaded detector, train on rows of stored RoI features
    (:func:`ltpipe.engine.head_training.train_head`), :meth:`merge` into the detector's config and weights.

    Attributes:
        needs_features: Whether it is trained on stored RoI features. The catalogue reads it from the class body.
        needs_softmax: Whether the detector must score by softmax over K + 1 outputs; or the options, with their values,
            for which it must. The catalogue reads this and the next one too.
        needs_cross_entropy: Whether it must have been trained with softmax cross entropy.
        needs_linear: Whether the detector's classifier must be linear.
        class_rows: Whether row c of the calibrated classifier belongs to class c.
        lowest_level: Lowest feature it reads, ``roi``, ``fc1`` or ``last``, for ``features.level``; or an option and
            the level for each of its values.
        fuses_scores: Whether the merged detector has two classifiers, with several ways to combine their scores.
        reads: Feature the rows hold, final after :meth:`initialise`; see :func:`read_features`.
        trains_boxes: Whether :meth:`train_losses` needs the boxes of the rows, final after :meth:`initialise`.
        num_classes: Foreground classes K.
    """

    needs_features: ClassVar[bool] = True
    needs_softmax: ClassVar[bool | dict[str, list[str]]] = False
    needs_cross_entropy: ClassVar[bool] = False
    needs_linear: ClassVar[bool] = False
    class_rows: ClassVar[bool] = True
    lowest_level: ClassVar[str | dict[str, dict[str, str]]] = "last"
    fuses_scores: ClassVar[bool] = False
    reads: Reads = "last"
    trains_boxes: bool = False
    num_classes: int

    def initialise(self, bbox_head: Any) -> None:
        """Build the layers from the trained box head and copy the weights that are reused."""
        raise NotImplementedError

    def take_over(self, state: Mapping[str, Tensor]) -> None:
        """Load the trained head of a finished checkpoint instead of training; only where ``fuses_scores`` is set.

        Args:
            state: Tensors under the detector's names, ``roi_head.calibrator.*``, in the order of its labels.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return raw classifier outputs ``(n, C)`` of the rows ``x``, which hold the feature named by ``reads``."""
        raise NotImplementedError

    def loss(self, cls_score: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of one mini-batch as a scalar whose gradients are averaged over processes.

        Args:
            cls_score: ``(n, C)`` float, from :meth:`forward`.
            labels: ``(n,)`` int64, background K.
        """
        raise NotImplementedError

    def train_losses(self, x: Tensor, labels: Tensor, *boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Return raw classifier outputs ``(n, C)`` and the loss to minimise; :meth:`loss` unless boxes are trained too.

        Args:
            x: Rows as for :meth:`forward`.
            labels: ``(n,)`` int64, background K.
            *boxes: With ``trains_boxes`` the rows' boxes and the ground truths they belong to, each ``(n, 4)`` float
                xyxy in pixels of the network input; otherwise not used.
        """
        cls_score: Tensor = self(x)
        return cls_score, self.loss(cls_score, labels)

    def scores(self, cls_score: Tensor) -> Tensor:
        """Return probabilities ``(n, K + 1)``, background last."""
        return F.softmax(cls_score.float(), dim=-1)

    def observe(self, x: Tensor, labels: Tensor) -> None:
        """See every mini-batch before its step; for calibrators that collect statistics."""

    def merge(
        self, model: Mapping[str, Any], state: Mapping[str, Tensor], stage: int | None = None
    ) -> tuple[dict[str, Any], State]:
        """Return the detector's model config and weights with this calibrator in them.

        Args:
            model: mmdet model config of the trained detector; not changed.
            state: Its ``state_dict``; not changed.
            stage: Stage of a cascade, which has a calibrator per stage, merged in order; None outside cascades.
        """
        raise NotImplementedError


def shared_layers(bbox_head: Any) -> list[nn.Linear]:
    """Return the fully connected layers between the RoI feature and the classifier of mmdet's ``ConvFCBBoxHead``.

    Raises:
        UserError: The classification path has convolutions or average pooling, or no hidden layer.
    """
    layers = [*bbox_head.shared_fcs, *bbox_head.cls_fcs]
    if len(bbox_head.shared_convs) or len(bbox_head.cls_convs) or bbox_head.with_avg_pool or not layers:
        raise UserError(
            "this box head cannot be calibrated",
            where="detector.config: model.roi_head.bbox_head",
            got=type(bbox_head).__name__,
            allowed="fully connected layers only, at least one, without average pooling",
        )
    return layers


def is_plain_linear(classifier: nn.Module) -> bool:
    """Return whether a classifier computes ``W x + b`` and nothing else."""
    return isinstance(classifier, nn.Linear) and type(classifier).forward is nn.Linear.forward


def rectifies(classifier: nn.Module) -> bool:
    """Return whether a classifier reads the last hidden layer after its ReLU; cosine classifiers may read it before."""
    return bool(getattr(classifier, "rectify_input", True))


def read_features(bbox_head: Any, stored: Tensor, reads: Reads, level: Level = "roi") -> Tensor:
    """Return what a calibrator reads, computed by the frozen layers of the box head.

    Args:
        bbox_head: Box head that :func:`shared_layers` accepts.
        stored: Float, what :func:`stored_features` returned at this level; for ``roi`` pooled ``(n, c, h, w)``.
        reads: ``roi``: pooled features; ``fc1``: first hidden layer after its ReLU; ``last``: last hidden layer after
            its ReLU; ``last_raw``: before it.
        level: What is stored.

    Raises:
        UserError: What is stored lies above what is to be read.
    """
    if reads == level == "roi":
        return stored
    layers = shared_layers(bbox_head)
    below_relu = level == "fc1" and reads == "last_raw" and len(layers) == 1
    if below_relu or LEVELS.index(level) > LEVELS.index("last" if reads == "last_raw" else reads):
        raise UserError(
            "this calibrator trains layers below the stored features",
            where="features.level",
            got=f"{level} stored, {reads} read",
            allowed="a level that the calibrator's trained layers lie above; roi suits all",
        )
    x = stored.flatten(1)
    if level == "roi":
        x = F.relu(layers[0](x)) if len(layers) > 1 or reads == "fc1" else layers[0](x)
    if reads == "fc1":
        return x
    if level != "last":
        for index, layer in enumerate(layers[1:], 2):
            x = layer(x) if index == len(layers) else F.relu(layer(x))
    return F.relu(x) if reads == "last" else x


def stored_features(bbox_head: Any, bbox_feats: Tensor, level: Level) -> Tensor:
    """Return what is stored of pooled features ``(n, c, h, w)``: themselves, or activations ``(n, d)``.

    Of the last hidden layer it is the value before its ReLU, from which both kinds of classifiers can be fed.
    """
    return read_features(bbox_head, bbox_feats, "last_raw" if level == "last" else level)


def replace_classifier(
    model: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
    classifier: Mapping[str, Any],
    loss: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    stage: int | None = None,
) -> tuple[dict[str, Any], State]:
    """Return config and weights of a detector with another classifier and classification loss in a box head.

    Args:
        model: mmdet model config.
        state: ``state_dict`` of the detector.
        classifier: New ``cls_predictor_cfg``.
        loss: New ``loss_cls``.
        weights: Tensors of the new ``fc_cls`` and ``loss_cls``, keys relative to the box head.
        stage: Stage of a cascade, None outside cascades.
    """
    prefix = "roi_head.bbox_head." if stage is None else f"roi_head.bbox_head.{stage}."
    changed = deepcopy(dict(model))
    head = changed["roi_head"]["bbox_head"] if stage is None else changed["roi_head"]["bbox_head"][stage]
    assert isinstance(head, dict), "a cascade has a classifier per stage"
    head.update(cls_predictor_cfg=deepcopy(dict(classifier)), loss_cls=deepcopy(dict(loss)))
    kept = {k: v for k, v in state.items() if not k.startswith((f"{prefix}fc_cls.", f"{prefix}loss_cls."))}
    return changed, kept | {f"{prefix}{k}": v.detach().cpu().clone() for k, v in weights.items()}


def inverse_frequency_weights(counts: Tensor, low: float = 0.1, high: float = 5.0) -> Tensor:
    """Return class weights ``(1 / n_c) / mean(1 / n)``, clipped.

    Source: FishYuLi/BalancedGroupSoftmax, class re-weighting. A class without instances counts as one instance.

    Args:
        counts: ``(K,)`` training instances.
        low, high: Smallest and largest weight.
    """
    inverse = 1 / counts.double().clamp(min=1)
    return (inverse / inverse.mean()).clamp(low, high)


def effective_number_weights(counts: Tensor, beta: float = 0.999, low: float = 0.1, high: float = 5.0) -> Tensor:
    """Return class weights ``(1 - beta) / (1 - beta ** n_c)``, divided by their mean, clipped.

    Source: FishYuLi/BalancedGroupSoftmax, after "Class-Balanced Loss" (arXiv 1901.05555).

    Args:
        counts: ``(K,)`` training instances.
        beta: 0.999 in the source.
        low, high: Smallest and largest weight.
    """
    weights = (1 - beta) / (1 - torch.pow(torch.tensor(beta, dtype=torch.float64), counts.double().clamp(min=1)))
    return (weights / weights.mean()).clamp(low, high)
