"""Configs of results, read as people read them with mmengine: no command of ltpipe does."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config

from ltpipe.config.experiment import Experiment
from ltpipe.data.split import Split
from ltpipe.engine.roi_sampling import with_seeded_samplers
from ltpipe.engine.stage_models import model_of
from ltpipe.pipeline.paths import Paths


def read_config(path: str | Path) -> Config:
    """Return a config; it is Python and runs."""
    return Config.fromfile(str(path), format_python_code=False)


def assert_described(exp: Experiment, paths: Paths, checkpoint: str) -> None:
    """Assert that what stages rebuild is what the config beside the weights says to people."""
    described = model_of(exp, paths, Split.load(paths.split), checkpoint)[1]
    written = read_config(paths.config(checkpoint)).model
    if checkpoint not in exp.calibrate:
        described = with_seeded_samplers(described)
    if checkpoint.startswith("phase") and exp.lst is not None and exp.lst.distill.teacher != "none":
        assert written.roi_head.parts.pop().type == "ltpipe.LSTDistillation"
        described.roi_head.setdefault("parts", [])
    assert described.to_dict() == written.to_dict(), checkpoint
