"""Trainings with methods that keep accumulators, random choices and passes between epochs, cut short at any step.

The calibrators' counterpart is in ``test_resume.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ltpipe.config.experiment import Experiment
from ltpipe.pipeline.paths import Paths
from tests.helpers.tiny_project import assert_same_state, copied, experiment, kill_here, run_stages
from tests.helpers.trainings import cut_short, iterations_of

FASA = {"type": "fasa", "adapt_split": "val", "instance_prob_scale": 20.0}
# 24 images in batches of 8: an epoch is 3 iterations.
METHODS: dict[str, tuple[dict[str, Any], str]] = {
    "fasa+crat, seesaw": (
        {"classifier": "normed_linear", "loss": "seesaw", "mask": "normed", "parts": [FASA, "crat"]},
        "combined",
    ),
    "fasa, eqlv2, weight transfer": (
        {"classifier": "cosine", "loss": "eqlv2", "mask": "weight_transfer", "parts": [FASA]},
        "class_aware",
    ),
    "iif": ({"classifier": "normed_linear", "loss": "iif", "parts": ["crat"]}, "repeat_factor"),
    "group softmax": ({"loss": "group_softmax"}, "repeat_drop"),
    "loce": ({"parts": [{"type": "loce", "memory": "roi", "warm_images": 1}]}, "instance_balanced"),
}


# Of each class, as CRAT needs them.
CLASS_WISE = """
model["roi_head"]["bbox_head"]["reg_class_agnostic"] = False
model["roi_head"]["mask_head"]["class_agnostic"] = False
"""


@pytest.fixture(scope="module")
def indexed(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results up to the split of all classes at once; beside the project a detector with heads of each class."""
    (project / "class_wise.py").write_text((project / "detector.py").read_text() + CLASS_WISE)
    results = tmp_path_factory.mktemp("indexed")
    run_stages(one_shot(project), results, "index", "split")
    return results


def one_shot(project: Path, **blocks: Any) -> Experiment:
    nothing = dict.fromkeys(("split", "lst", "features", "calibrate"))
    return experiment(project, detector={"config": str(project / "class_wise.py")}, **nothing, **blocks)


def typed(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


@pytest.mark.parametrize(
    ("name", "at"), [(name, at) for name in METHODS for at in ((3, 5) if "fasa" in name else (4,))]
)
def test_a_method_cut_short_continues_to_the_same_bits(
    project: Path, indexed: Path, tmp_path: Path, name: str, at: int
) -> None:
    blocks, sampler = METHODS[name]
    model = {"classifier": {"type": "linear"}}
    model |= {slot: list(map(typed, v)) if slot == "parts" else typed(v) for slot, v in blocks.items()}
    parts = [{"type": "repeat_factor", "weight": 1}, {"type": "class_aware", "weight": 2}]
    exp = one_shot(
        project,
        model=model,
        base={
            "sampler": {"type": sampler, **({"parts": parts} if sampler == "combined" else {})},
            "schedule": {"iterations": 6, "batch_size": 8, "warmup_iterations": 2},
        },
    )
    whole, cut = (Paths(copied(indexed, tmp_path / kind), exp) for kind in ("whole", "cut"))
    assert iterations_of(exp, whole, "base") == list(range(6))
    assert cut_short(exp, cut, "base", None, at, kill_here) == -9
    assert iterations_of(exp, cut, "base") == list(range(at, 6))
    assert_same_state(whole.model("base"), cut.model("base"))
