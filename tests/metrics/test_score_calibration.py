"""Scores of finished detections: fitted on held-out images, judged on others, and how far they are from the truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import ltpipe
from ltpipe.cli import main
from ltpipe.errors import UserError
from ltpipe.metrics.confidence import bin_of, class_errors
from ltpipe.metrics.score_calibration import Labelled, fit_scores, ranked
from ltpipe.metrics.score_functions import FUNCTIONS, NoOptimum, fit_logistic

METHODS = tuple(FUNCTIONS)
NAMES = {1: ("cat", "r"), 2: ("dog", "f")}


def labelled(category: list[int], scores: list[float], right: list[bool]) -> Labelled:
    """Return labelled detections."""
    return Labelled(np.arange(len(scores)), np.array(category), np.array(scores), np.array(right))


def truth(scores: np.ndarray) -> np.ndarray:
    """Return how probable it is that a detection is right: less than low scores promise, more than high ones do."""
    return scores**2 / (scores**2 + (1 - scores) ** 2)


def drawn(number: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return scores, and whether detections are right."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.01, 0.99, number)
    return scores, rng.random(number) < truth(scores)


@pytest.mark.parametrize("method", METHODS)
def test_a_fit_finds_what_scores_mean(method: str) -> None:
    """Scores become probabilities, and their order stays."""
    scores, right = drawn(20000)
    new = np.linspace(0.05, 0.95, 50)
    found = FUNCTIONS[method](20, 0.0)(scores, right)(new)
    assert np.abs(found - truth(new)).max() < {"isotonic": 0.08, "histogram": 0.09}.get(method, 0.02)
    assert (np.diff(found) >= -(0.1 if method == "histogram" else 0.0)).all()
    assert ((found >= 0) & (found <= 1)).all()


def test_largest_likelihood() -> None:
    """The slope of the likelihood is zero; a prior holds weights where there is no maximum."""
    scores, right = drawn(500, 3)
    features = np.stack([np.log(scores / (1 - scores)), np.ones(500)], axis=1)
    weights = fit_logistic(features, right, np.array([1.0, 0.0]))
    chance = 1 / (1 + np.exp(-features @ weights))
    assert np.abs(features.T @ (chance - right)).max() < 1e-6
    for method in ("platt", "temperature", "beta"):
        for given in ([False, False, True, True], [True, True, False, False], [True] * 4, [False] * 4):
            if method == "temperature" and given[0] == given[-1]:
                continue  # has a maximum: half of the scores are below a half
            with pytest.raises(NoOptimum):
                FUNCTIONS[method](20, 0.0)(np.array([0.1, 0.2, 0.6, 0.9]), np.array(given))
            held = FUNCTIONS[method](20, 1e-3)(np.array([0.1, 0.2, 0.6, 0.9]), np.array(given))
            assert np.isfinite(held(np.array([0.0, 0.5, 1.0]))).all()


def test_classes_without_a_fit_of_their_own() -> None:
    """Unlabelled, never right, and divided by a score: their group's function, or what is asked for."""
    scores, right = drawn(400)
    content = labelled([1] * 400 + [2] * 3 + [3] * 4, [*scores, 0.2, 0.3, 0.4, 0.1, 0.2, 0.8, 0.9],
                       [*right, False, False, False, False, False, True, True])  # fmt: skip
    frequency = dict.fromkeys((1, 2, 3, 4), "f") | {5: "r"}
    new = np.array([0.3, 0.7])
    fitted = fit_scores(content, frequency, "platt")
    group = fit_scores(content, frequency, "platt", grouping="frequency")
    for category in (2, 3, 4):
        assert np.array_equal(fitted.apply(np.full(2, category), new), group.apply(np.full(2, 1), new))
    assert not np.array_equal(fitted.apply(np.full(2, 1), new), group.apply(np.full(2, 1), new))
    overall = fit_scores(content, frequency, "platt", grouping="overall")
    for category in (5, 99):
        assert np.array_equal(group.apply(np.full(2, category), new), overall.apply(np.full(2, 1), new))
    asked = fit_scores(content, frequency, "platt", missing="zero", never_right="keep")
    assert asked.apply(np.full(2, 4), new).tolist() == [0, 0] and asked.apply(np.full(2, 2), new).tolist() == [0.3, 0.7]
    with pytest.raises(UserError, match="did you mean 'platt'"):
        fit_scores(content, frequency, "plat")


@pytest.mark.parametrize("method", METHODS)
def test_equal_scores_stay_equal(method: str) -> None:
    """Wherever they stand among others: rounding must not order them anew."""
    scores, right = drawn(400)
    fitted = fit_scores(labelled([1] * 400, list(scores), list(right)), {1: "f"}, method)
    many = np.tile(np.linspace(0.011, 0.989, 37), 11)
    found = fitted.apply(np.full(len(many), 1), many).reshape(11, 37)
    assert (found == found[0]).all() and (np.diff(found[0]) >= (-1 if method == "histogram" else 0)).all()


def test_equal_calibrated_scores_keep_the_order_of_the_originals() -> None:
    calibrated, original = np.array([0.5, 0.5, 0.2, 0.5, 0.9]), np.array([0.1, 0.8, 0.9, 0.8, 0.3])
    assert ranked(calibrated, original).tolist() == [2, 3, 1, 3, 4]
    assert len(ranked(np.zeros(0), np.zeros(0))) == 0


def test_bins() -> None:
    """Either end of a bin, and its ends of the range; errors by hand."""
    scores = np.array([0.0, 0.25, 0.5, 1.0])
    assert bin_of(scores, 4).tolist() == [0, 1, 2, 3] and bin_of(scores, 4, "right").tolist() == [0, 0, 1, 3]
    # Bin 0 holds 0.1 (wrong) and 0.3 (right), bin 1 0.8 (wrong): |1 - 0.4| and |0 - 0.8| of 3.
    found = class_errors(np.zeros(3, np.int64), np.array([0.1, 0.3, 0.8]), np.array([0, 1, 0]), 2, bins=2)
    assert found[0] == pytest.approx((0.6 + 0.8) / 3) and np.isnan(found[1])


def scenes(number: int, first: int, folder: Path, name: str, seed: int) -> tuple[Path, Path]:
    """Write images with a cat and a dog each, and detections whose scores promise too much, of cats above all."""
    rng = np.random.default_rng(seed)
    images, anns, found = [], [], []
    for image in range(first, first + number):
        record = {"id": image, "file_name": f"{image}.jpg", "width": 200, "height": 200}
        images.append(record | {"neg_category_ids": [], "not_exhaustive_category_ids": []})
        for category, left in ((1, 0), (2, 100)):
            box = [left, 10, 60, 60]
            anns.append({"id": len(anns) + 1, "image_id": image, "category_id": category, "bbox": box, "area": 3600}
                        | {"segmentation": [[left, 10, left + 60, 10, left + 60, 70, left, 70]]})  # fmt: skip
            score = float(rng.uniform(0.05, 0.95))
            right = rng.random() < score ** (4 if category == 1 else 1)
            place = box if right else [left, 120, 60, 60]
            found.append({"image_id": image, "category_id": category, "score": score, "bbox": place})
    categories = [{"id": i, "name": one, "frequency": letter} for i, (one, letter) in NAMES.items()]
    paths = folder / f"{name}.json", folder / f"{name}_found.json"
    for path, content in zip(
        paths, ({"images": images, "annotations": anns, "categories": categories}, found), strict=True
    ):
        path.write_text(json.dumps(content), encoding="utf-8")
    return paths


def test_score_with_held_out_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Order inside classes stays, scores mean the same in both, and say so; the page shows it."""
    gt, found = scenes(600, 1, tmp_path, "val", 0)
    held_gt, held = scenes(600, 1000, tmp_path, "held", 1)
    command = ["score", "--annotations", str(gt), str(found), "--calibrate", "platt,isotonic"]
    more = ["--held-out-annotations", str(held_gt), "--held-out-detections", str(held)]
    assert main([*command, *more, "--output", str(tmp_path / "out"), "--json", str(tmp_path / "out.json")]) == 0
    said = capsys.readouterr().out
    assert "val_found -> val_found+platt: 0.0 (0.0 to 0.0), 50 %: within its interval" in said
    scores: dict[str, dict[str, dict[str, Any]]] = json.loads((tmp_path / "out.json").read_text())
    assert list(scores) == ["val_found", "val_found+platt", "val_found+isotonic"]
    plain = scores["val_found"]["bbox"]
    for method in ("platt", "isotonic"):
        ours = scores[f"val_found+{method}"]["bbox"]
        for name in ("AP", "AP_fixed", "APr", "APf"):
            assert ours[name] == pytest.approx(plain[name], abs=1e-12)
        assert ours["AP_pool"] > plain["AP_pool"] + 0.02
        assert ours["D-ECE"] < plain["D-ECE"] / 2 and ours["D-ECE_r"] < plain["D-ECE_r"] / 2
    assert plain["D-ECE_r"] > 0.2 > plain["D-ECE_f"] and plain["D-ECE_c"] is None
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Do scores mean what they say" in page and "(platt, isotonic, per class) on 600 held-out images." in page
    assert (tmp_path / "out" / "figures" / "reliability_bbox.png").is_file()
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert {"held_out", "held_out:val_found"} <= set(record["inputs"])
    table = pd.read_csv(tmp_path / "out" / "differences.csv")
    assert set(table["verdict"]) == {"within its interval"}


def test_never_judged_on_the_images_of_the_fit(tmp_path: Path) -> None:
    """Half of the images are held out, and those are measured that are not; common images are refused."""
    gt, found = scenes(160, 1, tmp_path, "val", 0)
    ours = ltpipe.score(gt, found, calibrate=["platt"], output=tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "on 80 held-out images; all numbers are of the other 80." in page
    assert ours["val_found+platt"]["bbox"]["AP"] == pytest.approx(ours["val_found"]["bbox"]["AP"], abs=1e-12)
    assert ours["val_found"]["bbox"]["AP"] != ltpipe.score(gt, found)["val_found"]["bbox"]["AP"]
    other_gt, other = scenes(40, 150, tmp_path, "other", 1)
    given = {"held_out_annotations": other_gt, "held_out_detections": other}
    with pytest.raises(UserError, match=r"judged on images that they are fitted on[^\0]*11 images are in"):
        ltpipe.score(gt, found, calibrate=["platt"], **given)
    for options, message in (
        ({"calibrate": ["plat"]}, "did you mean 'platt'"),
        ({"calibrate": ["platt"], "calibrate_by": "kind"}, "unknown grouping"),
        ({"calibrate": ["platt"], "calibrate_iou": 0}, "no IoU threshold"),
        ({"calibrate": ["platt"], "held_out_annotations": other_gt}, "held-out images are incomplete"),
        (given, "held-out images are incomplete, or for nothing"),
        ({**given, "calibrate": ["platt"], "held_out_detections": [other, found]}, "each file needs its detections"),
    ):
        with pytest.raises(UserError, match=message):
            ltpipe.score(gt, found, **options)  # type: ignore[arg-type]
    content = json.loads(found.read_text())
    found.write_text(json.dumps([item | {"score": 5 * item["score"]} for item in content]))
    assert "D-ECE" not in ltpipe.score(gt, found)["val_found"]["bbox"]
    with pytest.raises(UserError, match="no probabilities"):
        ltpipe.score(gt, found, calibrate=["platt"])
