"""``distill``: the previous model's similarities on ground-truth boxes of the classes a phase adds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from tqdm import tqdm

from ltpipe.checkpoint_ids import checkpoint_of
from ltpipe.checkpoints.torch_files import AFRESH
from ltpipe.config.experiment import Experiment
from ltpipe.data.arrays import load_arrays, save_arrays
from ltpipe.data.split import Split
from ltpipe.engine.dataset_configs import annotated_config
from ltpipe.engine.distributed import is_first, process_group
from ltpipe.engine.frozen_detector import FrozenDetector
from ltpipe.engine.inference import build_dataset
from ltpipe.engine.model_config import read_detector
from ltpipe.engine.shards import in_shards
from ltpipe.engine.stage_models import detector_of
from ltpipe.methods.lst.distillation import teacher_rows
from ltpipe.methods.lst.teacher import ImageRows, TeacherLogits
from ltpipe.pipeline.paths import Paths
from ltpipe.run.checksums import checksum
from ltpipe.run.stage_run import stage_run


def run(exp: Experiment, paths: Paths, phase: int) -> None:
    """Store the teacher rows of one phase."""
    teacher = checkpoint_of(phase - 1)
    with stage_run("distill", exp, paths, phase) as stage:
        split = Split.load(paths.split)
        num_old = split.classes_known(phase - 1)
        fragment = read_detector(exp.detector.config)
        data = annotated_config(exp, paths, fragment, phase=phase, num_classes=split.classes_known(phase))
        with process_group():
            detector = FrozenDetector(detector_of(exp, paths, split, teacher), build_dataset(data))
            files = _passes(detector, num_old, stage.work)
        if not is_first():
            return
        metadata = {
            "teacher": teacher,
            "teacher_sha256": checksum(paths.model(teacher)),
            "split": split.digest,
            "pipeline": repr(Config(dict(p=data["pipeline"])).p),
        }
        rows = [row for file in files for row in _read(file)]
        passes = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
        TeacherLogits.collect(passes, detector.stages * num_old, metadata, dtype="float32").save(paths.teacher(phase))


def _passes(detector: FrozenDetector, num_old: int, work: Path) -> list[Path]:
    """Return files with the rows of every image with an object of a new class: of all as they are, then flipped."""
    images = detector.dataset.view.new_images.tolist()
    samples = [(row, flip) for flip in (False, True) for row in images]

    def rows_of(first: int, stop: int) -> Iterator[ImageRows]:
        some = samples[first:stop]
        for row, flip in tqdm(some, desc="teacher", unit="image", initial=first, total=len(samples), mininterval=5):
            yield _rows(detector, num_old, row, flip)

    (files,) = in_shards(work, ["rows.npz"], len(samples), rows_of, _write)
    return files


@torch.no_grad()
def _rows(detector: FrozenDetector, num_old: int, row: int, flip: bool) -> ImageRows:
    batch = detector.batch(row, flip)
    feats = detector.model.extract_feat(batch["inputs"])
    (found,) = teacher_rows(detector.model.roi_head, feats, batch["data_samples"], num_old)
    return found


def _write(files: list[Path], rows: list[ImageRows]) -> None:
    """Write the rows of a shard of images."""
    image_id, *columns = zip(*rows, strict=True)
    ann_id, label, similar = (np.concatenate(column) for column in columns)
    sizes = [len(row[1]) for row in rows]
    arrays = {"image_id": image_id, "sizes": sizes, "ann_id": ann_id, "label": label, "similar": similar}
    save_arrays(files[0], {name: np.asarray(array) for name, array in arrays.items()})


def _read(file: Path) -> Iterator[ImageRows]:
    saved, _ = load_arrays(file, kind="state of a killed run", fix=AFRESH)
    ends = np.cumsum(saved["sizes"])[:-1]
    columns = [np.split(saved[name], ends) for name in ("ann_id", "label", "similar")]
    yield from zip(saved["image_id"].tolist(), *columns, strict=True)
