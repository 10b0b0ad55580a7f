"""TIDE: the error of every detection, and what each kind costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltpipe.metrics.error_costs import _ap, _mend, _start, error_costs
from ltpipe.metrics.error_kinds import Errors, find_errors
from ltpipe.metrics.error_names import KINDS
from tests.helpers.reference_cases import read_case

METHOD = "tide"
TOLERANCE = 1e-9  # percent points
STATES = ("tp", "ignored", "fp")


def percent(ap: np.ndarray) -> float:
    """Return the mean over the categories that count."""
    return 100 * float(np.nanmean(ap))


def mended_in_turn(errors: Errors, steps: Iterable[Sequence[str]]) -> list[np.ndarray]:
    """Return AP ``(K,)`` of every category after each step of mending, each on the result of those before."""
    points, found = _start(errors), []
    for number, names in enumerate(steps):
        points = _mend(errors, points, [list(KINDS).index(name) for name in names], number)
        found.append(_ap(points, "zero"))
    return found


def check_tide(path: Path) -> None:
    """Everything the file tells of a run."""
    case, gt, found = read_case(path)
    expected, kind = case["results"], case["iou_type"]
    options: dict[str, Any] = {"protocol": case["format"], "max_detections": case["max_detections_per_image"]}
    thresholds = {"positive": case["positive_threshold"], "background": case["background_threshold"]}
    errors = find_errors(gt, found, kind, **options, **thresholds)

    states, names = np.full(len(found), "not_evaluated", object), np.full(len(found), "", object)
    states[errors.dets] = np.array(STATES, object)[errors.state]
    names[errors.dets] = np.array([*KINDS, ""], object)[errors.kind]
    assert states.tolist() == expected["detection_state"]
    assert names.tolist() == expected["detection_error"]
    assert {name: int(count.sum()) for name, count in errors.counts().items()} == expected["counts"]
    missed = gt.ann_order[errors.anns[errors.missed]]
    assert sorted(missed.tolist()) == sorted(expected["missed_annotation_index"])

    costs = error_costs(errors, absent="zero")
    base = percent(costs.ap)
    assert abs(base - expected["ap"]) <= TOLERANCE
    gains = costs.of()
    for name, value in (expected["main_dap"] | expected["special_dap"]).items():
        assert gains[name] is not None and abs(100 * gains[name] - value) <= TOLERANCE, name
    steps = [percent(ap) for ap in mended_in_turn(errors, [[name] for name in KINDS])]
    assert list(expected["progressive_dap"]) == list(KINDS)
    for before, after, value in zip([base, *steps], steps, expected["progressive_dap"].values(), strict=False):
        assert abs(max(after - before, 0) - value) <= TOLERANCE
    everything = percent(mended_in_turn(errors, [KINDS])[0])
    assert abs(everything - expected["ap_after_fixing_all"]) <= TOLERANCE
    assert len(expected["ap_by_threshold"]) == 10
    for place, value in enumerate(expected["ap_by_threshold"]):
        positive = (50 + 5 * place) / 100
        other = positive != case["positive_threshold"]
        at = find_errors(gt, found, kind, **options, positive=positive, unjudged_first=other)
        assert abs(percent(error_costs(at, absent="zero").ap) - value) <= TOLERANCE, positive


CHECKS = {"tide_": check_tide}
