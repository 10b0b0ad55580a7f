"""The first lines of the report: which checkpoint is best, what every step gained or cost, and what to do next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ltpipe.frequency import FREQUENCY_NAMES
from ltpipe.metrics.error_names import KINDS
from ltpipe.metrics.sweeps import Sweep
from ltpipe.report import html
from ltpipe.report.differences import said_of
from ltpipe.report.inputs import IOU_NAMES, Evaluation, ExperimentCard, complete, experiments_of, phases_of

SHORT_EPOCHS = 6.0
"""Fewer passes over the images than this are few: published schedules have 12 to 36."""
NOTICEABLE, FORGOTTEN = 0.005, 0.03
"""Differences of AP that are spoken of; a loss of base classes that calls for something to be done."""
Parts = list[str]


def verdict(
    evaluations: Sequence[Evaluation],
    cards: Sequence[ExperimentCard],
    sweeps: Sequence[Sweep],
    *,
    pictured: bool = False,
) -> Parts:
    """Return the best checkpoint, gains and losses in numbers, and a list of next steps.

    Args:
        evaluations: Experiments together, checkpoints in order of training; the page's own experiment last.
        cards: What was done.
        sweeps: Checkpoints with two classifiers.
        pictured: Whether the page shows pictures.
    """
    kind = next((kind for kind in ("segm", "bbox", "boundary") if any(e.iou_type == kind for e in evaluations)), None)
    ours = [item for item in evaluations if item.iou_type == kind]
    whole = [item for item in complete(ours) if item.metrics["AP"] is not None]
    if kind is None or not whole:
        return [html.lead("Nothing could be measured: no class of a checkpoint has objects in the validation set.")]
    best = max(whole, key=lambda item: item.metrics["AP"])
    parts = [html.lead(_best(best, whole, ours))]
    parts += [html.note(sentence) for one in experiments_of(ours) for sentence in _steps(one, ours, whole)]
    steps = [*_next(best, ours, cards), *_thresholds([one for one in sweeps if not one.options], str(kind))]
    if cards and not pictured:
        text = "Look at what is wrong, the classes that matter most first; the report then shows a dozen pictures:"
        own = ours[-1].experiment
        steps.append(html.step(text, f"ltpipe pictures {own} && ltpipe report {own}"))
    return parts + ([html.heading("What to do next"), html.steps(steps)] if steps else [])


def _best(best: Evaluation, whole: Sequence[Evaluation], ours: Sequence[Evaluation]) -> html.Markup:
    name = _name(best, ours)
    if _percent(best.metrics["AP"]) == _percent(0.0):
        text = f"No checkpoint detects anything worth the name yet: the best AP on {IOU_NAMES[best.iou_type]} is "
        return html.Markup(f"{html.plain(text)}{_percent(0.0)}, that of {html.strong(name)}.")
    groups = [f"{key} {_percent(best.metrics[key])}" for key in ("APr", "APc", "APf") if best.metrics[key] is not None]
    text = f" reaches {_percent(best.metrics['AP'])} AP on {IOU_NAMES[best.iou_type]}"
    text += f" ({', '.join(groups)})" if groups else ""
    others = [item for item in whole if item is not best]
    if others:
        second = max(others, key=lambda item: item.metrics["AP"])
        gap = best.metrics["AP"] - second.metrics["AP"]
        text += f", {_points(gap).lstrip('+')} more than {_name(second, ours)}, the next" if gap > 0 else ""
        text += said_of(second, best)[0] if gap > 0 else ""
        text += f"; it is the best of {len(whole)} that know all {len(best.per_class)} classes"
    text += "; it was chosen on these images, so its numbers are too good" if best.chosen_here else ""
    return html.Markup(f"{html.strong(name)}{html.plain(text)}.")


def _steps(experiment: str, ours: Sequence[Evaluation], whole: Sequence[Evaluation]) -> Iterator[str]:
    """Yield what the phases and calibrators of an experiment did."""
    mine = [item for item in ours if item.experiment == experiment]
    phases = phases_of(mine, experiment)
    if phases:
        yield f"{experiment}: " + " ".join(
            _phase(item, before) for before, item in zip(phases, phases[1:], strict=False)
        )
    last = [item for item in mine if item.phase is not None and item in whole]
    for item in mine:
        if last and item.phase is None and item in whole:
            yield f"{experiment}: {item.checkpoint} {_compared(item, last[-1])}."


def _phase(item: Evaluation, before: Evaluation) -> str:
    """Say what one phase did to what was known and to what is new."""
    groups, past = item.metrics["groups"], before.metrics["groups"]
    known = [(name, groups.get(name, {}).get("AP"), group["AP"]) for name, group in past.items() if _is_phase(name)]
    changes = [
        f"{'base classes' if name == 'b0' else f'classes of {name}'} {_points(now - then)} to {_percent(now)}"
        for name, now, then in known
        if now is not None and then is not None
    ]
    new = groups.get("new", {}).get("AP")
    text = f"After {item.checkpoint}: " + (", ".join(changes) or "nothing known before can be compared")
    return text + (
        f"; its new classes reach {_percent(new)}." if new is not None else "; its new classes have no objects."
    )


def _is_phase(name: str) -> bool:
    return name == "b0" or name[1:].isdecimal()


def _compared(item: Evaluation, before: Evaluation) -> str:
    """Return gains and losses between two checkpoints that know the same classes."""
    now, then = item.metrics, before.metrics
    change = now["AP"] - then["AP"]
    groups = [
        f"{key} {_points(now[key] - then[key])}"
        for key in ("APr", "APc", "APf")
        if now[key] is not None and then[key] is not None
    ]
    interval, chance = said_of(before, item)
    what = "gains" if change > NOTICEABLE else "costs" if change < -NOTICEABLE else "changes little:"
    what = "has" if chance and what != "changes little:" else what
    detail = f" ({', '.join(groups)})" if groups else ""
    return f"{what} {_points(change)} AP{detail} over {before.checkpoint}{interval}"


def _next(best: Evaluation, ours: Sequence[Evaluation], cards: Sequence[ExperimentCard]) -> Iterator[html.Markup]:
    """Yield what the numbers call for."""
    own = ours[-1].experiment
    for card in cards:
        if card.epochs is not None and card.epochs < SHORT_EPOCHS:
            yield html.step(
                f"{card.name} sees each training image {card.epochs:.1f} times in its base training; published "
                "schedules have 12 to 36 passes. Train longer before methods are compared:",
                f"base: {{schedule: {{iterations: {_longer(card)}}}}}",
            )
    nothing = int(best.per_class["AP"].isna().sum())
    if nothing:
        yield html.step(
            f"{nothing} of {len(best.per_class)} classes have no objects in the validation set: nothing is known of "
            "them. ltpipe make-split parts a data set so that every class has some:",
            "ltpipe make-split --help",
        )
    yield from _empty_groups(best)
    yield from _costly(best)
    mine = [item for item in ours if item.experiment == own]
    phases = phases_of(mine, own)
    if phases and (lost := _lost(phases)) > FORGOTTEN:
        yield html.step(
            f"The base classes of {own} lose {100 * lost:.1f} points in the phases. A larger weight of distillation "
            "keeps more of them:",
            "lst: {distill: {weight: ...}}",
        )
    if cards and all(item.phase is not None for item in mine):
        yield html.step(
            f"{own} has no calibrated checkpoint: a calibrator takes minutes and leaves the detector as it is.",
            "calibrate: {simcal: {type: simcal}}",
        )


def _longer(card: ExperimentCard) -> int:
    """Return the iterations of twelve passes, two digits of them."""
    assert card.epochs is not None and card.iterations is not None
    wanted = card.iterations * 12 / card.epochs
    unit = 10 ** max(0, int(np.log10(wanted)) - 1)
    return int(np.ceil(wanted / unit) * unit)


def _empty_groups(best: Evaluation) -> Iterator[html.Markup]:
    counts = best.per_class["train_images"].to_numpy(float)
    frequency = best.per_class["frequency"]
    if not np.isfinite(counts).all() or not len(counts):
        return
    empty = [name for letter, name in FREQUENCY_NAMES.items() if not (frequency == letter).any()]
    low, high = (int(np.quantile(counts, share)) for share in (1 / 3, 2 / 3))
    if empty and 0 <= low < high:
        yield html.step(
            f"No class is {' or '.join(empty)} by the limits of the data set. With these limits each group has a third "
            "of the classes:",
            f"dataset: {{frequency_limits: [{low}, {high}]}}",
        )


def _costly(best: Evaluation) -> Iterator[html.Markup]:
    """Yield the kind of error that costs most, if that was measured."""
    costs = {kind: best.metrics.get(f"dAP_{kind}") for kind in KINDS}
    known = {kind: float(cost) for kind, cost in costs.items() if cost is not None}
    if known:
        kind = max(known, key=lambda name: known[name])
        rare = best.metrics.get(f"dAP_{kind}_r")
        of_rare = f" ({100 * rare:.1f} for the rare classes)" if rare is not None else ""
        yield html.step(
            f"Most AP50 of {best.checkpoint} is lost to one kind of error, {KINDS[kind]}: {100 * known[kind]:.1f} "
            f"points{of_rare}; see the section on errors."
        )


def _lost(phases: Sequence[Evaluation]) -> float:
    first, last = (item.metrics["groups"].get("b0", {}).get("AP") for item in (phases[0], phases[-1]))
    return 0.0 if first is None or last is None else first - last


def _thresholds(sweeps: Sequence[Sweep], kind: str) -> Iterator[html.Markup]:
    """Yield a threshold of calibrated scores that is better than the one in use."""
    for one in sweeps:
        rows = one.of(kind).dropna(subset=["AP"])
        used = rows[rows["configured"].astype(bool)]
        if len(rows) < 2 or used.empty:
            continue
        best = rows.loc[rows["AP"].idxmax()]
        gain = float(best["AP"] - used["AP"].iloc[0])
        if gain > NOTICEABLE:
            text = f"mode {best['mode']}" + (f", threshold {best['threshold']:g}" if best["threshold"] > 0 else "")
            yield html.step(
                f"{one.experiment}, {one.checkpoint}: {text} has {_percent(best['AP'])} AP, {_points(gain)}. It is "
                "worth trying on other images: these chose it."
            )


def _name(item: Evaluation, among: Sequence[Evaluation]) -> str:
    return item.checkpoint if len(experiments_of(among)) == 1 else f"{item.checkpoint} of {item.experiment}"


def _percent(value: float) -> str:
    return html.show(value, "percent")


def _points(value: float) -> str:
    return html.show(value, "points")
