"""Reported numbers against loops over the tensors."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ltpipe.errors import UserError
from ltpipe.metrics.class_groups import bin_metrics
from ltpipe.metrics.table import flatten, per_class_table, summarize
from ltpipe.metrics.tensors import TensorInfo, Tensors

K = 40


@pytest.fixture
def tensors() -> Tensors:
    """Random tensors in which some classes are absent, some only at some sizes."""
    rng = np.random.default_rng(0)
    precision, recall = rng.random((10, 101, K, 4)), rng.random((10, K, 4))
    absent = rng.random((K, 4)) < 0.4
    absent[:, 0] = rng.random(K) < 0.3
    precision[:, :, absent], recall[:, absent] = -1, -1
    return Tensors(precision, recall, np.arange(K) * 3 + 1, TensorInfo("segm", "lvis", 300, "test 1", {"gt": 5}))


@pytest.fixture
def classes() -> pd.DataFrame:
    """Training statistics in shuffled order, with classes that are not evaluated."""
    rng = np.random.default_rng(1)
    ids = rng.permutation(200)
    counts = rng.integers(0, 3000, 200) // rng.choice([1, 10, 100, 1000], 200)
    columns = {"category_id": ids, "name": [f"n{i}" for i in ids], "image_count": counts, "instance_count": 2 * counts}
    return pd.DataFrame(columns | {"frequency": rng.choice(list("rcf"), 200), "phase": rng.integers(0, 4, 200)})


def naive_mean(values: np.ndarray) -> float | None:
    """Mean of the valid entries, one by one."""
    valid = [value for value in np.ravel(values) if value > -1]
    return sum(valid) / len(valid) if valid else None


def test_summary_equals_loops(tensors: Tensors, classes: pd.DataFrame) -> None:
    """All numbers, from their definitions."""
    result = summarize(tensors, classes, bins=[10, 100, 1000], phase=2)
    p, r = tensors.precision, tensors.recall
    info = classes.set_index("category_id").loc[tensors.category_ids]
    expected = {"AP": naive_mean(p[..., 0]), "AP50": naive_mean(p[0, ..., 0]), "AP75": naive_mean(p[5, ..., 0])}
    expected |= {f"AP{name}": naive_mean(p[..., i]) for i, name in ((1, "s"), (2, "m"), (3, "l"))}
    expected |= {f"AP{name}": naive_mean(p[:, :, (info["frequency"] == name).to_numpy(), 0]) for name in "rcf"}
    expected |= {f"AR{name}": naive_mean(r[..., i]) for i, name in enumerate(["", "s", "m", "l"])}
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, abs=1e-12), name
    ap = [naive_mean(p[:, :, k, 0]) for k in range(K)]
    train, phase = info["instance_count"].tolist(), info["phase"].tolist()
    limits = [(0, 10), (10, 100), (100, 1000), (1000, np.inf)]
    bin_values = []
    for (low, high), item in zip(limits, result["bins"], strict=True):
        inside = [a for a, n in zip(ap, train, strict=True) if a is not None and low <= n < high]
        assert item["classes"] == len(inside)
        assert item["AP"] == (pytest.approx(np.mean(inside), abs=1e-12) if inside else None)
        bin_values += [item["AP"]] if inside else []
    assert result["bAP"] == pytest.approx(np.mean(bin_values))
    chosen = {f"t{n}": {n} for n in (1, 2, 3)} | {"b0": {0}, "base": {0}, "old": {0, 1}, "new": {2}}
    for name, numbers in chosen.items():
        inside = [a for a, n in zip(ap, phase, strict=True) if a is not None and n in numbers]
        assert result["groups"][name] == {"classes": len(inside), "AP": pytest.approx(np.mean(inside), abs=1e-12)}
    assert result["evaluated_classes"] == sum(a is not None for a in ap)
    assert (result["engine"], result["counts"], result["max_detections"]) == ("test 1", {"gt": 5}, 300)


def test_groups_add_up_to_the_whole(tensors: Tensors, classes: pd.DataFrame) -> None:
    result = summarize(tensors, classes, bins=[10], phase=3)
    groups = [result["groups"][name] for name in ("b0", "t1", "t2", "t3")]
    assert sum(group["classes"] for group in groups) == result["evaluated_classes"]
    weighted = sum(group["classes"] * group["AP"] for group in groups) / result["evaluated_classes"]
    assert result["AP"] == pytest.approx(weighted, abs=1e-12)


def test_per_class_table(tensors: Tensors, classes: pd.DataFrame) -> None:
    """One row per evaluated class, with its training counts; NaN without ground truth."""
    table = per_class_table(tensors, classes)
    names = ["category_id", "name", "frequency", "train_images", "train_instances", "phase", "AP", "AP50", "AR"]
    assert table.columns.tolist() == names
    assert table["category_id"].tolist() == tensors.category_ids.tolist()
    for k, row in enumerate(table.itertuples()):
        assert row.name == f"n{row.category_id}" and row.train_instances == 2 * row.train_images
        values = (tensors.precision[:, :, k, 0], tensors.precision[0, :, k, 0], tensors.recall[:, k, 0])
        for ours, cells in zip((row.AP, row.AP50, row.AR), values, strict=True):
            expected = naive_mean(cells)
            assert np.isnan(ours) if expected is None else ours == pytest.approx(expected, abs=1e-12)


def test_category_order_does_not_matter(tensors: Tensors, classes: pd.DataFrame) -> None:
    """Neither the order of the statistics nor that of the tensors."""
    order = np.random.default_rng(2).permutation(K)
    moved = Tensors(tensors.precision[:, :, order], tensors.recall[:, order], tensors.category_ids[order], tensors.info)
    first, second = flatten(summarize(tensors, classes)), flatten(summarize(moved, classes[::-1]))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert second[name] == pytest.approx(value, abs=1e-12), name


def test_nothing_evaluated(classes: pd.DataFrame) -> None:
    """None everywhere, never -1 or NaN."""
    nothing = -np.ones((10, 101, K, 4)), -np.ones((10, K, 4))
    result = summarize(Tensors(*nothing, np.arange(K), TensorInfo("bbox", "coco", 100, "test")), classes)
    assert set(flatten(result).values()) == {None}
    assert result["bAP_complete"] is False and result["evaluated_classes"] == 0


def test_without_phases(tensors: Tensors, classes: pd.DataFrame) -> None:
    """No phase column, no groups."""
    assert summarize(tensors, classes.drop(columns="phase"))["groups"] == {}


def test_unknown_class(tensors: Tensors, classes: pd.DataFrame) -> None:
    """Statistics must cover every evaluated class."""
    with pytest.raises(UserError, match="no training statistics|without training statistics"):
        summarize(tensors, classes[classes["category_id"] != 4])


def test_bin_edges_and_empty_bins() -> None:
    """Lower edges belong to a bin, the last bin has no upper edge, an empty bin is None and flagged."""
    result = bin_metrics(np.array([0.1, 0.2, 0.3, np.nan, 0.5]), np.array([0, 9, 100, 50, 10**9]), (10, 100))
    assert [(item["label"], item["classes"]) for item in result["bins"]] == [("0-10", 2), ("10-100", 0), ("100+", 2)]
    assert [item["AP"] for item in result["bins"]] == [pytest.approx(0.15), None, pytest.approx(0.4)]
    assert result["bAP"] == pytest.approx(0.275) and result["bAP_complete"] is False
    assert bin_metrics(np.array([0.1, 0.2]), np.array([9, 10]), (10,))["bAP_complete"] is True
    for edges in ((), (10, 10), (100, 10)):
        with pytest.raises(UserError, match="edges of bins must be positive and ascend"):
            bin_metrics(np.zeros(1), np.zeros(1, int), edges)


def test_coco_lt_bins_have_the_published_sizes() -> None:
    """COCO-LT: 4, 24, 32 and 20 classes in the bins of f = 20, m = 3 (SimCal, arXiv 2007.11978)."""
    published = """262465 3530 43867 8725 686 248 408 9973 10759 12884 11 22 12 9838 10806 198 167 1518 9509 7079 374 61
        420 383 8720 11431 12354 6112 5360 14 2902 22 6221 9076 67 52 547 4678 793 24342 5047 20650 774 7190 1025 14358
        9458 589 657 4042 6394 2746 48 100 6594 4684 38491 629 2689 51 15714 73 710 286 52 765 21 4699 52 65 47 114 50
        24715 4004 1473 24 693 71 15"""
    counts = np.array(published.split(), int)
    bins = bin_metrics(np.ones(80), counts, [20, 400, 8000])["bins"]
    assert [item["classes"] for item in bins] == [4, 24, 32, 20]
