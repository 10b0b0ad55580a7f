"""Run a detector over the validation images."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import init_default_scope
from pycocotools import mask as coco_mask
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from ltpipe.checkpoints.tensor_checks import check_kinds
from ltpipe.data.categories import Categories, check_labels
from ltpipe.engine.detector_facts import check_same_detector
from ltpipe.engine.loaders import loader_workers, outlive_sigterm
from ltpipe.engine.roi_heads import Rescore
from ltpipe.engine.training import read_checkpoint
from ltpipe.errors import UserError
from ltpipe.registry import DATASETS, MODELS


def load_model(
    config: ConfigDict,
    checkpoint: str | Path,
    classes: Categories | None = None,
    facts: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build a detector, load its weights strictly and put it into evaluation mode.

    Args:
        config: A model config; not changed.
        checkpoint: A stage's weights.
        classes: Those it must know, in label order; None: not compared.
        facts: What it must say of its detector, see :func:`~ltpipe.engine.detector_facts.facts_of`; None: not compared.

    Raises:
        UserError: The weights cannot be read, do not belong to the config, or know other classes.
    """
    init_default_scope("mmdet")
    model = MODELS.build(copy.deepcopy(config))  # mmdet writes into what it builds from
    content = read_checkpoint(checkpoint)
    state = content["state_dict"]
    if classes is not None:
        check_labels(content["meta"], classes, checkpoint)
    if facts is not None:
        check_same_detector(content["meta"], facts, checkpoint)
    check_kinds(state, model.state_dict(), checkpoint)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            "checkpoint and config do not belong together",
            where=checkpoint,
            got=" ".join(str(error).split())[:400],
            fix="rerun the stage that made the checkpoint",
        ) from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device).eval()


def build_dataset(config: dict[str, Any]) -> Any:
    """Build a dataset from its config."""
    init_default_scope("mmdet")
    return DATASETS.build(config) if config["type"].startswith("ltpipe.") else MMENGINE_DATASETS.build(config)


@torch.no_grad()
def detections(
    model: Any, dataset: Dataset[Any], batch_size: int = 1, first: int = 0, stop: int | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the detections of every image in dataset order.

    Args:
        model: Detector in evaluation mode.
        dataset: Test dataset.
        batch_size: Images per forward pass.
        first: Image to start with.
        stop: Image to stop before; None: all.

    Yields:
        ``image_id`` int, ``labels`` ``(D,)`` int64, ``scores`` ``(D,)`` float32, ``bboxes`` ``(D, 4)`` float32 xyxy in
        pixels of the original image, ``masks`` list of ``D`` compressed RLE dicts, or None without a mask head,
        ``size`` (height, width) of the original image.
    """
    for batch in _batches(dataset, batch_size, first, stop):
        for sample in model.test_step(batch):
            yield of_image(sample, sample.pred_instances, int(sample.img_id))


@torch.no_grad()
def rescored_detections(
    model: Any,
    dataset: Dataset[Any],
    rescore: Rescore,
    first: int = 0,
    stop: int | None = None,
    masks: bool = True,
) -> Iterator[list[dict[str, Any]]]:
    """Yield the detections of every image for each set of scores, from one run of the detector.

    Only what follows the scores is repeated: choosing boxes and, for these boxes, masks.

    Args:
        model: Detector in evaluation mode, whose RoI head has :class:`~ltpipe.engine.roi_heads.RoICallPoints`.
        dataset: Test dataset.
        rescore: Makes sets of final scores from those of the box head.
        first: Image to start with.
        stop: Image to stop before; None: all.
        masks: Whether detectors that can make masks do.

    Yields:
        One dict as of :func:`detections` per set of scores.
    """
    for maps, proposals, sample in proposed(model, dataset, first, stop):
        sets = model.roi_head.predict_rescored(maps, proposals, sample, rescore, masks)
        yield [of_image(sample, results, int(sample.img_id)) for results in sets]


@torch.no_grad()
def proposed(
    model: Any, dataset: Dataset[Any], first: int = 0, stop: int | None = None
) -> Iterator[tuple[Any, Any, Any]]:
    """Yield FPN maps, proposals and data sample of every image; see :func:`rescored_detections`."""
    for batch in _batches(dataset, 1, first, stop):
        data = model.data_preprocessor(batch, False)
        (sample,) = data["data_samples"]
        maps = model.extract_feat(data["inputs"])
        (proposals,) = model.rpn_head.predict(maps, [sample], rescale=False)
        yield maps, proposals, sample


def _batches(dataset: Any, batch_size: int, first: int, stop: int | None) -> Iterable[Any]:
    rest = Subset(dataset, range(first, len(dataset) if stop is None else stop))
    loader = DataLoader(
        rest, batch_size, num_workers=loader_workers(), collate_fn=pseudo_collate, worker_init_fn=outlive_sigterm
    )
    done = first // batch_size
    return tqdm(loader, desc="detect", unit="batch", initial=done, total=done + len(loader), mininterval=5)


def of_image(sample: Any, found: Any, image_id: int) -> dict[str, Any]:
    """Return the detections of one image as :func:`detections` yields them."""
    return {
        "image_id": image_id,
        "labels": found.labels.cpu().numpy().astype(np.int64),
        "scores": found.scores.cpu().numpy().astype(np.float32),
        "bboxes": found.bboxes.cpu().numpy().astype(np.float32),
        "masks": encode_masks(found.masks) if "masks" in found else None,
        "size": tuple(sample.ori_shape[:2]),
    }


def encode_masks(masks: torch.Tensor) -> list[dict[str, Any]]:
    """Return compressed RLE of masks ``(D, H, W)`` bool."""
    stacked = np.asfortranarray(masks.cpu().numpy().transpose(1, 2, 0).astype(np.uint8))
    return list(coco_mask.encode(stacked)) if stacked.shape[2] else []
