"""Whole checkpoints of every source: converted, loaded strictly, and compared with the old detector's own forward."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from torch import Tensor

from ltpipe.engine.training import read_checkpoint
from ltpipe.errors import UserError
from ltpipe.interop.checkpoint_facts import StatedFacts
from ltpipe.interop.convert import Request, convert
from ltpipe.interop.mmdet2 import choices_from_config
from ltpipe.run.files import sha256_file
from tests.helpers.detectors import probabilities
from tests.helpers.old_detectors import OLD, WIDTH, K, assert_same, build, forward, model_config, ours, random_inputs

LISTED, IDS = [7, 3, 20], [3, 7, 20]


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """A class list, not in the order of the ids."""
    records = [
        {"id": i, "name": str(i), "image_count": n, "instance_count": n} for i, n in ((7, 5), (3, 50), (20, 500))
    ]
    path = tmp_path / "classes.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def saved(tmp_path: Path, content: Any, name: str = "old.pth", legacy: bool = False) -> Path:
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=not legacy)
    return tmp_path / name


def converted(files: Path | tuple[Path, ...], **options: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    files = (files,) if isinstance(files, Path) else files
    given = StatedFacts(**{key: options.pop(key) for key in list(options) if key in StatedFacts.__dataclass_fields__})
    output = files[0].with_name("new.pth")
    convert(Request(files, output, given=given, **options))
    content = read_checkpoint(output)
    return content["state_dict"], content["meta"]


def loaded(config: ConfigDict, state: dict[str, Tensor]) -> torch.nn.Module:
    model = build(config)
    model.load_state_dict(state)  # strict
    return model


@pytest.mark.parametrize("class_wise", [True, False], ids=["class-wise", "agnostic"])
@pytest.mark.parametrize("source", ["mmdet1", "mmdet2", "benchmark", "detectron2"])
def test_a_converted_detector_computes_what_the_old_one_did(
    tmp_path: Path, classes: Path, source: str, class_wise: bool
) -> None:
    old = OLD[source]
    config = model_config(class_wise=class_wise, style=old.style)
    state = old.state(build(config))
    wrapper = {"benchmark": "model", "detectron2": "model"}.get(source, "state_dict")
    file = saved(tmp_path, {wrapper: state, "optimizer": {"lr": np.float64(0.1)}}, legacy=source == "mmdet1")
    said = {"loss": "cross_entropy", "classifier": "linear", "mask": "fcn"} if source == "mmdet2" else {}
    new, meta = converted(file, classes=classes, **said)
    inputs = random_inputs()
    assert_same(ours(loaded(config, new), *inputs), forward(old, state, *inputs))
    # Only detectron2 sorts the ids; the others count labels in file order.
    ids = IDS if source == "detectron2" else LISTED
    assert meta["category_ids"] == ids and meta["dataset_meta"] == {"classes": tuple(map(str, ids))}
    record = meta["converted"]
    assert record["sources"] == [{"file": "old.pth", "sha256": sha256_file(file)}] and record["layout"] == source
    assert record["model"] == {
        "classifier": {"type": "linear"},
        "loss": {"type": "cross_entropy"},
        "mask": {"type": "fcn"},
    }


@pytest.mark.parametrize("source", ["torchvision", "torchvision_old"])
def test_torchvision_rows_are_category_ids(tmp_path: Path, classes: Path, source: str) -> None:
    old = OLD[source]
    wide = model_config()
    wide.roi_head.bbox_head.num_classes = wide.roi_head.mask_head.num_classes = (
        20  # ids 1 to 20, of which three are used
    )
    state = old.state(build(wide))
    new, meta = converted(saved(tmp_path, state), classes=classes)
    assert meta["category_ids"] == [7, 3, 20]
    inputs, places = random_inputs(), [6, 2, 19]
    found, expected = ours(loaded(model_config(), new), *inputs), forward(old, state, *inputs)
    torch.testing.assert_close(found.classes, expected.classes[:, places], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.background, expected.background, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.deltas, expected.deltas[:, places], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.masks, expected.masks[:, places], rtol=1e-4, atol=1e-4)
    for a, b in zip(found.rpn, expected.rpn, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_lst_detector(tmp_path: Path, classes: Path) -> None:
    old = OLD["benchmark"]
    transfer = dict(type="ltpipe.MaskXTransferHead", class_features=WIDTH, fusion="full", roi_feat_size=14)
    config = model_config(classifier=dict(type="ltpipe.CosineLinear"), mask=transfer, style="caffe")
    model = build(config)
    state = old.state(model)
    assert sum("bbox2mask" in key for key in state) == 4 and "module.roi_heads.box.predictor.scale_cls" in state
    new, meta = converted(saved(tmp_path, {"model": state, "iteration": 9}), classes=classes)
    model = loaded(config, new)
    # The most frequent class is label 0; the list holds it last.
    assert meta["category_ids"] == [20, 3, 7]
    assert meta["converted"]["model"]["classifier"] == {"type": "cosine"}
    assert meta["converted"]["model"]["mask"] == {"type": "weight_transfer", "fusion": "full"}

    def get(name: str) -> Tensor:
        return state[f"module.{name}"]

    _, box, mask = random_inputs()
    box_head, predictor = "roi_heads.box.feature_extractor", "roi_heads.box.predictor"
    x = torch.relu(box.flatten(1) @ get(f"{box_head}.fc6.weight").T + get(f"{box_head}.fc6.bias"))
    x = x @ get(f"{box_head}.fc7.weight").T + get(f"{box_head}.fc7.bias")
    rows = get(f"{predictor}.cls_score.weight")
    cosine = (x / x.norm(dim=1, keepdim=True)) @ (rows / rows.norm(dim=1, keepdim=True)).T
    expected = get(f"{predictor}.scale_cls") * cosine
    deltas = torch.relu(x) @ get(f"{predictor}.bbox_pred.weight").T + get(f"{predictor}.bbox_pred.bias")
    logits, ours_deltas = model.roi_head.bbox_head(box)
    torch.testing.assert_close(logits[:, :-1], expected[:, 1:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits[:, -1], expected[:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours_deltas, deltas[:, 4:], rtol=1e-4, atol=1e-4)
    y = mask
    for n in (1, 2, 3, 4):
        here = f"roi_heads.mask.feature_extractor.mask_fcn{n}"
        y = torch.relu(torch.conv2d(y, get(f"{here}.weight"), get(f"{here}.bias"), padding=1))
    here = "roi_heads.mask.predictor"
    y = torch.conv_transpose2d(y, get(f"{here}.conv5_mask.weight"), get(f"{here}.conv5_mask.bias"), stride=2).relu()

    def leaky(v: Tensor) -> Tensor:
        return torch.where(v > 0, v, 0.01 * v)

    filters = rows
    for n in (0, 2):
        filters = leaky(filters @ get(f"roi_heads.bbox2mask.{n}.weight").T + get(f"roi_heads.bbox2mask.{n}.bias"))
    masks = torch.einsum("nkhw,ck->nchw", y, filters)
    fused = y.flatten(1) @ get(f"{here}.MLP_mask.weight").T + get(f"{here}.MLP_mask.bias")
    masks = masks + fused.reshape(-1, 1, *y.shape[2:])
    found = model.roi_head.mask_head(mask, class_weight=model.roi_head.bbox_head.fc_cls.weight)
    torch.testing.assert_close(found[:, :-1], masks[:, 1:], rtol=1e-4, atol=1e-3)


def test_a_phase_knows_the_most_frequent_classes(tmp_path: Path, classes: Path) -> None:
    config = model_config(style="caffe")
    config.roi_head.bbox_head.num_classes = config.roi_head.mask_head.num_classes = 2
    config.roi_head.bbox_head.cls_predictor_cfg = dict(type="ltpipe.CosineLinear")
    _, meta = converted(saved(tmp_path, {"model": OLD["benchmark"].state(build(config))}), classes=classes)
    assert meta["category_ids"] == [20, 3]


def test_bags_groups(tmp_path: Path, classes: Path) -> None:
    """Groups of the counts 5, 50 and 500: [7], [3], [20], in the order of the list."""
    old = OLD["mmdet1"]
    state = old.state(build(model_config()))
    rows = 2 + 3 * 2 + 1  # background group; one member each and "others"; a group without classes
    draw = torch.Generator().manual_seed(3)
    state["bbox_head.fc_cls.weight"] = torch.randn(rows, WIDTH, generator=draw)
    state["bbox_head.fc_cls.bias"] = torch.randn(rows, generator=draw)
    file = saved(tmp_path, {"state_dict": state})
    new, meta = converted(file, classes=classes)
    assert meta["converted"]["model"]["loss"] == {"type": "group_softmax"}
    counts = [5, 50, 500]  # ids 7, 3, 20
    loss = dict(type="ltpipe.GroupSoftmaxLoss", num_classes=K, instance_counts=counts)
    model = loaded(model_config(loss=loss), new)
    _, box, mask = random_inputs()
    z = forward(old, state, *random_inputs())
    z = torch.cat([z.background[:, None], z.classes], dim=1)  # the old rows as they stood
    first = z[:, :2].softmax(dim=1)
    groups = {0: z[:, 2:4], 1: z[:, 4:6], 2: z[:, 6:8]}  # group of 7, of 3, of 20
    expected = torch.stack([groups[label].softmax(dim=1)[:, 1] * first[:, 1] for label in range(K)], dim=1)
    scores = probabilities(model.roi_head.bbox_head, model.roi_head.bbox_head(box)[0])
    torch.testing.assert_close(scores, torch.cat([expected, first[:, :1]], dim=1), rtol=1e-4, atol=1e-5)
    table = torch.tensor([[0, 1, 1, 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
    again, _ = converted(file, classes=classes, groups=saved(tmp_path, table, "label2binlabel.pt"))
    assert all(torch.equal(value, new[key]) for key, value in again.items())
    with pytest.raises(UserError, match="groups do not fit"):
        converted(file, classes=classes, groups=saved(tmp_path, table[:4], "label2binlabel.pt"))


def test_calibrated_heads_of_one_and_of_three_stages(tmp_path: Path, classes: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = {"fc1": (WIDTH, 40), "fc2": (WIDTH, WIDTH), "fc_classifier": (K + 1, WIDTH)}
    files = []
    for stage in range(3):
        state = {f"feat_classifier.{n}.weight": torch.randn(s, generator=draw) for n, s in shapes.items()}
        state |= {f"feat_classifier.{n}.bias": torch.randn(s[0], generator=draw) for n, s in shapes.items()}
        files.append(saved(tmp_path, {"state_dict": state, "meta": {"epoch": 3}}, f"3fc_ft_stage{stage}.pth"))
    one, meta = converted(files[0], classes=classes)
    assert meta["category_ids"] == LISTED
    head = torch.load(files[0], weights_only=True)["state_dict"]
    x = torch.randn(4, 40, generator=draw)
    z = x
    for name in shapes:
        z = z @ head[f"feat_classifier.{name}.weight"].T + head[f"feat_classifier.{name}.bias"]
        z = torch.relu(z) if name != "fc_classifier" else z
    from ltpipe.methods.simcal.heads import CalibrationHead

    module = CalibrationHead(40, [WIDTH, WIDTH], K)
    module.load_state_dict({key.removeprefix("roi_head.calibrator."): value for key, value in one.items()})
    torch.testing.assert_close(module(x), torch.cat([z[:, 1:], z[:, :1]], dim=1))
    all_three, meta = converted(tuple(files), classes=classes)
    assert len(all_three) == 3 * len(one) and len(meta["converted"]["sources"]) == 3
    assert torch.equal(all_three["roi_head.calibrator.0.fc1.weight"], one["roi_head.calibrator.fc1.weight"])


def mmdet2_state(loss: dict[str, Any] | None = None, **heads: Any) -> dict[str, Tensor]:
    return OLD["mmdet2"].state(build(model_config(**({"loss": loss} if loss else {}), **heads)))


SAID = {"classifier": "linear", "mask": "fcn"}


def test_fasa_statistics(tmp_path: Path, classes: Path) -> None:
    state = mmdet2_state()
    box = "roi_head.bbox_head."
    state |= {
        f"{box}feature_mean": torch.rand(K, WIDTH),
        f"{box}feature_std": torch.rand(K, WIDTH),
        f"{box}feature_used": torch.tensor([1.0, 0.0, 1.0]),
        f"{box}prob_list": torch.rand(K),
    }
    counts = dict(num_classes=K, image_counts=[50, 5, 500], instance_counts=[50, 5, 500])
    for extra in (
        {},
        {f"{box}cum_loss_perclass_t0": torch.rand(K + 1), f"{box}cum_loss_perclass_t1": torch.rand(K + 1)},
    ):
        new, meta = converted(
            saved(tmp_path, {"state_dict": state | extra}), classes=classes, loss="cross_entropy", **SAID
        )
        assert meta["converted"]["model"]["part"] == {"type": "fasa"}
        part = loaded(model_config(parts=[dict(type="ltpipe.FASA", **counts)]), new).roi_head.parts[0]
        assert torch.equal(part.var, state[f"{box}feature_std"]) and part.seen.tolist() == [True, False, True]
        expected = extra.get(f"{box}cum_loss_perclass_t1", torch.zeros(K + 1))
        assert torch.equal(part.prev_loss, expected) and torch.equal(part.prob, state[f"{box}prob_list"])


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("eqlv2", dict(type="ltpipe.EQLv2Loss", num_classes=K)),
        ("seesaw", dict(type="ltpipe.LTSeesawLoss", num_classes=K)),
        (
            "eql",
            dict(
                type="ltpipe.EQLLoss",
                num_classes=K,
                image_counts=[5] * K,
                instance_counts=[5] * K,
                num_annotated_images=9,
            ),
        ),
        ("group_softmax", dict(type="ltpipe.GroupSoftmaxLoss", num_classes=K, instance_counts=[5, 50, 500])),
    ],
)
def test_losses_show_in_the_weights(tmp_path: Path, classes: Path, name: str, loss: dict[str, Any]) -> None:
    from ltpipe.config.catalogue import component
    from ltpipe.registry import MODELS

    loss["type"] = component("loss", {"type": name})["type"]
    assert MODELS.get(loss["type"])
    state = mmdet2_state(loss)
    grouped = {key: state.pop(key) for key in list(state) if key.endswith(("label_map", "draws"))}
    file, alike = saved(tmp_path, {"state_dict": state}), name == "eql"
    if alike:  # GOL's and DropLoss's classifiers look the same, their scores differ
        with pytest.raises(UserError, match="--loss eql or droploss or gol"):
            converted(file, classes=classes, **SAID)
    new, meta = converted(file, classes=classes, **SAID, **({"loss": name} if alike else {}))
    assert meta["converted"]["model"]["loss"] == {"type": name}
    assert meta["converted"]["known_from"]["loss"] == ("the command line" if alike else "weights")
    model = loaded(model_config(loss=loss), new)
    assert bool(grouped) == (name == "group_softmax")
    for key, value in state.items():
        assert torch.equal(model.state_dict()[key], value)


def test_lws_scales_become_weights(tmp_path: Path, classes: Path) -> None:
    state = mmdet2_state(classifier=dict(type="ltpipe.ScaledLinear"))
    new, _ = converted(saved(tmp_path, {"state_dict": state}), classes=classes, loss="cross_entropy", **SAID)
    inputs = random_inputs()
    scaled = dict(state)
    box = "roi_head.bbox_head.fc_cls."
    scaled[f"{box}weight"] = torch.stack(
        [row * s for row, s in zip(state[f"{box}weight"], state[f"{box}weight_scaler"], strict=True)]
    )
    assert_same(ours(loaded(model_config(), new), *inputs), forward(OLD["mmdet2"], scaled, *inputs))


CONFIG = """
_base = 1
model = dict(type='MaskRCNN', roi_head=dict(
    type='StandardFASARoIHead',
    bbox_head=dict(type='Shared2FCFASABBoxHead',
        cls_predictor_cfg=dict(type='NormedLinear', tempearture=8),
        loss_cls=dict(type='FasaIIFLoss', variant='base10_obj', path='x.csv', num_classes=3)),
    mask_head=dict(type='FCNMaskHead', predictor_cfg=dict(type='NormedConv2d', tempearture=20))))
import_os = 3
"""


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ("type='EffectiveClassMarginLoss', num_classes=3", "ecm"),
        ("type='GumbelCE'", "gumbel"),
        ("type='DropLoss', use_classif='gumbel'", "gol"),
        ("type='DropLoss', use_classif='sigmoid'", "droploss"),
        ("type='DropLoss', use_classif='cls_rel'", None),
    ],
)
def test_losses_of_stored_configs(options: str, name: str | None) -> None:
    text = CONFIG.replace("type='FasaIIFLoss', variant='base10_obj', path='x.csv', num_classes=3", options)
    assert choices_from_config({"config": text}).get("loss") == (None if name is None else {"type": name})


def test_what_the_weights_do_not_say_is_asked_for(tmp_path: Path, classes: Path) -> None:
    file = saved(tmp_path, {"state_dict": mmdet2_state()})
    with pytest.raises(UserError) as asked:
        converted(file, classes=classes)
    assert all(option in str(asked.value) for option in ("--loss", "--classifier", "--mask"))
    with pytest.raises(UserError, match="--temperature"):
        converted(file, classes=classes, loss="cross_entropy", classifier="normed_linear", mask="fcn")
    with pytest.raises(UserError, match="--variant"):
        converted(file, classes=classes, loss="iif", **SAID)
    with pytest.raises(UserError, match="weights say otherwise"):
        converted(file, classes=classes, loss="seesaw", **SAID)
    with pytest.raises(UserError, match="unknown IIF variant"):
        converted(file, classes=classes, loss="iif", variant="rwa", **SAID)
    with pytest.raises(UserError, match="--classes"):
        converted(file)
    _, meta = converted(file, classes=classes, loss="iif", variant="raw", **SAID)
    assert meta["converted"]["model"]["loss"] == {"type": "iif", "variant": "raw", "count": "image"}


def test_the_stored_config_is_read_as_text(tmp_path: Path, classes: Path) -> None:
    content = {"state_dict": mmdet2_state(), "meta": {"config": CONFIG, "epoch": np.int64(24)}}
    _, meta = converted(saved(tmp_path, content), classes=classes)
    assert meta["converted"]["model"] == {
        "classifier": {"type": "normed_linear", "temperature": 8.0},
        "loss": {"type": "iif", "variant": "base10", "count": "instance"},
        "mask": {"type": "normed", "temperature": 20.0},
    }
    assert set(meta["converted"]["known_from"].values()) == {"the stored config"}
    ran = tmp_path / "ran"
    content["meta"]["config"] = f"model = dict(a=open({str(ran)!r}, 'w'))"
    with pytest.raises(UserError, match="--loss"):
        converted(saved(tmp_path, content), classes=classes)
    assert not ran.exists()


def test_a_start_has_no_layers_of_classes(tmp_path: Path) -> None:
    for source in ("mmdet1", "benchmark", "torchvision"):
        old = OLD[source]
        config = model_config(style=old.style)
        state = old.state(build(config))
        new, meta = converted(saved(tmp_path, state), init=True)
        model = build(config)
        found = model.load_state_dict(new, strict=False)
        assert not found.unexpected_keys and "category_ids" not in meta, source
        assert {key.rsplit(".", 1)[0] for key in found.missing_keys if "num_batches" not in key} == {
            "roi_head.bbox_head.fc_cls", "roi_head.bbox_head.fc_reg", "roi_head.mask_head.conv_logits"
        }  # fmt: skip


def backbone(name: str) -> str:
    """Return Caffe2's name of a tensor of the backbone."""
    unit = name.replace("backbone.layer", "").replace(".", "_")
    if name.startswith(("backbone.conv1", "backbone.bn1")):
        return {"conv1.weight": "conv1_w", "bn1.weight": "res_conv1_bn_s", "bn1.bias": "res_conv1_bn_b"}[name[9:]]
    layer, block, rest = unit.split("_", 2)
    kind, end = rest.rsplit("_", 1)
    branch = "branch1" if kind.startswith("downsample") else "branch2" + "abc"[int(kind[-1]) - 1]
    norm = kind.startswith("bn") or kind == "downsample_1"
    return f"res{int(layer) + 1}_{block}_{branch}_" + (("bn_s" if end == "weight" else "bn_b") if norm else "w")


def test_backbones(tmp_path: Path) -> None:
    old = OLD["mmdet2"]
    state = {k: v for k, v in mmdet2_state().items() if k.startswith("backbone.")}
    image = random_inputs()[0]

    def maps(weights: dict[str, Tensor]) -> list[Tensor]:
        model = build(model_config())
        found = model.load_state_dict(weights, strict=False)
        assert not found.unexpected_keys
        assert not [k for k in found.missing_keys if k.startswith("backbone.") and "num_batches" not in k]
        return list(model.backbone(image))

    expected = maps(state)
    torchvision = {key.removeprefix("backbone."): value for key, value in state.items()} | {
        "fc.weight": torch.ones(2, 2)
    }
    detectron2 = {OLD["detectron2"].key(k).removeprefix("backbone.bottom_up."): v.numpy() for k, v in state.items()}
    file = tmp_path / "R-50.pkl"
    file.write_bytes(pickle.dumps({"model": detectron2, "__author__": "x", "matching_heuristics": True}, protocol=2))
    for path in (saved(tmp_path, torchvision), file):
        new, meta = converted(path)
        assert "category_ids" not in meta
        for a, b in zip(maps(new), expected, strict=True):
            torch.testing.assert_close(a, b)
    caffe2 = {backbone(k): v.numpy() for k, v in state.items() if "running" not in k} | {"fc1000_w": np.ones(3)}
    file.write_bytes(pickle.dumps({"blobs": caffe2}, protocol=2))
    new, _ = converted(file)
    fill = {"running_mean": 0.0, "running_var": 1 - old.eps}
    plain = {k: torch.full_like(v, fill[end]) if (end := k.rsplit(".", 1)[1]) in fill else v for k, v in state.items()}
    for a, b in zip(maps(new), maps(plain), strict=True):
        torch.testing.assert_close(a, b)
