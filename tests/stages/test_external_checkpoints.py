"""From a released checkpoint to numbers: convert, take over as the base and as a calibrator, evaluate; no training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS as MMDET
from mmengine.config import Config
from torch import Tensor

from ltpipe.cli import main
from ltpipe.data.split import Split
from ltpipe.data.store import AnnotationStore
from ltpipe.engine.dataset_configs import test_config as val_config
from ltpipe.engine.inference import build_dataset, detections, load_model
from ltpipe.errors import UserError
from ltpipe.interop.plain_mmdet import foreign_types, plain_detector
from ltpipe.pipeline.digests import stage_digest
from ltpipe.pipeline.paths import Paths
from ltpipe.registry import MODELS
from ltpipe.run.status import status
from tests.helpers.configs import read_config
from tests.helpers.tiny_project import copied, experiment, rewritten, run_stages, state_of

if TYPE_CHECKING:
    from conftest import Chain

AFTER_BASE = [("calibrate", "simcal"), ("evaluate", "base"), ("evaluate", "simcal")]
ONE_SHOT: dict[str, Any] = {"split": None, "lst": None, "model": {"classifier": {"type": "linear"}}}


def old_names(state: dict[str, Tensor], order: list[int]) -> dict[str, Tensor]:
    """Return a detector as mmdetection 1.x stores it: labels by category id from 1, the background first."""
    by_id = sorted(range(len(order)), key=lambda label: order[label])
    found = {}
    for key, value in state.items():
        if "fc_cls." in key:
            value = torch.cat([value[-1:], value[by_id]])
        found[key.removeprefix("roi_head.")] = value
    return found


@pytest.fixture(scope="module")
def trained(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A one-shot base trained here, with a calibrated head and their measurements."""
    exp = experiment(chain.folder, name="trained", **ONE_SHOT)
    results = tmp_path_factory.mktemp("trained")
    return run_stages(exp, results, "index", "split", "base", "features", *AFTER_BASE)


@pytest.fixture(scope="module")
def released(trained: Paths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same two as another repository would release them."""
    folder = tmp_path_factory.mktemp("released")
    order = Split.load(trained.split).order.tolist()
    torch.save({"state_dict": old_names(state_of(trained.model("base")), order), "meta": {}}, folder / "base.pth")
    names = {"fc1": "feat_classifier.fc1", "fc2": "feat_classifier.fc2", "fc_cls": "feat_classifier.fc_classifier"}
    by_id = sorted(range(len(order)), key=lambda label: order[label])
    head = {}
    for key, value in state_of(trained.model("simcal")).items():
        if key.startswith("roi_head.calibrator."):
            layer, part = key.removeprefix("roi_head.calibrator.").rsplit(".", 1)
            head[f"{names[layer]}.{part}"] = torch.cat([value[-1:], value[by_id]]) if layer == "fc_cls" else value
    torch.save({"state_dict": head}, folder / "3fc_ft.pth")
    return folder


def convert(file: Path, trained: Paths) -> Path:
    output = file.with_name(f"new_{file.name}")
    assert main(["convert", str(file), "--output", str(output), "--classes", str(trained.statistics())]) == 0
    return output


def test_convert_take_over_evaluate(
    chain: Chain, trained: Paths, released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, head = convert(released / "base.pth", trained), convert(released / "3fc_ft.pth", trained)
    assert "base: {checkpoint:" in capsys.readouterr().out
    changes = {**ONE_SHOT, "base": {"checkpoint": str(base)}, "calibrate": {"simcal": {"checkpoint": str(head)}}}
    exp = experiment(chain.folder, name="taken", **changes)
    paths = run_stages(exp, tmp_path / "results", "validate", "index", "split", "base", *AFTER_BASE)
    for checkpoint in ("base", "simcal"):
        one, other = state_of(paths.model(checkpoint)), state_of(trained.model(checkpoint))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
        assert paths.metrics(checkpoint).read_text() == trained.metrics(checkpoint).read_text()
    record = json.loads(paths.record("base").read_text())
    assert str(base) in record["inputs"] and record["digest"] == stage_digest(exp, "base")
    assert {row.label: row.state for row in status(exp, paths)}["calibrate simcal"] == "done"
    assert not any(row.label == "features" for row in status(exp, paths))


def test_a_start_with_the_same_classes_keeps_its_heads(
    chain: Chain, trained: Paths, released: Path, tmp_path: Path
) -> None:
    base = convert(released / "base.pth", trained)
    exp = experiment(chain.folder, name="started", **ONE_SHOT, detector={"load_from": str(base)})
    paths = run_stages(exp, tmp_path / "results", "index", "split", "base")
    start, before = state_of(paths.folder("base") / "start.pth"), state_of(trained.model("base"))
    assert all(torch.equal(start[key], before[key]) for key in before)


def refusal(chain: Chain, results: Path, **changes: Any) -> str:
    exp = experiment(chain.folder, **{**ONE_SHOT, **changes})
    with pytest.raises(UserError) as caught:
        run_stages(exp, results, "index", "split", "validate", "base", ("calibrate", "simcal"))
    return str(caught.value)


def test_refusals(chain: Chain, trained: Paths, released: Path, tmp_path: Path) -> None:
    base = str(convert(released / "base.pth", trained))
    old = str(released / "base.pth")
    assert "which classes" in refusal(chain, tmp_path, base={"checkpoint": old})
    assert "missing checkpoint" in refusal(chain, tmp_path, base={"checkpoint": f"{base}.none"})
    both = refusal(chain, tmp_path, base={"checkpoint": base}, detector={"load_from": base})
    assert "no training to start" in both
    fewer = refusal(chain, tmp_path, base={"checkpoint": str(chain.paths.model("base"))})
    assert "is not in the checkpoint" in fewer and "the classes of the checkpoint are not those" in fewer
    normed = {"classifier": {"type": "normed_linear"}}
    assert "another classifier" in refusal(chain, tmp_path, base={"checkpoint": base}, model=normed)
    taken = {"base": {"checkpoint": base}}
    other = {"crt": {"type": "crt", "checkpoint": base}}
    assert "head of its own" in refusal(chain, tmp_path, **taken, calibrate=other)
    head = {"simcal": {"head": "2fc_rand", "checkpoint": str(convert(released / "3fc_ft.pth", trained))}}
    assert "other layers" in refusal(chain, tmp_path, **taken, calibrate=head)
    content = torch.load(base, weights_only=True)
    content["state_dict"].pop("rpn_head.rpn_cls.bias")
    torch.save(content, tmp_path / "less.pth")
    assert "rpn_head.rpn_cls.bias" in refusal(chain, tmp_path, base={"checkpoint": str(tmp_path / "less.pth")})


def with_meta(file: Path, **changes: Any) -> str:
    """Return a copy of a checkpoint that says other things of its classes."""
    content = torch.load(file, weights_only=True)
    content["meta"] |= changes
    torch.save(content, file.with_name(f"said_{file.name}"))
    return str(file.with_name(f"said_{file.name}"))


def test_classes_are_compared_by_name_and_id(chain: Chain, trained: Paths, released: Path, tmp_path: Path) -> None:
    base, head = convert(released / "base.pth", trained), convert(released / "3fc_ft.pth", trained)
    meta = torch.load(base, weights_only=True)["meta"]
    ids, names = meta["category_ids"], list(meta["dataset_meta"]["classes"])
    swapped = {"dataset_meta": {"classes": (names[1], names[0], *names[2:])}}
    told = f"id {ids[0]} is {names[1]!r} in the checkpoint, {names[0]!r} in the experiment"
    shifted = {"category_ids": [i + 100 for i in ids]}
    taken = {"base": {"checkpoint": str(base)}}
    for where in ("base.checkpoint", "detector.load_from", "calibrate.simcal.checkpoint"):

        def named(file: str, where: str = where) -> dict[str, Any]:
            block, *name, key = where.split(".")
            return ({} if block == "base" else taken if name else {}) | {
                block: {name[0]: {key: file}} if name else {key: file}
            }

        source = head if "simcal" in where else base
        text = refusal(chain, tmp_path, **named(with_meta(source, **swapped)))
        assert told in text and where in text
        text = refusal(chain, tmp_path, **named(with_meta(source, **shifted)))
        assert f"{names[0]!r} has id {ids[0] + 100} in the checkpoint, {ids[0]} in the experiment" in text
        assert "9 classes, 9 differ" in text
        text = refusal(chain, tmp_path, **named(with_meta(source, dataset_meta={})))
        assert "what its classes are called" in text


def test_a_start_of_other_classes_keeps_no_heads(
    chain: Chain, trained: Paths, released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = convert(released / "base.pth", trained)
    others = {"category_ids": list(range(50, 59)), "dataset_meta": {"classes": tuple("abcdefghi")}}
    for meta in (others, {"category_ids": None}):
        load_from = with_meta(base, **meta)
        exp = experiment(chain.folder, **ONE_SHOT, detector={"load_from": load_from})
        paths = run_stages(exp, tmp_path / str(len(meta)), "index", "split", "base")
        content = torch.load(paths.folder("base") / "start.pth", weights_only=True)
        assert "roi_head.bbox_head.fc_cls.weight" not in content["state_dict"]
        assert set(content["meta"]) == {"source"}
    assert "no category ids, so its class layers start anew" in capsys.readouterr().out
    # The way out of a refusal.
    start = tmp_path / "start.pth"
    assert main(["convert", str(base), "--init", "--output", str(start)]) == 0
    run_stages(
        experiment(chain.folder, **ONE_SHOT, detector={"load_from": str(start)}),
        tmp_path / "c",
        "index",
        "split",
        "base",
    )


def test_every_checkpoint_says_which_classes_it_knows(chain: Chain, trained: Paths, released: Path) -> None:
    split = Split.load(chain.paths.split)
    names = dict(zip(range(1, 10), AnnotationStore.open(chain.paths.store("train")).category_names, strict=True))
    for file, known in (
        (chain.paths.model("base"), 5),
        (chain.paths.model("phase1"), 7),
        (chain.paths.model("phase2"), 9),
        (trained.model("simcal"), 9),
        (convert(released / "base.pth", trained), 9),
        (convert(released / "3fc_ft.pth", trained), 9),
    ):
        meta = torch.load(file, weights_only=True)["meta"]
        ids = meta["category_ids"]
        assert ids == (sorted(split.order.tolist()) if "new_" in file.name else split.order.tolist()[:known])
        assert meta["dataset_meta"] == {"classes": tuple(names[i] for i in ids)}, file


def test_data_that_changed_since_are_noticed(chain: Chain, trained: Paths, tmp_path: Path) -> None:
    """The records of another index are no part of what a stage run by hand reads."""

    def rename(part: str, content: dict[str, Any]) -> None:
        first, second = content["categories"][:2]
        first["name"], second["name"] = second["name"], first["name"]

    results = copied(trained.results, tmp_path / "results")
    dataset = rewritten(chain.folder, tmp_path / "data", rename)
    exp = experiment(chain.folder, name="trained", **ONE_SHOT, dataset=dataset)
    for stage in ("features", ("calibrate", "simcal"), ("evaluate", "base")):
        with pytest.raises(UserError, match="in the checkpoint, .* in the experiment"):
            run_stages(exp, results, "index", "split", stage)


def with_nan(file: Path, key: str, value: float = float("nan")) -> str:
    """Return a copy of a checkpoint in which one number is none."""
    content = torch.load(file, weights_only=True)
    content["state_dict"][key].view(-1)[-1] = value
    torch.save(content, file.with_name(f"nan_{file.name}"))
    return str(file.with_name(f"nan_{file.name}"))


def test_weights_that_are_not_finite_are_named(
    chain: Chain, trained: Paths, released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, head = convert(released / "base.pth", trained), convert(released / "3fc_ft.pth", trained)
    key = "roi_head.bbox_head.fc_cls.weight"
    damaged = with_nan(base, key)
    for changes in ({"base": {"checkpoint": damaged}}, {"detector": {"load_from": damaged}}):
        assert f"tensors: {key} (1 of " in refusal(chain, tmp_path, **changes)
    calibrate = {"simcal": {"checkpoint": with_nan(head, "roi_head.calibrator.fc1.bias", float("inf"))}}
    text = refusal(chain, tmp_path, base={"checkpoint": str(base)}, calibrate=calibrate)
    assert "roi_head.calibrator.fc1.bias (1 of 24 values are NaN or infinite)" in text
    capsys.readouterr()
    old = with_nan(released / "base.pth", "bbox_head.fc_cls.weight")
    arguments = ["--output", str(tmp_path / "new.pth"), "--classes", str(trained.statistics())]
    assert main(["convert", old, *arguments]) == 2
    assert "tensors: bbox_head.fc_cls.weight (1 of " in capsys.readouterr().err
    content = torch.load(released / "base.pth", weights_only=True)
    content["state_dict"]["bbox_head.fc_cls.bias"] = content["state_dict"]["bbox_head.fc_cls.bias"].to(torch.complex64)
    content["state_dict"]["bbox_head.fc_reg.bias"] = content["state_dict"]["bbox_head.fc_reg.bias"].int()
    torch.save(content, tmp_path / "kinds.pth")
    assert main(["convert", str(tmp_path / "kinds.pth"), *arguments]) == 2
    message = capsys.readouterr().err
    assert "bbox_head.fc_cls.bias (torch.complex64)" in message and "bbox_head.fc_reg.bias (torch.int32)" in message
    assert not (tmp_path / "new.pth").exists()


def test_an_older_geometry_reaches_the_config(chain: Chain, trained: Paths, released: Path, tmp_path: Path) -> None:
    base = {"checkpoint": str(convert(released / "base.pth", trained))}
    exp = experiment(chain.folder, **ONE_SHOT, base=base, detector={"geometry": "mmdet1"})
    paths = run_stages(exp, tmp_path, "index", "split", "base", ("evaluate", "base"))
    config = read_config(paths.config("base"))
    assert config.model.roi_head.bbox_roi_extractor.type == "ltpipe.LegacyRoIExtractor"
    assert config.model.test_cfg.rcnn.nms.offset == 1
    assert load_model(config.model, paths.model("base")).roi_head.bbox_roi_extractor.end_offset == 1
    assert set(json.loads(paths.metrics("base").read_text())) == {"bbox", "segm"}


def test_an_exported_detector_is_plain_mmdet(
    chain: Chain, trained: Paths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exp = experiment(chain.folder, name="trained", **ONE_SHOT)
    arguments = [
        "--results",
        str(trained.results),
        "--checkpoint",
        "base",
        "--output",
        str(tmp_path / "out"),
        "--plain",
    ]
    assert main(["export", str(exp.file), *arguments]) == 0
    assert "plain mmdet" in capsys.readouterr().out
    text = (tmp_path / "out" / "config.py").read_text()
    assert "ltpipe" not in text
    config = Config.fromfile(str(tmp_path / "out" / "config.py"))
    content = torch.load(tmp_path / "out" / "model.pth", weights_only=True)
    ids = content["meta"]["category_ids"]
    assert ids == sorted(ids) and len(content["meta"]["dataset_meta"]["classes"]) == len(ids) == 9
    plain = MMDET.build(config.model)
    plain.load_state_dict(content["state_dict"])
    ours = load_model(read_config(trained.config("base")).model, trained.model("base"))
    order = Split.load(trained.split).order
    dataset = build_dataset(val_config(exp, trained, read_config(trained.config("base")).test_pipeline, 9))
    seen = 0
    for theirs, mine in zip(detections(plain.eval(), dataset), detections(ours, dataset), strict=True):
        # Equal scores may be listed in another order.
        one = sorted(zip(theirs["scores"], np.array(ids)[theirs["labels"]], theirs["bboxes"].tolist(), strict=True))
        other = sorted(zip(mine["scores"], order[mine["labels"]], mine["bboxes"].tolist(), strict=True))
        assert [row[1] for row in one] == [row[1] for row in other]
        for column in (0, 2):
            np.testing.assert_allclose([r[column] for r in one], [r[column] for r in other], atol=1e-3)
        seen += len(one)
    assert seen > 10
    again = tmp_path / "again.pth"
    said = ["--loss", "cross_entropy", "--classifier", "linear", "--mask", "fcn"]
    classes = str(trained.statistics())
    assert main(["convert", str(tmp_path / "out/model.pth"), "--output", str(again), "--classes", classes, *said]) == 0
    assert torch.load(again, weights_only=True)["meta"]["category_ids"] == ids


def test_exports_that_need_ltpipe_say_so(
    chain: Chain, trained: Paths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exp = experiment(chain.folder, name="trained", **ONE_SHOT)
    common = ["export", str(exp.file), "--results", str(trained.results), "--checkpoint", "simcal"]
    assert main([*common, "--output", str(tmp_path / "out"), "--plain"]) == 2
    assert "ltpipe.DualHead" in capsys.readouterr().err
    assert main([*common, "--output", str(tmp_path / "out")]) == 0
    assert "needs ltpipe" in capsys.readouterr().out
    config = Config.fromfile(str(tmp_path / "out" / "config.py"))
    assert "ltpipe.methods" in config.custom_imports.imports
    model = load_model(config.model, tmp_path / "out" / "model.pth")
    order, ids = Split.load(trained.split).order.tolist(), list(range(1, 10))
    counts = dict(
        zip(order, read_config(trained.config("simcal")).model.roi_head.calibrator.instance_counts, strict=True)
    )
    assert model.roi_head.calibrator.instance_counts == [counts[i] for i in ids]
    for iou_type, key in (("bbox", "bbox"), ("segm", "segmentation")):
        file = tmp_path / f"{iou_type}.json"
        assert main([*common, "--detections", str(file), "--iou-type", iou_type]) == 0
        rows = json.loads(file.read_text())
        assert (
            len(rows) == json.loads(trained.record("evaluate", "simcal").read_text())["detections"] and key in rows[0]
        )
    assert main(["export", str(exp.file), "--results", str(tmp_path), "--checkpoint", "base", "--output", "x"]) == 2
    assert "nothing to export" in capsys.readouterr().err


def test_exports_replace_exports_only(
    chain: Chain, trained: Paths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exp = experiment(chain.folder, name="trained", **ONE_SHOT)
    common = ["export", str(exp.file), "--results", str(trained.results), "--checkpoint", "simcal"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.py").write_text("mine")
    (tmp_path / "mine.json").write_text("mine")
    kept = [tmp_path / "mine.json", tmp_path / "mine" / "config.py", exp.dataset.val.annotations]
    kept += [trained.model("simcal"), trained.config("simcal"), trained.predictions("simcal")]
    before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in kept]
    for output in (tmp_path / "mine", trained.model("simcal").parent, trained.model("base").parent):
        assert main([*common, "--output", str(output)]) == 2
        assert "the folder holds other files" in capsys.readouterr().err
    for output in (kept[0], *kept[2:]):
        assert main([*common, "--detections", str(output)]) == 2
        assert "ltpipe did not make" in (error := capsys.readouterr().err) or "is an input" in error
    assert [(file.read_bytes(), file.stat().st_mtime_ns) for file in kept] == before
    for _ in range(2):
        assert main([*common, "--output", str(tmp_path / "out")]) == 0
        assert main([*common, "--detections", str(tmp_path / "found.json")]) == 0
    (tmp_path / "out" / "config.py").write_text("edited")
    assert main([*common, "--output", str(tmp_path / "out")]) == 2
    assert (tmp_path / "out" / "config.py").read_text() == "edited"


def test_weights_of_iif_go_into_the_rows() -> None:
    loss = dict(type="ltpipe.IIFLoss", num_classes=2, image_counts=[5, 50], instance_counts=[5, 50], num_images=100)
    head = dict(type="ltpipe.LTBBoxHead", cls_predictor_cfg=dict(type="ltpipe.LinearClassifier"), loss_cls=loss)
    state = {"roi_head.bbox_head.fc_cls.weight": torch.randn(3, 4), "roi_head.bbox_head.fc_cls.bias": torch.randn(3)}
    model, folded = plain_detector(dict(roi_head=dict(type="ltpipe.LTRoIHead", bbox_head=head)), state)
    assert not list(foreign_types(model)) and model["roi_head"]["bbox_head"]["loss_cls"]["type"] == "CrossEntropyLoss"
    x = torch.randn(6, 4)
    logits = x @ state["roi_head.bbox_head.fc_cls.weight"].T + state["roi_head.bbox_head.fc_cls.bias"]
    expected = MODELS.build(loss).get_activation(logits)
    found = x @ folded["roi_head.bbox_head.fc_cls.weight"].T + folded["roi_head.bbox_head.fc_cls.bias"]
    torch.testing.assert_close(found.softmax(dim=1), expected)
