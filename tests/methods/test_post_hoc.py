"""Calibrators that only shift or scale logits: on every kind of head, one after another, in cascades, exported."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ltpipe.data.fractal_dimension import fractal_dimensions
from ltpipe.errors import UserError
from ltpipe.interop.plain_mmdet import foreign_types, plain_detector
from ltpipe.methods.adjusted_scores import AdjustedScores
from ltpipe.methods.fracal.functions import read_dimensions
from ltpipe.methods.logn.calibrator import LogN
from tests.helpers.contract_cases import FACTS, K, box_head, box_head_config, build, build_config, names, pooled
from tests.helpers.detectors import probabilities

SHIFTING = ["norcal", "logit_adjustment", "fracal"]
COUNTS = np.maximum(FACTS["image_counts"], 1)


def trained_head(classifier: str = "linear", loss: str = "cross_entropy", seed: int = 0) -> Any:
    """A box head whose weights are not small."""
    head = box_head(classifier, loss)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return head


def detector(*heads: Any, **config: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and state of a detector with these box heads, several of them a cascade."""
    prefixes = [""] if len(heads) == 1 else [f"{k}." for k in range(len(heads))]
    state = {
        f"roi_head.bbox_head.{prefix}{key}": value
        for prefix, head in zip(prefixes, heads, strict=True)
        for key, value in head.state_dict().items()
    }
    configs = [box_head_config(**config) for _ in heads]
    return {"roi_head": {"type": "ltpipe.LTRoIHead", "bbox_head": configs if len(heads) > 1 else configs[0]}}, state


def head_of(model: dict[str, Any], state: dict[str, Tensor], stage: int | None = None) -> Any:
    """The box head, or that of a stage, of a detector."""
    config, prefix = model["roi_head"]["bbox_head"], "roi_head.bbox_head."
    if stage is not None:
        config, prefix = config[stage], f"{prefix}{stage}."
    built = build_config(config)
    built.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    return built


@torch.no_grad()
def scores(head: Any, rows: int = 7) -> Tensor:
    """Scores of some RoIs."""
    return probabilities(head, head(pooled(rows))[0])


@pytest.mark.parametrize("loss", names("loss"))
@pytest.mark.parametrize("name", SHIFTING)
def test_every_kind_of_head(name: str, loss: str) -> None:
    """Scores of the classes move, those of the background without a softmax do not; groups are refused."""
    head, calibrator = trained_head(loss=loss), build("calibrator", name)
    if not getattr(head.loss_cls, "rows_in_label_order", True):
        with pytest.raises(UserError, match="scores classes in groups"):
            calibrator.initialise(head)
        return
    calibrator.initialise(head)
    with torch.no_grad():
        logits = head(pooled(7))[0]
    found = calibrator.scores(calibrator(logits))
    assert found.shape == (7, K + 1) and ((found >= 0) & (found <= 1 + 1e-6)).all()
    assert not torch.allclose(found, probabilities(head, logits))
    merged = head_of(*calibrator.merge(*detector(head, loss=loss)))
    torch.testing.assert_close(scores(merged), found, rtol=1e-5, atol=1e-8)
    if loss == "eqlv2":
        torch.testing.assert_close(found[:, -1], probabilities(head, logits)[:, -1])


def test_where_the_shift_is_added() -> None:
    """IIF: after the class weights; sigmoid: before the sigmoid, or a second factor; Seesaw: to the class logits."""
    calibrator = build("calibrator", "norcal", gamma=0.5)
    shift = torch.from_numpy(-0.5 * np.log(COUNTS)).float()
    pad = torch.nn.functional.pad
    logits = torch.randn(5, K + 2, generator=torch.Generator().manual_seed(0)) * 3

    def adjusted(loss: str, name: str, width: int) -> Tensor:
        made = build("calibrator", name) if name == "fracal" else calibrator
        made.initialise(trained_head(loss=loss))
        return made.scores(logits[:, :width])

    weights = build("loss", "iif").weights
    expected = (logits[:, : K + 1] * weights + pad(shift, (0, 1))).softmax(dim=1)
    torch.testing.assert_close(adjusted("iif", "norcal", K + 1), expected)
    torch.testing.assert_close(adjusted("eql", "norcal", K)[:, :K], (logits[:, :K] + shift).sigmoid())
    both = (logits[:, :K] + shift).sigmoid() * (1 - logits[:, K : K + 1].sigmoid())
    torch.testing.assert_close(adjusted("eqlv2", "norcal", K + 1)[:, :K], both)
    classes = (logits[:, :K] + shift).softmax(dim=1) * logits[:, K:].softmax(dim=1)[:, :1]
    torch.testing.assert_close(adjusted("seesaw", "norcal", K + 2)[:, :K], classes)
    dimension = np.array(FACTS["fractal_dimension"]) ** 2.0
    second = -np.log10(COUNTS / 1000) - np.log10(K) - np.log10(dimension / dimension.sum()) - np.log10(K)
    product = logits[:, :K].sigmoid() * (logits[:, :K] + torch.from_numpy(second).float()).sigmoid()
    torch.testing.assert_close(adjusted("eql", "fracal", K)[:, :K], product, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("loss", ["cross_entropy", "iif", "eql", "seesaw"])
def test_one_after_another(loss: str) -> None:
    """Shifts add up, whichever comes first."""
    first, second = build("calibrator", "norcal"), build("calibrator", "logit_adjustment")
    found = []
    for pair in ((first, second), (second, first)):
        model, state = detector(trained_head(loss=loss), loss=loss)
        for calibrator in pair:
            calibrator.initialise(head_of(model, state))
            model, state = calibrator.merge(model, state)
        found.append(scores(head_of(model, state)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-8)
    assert not torch.allclose(found[0], scores(head_of(*first.merge(*detector(trained_head(loss=loss), loss=loss)))))


@pytest.mark.parametrize(("classifier", "loss", "plain"), [
    ("linear", "cross_entropy", True),
    ("normed_linear", "cross_entropy", True),
    ("normed_linear", "seesaw", True),
    ("linear", "iif", True),
    ("normed_linear", "iif", False),
    ("cosine", "cross_entropy", False),
    ("linear", "eql", False),
])  # fmt: skip
def test_two_shifts_in_mmdets_own_words(classifier: str, loss: str, plain: bool) -> None:
    kinds = {"classifier": classifier, "loss": loss}
    model, state = detector(trained_head(**kinds), **kinds)
    for name in ("fracal", "norcal"):
        calibrator = build("calibrator", name)
        calibrator.initialise(head_of(model, state))
        model, state = calibrator.merge(model, state)
    exported, weights = plain_detector(model, state)
    assert bool(set(foreign_types(exported))) is not plain
    if plain:
        torch.testing.assert_close(
            scores(head_of(exported, weights)), scores(head_of(model, state)), rtol=1e-4, atol=1e-6
        )


def test_a_cascade_is_shifted_once() -> None:
    """After the logits of its stages are averaged, so that the boxes stay; exported, the last stage carries it all."""
    heads = [trained_head(seed=stage) for stage in range(3)]
    model, state = detector(*heads)
    before, calibrator = copy.deepcopy(model), build("calibrator", "norcal")
    for stage, head in enumerate(heads):
        calibrator.initialise(head)
        model, state = calibrator.merge(model, state, stage)
    configs = model["roi_head"]["bbox_head"]
    assert (
        configs[:2] == before["roi_head"]["bbox_head"][:2] and configs[2]["loss_cls"]["type"] == "ltpipe.AdjustedScores"
    )
    mean = sum(head(pooled(7))[0] for head in heads).detach() / 3
    expected = calibrator.scores(mean)
    last = head_of(model, state, 2)
    assert isinstance(last.loss_cls, AdjustedScores)
    torch.testing.assert_close(last.loss_cls.get_activation(mean), expected)
    exported, weights = plain_detector(model, state)
    stages = [head_of(exported, weights, stage) for stage in range(3)]
    plain = sum(stage(pooled(7))[0] for stage in stages).detach() / 3
    torch.testing.assert_close(plain.softmax(dim=1), expected, rtol=1e-5, atol=1e-7)
    for stage in range(2):
        assert torch.equal(stages[stage].fc_cls.bias, heads[stage].fc_cls.bias)


def test_nothing_changes_without_strength() -> None:
    head = trained_head()
    for name, options in {
        "norcal": {"gamma": 0.0},
        "logit_adjustment": {"tau": 0.0},
        "tau_norm": {"tau": 0.0},
        "fracal": {"strength": 0.0, "variant": "none"},
    }.items():
        calibrator = build("calibrator", name, **options)
        calibrator.initialise(head)
        assert torch.allclose(calibrator.scores(calibrator(head(pooled(5))[0])), scores(head, 5)), name


def test_large_logits_stay_finite() -> None:
    calibrator = build("calibrator", "norcal")
    calibrator.initialise(trained_head())
    found = calibrator.scores(torch.tensor([[200.0, 199.0, -300.0, 0.0, 1.0, 2.0, 198.0]]))
    assert found.isfinite().all() and float(found.sum()) == pytest.approx(1)


def test_cosine_rows_are_refused_and_rows_of_zeros_stay() -> None:
    for classifier in ("cosine", "normed_linear"):
        with pytest.raises(UserError, match="those of a cosine classifier already are"):
            build("calibrator", "tau_norm").initialise(trained_head(classifier))
    head, calibrator = trained_head(), build("calibrator", "tau_norm")
    torch.nn.init.zeros_(head.fc_cls.weight[2:3])
    calibrator.initialise(head)
    assert calibrator(head(pooled(4))[0]).isfinite().all() and calibrator.fc_cls.factor[2] == 1


# ---- LogN


def logn_of(head: Any, batches: list[Tensor], **options: Any) -> LogN:
    """LogN after these mini-batches."""
    calibrator: LogN = build("calibrator", "logn", **options)
    calibrator.initialise(head)
    for batch in batches:
        calibrator.observe(batch, torch.zeros(len(batch), dtype=torch.long))
    return calibrator


def test_moments_are_those_of_all_rows() -> None:
    """Whatever the sizes of the mini-batches, empty ones and such of one row among them; far from 0 as well."""
    head = trained_head()
    head.fc_cls.bias.data += 1e4
    rows = torch.randn(40, head.fc_cls.in_features, generator=torch.Generator().manual_seed(0))
    found = logn_of(head, [rows[:0], rows[:1], rows[1:18], rows[18:]]).moments()
    logits = head.fc_cls(rows).detach().double()
    for mine, expected in zip(found, (logits.mean(dim=0), logits.var(dim=0)), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-9)
    shrunk = logn_of(head, [rows], shrink=0.29).moments()
    torch.testing.assert_close(shrunk[0], logits.mean(dim=0) * 0.71)
    torch.testing.assert_close(shrunk[1], logits.var(dim=0) * 0.71 + 0.29)


def test_running_statistics_depend_on_the_order() -> None:
    head = trained_head()
    batches = [torch.randn(6, head.fc_cls.in_features, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    one = logn_of(head, batches, statistics="ema", momentum=0.3).moments()
    other = logn_of(head, batches[::-1], statistics="ema", momentum=0.3).moments()
    assert not torch.allclose(one[0], other[0])
    single = logn_of(head, [*batches, batches[0][:1]], statistics="ema", momentum=0.3).moments()
    assert torch.equal(single[0], one[0]), "a mini-batch of one row has no variance"


@pytest.mark.parametrize("classifier", ["cosine", "normed_linear"])
def test_logn_around_another_classifier(classifier: str) -> None:
    head = trained_head(classifier)
    feats = pooled(20)
    with torch.no_grad():
        rows = head.predictor_inputs(feats)[0]
    calibrator = logn_of(head, [rows])
    merged = head_of(*calibrator.merge(*detector(head, classifier=classifier)))
    torch.testing.assert_close(merged(feats)[0].detach(), calibrator(rows).detach(), rtol=1e-4, atol=1e-4)
    assert merged.fc_cls.weight.shape == head.fc_cls.weight.shape


# ---- fractal dimension


def test_dimensions_of_a_line_a_square_and_a_point() -> None:
    side = (np.arange(64) + 0.5) / 64
    square = np.stack(np.meshgrid(side, side)).reshape(2, -1)
    line, point = np.stack([side, np.full(64, 0.4)]), np.full((2, 500), 0.3)
    outside = np.full((2, 30), 1.0)
    few = np.array([[0.1, 0.9, 0.1], [0.1, 0.1, 0.9]])
    four = np.array([[0.1, 0.9, 0.1, 0.9], [0.1, 0.1, 0.9, 0.9]])
    parts = [square, line, point, outside, few, four]
    x, y = np.concatenate(parts, axis=1)
    labels = np.repeat(np.arange(len(parts)), [part.shape[1] for part in parts])
    found = fractal_dimensions(x, y, labels, len(parts) + 1)
    np.testing.assert_allclose(found, [2, 1, 1, 1, 1, 2, 1], atol=1e-9)


def test_the_authors_table_is_read_in_the_order_of_the_labels(tmp_path: Any) -> None:
    table = tmp_path / "dimension.csv"
    table.write_text(",class_names,fractal_dimension\n0,cat,1.25\n1,dog,1.5\n2,owl,1.75\n")
    assert read_dimensions(table, ["owl", "cat"], [2, 0], 2).tolist() == [1.75, 1.25]
    with pytest.raises(UserError, match="another data set's"):
        read_dimensions(table, ["cat", "owl"], None, 2)
    with pytest.raises(UserError, match="does not fit"):
        read_dimensions(table, None, None, 4)
    with pytest.raises(UserError, match="unreadable table"):
        read_dimensions(tmp_path / "none.csv", None, None, 3)
