"""One-stage and DETR-like detectors: trained, continued after a kill, measured, reported; what has no place in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ltpipe.config.checks import check_settings
from ltpipe.config.experiment import Experiment
from ltpipe.engine.inspection import inspect_detector
from ltpipe.engine.model_config import ClassCounts, assemble_model
from ltpipe.errors import UserError
from ltpipe.metrics.predictions import Predictions
from ltpipe.pipeline.paths import Paths
from ltpipe.registry import MODELS
from ltpipe.run.records import read_json
from tests.helpers.one_stage import DETECTORS, WITH_MASKS, one_stage
from tests.helpers.tiny_project import assert_same_state, copied, experiment, kill_here, run_stages, state_of
from tests.helpers.trainings import cut_short, iterations_of


@pytest.fixture(scope="module")
def indexed(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("indexed")
    run_stages(one_shot(project), results, "index", "split")
    return results


def one_shot(project: Path) -> Experiment:
    return experiment(project, **dict.fromkeys(("split", "lst", "calibrate", "features")))


@pytest.mark.parametrize("name", DETECTORS)
def test_from_base_to_report(project: Path, indexed: Path, tmp_path: Path, name: str) -> None:
    exp = one_stage(project, name)
    check_settings(exp)
    assert "one-stage" in inspect_detector(exp).facts[0]
    whole, cut = (Paths(copied(indexed, tmp_path / kind), exp) for kind in ("whole", "cut"))
    run_stages(exp, whole.results, "base", ("evaluate", "base"), "report")
    assert cut_short(exp, cut, "base", None, 2, kill_here) == -9
    assert iterations_of(exp, cut, "base") == [2, 3]
    assert_same_state(whole.model("base"), cut.model("base"))
    found = Predictions.open(whole.predictions("base"))
    assert len(found) and (found.masks is not None) == (name in WITH_MASKS)
    numbers = read_json(whole.metrics("base"))
    assert numbers.keys() == set(exp.evaluate.iou_types) and numbers["bbox"]["AP"] is not None
    assert "RetinaNet" in whole.config("base").read_text() or name != "retinanet"
    assert whole.report.is_file()


@pytest.mark.parametrize("loss", ["eql", "efl", "eqfl"])
def test_losses_in_an_anchor_head(project: Path, indexed: Path, tmp_path: Path, loss: str) -> None:
    exp = one_stage(project, "retinanet", model={"loss": {"type": loss}})
    check_settings(exp)
    paths = run_stages(exp, copied(indexed, tmp_path / loss), "base", ("evaluate", "base"))
    state = state_of(paths.model("base"))
    if loss != "eql":
        seen = state["bbox_head.loss_cls.loss.pos_grad"]
        assert seen.shape == (9,) and seen.isfinite().all() and float(seen.sum()) > 0
    assert len(Predictions.open(paths.predictions("base")))


def test_a_focal_loss_without_focus_is_the_equalized_one() -> None:
    """EFL of balanced classes is mmdet's focal loss: both levels of the first step agree."""
    torch.manual_seed(0)
    ours = MODELS.build(
        {
            "type": "ltpipe.DenseLoss",
            "loss": {"type": "ltpipe.EFLLoss", "num_classes": 9, "levels": 2, "average": "avg_factor"},
        }
    )
    theirs = MODELS.build({"type": "mmdet.FocalLoss", "use_sigmoid": True})
    for _ in range(2):
        logits, labels = torch.randn(30, 9), torch.randint(0, 10, (30,))
        weight = (torch.rand(30) > 0.2).float()
        torch.testing.assert_close(
            ours(logits, labels, weight, avg_factor=7.0), theirs(logits, labels, weight, avg_factor=7.0)
        )


@pytest.mark.parametrize(
    ("blocks", "key"),
    [
        ({"model": {"classifier": {"type": "cosine"}}}, "model.classifier"),
        ({"model": {"parts": [{"type": "fasa"}]}}, "model.parts"),
        ({"calibrate": {"head": {"type": "simcal"}}, "features": {"steps": 4}}, "calibrate"),
        ({"base": {"trained": ["fc_cls"]}}, "base.trained"),
        ({"detector": {"geometry": "benchmark"}}, "detector.geometry"),
        ({"evaluate": {"oracle_labels": True}}, "evaluate.oracle_labels"),
    ],
)
def test_what_acts_in_roi_heads_is_refused(project: Path, blocks: dict[str, Any], key: str) -> None:
    exp = one_stage(project, "retinanet", **blocks)
    with pytest.raises(UserError, match=f"{key}\n(.|\n)*the RoI head|the RoI head(.|\n)*{key}"):
        check_settings(exp)


def test_losses_without_a_place_are_refused(project: Path) -> None:
    with pytest.raises(UserError, match="needs a background(.|\n)*eql"):
        check_settings(one_stage(project, "retinanet", model={"loss": {"type": "seesaw"}}))
    with pytest.raises(UserError, match="targets of its own"):
        check_settings(one_stage(project, "rtmdet_ins", model={"loss": {"type": "eql"}}))
    with pytest.raises(UserError, match="no mask head"):
        check_settings(one_stage(project, "retinanet", evaluate={"iou_types": ["segm"]}))


def test_class_layers_of_other_classes_start_anew(project: Path, indexed: Path, tmp_path: Path) -> None:
    """A file without classes gives everything but the last layers; one of the same classes gives all."""
    first = one_stage(project, "retinanet")
    paths = run_stages(first, copied(indexed, tmp_path / "first"), "base")
    nameless = tmp_path / "nameless.pth"
    torch.save({"state_dict": state_of(paths.model("base")), "meta": {}}, nameless)
    for file, reused in ((nameless, False), (paths.model("base"), True)):
        exp = one_stage(project, "retinanet", detector={"load_from": str(file)})
        again = run_stages(exp, copied(indexed, tmp_path / str(reused)), "base")
        start = state_of(again.folder("base") / "start.pth")
        assert ("bbox_head.retina_cls.weight" in start) == reused
        assert "bbox_head.retina_reg.weight" in start and "backbone.conv1.weight" in start


def test_a_resolved_model_knows_its_classes(project: Path) -> None:
    counts = ClassCounts(images=[9, 5, 2], instances=[20, 6, 2], num_images=12, num_annotated_images=11)
    for name in DETECTORS:
        _, model = assemble_model(one_stage(project, name), counts)
        assert model.bbox_head.num_classes == 3 and model.test_cfg.max_per_img == 20
