"""``base``: train the detector on the base classes, or on all classes of a one-shot experiment."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import ConfigDict
from mmengine.dist import is_main_process

from ltpipe.config.experiment import Experiment
from ltpipe.data.categories import Categories
from ltpipe.data.split import Split
from ltpipe.engine.dataset_configs import check_masks
from ltpipe.engine.distributed import process_group
from ltpipe.engine.last_layers import check_fixed_layers, without_layers
from ltpipe.engine.one_stage import is_one_stage, one_stage_start
from ltpipe.engine.stage_models import model_of
from ltpipe.engine.training import fitting_weights, write_checkpoint
from ltpipe.interop.finished_checkpoints import finished_state, start_state
from ltpipe.pipeline.paths import Paths
from ltpipe.registry import MODELS
from ltpipe.run.downloads import fetch
from ltpipe.run.files import atomic_path
from ltpipe.run.stage_run import stage_run
from ltpipe.stages.detector_training import DetectorTraining


def run(exp: Experiment, paths: Paths) -> None:
    """Train from ``detector.load_from`` or from scratch, or use ``base.checkpoint`` as it is."""
    with stage_run("base", exp, paths) as stage, process_group():
        split = Split.load(paths.split)
        fragment, model = model_of(exp, paths, split, "base")
        check_masks(paths, model, exp.detector.config)
        training = DetectorTraining(exp, paths, split, 0, fragment, model)
        iterations = exp.base.schedule.total_iterations(training.epoch_length)
        start = starting_weights(exp, model, training.classes, stage.folder)
        config = training.config(iterations, stage.work, start)
        if exp.base.checkpoint:
            write_checkpoint(paths.model("base"), finished_state(exp, model, training.classes), training.meta)
            with atomic_path(paths.config("base")) as temporary:
                config.dump(str(temporary))
        else:
            stage.notes["iterations"] = iterations
            stage.notes |= training.run(config)
        stage.outputs += [start] if start else []


def starting_weights(exp: Experiment, model: ConfigDict, classes: Categories, folder: Path) -> Path | None:
    """Write the weights of a pretrained detector that can be reused, without those of another class list.

    They stay beside the results, so that the stage's config alone repeats it. None without such a detector.
    """
    path, address, start = exp.detector.start, exp.detector.address, folder / "start.pth"
    if path is None or not is_main_process():
        return start if path else None
    if address is not None:
        fetch(address, path)
    detector = MODELS.build(model)
    one_stage = is_one_stage(model)
    state, kept = one_stage_start(path, classes, model) if one_stage else start_state(path, classes, detector)
    fits, fresh = fitting_weights(without_layers(state, exp.base.fresh), detector, path)
    if exp.base.trained is not None:
        check_fixed_layers(detector, fresh, path)
    print(f"{path}: {len(fits)} tensors reused; {len(fresh)} of the detector start anew: {', '.join(fresh[:12])}")
    write_checkpoint(start, fits, {"source": str(path)} | (kept.meta() if kept else {}))
    return start
