"""A new method is one module: a loss, a part and a calibrator of a plug-in, each with a class-wise buffer, all the way.

They are trained, grown by a phase, calibrated, exported, taken over again and give equal scores, and ltpipe knows
nothing of them but what their classes say.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ltpipe.cli import main
from ltpipe.config import catalogue
from ltpipe.data.categories import Categories
from ltpipe.errors import UserError
from ltpipe.methods.class_rows import class_tensors, reorder_classes
from ltpipe.metrics.predictions import Predictions
from ltpipe.registry import METHODS, MODELS
from tests.helpers.configs import read_config
from tests.helpers.tiny_project import experiment, run_stages, state_of

PLUGIN = '''
"""Methods of nobody."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from mmdet.models.losses import CrossEntropyLoss
from torch import nn

from ltpipe.methods.calibration import Calibrator, replace_classifier
from ltpipe.methods.head_parts import HeadPart
from ltpipe.registry import method


@method("loss", "margin_of_nobody")
class MarginOfNobody(CrossEntropyLoss):
    """Cross entropy with a margin per class.

    Args:
        num_classes: Foreground classes.
        size: Largest margin.
    """

    custom_activation = True
    custom_cls_channels = True
    custom_accuracy = True
    class_rows: ClassVar[dict[str, int]] = {"margin": 0}

    def __init__(self, num_classes: int, size: float = 0.5) -> None:
        super().__init__(use_sigmoid=False)
        self.num_classes = num_classes
        self.register_buffer("margin", size * torch.arange(num_classes + 1) / num_classes)

    def forward(self, cls_score, *args, **kwargs):
        return super().forward(cls_score - self.margin, *args, **kwargs)

    def get_cls_channels(self, num_classes):
        return num_classes + 1

    def get_activation(self, cls_score):
        return F.softmax(cls_score - self.margin, dim=-1)

    def get_accuracy(self, cls_score, labels):
        return {"acc_classes": (cls_score.argmax(1) == labels).float().mean()}


@method("part", "counter_of_nobody")
class CounterOfNobody(HeadPart):
    """Counts the RoIs of every class over all phases.

    Args:
        num_classes: Foreground classes.
    """

    restarts_per_phase = False
    class_rows: ClassVar[dict[str, int]] = {"counted": 0}

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("counted", torch.zeros(num_classes))

    def box_losses(self, head, batch):
        if self.training:
            self.counted += torch.bincount(batch.labels, minlength=self.num_classes + 1)[:-1]
        return {}


@method("classifier", "biased_of_nobody")
class BiasedOfNobody(nn.Linear):
    """Linear classifier with a second bias.

    Args:
        in_features: Width.
        out_features: Outputs.
    """

    class_rows: ClassVar[dict[str, int]] = {"weight": 0, "bias": 0, "second": 0}

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.register_buffer("second", torch.linspace(-1, 1, out_features))

    def forward(self, x):
        return super().forward(x) + self.second


@method("calibrator", "shift_of_nobody")
class ShiftOfNobody(Calibrator):
    """Adds a constant per class to the logits, more for rare classes.

    Args:
        num_classes: Foreground classes.
        instance_counts: Training instances per class.
    """

    needs_features = False

    def __init__(self, num_classes: int, instance_counts: list[int]) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.shift = 1 / torch.tensor([*instance_counts, 1.0])

    def initialise(self, bbox_head):
        self.source = bbox_head.fc_cls

    def merge(self, model, state, stage=None):
        weights = {f"fc_cls.{key}": value for key, value in self.source.state_dict().items()}
        weights["fc_cls.second"] = weights["fc_cls.second"] + self.shift
        head = model["roi_head"]["bbox_head"]
        weights["loss_cls.margin"] = state["roi_head.bbox_head.loss_cls.margin"]
        return replace_classifier(
            model, state, classifier=head["cls_predictor_cfg"], loss=head["loss_cls"], weights=weights, stage=stage
        )
'''
CHAIN = ["validate", "index", "split", "base", ("lst", 1), ("calibrate", "shift"), ("evaluate", "shift")]
MODEL: dict[str, Any] = {
    "classifier": {"type": "biased_of_nobody"},
    "loss": {"type": "margin_of_nobody", "size": 0.25},
    "parts": [{"type": "counter_of_nobody"}],
}


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder with the plug-in, which is the working directory; afterwards nothing knows of its methods."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "methods_of_nobody.py").write_text(PLUGIN, encoding="utf-8")
    before = os.getcwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)
    for key in [key for key, entry in catalogue.catalogue().items() if entry.plugin is not None]:
        del catalogue.catalogue()[key]
        cls = METHODS.pop(key, None)
        if cls is not None:
            MODELS.module_dict.pop(cls.__name__, None)
    sys.modules.pop("methods_of_nobody", None)


def own_experiment(project: Path, **changes: Any) -> Any:
    blocks: dict[str, Any] = {
        "name": "own",
        "plugins": ["methods_of_nobody"],
        "model": MODEL,
        "split": {"boundaries": [6, 9]},
        "lst": {"distill": {"teacher": "none"}},
        "calibrate": {"simcal": None, "shift": {"type": "shift_of_nobody"}},
        "evaluate": {"score_threshold": 0.0},
    }
    return experiment(project, **blocks | changes)


def test_a_method_is_one_module(project: Path, plugin: Path, tmp_path: Path, forked_python: None) -> None:
    exp = own_experiment(project)
    paths = run_stages(exp, tmp_path / "results", *CHAIN)
    assert "methods_of_nobody" in read_config(paths.config("base")).custom_imports["imports"]

    # Grown by the phase: what restarts is new, what does not keeps its old rows.
    old, new = state_of(paths.model("base")), state_of(paths.model("phase1"))
    margin = "roi_head.bbox_head.loss_cls.margin"
    assert torch.equal(new[margin], 0.25 * torch.arange(10) / 9) and len(old[margin]) == 7
    second = "roi_head.bbox_head.fc_cls.second"
    fresh = torch.linspace(-1, 1, 10)
    assert torch.equal(new[second], torch.cat([old[second][:6], fresh[6:9], old[second][6:]]))
    counted = "roi_head.parts.0.counted"
    assert len(new[counted]) == 9 and (new[counted][:6] >= old[counted]).all() and new[counted][6:].sum() > 0

    # Exported in the order of the annotation file: tensors of the plug-in follow their classes.
    out = tmp_path / "exported"
    command = ["--experiment", str(exp.file), "--results", str(paths.results), "--checkpoint", "shift"]
    assert main(["export", *command, "--output", str(out)]) == 0
    exported, kept = torch.load(out / "model.pth", weights_only=True), state_of(paths.model("shift"))
    order = [Categories.of_checkpoint(torch.load(paths.model("shift"), weights_only=True)["meta"], "it").ids.index(i)
             for i in exported["meta"]["category_ids"]]  # fmt: skip
    assert order != sorted(order)
    assert torch.equal(exported["state_dict"][second], kept[second][[*order, 9]])
    assert torch.equal(exported["state_dict"][margin], kept[margin][[*order, 9]])

    # Taken over by another experiment, which counts labels its own way: equal scores.
    again = own_experiment(
        project,
        name="again",
        split=None,
        lst=None,
        base={"checkpoint": str(out / "model.pth")},
        calibrate={"simcal": None},
    )
    others = run_stages(again, paths.results, "split", "base", ("evaluate", "base"))
    one, two = (Predictions.open(p.predictions(name)) for p, name in ((paths, "shift"), (others, "base")))
    assert len(one) == len(two) > 100
    np.testing.assert_array_equal(one.category_ids, two.category_ids)
    np.testing.assert_allclose(one.scores, two.scores, atol=1e-6)


def test_a_class_that_says_nothing_is_an_error(plugin: Path) -> None:
    class Silent(torch.nn.Module):
        def __init__(self, rows: dict[str, int | None] | None = None) -> None:
            super().__init__()
            self.register_buffer("rows", torch.arange(9.0))
            self.register_buffer("scratch", torch.zeros(9), persistent=False)
            if rows is not None:
                self.class_rows = rows

    with pytest.raises(UserError, match="rows of Silent"):
        class_tensors({"part": Silent()}, 9)
    with pytest.raises(UserError, match="rows of Silent"):
        class_tensors({"part": Silent()}, 8)
    state, turned = {"part.rows": torch.arange(9.0)}, list(range(8, -1, -1))
    for axis, expected in ((0, state["part.rows"].flip(0)), (None, state["part.rows"])):
        found = reorder_classes(state, {"part": Silent({"rows": axis})}, 9, turned)
        assert torch.equal(found["part.rows"], expected)
