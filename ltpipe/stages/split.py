"""``split``: class order, phases, and the balanced replay index of every phase."""

from __future__ import annotations

import math

import pandas as pd

from ltpipe.data.phase import PhaseView
from ltpipe.data.replay import build_replay
from ltpipe.data.split import Split, make_split
from ltpipe.data.store import AnnotationStore
from ltpipe.spec.digest import stage_digest
from ltpipe.spec.models import Experiment
from ltpipe.spec.paths import Paths
from ltpipe.spec.training import Lst
from ltpipe.stages._run import stage_run


def run(exp: Experiment, paths: Paths) -> None:
    """Sort and cut the classes, draw the replay lists."""
    info = paths.store("train") / "info.json"
    with stage_run(
        "split",
        paths.folder("split"),
        experiment=exp.name,
        digest=stage_digest(exp, "split"),
        seed=exp.lst.replay.seed if exp.lst else 0,
        inputs={"index": info, "index:statistics": paths.statistics("train")},
    ) as stage:
        store = AnnotationStore.open(paths.store("train"))
        table = pd.read_csv(paths.statistics("train"))
        spec = exp.split.model_dump(exclude_none=True) if exp.split else {}
        if "boundaries" in spec:
            spec["boundaries"] = list(spec["boundaries"])
        split = make_split(
            table["category_id"].to_numpy(),
            table["instance_count"].to_numpy(),
            dataset=exp.dataset.name,
            annotation_sha256=store.info["sha256"],
            **spec,
        )
        split.save(paths.split)
        stage.outputs.append(paths.split)
        for phase in range(1, split.num_phases + 1):
            assert exp.lst is not None
            write_replay(PhaseView(store, split, phase), exp.lst, phase, paths)
            stage.outputs.append(paths.replay(phase))


def write_replay(view: PhaseView, lst: Lst, phase: int, paths: Paths) -> None:
    """Write as many epochs of pairs as the phase trains."""
    first = build_replay(view, variant=lst.replay.variant, seed=lst.replay.seed, epochs=1)
    length = len(first.epoch(0)[0])
    images = lst.phase_iterations(phase, length) * lst.schedule.batch_size
    epochs = math.ceil(images / length)
    build_replay(view, variant=lst.replay.variant, seed=lst.replay.seed, epochs=epochs).save(paths.replay(phase))
