"""IIF class weights: formulas, order, edge cases."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from ltpipe.errors import UserError
from ltpipe.methods.iif.weights import FORMULAS, describe, iif_weights, parse_variant, with_background

COUNTS = [1, 3, 10, 400, 900]
TOTAL = 1000


@pytest.fixture(autouse=True)
def no_surprises():
    """Every warning that a test does not expect fails it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def naive(variant: str, n: int, total: int) -> float:
    """One weight with the standard library."""
    r = n / total
    return {
        "raw": lambda: math.log(1 / r),
        "smooth": lambda: math.log((total + 1) / (n + 1)) + 1,
        "rel": lambda: math.log((total - n) / n),
        "normit": lambda: -NormalDist().inv_cdf(r),
        "gombit": lambda: -math.log(-math.log(1 - r)),
        "base2": lambda: math.log2(1 / r),
        "base10": lambda: math.log10(1 / r),
    }[variant]()


@pytest.mark.parametrize("variant", list(FORMULAS))
def test_formulas(variant: str) -> None:
    counts = [n for n in COUNTS if naive(variant, n, TOTAL) > 0]
    np.testing.assert_allclose(
        iif_weights(counts, TOTAL, variant), [naive(variant, n, TOTAL) for n in counts], rtol=1e-12
    )


def test_lvis_ranges_agree_with_the_published_ones() -> None:
    path = Path(__file__).parents[1] / "oracles" / "data" / "iif" / "weights_lvis_v1.npz"
    with np.load(path) as z:
        images, instances = z["img_freq"], z["instance_freq"]
        totals = int(z["num_images"]), int(z["num_instances"])
    expected = {
        ("raw", 0): (3.93, 7.90, 11.51),
        ("smooth", 0): (4.92, 8.88, 11.82),
        ("rel", 0): (3.91, 7.90, 11.51),
        ("normit", 0): (2.06, 3.38, 4.27),
        ("gombit", 0): (3.92, 7.90, 11.51),
        ("base2", 0): (5.66, 11.40, 16.61),
        ("base10", 1): (1.40, 4.13, 6.10),
    }
    for (variant, which), values in expected.items():
        weights = iif_weights((images, instances)[which], totals[which], variant)
        assert (weights.min(), np.median(weights), weights.max()) == pytest.approx(values, abs=6e-3)
    assert describe(iif_weights(images, totals[0])) == "3.93 / 7.9 / 11.5"
    assert totals[1] == instances.sum()


def test_relations_between_variants() -> None:
    w = {v: iif_weights([1, 3, 10, 100, 300], TOTAL, v) for v in FORMULAS}
    np.testing.assert_allclose(w["raw"], w["base2"] * math.log(2), rtol=1e-14)
    np.testing.assert_allclose(w["raw"], w["base10"] * math.log(10), rtol=1e-14)
    assert (w["rel"] < w["gombit"]).all() and (w["gombit"] < w["raw"]).all() and (w["raw"] < w["smooth"]).all()
    for values in w.values():
        assert (np.diff(values) < 0).all()


def test_background_is_last_and_one() -> None:
    weights = with_background(iif_weights([2, 5], 100))
    assert len(weights) == 3 and weights[-1] == 1.0


@pytest.mark.parametrize("p", [1, 2])
def test_p_norm(p: int) -> None:
    plain = iif_weights(COUNTS, TOTAL)
    np.testing.assert_allclose(iif_weights(COUNTS, TOTAL, p_norm=p), plain / (plain**p).sum() ** (1 / p))


@pytest.mark.parametrize("variant", list(FORMULAS))
def test_class_without_data_counts_as_one(variant: str) -> None:
    with pytest.warns(UserWarning, match="label 1 have no training data"):
        got = iif_weights([5, 0, 7], 100, variant)
    np.testing.assert_array_equal(got, iif_weights([5, 1, 7], 100, variant))


@pytest.mark.parametrize("variant", list(FORMULAS))
def test_class_everywhere_is_finite(variant: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        weights = iif_weights([100, 3], 100, variant)
    assert np.isfinite(weights).all() and weights[0] < weights[1]
    texts = " ".join(str(w.message) for w in caught)
    if variant in ("rel", "normit", "gombit"):
        assert "occur everywhere" in texts
        ratio = {
            "rel": -math.log(199),
            "normit": -NormalDist().inv_cdf(1 - 1 / 200),
            "gombit": -math.log(math.log(200)),
        }
        assert weights[0] == pytest.approx(ratio[variant])
    if variant in ("raw", "base2", "base10"):
        assert weights[0] == 0
    assert ("0 or less" in texts) == (weights[0] <= 0)


def test_negative_weights_warn_and_can_be_raised() -> None:
    with pytest.warns(UserWarning, match="0 or less"):
        assert iif_weights([64115], 118287, "rel")[0] == pytest.approx(-0.168514176)
    assert iif_weights([64115, 10], 118287, "rel", min_weight=0.5)[0] == 0.5


@pytest.mark.parametrize("counts, total", [([-1, 2], 10), ([11], 10), ([], 0), ([[1]], 10)])
def test_impossible_counts_are_refused(counts: list, total: int) -> None:
    with pytest.raises(UserError, match="cannot weight"):
        iif_weights(counts, total)


def test_no_classes() -> None:
    assert iif_weights([], 10).shape == (0,) and describe(np.array([])) == "no classes"


@pytest.mark.parametrize(
    "name, count, expected",
    [
        ("raw", None, ("raw", "image")),
        ("raw", "instance", ("raw", "instance")),
        ("base10_obj", None, ("base10", "instance")),
        ("prob", None, ("rel", "image")),
        ("prob_obj", "instance", ("rel", "instance")),
    ],
)
def test_names(name: str, count: str | None, expected: tuple[str, str]) -> None:
    assert parse_variant(name, count) == expected


def test_bad_names() -> None:
    with pytest.raises(UserError, match="did you mean 'gombit'"):
        parse_variant("gumbit")
    with pytest.raises(UserError, match="log_adj"):
        parse_variant("log_adj")
    with pytest.raises(UserError, match="disagree"):
        parse_variant("raw_obj", "image")
    with pytest.raises(UserError, match="unknown IIF count"):
        parse_variant("raw", "images")


def test_repetition_of_images_does_not_matter() -> None:
    """Weights are functions of the counts alone: the sampler never enters."""
    assert json.dumps(iif_weights(COUNTS, TOTAL).tolist()) == json.dumps(iif_weights(np.array(COUNTS), TOTAL).tolist())
