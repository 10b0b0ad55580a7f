"""IIF through the stages: post-hoc and re-trained on a softmax detector, trained, in phases and before SimCal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config

from ltpipe.config.experiment import Experiment
from ltpipe.data.split import Split
from ltpipe.data.store import AnnotationStore
from ltpipe.engine.dataset_configs import class_counts
from ltpipe.engine.inference import load_model
from ltpipe.errors import UserError
from ltpipe.pipeline.paths import Paths
from ltpipe.stages import base, calibrate, features, index, lst, split
from tests.helpers.configs import read_config
from tests.helpers.detectors import probabilities
from tests.helpers.method_project import tiny_experiment, write_project
from tests.published.iif_csv import table_from_counts, write_table

SHORT: dict[str, Any] = {"schedule": {"iterations": 3, "batch_size": 2, "warmup_iterations": 0}}
HEAD = {"schedule": {"iterations": 3, "lr": 0.01}}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project with indexed data, as working directory."""
    folder = tmp_path_factory.mktemp("iif")
    write_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exp = tiny_experiment(folder, "index_only")
        index.run(exp, Paths("results", exp))
        yield folder


def trained(project: Path, name: str, **blocks: Any) -> tuple[Experiment, Paths]:
    exp = tiny_experiment(project, name, **{"base": SHORT, **blocks})
    paths = Paths("results", exp)
    split.run(exp, paths)
    base.run(exp, paths)
    return exp, paths


def head_of(paths: Paths, checkpoint: str) -> Any:
    return load_model(read_config(paths.config(checkpoint)).model, paths.model(checkpoint)).roi_head.bbox_head


def test_post_hoc_without_features_and_retrained(project: Path) -> None:
    calibrators = {
        "posthoc": {"type": "iif", "variant": "smooth"},
        "retrained": {"type": "iif_retrain", "variant": "base10", "count": "instance", **HEAD},
    }
    exp, paths = trained(project, "softmax", calibrate=calibrators)
    calibrate.run(exp, paths, "posthoc")
    assert not paths.folder("features").exists()
    plain, posthoc = head_of(paths, "base"), head_of(paths, "posthoc")
    torch.testing.assert_close(posthoc.fc_cls.weight, plain.fc_cls.weight, rtol=0, atol=0)
    x = torch.randn(4, 32)
    logits = plain.fc_cls(x)
    expected = (logits * posthoc.loss_cls.weights).softmax(-1)
    torch.testing.assert_close(probabilities(posthoc, posthoc.fc_cls(x)), expected)
    assert not torch.allclose(expected, probabilities(plain, logits))

    features.run(exp, paths)
    calibrate.run(exp, paths, "retrained")
    again = head_of(paths, "retrained")
    assert (again.loss_cls.variant, again.loss_cls.count) == ("base10", "instance")
    assert not torch.equal(again.fc_cls.weight, plain.fc_cls.weight)
    assert torch.equal(again.fc_reg.weight, plain.fc_reg.weight)


@pytest.mark.parametrize("classifier", ["linear", "normed_linear", "cosine"])
def test_retraining_keeps_the_kind_of_classifier(project: Path, classifier: str) -> None:
    name = f"kind_{classifier}"
    blocks = {
        "model": {"classifier": {"type": classifier}},
        "calibrate": {"again": {"type": "iif_retrain", **HEAD}},
    }
    exp, paths = trained(project, name, **blocks)
    features.run(exp, paths)
    calibrate.run(exp, paths, "again")
    assert type(head_of(paths, "again").fc_cls) is type(head_of(paths, "base").fc_cls)


def test_iif_with_fasa_in_phases_and_before_simcal(project: Path) -> None:
    exp, paths = trained(
        project,
        "everything",
        model={
            "classifier": {"type": "cosine"},
            "loss": {"type": "iif", "variant": "base10", "count": "instance"},
            "mask": {"type": "normed"},
            "parts": [{"type": "fasa"}],
        },
        split={"boundaries": [6, 9]},
        base={**SHORT, "sampler": {"type": "repeat_factor", "threshold": 0.1}},
        lst={"schedule": {"iterations": 3, "batch_size": 2}, "rois": {"num": 16}, "distill": {"teacher": "online"}},
        calibrate={"simcal": {"type": "simcal", "head": "3fc_ft", "threshold": 6, **HEAD}},
    )
    lst.run(exp, paths, phase=1)
    features.run(exp, paths)
    calibrate.run(exp, paths, "simcal")
    counts = class_counts(paths, Split.load(paths.split), 9)
    loss = head_of(paths, "simcal").loss_cls
    assert loss.num_classes == 9 and len(loss.weights) == 10
    base_loss = Config.fromfile(paths.config("base")).model.roi_head.bbox_head.loss_cls
    assert list(base_loss.instance_counts) == list(counts.instances[:6])


def test_weights_from_a_table_of_the_data_set(project: Path) -> None:
    exp = tiny_experiment(project, "index_only")
    paths = Paths("results", exp)
    split.run(exp, paths)
    counts = class_counts(paths, Split.load(paths.split), 9)
    assert counts.ranks is not None and counts.names is not None
    place = np.argsort(counts.ranks)  # the published tables follow the category ids, our labels the counts
    assert place.tolist() != sorted(place.tolist())
    images, instances, names = (
        [values[i] for i in place] for values in (counts.images, counts.instances, counts.names)
    )
    write_table(project / "table.csv", table_from_counts(images, instances, counts.num_images, names), "coco")
    assert len(AnnotationStore.open(paths.store("train")).image_ids) == counts.num_images
    loss = {"type": "iif", "variant": "smooth"}
    _, with_table = trained(project, "table", model={"loss": {**loss, "table": "table.csv"}})
    _, from_counts = trained(project, "counted", model={"loss": loss})
    read, counted = (head_of(paths, "base").loss_cls.weights for paths in (with_table, from_counts))
    torch.testing.assert_close(read, counted)
    names[0], names[1] = names[1], names[0]
    write_table(project / "table.csv", table_from_counts(images, instances, counts.num_images, names), "coco")
    with pytest.raises(UserError, match="another name"):
        trained(project, "misnamed", model={"loss": {**loss, "table": "table.csv"}})
