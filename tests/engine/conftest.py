"""The tiny project, indexed and split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope

from ltpipe.config.experiment import Experiment
from ltpipe.data.split import Split
from ltpipe.engine.dataset import StreamDataset
from ltpipe.engine.dataset_configs import class_counts
from ltpipe.engine.model_config import ClassCounts, read_detector
from ltpipe.pipeline.paths import Paths
from tests.helpers.detectors import CLASSES
from tests.helpers.tiny_project import experiment, run_stages, write_project


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of data and detector files."""
    folder = tmp_path_factory.mktemp("project")
    write_project(folder)
    return folder


@pytest.fixture(scope="session")
def exp(project: Path) -> Experiment:
    """The experiment with a linear classifier."""
    return experiment(project, model={"classifier": {"type": "linear"}})


@pytest.fixture(scope="session")
def paths(project: Path, exp: Experiment) -> Paths:
    """Its artefacts up to the split."""
    return run_stages(exp, project / "results", "index", "split")


@pytest.fixture(scope="session")
def counts(paths: Paths) -> ClassCounts:
    """Training images and instances of all classes."""
    return class_counts(paths, Split.load(paths.split), CLASSES)


@pytest.fixture(scope="session")
def batch(exp: Experiment, paths: Paths) -> dict[str, Any]:
    """Two training images."""
    init_default_scope("mmdet")
    data = StreamDataset(
        store=str(paths.store("train")),
        images=str(exp.dataset.train.images),
        split=str(paths.split),
        num_classes=CLASSES,
        phase=2,
        seed=0,
        sampler={"type": "random"},
        pipeline=read_detector(exp.detector.config).train_pipeline,
    )
    return pseudo_collate([data[0], data[3]])
