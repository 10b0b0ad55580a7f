"""The sections of the report that put the numbers into context: methods, counts, provenance, terms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ltpipe.metrics.table import meanings
from ltpipe.report import html
from ltpipe.report.html import Column
from ltpipe.report.inputs import IOU_NAMES, WHO, Evaluation, ExperimentCard, who

Parts = list[str]
TERMS = {
    "b0, t1, t2, ...": "Groups of classes by the phase that introduces them: b0 is the base, t1 the classes new in "
    "phase 1, and so on.",
    "forgetting": "AP of the base classes after a phase minus their AP after base training. Negative: they got worse.",
    "federated": "In LVIS each image lists the classes known to be absent. A detection of a class that is neither "
    "annotated nor listed there cannot be judged and does not count.",
}


def terms(evaluations: Sequence[Evaluation]) -> Parts:
    """Return what the names of the numbers mean."""
    shown = {key for item in evaluations for key in item.metrics}
    return [html.definitions(meanings(shown) | TERMS, "terms")]


def methods(cards: Sequence[ExperimentCard]) -> Parts:
    """Return what was chosen in each experiment, and for how long it was trained."""
    parts: Parts = []
    for card in cards:
        parts.append(html.heading(card.name))
        parts += [html.note(card.description)] if card.description else []
        parts += [html.definitions(card.methods, "facts")] if card.methods else []
        if card.schedules:
            columns = [Column(key, key.replace("_", " "), "text") for key in card.schedules[0]]
            parts.append(html.table(columns, card.schedules))
    return parts


def data(cards: Sequence[ExperimentCard]) -> Parts:
    """Return what there is in the data sets, and what was mended or looked odd when they were read."""
    parts: Parts = []
    for card in cards:
        if card.data and card.data not in [other.data for other in cards[: cards.index(card)]]:
            parts.append(html.heading(card.name))
            parts += [html.note(f"{part}: {sentence}.") for part, said in card.data.items() for sentence in said]
    return parts


def accounting(evaluations: Sequence[Evaluation]) -> Parts:
    """Return how many detections each rule of the protocol removed."""
    names = {
        "detections": "found",
        "over_cap": "over the cap",
        "other_categories": "other classes",
        "unverified": "not judged",
        "zero_area": "without area",
        "evaluated": "counted",
        "gt": "objects",
        "gt_without_mask": "without a mask",
    }
    rows = [
        who(item) | item.metrics["counts"] | {"on": IOU_NAMES[item.iou_type], "cap": item.metrics["max_detections"]}
        for item in evaluations
    ]
    columns = [*WHO, Column("on", "on", "text"), Column("cap", "cap", "count")]
    columns += [Column(key, title, "count") for key, title in names.items() if any(key in row for row in rows)]
    text = (
        "Not judged: detections of classes about which the image says nothing (federated annotation). Over the cap: "
        "beyond the best so many of an image. Objects: ground-truth objects of the evaluated classes; those without a "
        "mask are measured by their boxes and left out of the numbers for masks."
    )
    return [html.note(text), html.folded("Show the counts", html.table(columns, rows, group="experiment"))]


def provenance(cards: Sequence[ExperimentCard]) -> Parts:
    """Return seed, device, time and memory of every stage, folded; versions once, and in its row what differs."""
    stages = [(card.name, stage) for card in cards for stage in card.stages]
    if not stages:
        return []
    common = _most_common([stage.get("versions", {}) for _, stage in stages])
    rows = [_stage_row(name, stage, common) for name, stage in stages]
    columns = [
        Column("experiment", "experiment", "text"),
        Column("stage", "stage", "text"),
        Column("seed", "seed", "text"),
        Column("time", "wall time", "text"),
        Column("memory", "peak memory", "text"),
        Column("device", "device", "text"),
        Column("started", "started", "text"),
        Column("digest", "settings digest", "text"),
        Column("commit", "commit", "text"),
        Column("versions", "other versions", "long"),
    ]
    text = "From the stage.json beside each result, which also holds the checksums of all inputs and outputs."
    versions = ", ".join(f"{name} {version}" for name, version in common.items())
    said = [html.note(f"Versions: {versions}.")] if versions else []
    return [html.note(text), *said, html.folded("Show all stages", html.table(columns, rows, group="experiment"))]


def _most_common(versions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the version of each package that most stages ran with."""
    names = dict.fromkeys(name for one in versions for name in one)
    return {name: Counter(one[name] for one in versions if name in one).most_common(1)[0][0] for name in names}


def _stage_row(experiment: str, stage: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    seconds, memory = stage.get("seconds"), stage.get("peak_memory_mib")
    own = stage.get("versions", {}).items()
    versions = ", ".join(f"{name} {version}" for name, version in own if common.get(name) != version)
    return {
        "experiment": experiment,
        "stage": stage.get("label", stage.get("stage")),
        "seed": stage.get("seed"),
        "time": None if seconds is None else duration(seconds),
        "memory": None if memory is None else f"{memory / 1024:.1f} GiB",
        "device": stage.get("device"),
        "started": stage.get("started"),
        "digest": str(stage.get("digest", ""))[:12] or None,
        "versions": versions or None,
        "commit": stage.get("commit"),
    }


def duration(seconds: float) -> str:
    """Return a time in the largest unit that suits it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
