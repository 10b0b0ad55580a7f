"""Experiments that begin alike: one of them makes the results, the others use them where they lie."""

from __future__ import annotations

from collections.abc import Callable

from ltpipe.config.experiment import Experiment, Owners
from ltpipe.errors import UserError
from ltpipe.pipeline.digests import stage_digest
from ltpipe.pipeline.stages import TABLE, stage_keys


def owners(exp: Experiment, load: Callable[[Experiment, str], Experiment], _seen: tuple[str, ...] = ()) -> Owners:
    """Return the experiment that makes the results, for each stage that is not this experiment's own.

    They are the stages up to the first one in which the two experiments differ.

    Args:
        exp: The experiment.
        load: Loads the experiment that another one names.

    Raises:
        UserError: ``share`` names no experiment, or experiments share in a circle.
    """
    if exp.share is None:
        return {}
    if exp.share in (exp.name, *_seen):
        raise UserError(
            "experiments share results in a circle",
            where=exp.where("share"),
            got=" -> ".join((*_seen, exp.name, exp.share)),
        )
    other = load(exp, exp.share)
    beyond = owners(other, load, (*_seen, exp.name))
    found: Owners = {}
    if exp.dataset != other.dataset:
        return found
    for own, its in zip(_stages(exp), _stages(other), strict=False):
        if own != its or stage_digest(exp, *own) != stage_digest(other, *its):
            break
        found[own] = beyond.get(own, other.name)
    return found


def _stages(exp: Experiment) -> list[tuple[str, str | int | None]]:
    return [(stage, key) for stage, key in stage_keys(exp) if TABLE[stage].shared]
