"""LOCE's pass before the first step, which fills the rings of all classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ltpipe.methods.loce.part import LOCE
from ltpipe.methods.reductions import bare_model
from ltpipe.methods.untouched import untouched
from ltpipe.registry import HOOKS


@HOOKS.register_module()
class LOCEWarmUpHook(Hook):
    """Fills the memory and the mean scores of every LOCE part before the first step; a resumed training has them.

    Everything else of the model stays as it is.

    Args:
        dataloader: Config of images of all classes: a finite dataset with annotations and the training pipeline, the
            same number of batches on every process.
        seed: Seed of the pass (augmentation and RoI sampling); it also depends on the process.
    """

    priority = "NORMAL"

    def __init__(self, dataloader: Mapping[str, Any], seed: int = 0) -> None:
        self.dataloader, self.seed = dataloader, seed

    def before_train(self, runner: Runner) -> None:
        """Run the pass."""
        if runner.iter > 0:
            return
        model = bare_model(runner)
        parts = [module for module in model.modules() if isinstance(module, LOCE)]
        loader = runner.build_dataloader(self.dataloader, seed=self.seed)
        runner.logger.info(f"LOCE: {len(loader)} images per process fill the memory")
        with untouched(model, self.seed + get_rank(), kept=parts), runner.optim_wrapper.optim_context(model):
            for part in parts:
                part.filling = True
            for batch in loader:
                model(**model.data_preprocessor(batch, True), mode="loss")
            for part in parts:
                part.filling = False
        filled = int((parts[0].memory.written > 0).sum())
        runner.logger.info(f"LOCE: the memory holds features of {filled} of {parts[0].num_classes} classes")
