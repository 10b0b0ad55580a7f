"""Run a training config: resume what was killed, publish the weights atomically."""

from __future__ import annotations

import copy
import io
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import get_world_size, is_main_process
from mmengine.logging import print_log
from torch import nn

from ltpipe.checkpoints.tensor_checks import check_kinds, check_tensors
from ltpipe.checkpoints.torch_files import AFRESH, Refused, load_plain
from ltpipe.config.settings import read_settings
from ltpipe.engine.curve_hook import CurveHook, Watcher
from ltpipe.engine.distributed import of_first
from ltpipe.engine.hooks import saved_states
from ltpipe.engine.loaders import loader_config, loader_workers
from ltpipe.engine.stage_runner import StageRunner
from ltpipe.errors import UserError
from ltpipe.methods.reductions import bare_model
from ltpipe.run.files import atomic_path

_TRAININGS = itertools.count()


def train(
    config: Config,
    model_path: Path,
    config_path: Path,
    *,
    meta: dict[str, Any],
    watching: Sequence[Watcher] = (),
) -> dict[str, Any]:
    """Train to the end, in this process or in all of a torchrun launch, and write the weights and the config.

    A run that was killed continues from its last readable checkpoint in ``config.work_dir``. The curves are left in its
    folder ``history``, and go to the loggers of ``configs/pipeline.yaml``.

    Args:
        config: Complete mmengine config of a single process.
        model_path: Where the weights go: ``{"meta": ..., "state_dict": ...}``, readable by mmengine.
        config_path: Where the config goes.
        meta: Stored with the weights: ``experiment``, ``stage``, the class ids.
        watching: Hooks that measure the detector and change nothing; they are no part of the config.

    Returns:
        Facts for the record: which iteration's weights were kept, if not the last one's.

    Raises:
        UserError: The starting checkpoint cannot be read, or the package of a logger is missing.
    """
    running = on_these_processes(config)
    # mmengine keeps its loggers by name and second, also those of a training that is over and whose folder is gone.
    running.experiment_name = f"{Path(config.work_dir).parent.name}_{next(_TRAININGS)}"
    for logger in read_settings().loggers:
        running.visualizer.vis_backends.append(logger.backend(meta["experiment"], meta["stage"]))
    checkpoint = of_first(last_checkpoint(Path(config.work_dir)) if is_main_process() else None)
    if checkpoint is not None:
        running.load_from, running.resume = str(checkpoint), True
        print_log(f"continuing from {checkpoint}", logger="current")
    elif config.load_from and is_main_process():
        read_checkpoint(config.load_from)
    runner = StageRunner.from_cfg(running)
    for hook in (CurveHook(), *watching):
        runner.register_hook(hook)
    runner.train()
    if not is_main_process():
        return {}
    best = next((found for hook in watching if (found := hook.best_weights()) is not None), None)
    write_checkpoint(model_path, bare_model(runner).state_dict() if best is None else load_plain(best[1]), meta)
    with atomic_path(config_path) as temporary:
        config.dump(str(temporary))
    return {} if best is None else {"best_iteration": best[0]}


def on_these_processes(config: Config) -> Config:
    """Return a config for the processes and cores at hand; loader processes do not change what is learnt.

    Args:
        config: Config of a single process, whose batch size is the total one; not changed.
    """
    here, world, loading = copy.deepcopy(config), get_world_size(), loader_config(loader_workers())
    loader = here.train_dataloader
    loader.update(batch_size=loader.batch_size // world, **loading)
    for hook in here.custom_hooks:
        if "dataloader" in hook:
            hook.dataloader.update(loading)
    if world > 1:
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else None
        here.launcher = "pytorch"
        here.model_wrapper_cfg = dict(type="MMDistributedDataParallel", broadcast_buffers=False, device_ids=devices)
    return here


def last_checkpoint(work_dir: Path) -> Path | None:
    """Return the newest checkpoint that can be read, or None. Damaged ones are removed.

    Raises:
        Refused: One asks for more than data; nothing of it was run.
    """
    for file in saved_states(work_dir):
        try:
            load_plain(file, fix=AFRESH)
            return file
        except Refused:
            raise
        except UserError:
            print_log(f"{file} is damaged and is removed", logger="current", level=logging.WARNING)
            file.unlink()
    return None


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return the content of a checkpoint on the CPU.

    Raises:
        UserError: It is missing, cut off, not a checkpoint, or holds what cannot be weights.
    """
    content = load_plain(path)
    if not isinstance(content, dict):
        raise UserError("not a checkpoint", where=path, got=type(content).__name__, allowed="a dict of tensors")
    whole = {"meta": {}, **content} if "state_dict" in content else {"meta": {}, "state_dict": content}
    check_tensors(whole["state_dict"], path)
    return whole


def write_checkpoint(path: Path, state_dict: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
    """Write weights with their facts, atomically."""
    save_atomically({"meta": meta, "state_dict": {k: v.detach().cpu() for k, v in state_dict.items()}}, path)


def save_atomically(value: Any, path: Path) -> None:
    """Write what ``torch.load`` reads, atomically.

    Raises:
        UserError: The disk is full or not writable.
    """
    # By itself torch.save reports a full disk as an internal error.
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def fitting_weights(
    state_dict: dict[str, torch.Tensor], model: nn.Module, where: object
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return the tensors of a foreign checkpoint that a detector can start from, and the names of its others.

    Args:
        state_dict: Model state of the checkpoint.
        model: The detector.
        where: The checkpoint, for the error.

    Raises:
        UserError: Not a single tensor fits, or whole numbers stand for real ones.
    """
    own = model.state_dict()
    fits = {key: value for key, value in state_dict.items() if key in own and own[key].shape == value.shape}
    check_kinds(fits, own, where)
    if not fits:
        raise UserError(
            "no weight of the checkpoint fits the detector",
            where=where,
            got=", ".join(list(state_dict)[:4]),
            allowed=f"a state dict with keys such as {', '.join(list(own)[:4])}",
            fix="convert the checkpoint, or choose the detector it was trained with",
        )
    return fits, sorted(own.keys() - fits.keys())
