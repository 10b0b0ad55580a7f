"""What a checkpoint says of the detector it was trained as, so that a detector file that changed since is noticed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.config import ConfigDict

from ltpipe.errors import UserError
from ltpipe.pipeline.digests import as_json
from ltpipe.run.changes import changed_settings

_SHOWN = 4


def facts_of(fragment: ConfigDict, model: Mapping[str, Any]) -> dict[str, Any]:
    """Return what to keep in a checkpoint: plain data, which nothing builds a detector from.

    Args:
        fragment: The detector file.
        model: Model config of the checkpoint. What ``evaluate`` sets anew and where weights started are left out.
    """
    facts: dict[str, Any] = as_json(_without_starts(model))
    limits = facts["test_cfg"].get("rcnn", facts["test_cfg"])  # one-stage detectors have them at the top
    for name in ("score_thr", "max_per_img", "nms"):
        limits.pop(name, None)
    return {"model": facts, "test_pipeline": as_json(fragment.test_pipeline)}


def _without_starts(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_starts(item) for key, item in value.items() if key not in ("init_cfg", "pretrained")}
    if isinstance(value, list | tuple):
        return [_without_starts(item) for item in value]
    return value


def check_same_detector(meta: Mapping[str, Any], facts: Mapping[str, Any], where: object) -> None:
    """Compare the detector that a checkpoint was trained as with today's.

    Checkpoints from elsewhere and of earlier versions say nothing of it.

    Args:
        meta: Facts in the checkpoint.
        facts: What :func:`facts_of` returns today.
        where: The checkpoint.

    Raises:
        UserError: They differ; names the settings.
    """
    trained = meta.get("detector")
    changed = changed_settings(trained, facts) if isinstance(trained, dict) else []
    if changed:
        more = f"; and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise UserError(
            "the weights belong to another detector than the experiment describes now",
            where=where,
            got="; ".join(changed[:_SHOWN]) + more,
            fix="undo the change in the detector file or the experiment, or run the stages again from there",
        )
