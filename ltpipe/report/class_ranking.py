"""Which classes are looked at first, and why."""

from __future__ import annotations

from itertools import zip_longest

import numpy as np
import pandas as pd

NOTICEABLE = 0.02
"""Change of AP that counts as one."""


def by_rarity(classes: pd.DataFrame) -> list[tuple[int, str]]:
    """Return the rows of a table of classes, the rarest first, without reasons.

    Args:
        classes: ``train_instances`` and ``category_id``.
    """
    order = classes.sort_values(["train_instances", "category_id"]).index
    return [(int(row), "") for row in order]


def by_importance(classes: pd.DataFrame) -> list[tuple[int, str]]:
    """Return every row of a table of classes and why it stands where it stands.

    The worst rare classes, the most confused ones and those that changed most take turns; then come the others, the
    worst first, and at the end those without objects to find.

    Args:
        classes: ``frequency``, ``AP`` (NaN: nothing to be found), ``confused`` (how often) and ``change`` (of AP, NaN
            where there is nothing to compare with).
    """
    known = classes[classes["AP"].notna()]
    rare = known[known["frequency"] == "r"].sort_values("AP", kind="stable")
    confused = known[known["confused"] > 0].sort_values("confused", ascending=False, kind="stable")
    moved = known[known["change"].abs() > NOTICEABLE]
    moved = moved.reindex(moved["change"].abs().sort_values(ascending=False, kind="stable").index)
    lists = [
        [(row, f"among the worst rare classes, AP {100 * ap:.1f}") for row, ap in rare["AP"].items()],
        [(row, f"confused {int(count)} times") for row, count in confused["confused"].items()],
        [(row, f"AP {100 * change:+.1f}".replace("-", "−")) for row, change in moved["change"].items()],
    ]
    found: dict[int, list[str]] = {}
    for turn in zip_longest(*lists):
        for item in filter(None, turn):
            found.setdefault(int(item[0]), []).append(item[1])
    rest = classes[~classes.index.isin(list(found))]
    rest = rest.assign(last=np.where(rest["AP"].isna(), 1, 0)).sort_values(["last", "AP"], kind="stable")
    return [(row, ", ".join(why)) for row, why in found.items()] + [(int(row), "") for row in rest.index]
