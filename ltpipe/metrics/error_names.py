"""The kinds of errors of detections, see :mod:`~ltpipe.metrics.error_kinds`."""

from __future__ import annotations

KINDS = {
    "Cls": "an object taken for another class",
    "Loc": "an object of the class, badly placed",
    "Both": "another class and badly placed",
    "Dupe": "an object found a second time",
    "Bkg": "nothing there",
    "Miss": "an object that nothing comes near",
}
SPECIAL = {"FalsePos": "all wrong detections", "FalseNeg": "all objects that are not found"}
