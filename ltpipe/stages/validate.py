"""``validate``: check an experiment in seconds, before any GPU job, and write down what it resolves to."""

from __future__ import annotations

import sys

import yaml

from ltpipe import __version__
from ltpipe.config.checks import check_experiment
from ltpipe.config.experiment import Experiment
from ltpipe.config.loading import list_experiments
from ltpipe.pipeline.digests import stage_slice
from ltpipe.pipeline.paths import Paths
from ltpipe.run.files import atomic_path, discard, sha256_file
from ltpipe.run.stage_run import stage_run


def run(exp: Experiment, paths: Paths) -> None:
    """Check the experiment and write ``experiment.lock.yaml``: the same experiment without parents and defaults."""
    with stage_run(
        "validate",
        paths.folder("validate"),
        experiment=exp.name,
        settings=stage_slice(exp, "validate"),
        seed=exp.seed,
        inputs={},
    ) as stage:
        for leftover in paths.root.glob(f".{paths.lock.name}.*"):
            discard(leftover)
        remarks = check_experiment(exp, list_experiments())
        text = yaml.safe_dump(exp.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
        with atomic_path(paths.lock) as temporary:
            temporary.write_text(f"# {exp.file}, resolved by ltpipe {__version__}\n{text}", encoding="utf-8")
        stage.notes.update(lock_sha256=sha256_file(paths.lock), remarks=remarks)
    shared = {f"{stage} {key or ''}".strip(): owner for (stage, key), owner in exp.owners.items()}
    if exp.share is not None:
        print(f"{exp.name}: taken from {exp.share}: {', '.join(shared) or 'nothing, it begins otherwise'}")
    for remark in remarks:
        print(f"{exp.name}: {remark}", file=sys.stderr)
    print(f"{exp.name}: valid; checkpoints: {', '.join(exp.checkpoints())}")
