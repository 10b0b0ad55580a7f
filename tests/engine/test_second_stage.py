"""A second stage on whole images trains the last layers and leaves every other bit of the first stage's detector."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from torch import Tensor

from ltpipe.engine.inference import load_model
from ltpipe.engine.last_layers import partly_trained, with_trained_layers, without_layers
from ltpipe.errors import UserError
from ltpipe.pipeline.paths import Paths
from ltpipe.stages import base, evaluate, index, report, split
from tests.helpers.configs import read_config
from tests.helpers.method_project import tiny_experiment, write_project

SHORT = {"schedule": {"iterations": 2, "batch_size": 2, "warmup_iterations": 0, "lr": 0.02}}
FIRST = "results/first/base/model.pth"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project whose first stage, softmax on all layers, is trained; as working directory."""
    folder = tmp_path_factory.mktemp("second")
    write_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exp = tiny_experiment(folder, "index_only")
        index.run(exp, Paths("results", exp))
        train(folder, "first", base=SHORT)
        yield folder


def train(folder: Path, name: str, **blocks: Any) -> Paths:
    """Train an experiment's base."""
    exp = tiny_experiment(folder, name, **blocks)
    paths = Paths("results", exp)
    split.run(exp, paths)
    base.run(exp, paths)
    return paths


def test_crat_says_which_classes_are_alike(project: Path) -> None:
    exp = tiny_experiment(project, "alike", model={"parts": [{"type": "crat"}]}, base=SHORT)
    paths = train(project, "alike", model={"parts": [{"type": "crat"}]}, base=SHORT)
    evaluate.run(exp, paths, "base")
    table = pd.read_csv(paths.affinity("base"))
    with np.load(paths.affinity("base").with_suffix(".npz")) as file:
        cosine, ids = file["cosine"], file["category_ids"].tolist()
    assert cosine.shape == (9, 9) and set(table["category_id"]) == set(ids)
    for row in table.dropna().to_dict("records"):
        pair = ids.index(row["category_id"]), ids.index(row["neighbour_id"])
        assert row["cosine"] == pytest.approx(cosine[pair], abs=1e-6) and row["category_id"] != row["neighbour_id"]
    report.run(exp, paths)
    assert (
        "Which classes are alike" in paths.report.read_text() and (paths.figures / "affinity_alike_base.png").exists()
    )
    outputs = json.loads(paths.record("evaluate", "base").read_text())["outputs"]
    assert {"affinity.csv", "affinity.npz"} <= set(outputs)


def second(folder: Path, name: str, trained: list[str], model: Any = None, **options: Any) -> Paths:
    """Train a second stage from the first."""
    return train(
        folder,
        name,
        model=model or {},
        detector={"config": "class_wise.py", "load_from": FIRST},
        base={**SHORT, "trained": trained, **options},
    )


def weights(path: Path | str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return found


def changed(paths: Paths) -> set[str]:
    """Names of the first stage's tensors that the second one has changed."""
    before, after = weights(FIRST), weights(paths.model("base"))
    return {key for key in before if not torch.equal(before[key], after[key])}


def test_crat_with_its_losses_on_the_last_layers(project: Path) -> None:
    model = {"loss": {"type": "eqlv2"}, "parts": [{"type": "crat"}]}
    paths = second(project, "crat", ["fc_cls", "fc_reg", "conv_logits"], model, sampler={"type": "class_aware"})
    layers = ("bbox_head.fc_cls", "bbox_head.fc_reg", "mask_head.conv_logits")
    assert changed(paths) == {f"roi_head.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    found = weights(paths.model("base"))
    assert found["roi_head.parts.0.box_bank.energy"].any() and found["roi_head.bbox_head.loss_cls.neg_grad"].any()
    model = load_model(read_config(paths.config("base")).model, paths.model("base"))
    assert type(model).__name__ == "MaskRCNN" and model.roi_head.parts[0].box_bank.seen().any()


def test_crt_starts_its_classifier_anew(project: Path) -> None:
    paths = second(project, "crt", ["fc_cls"], fresh=["fc_cls"], sampler={"type": "class_aware"})
    assert changed(paths) == {"roi_head.bbox_head.fc_cls.weight", "roi_head.bbox_head.fc_cls.bias"}
    start = weights(paths.folder("base") / "start.pth")
    assert start.keys() == weights(FIRST).keys() - changed(paths)


def test_lws_learns_one_scale_per_row(project: Path) -> None:
    paths = second(project, "lws", ["fc_cls"], {"classifier": {"type": "scaled_linear"}})
    assert changed(paths) == set()
    assert (weights(paths.model("base"))["roi_head.bbox_head.fc_cls.weight_scaler"] != 1).any()


def test_another_layout_of_the_classifier_starts_anew_by_itself(project: Path) -> None:
    paths = second(project, "bags", ["fc_cls"], {"loss": {"type": "group_softmax"}})
    before, after = weights(FIRST), weights(paths.model("base"))
    same = {key for key in before if before[key].shape == after[key].shape and torch.equal(before[key], after[key])}
    assert before.keys() - same == {"roi_head.bbox_head.fc_cls.weight", "roi_head.bbox_head.fc_cls.bias"}


def test_a_start_without_the_fixed_weights_is_refused(project: Path) -> None:
    state = {key: value for key, value in weights(FIRST).items() if "fc_reg" not in key}
    torch.save({"meta": torch.load(FIRST, weights_only=True)["meta"], "state_dict": state}, "part.pth")
    with pytest.raises(UserError, match="lacks weights") as error:
        train(
            project,
            "refused",
            detector={"config": "class_wise.py", "load_from": "part.pth"},
            base={**SHORT, "trained": ["fc_cls"]},
        )
    assert "fc_reg.weight" in str(error.value) and "base.trained" in str(error.value)


def test_only_the_chosen_layers_have_gradients(project: Path) -> None:
    init_default_scope("mmdet")
    model = read_config("results/first/base/config.py").model
    assert with_trained_layers(model, None) == model
    chosen = with_trained_layers(model, ["fc_cls"])
    assert chosen.roi_head == model.roi_head and (chosen.type, chosen.detector) == ("ltpipe.partly_trained", model.type)
    options = {key: value for key, value in chosen.items() if key != "type"}
    built = partly_trained(**options).train()
    assert {n for n, p in built.named_parameters() if p.requires_grad} == {
        "roi_head.bbox_head.fc_cls.weight",
        "roi_head.bbox_head.fc_cls.bias",
    }
    assert not any(m.training for m in built.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))
    with pytest.raises(UserError, match="no such layer"):
        partly_trained(**ConfigDict(options, trained=["fc_clss"]))


def test_a_fresh_classifier_leaves_its_statistics_behind() -> None:
    names = ["bbox_head.fc_cls.weight", "bbox_head.loss_cls.pos_grad", "bbox_head.fc_reg.weight", "parts.0.energy"]
    state = {name: torch.zeros(1) for name in names}
    assert set(without_layers(state, ["fc_cls"])) == {names[2], names[3]}
    assert set(without_layers(state, ["fc_reg"])) == {names[0], names[1], names[3]}
    assert set(without_layers(state, [])) == set(names)
