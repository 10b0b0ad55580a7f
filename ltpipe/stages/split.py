"""``split``: class order and phases, and the balanced replay list of every phase."""

from __future__ import annotations

import math
from typing import Any

from ltpipe.config.choices import holds_out
from ltpipe.config.experiment import Experiment
from ltpipe.data.holdout import choose_holdout, load_holdout, save_holdout
from ltpipe.data.phase import PhaseView
from ltpipe.data.published_indices import legacy_replay
from ltpipe.data.replay import build_replay
from ltpipe.data.split import Split, make_split
from ltpipe.data.store import AnnotationStore
from ltpipe.data.tables import read_csv
from ltpipe.pipeline.paths import Paths
from ltpipe.run.stage_run import stage_run


def run(exp: Experiment, paths: Paths, phase: int | None = None) -> None:
    """Sort and cut the classes, draw the replay lists.

    Args:
        exp: The experiment.
        paths: Its artefacts.
        phase: 0 for class order and phases, ``k`` for the replay list of that phase; everything by default. They are
            separate so that another replay does not make base training look outdated.
    """
    for k in range(exp.num_phases() + 1) if phase is None else [phase]:
        owner = exp.owners.get(("split", k or None))
        if owner is not None:
            print(f"{paths.folder('split', k or None)}: made by {owner}")
        elif k:
            write_replay(exp, paths, k)
        else:
            write_split(exp, paths)


def write_split(exp: Experiment, paths: Paths) -> None:
    """Write ``split.json``, and the images held out of training if a method asks for some."""
    with stage_run("split", exp, paths):
        table = read_csv(paths.statistics("train"))
        spec = exp.split.model_dump(exclude_none=True, exclude={"ignore_future_gt"}) if exp.split else {}
        if "boundaries" in spec:
            spec["boundaries"] = list(spec["boundaries"])
        split = make_split(
            table["category_id"].to_numpy(),
            table["instance_count"].to_numpy(),
            dataset=exp.dataset.name,
            annotation_sha256=AnnotationStore.open(paths.store("train")).info["sha256"],
            **spec,
        )
        if holds_out(exp):
            view = PhaseView(AnnotationStore.open(paths.store("train")), split, split.num_phases)
            save_holdout(paths.holdout, choose_holdout(view, **exp.holdout.model_dump()))
        split.save(paths.split)


def write_replay(exp: Experiment, paths: Paths, phase: int) -> None:
    """Write as many epochs of (image, class) pairs as the phase trains."""
    lst = exp.lst
    assert lst is not None, "phases without an lst block do not load"
    with stage_run("split", exp, paths, phase):
        store, split = AnnotationStore.open(paths.store("train")), Split.load(paths.split)
        exclude = load_holdout(paths.holdout) if holds_out(exp) else None
        view = PhaseView(store, split, phase, exclude=exclude)
        first = build_replay(view, variant=lst.replay.variant, seed=lst.replay.seed, epochs=1)
        length = len(first.epoch(0)[0])
        iterations, batch = lst.phase_iterations(phase, length), lst.schedule.batch_size
        options: dict[str, Any] = {"variant": lst.replay.variant, "seed": lst.replay.seed}
        if lst.replay.layout == "legacy":
            rows = lst.replay.rows
            replay = legacy_replay(
                view, **options, world_size=rows, images_per_process=batch // rows, iterations=iterations
            )
        else:
            replay = build_replay(view, **options, epochs=math.ceil(iterations * batch / length))
        replay.save(paths.replay(phase))
