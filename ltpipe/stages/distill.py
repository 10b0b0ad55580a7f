"""``distill``: the previous model's similarities on ground-truth boxes of the classes a phase adds."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from mmengine.config import Config
from tqdm import tqdm

from ltpipe.data.split import Split
from ltpipe.engine.config import read_detector
from ltpipe.engine.features import FrozenDetector
from ltpipe.engine.inputs import annotated_config
from ltpipe.engine.predict import build_dataset, load_model
from ltpipe.files import sha256_file
from ltpipe.methods.lst_distill import teacher_rows
from ltpipe.methods.lst_teacher import ImageRows, TeacherLogits
from ltpipe.spec.digest import stage_slice
from ltpipe.spec.models import Experiment
from ltpipe.spec.paths import Paths
from ltpipe.stages._run import stage_run


def run(exp: Experiment, paths: Paths, phase: int) -> None:
    """Store the teacher rows of one phase."""
    teacher = "base" if phase == 1 else f"phase{phase - 1}"
    stage_name, key = paths.producer(teacher)
    with stage_run(
        "distill",
        paths.folder("distill", phase),
        experiment=exp.name,
        settings=stage_slice(exp, "distill", phase),
        seed=exp.seed,
        inputs={
            "index": paths.store("train") / "info.json",
            "split": paths.split,
            stage_name: paths.model(teacher),
            f"{stage_name}:config": paths.config(teacher),
        },
    ) as stage:
        split = Split.load(paths.split)
        num_old = split.classes_known(phase - 1)
        fragment = read_detector(exp.detector.config)
        data = annotated_config(exp, paths, fragment, phase=phase, num_classes=split.classes_known(phase))
        detector = FrozenDetector(load_model(paths.config(teacher), paths.model(teacher)), build_dataset(data))
        metadata = {
            "teacher": teacher,
            "teacher_sha256": sha256_file(paths.model(teacher)),
            "split": split.digest,
            "pipeline": repr(Config(dict(p=data["pipeline"])).p),
        }
        passes = [list(_rows(detector, num_old, flip)) for flip in (False, True)]
        TeacherLogits.collect(passes, num_old, metadata, dtype="float32").save(paths.teacher(phase))
        stage.outputs.append(paths.teacher(phase))


@torch.no_grad()
def _rows(detector: FrozenDetector, num_old: int, flip: bool) -> Iterator[ImageRows]:
    """Yield the teacher rows of every image with an object of a new class."""
    images = detector.dataset.view.new_images
    for row in tqdm(images.tolist(), desc=f"teacher, {'flipped' if flip else 'plain'}", unit="image", mininterval=5):
        batch = detector.sample(row, flip)
        feats = detector.model.extract_feat(batch["inputs"])
        yield from teacher_rows(detector.model.roi_head, feats, batch["data_samples"], num_old)
