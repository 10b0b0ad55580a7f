"""RoI sampling that depends on the image's place in the training stream, not on its process or its place in a batch."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.registry import TASK_UTILS as MMDET_TASK_UTILS
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from ltpipe.registry import TASK_UTILS


@TASK_UTILS.register_module()
class SeededSampler:
    """Any sampler of mmdet, with torch's CPU generator set to a seed of the image while it draws.

    The seed comes from ``sample_seed`` in the metainfo of ``gt_instances``, which :class:`ltpipe.engine.dataset.
    StreamDataset` sets; without it the sampler draws as usual. mmdet's random samplers draw on the CPU on every device.

    Args:
        sampler: Config of the sampler.
        salt: Tells the samplers of one detector apart.
        **kwargs: Passed to the sampler, e.g. mmdet's ``context``.
    """

    def __init__(self, sampler: dict[str, Any], salt: int = 0, **kwargs: Any) -> None:
        self.sampler = MMDET_TASK_UTILS.build(sampler, default_args=kwargs)
        self.salt = salt

    def sample(
        self, assign_result: Any, pred_instances: InstanceData, gt_instances: InstanceData, **kwargs: Any
    ) -> SamplingResult:
        """Sample RoIs of one image; arguments and result as mmdet's ``BaseSampler.sample``."""
        seed = gt_instances.metainfo.get("sample_seed")
        if seed is None:
            return self.sampler.sample(assign_result, pred_instances, gt_instances, **kwargs)
        state = np.random.SeedSequence([seed, self.salt]).generate_state(1, np.uint64)
        before = torch.default_generator.get_state()
        torch.default_generator.manual_seed(int(state[0] >> np.uint64(1)))
        try:
            return self.sampler.sample(assign_result, pred_instances, gt_instances, **kwargs)
        finally:
            torch.default_generator.set_state(before)


def with_seeded_samplers(model: ConfigDict) -> ConfigDict:
    """Return a model config whose RPN and RCNN samplers are :class:`SeededSampler`.

    Args:
        model: Model config; not changed.
    """
    changed = copy.deepcopy(model)
    cfg = changed.get("train_cfg") or ConfigDict()
    rcnn = cfg.get("rcnn")  # one-stage detectors take every anchor or query
    stages = [cfg.get("rpn"), *(rcnn if isinstance(rcnn, list | tuple) else [rcnn])]
    for salt, stage in enumerate(stages):
        if stage is not None and stage.get("sampler") is not None:
            stage.sampler = ConfigDict(type="ltpipe.SeededSampler", salt=salt, sampler=stage.sampler)
    return changed
