"""The table of calibrators in ``docs/calibration.md``, made of what their classes say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ltpipe.config import catalogue
from ltpipe.config.catalogue import Method

PAGE = Path("docs") / "calibration.md"
BEGIN, END = "<!-- calibrators -->\n", "<!-- end of calibrators -->\n"
_COLUMNS = ("calibrator", "detector", "training data", "stored features", "work", "chosen on held-out images")


def calibrator_table() -> str:
    """Return the table in Markdown: what each calibrator needs, and what work it is."""
    rows = [_COLUMNS, tuple("---" for _ in _COLUMNS)]
    for name in catalogue.names("calibrator"):
        entry = catalogue.find("calibrator", name)
        flags = entry.flags
        swept = ", ".join(f"`{option}`" for option in flags.get("sweeps", {})) or "-"
        rows.append((f"`{name}`", _detector(flags), _data(entry), _features(flags), str(flags["work"]), swept))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def page_with_table(text: str) -> str:
    """Return the page with the table of today between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{calibrator_table()}{END}{after}"


def needs_of(name: str) -> str:
    """Return in a few words what a calibrator needs beside the detector: training data, stored features."""
    entry = catalogue.find("calibrator", name)
    data, features = _data(entry), _features(entry.flags)
    found = [] if data == "-" else [data]
    return "; ".join([*found, *([] if features == "-" else [f"features {features}"])]) or "nothing"


def _detector(flags: Any) -> str:
    softmax = flags.get("needs_softmax", False)
    if flags.get("needs_cross_entropy", False):
        return "softmax cross entropy"
    found = ["linear classifier"] if flags.get("needs_linear", False) else []
    if isinstance(softmax, dict):
        found += [f"softmax with `{option}: {', '.join(values)}`" for option, values in softmax.items()]
    elif softmax:
        found.append("softmax")
    elif flags.get("needs_class_logits", False):
        found.append("a logit per class")
    return ", ".join(found) or "any"


def _data(entry: Method) -> str:
    words = {"image_counts": "images per class", "instance_counts": "objects per class"}
    found = [text for key, text in words.items() if key in entry.injected]
    return ", ".join([*found, *(["boxes"] if "fractal_dimension" in entry.injected else [])]) or "-"


def _features(flags: Any) -> str:
    if not flags.get("needs_features", True):
        return "-"
    lowest = flags.get("lowest_level", "last")
    if not isinstance(lowest, dict):
        return f"`{lowest}`"
    levels = {level: None for by_value in lowest.values() for level in by_value.values()}
    return f"{', '.join(f'`{level}`' for level in levels)}, by `{next(iter(lowest))}`"
