"""Bootstrap over images: equal to evaluating copies of images, paired, and written as it is."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ltpipe.data.store import AnnotationStore
from ltpipe.errors import UserError
from ltpipe.interop.read_detections import read_results
from ltpipe.metrics.evaluation import evaluate, evaluate_matched
from ltpipe.metrics.predictions import Predictions
from ltpipe.metrics.resampled_ap import resample, weighted_ap
from ltpipe.metrics.resamples import RESAMPLED, Resamples, compare, draw_images, load_resamples, save_resamples
from tests.helpers.ground_truth import read_ground_truth

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Mean of empty slice:RuntimeWarning")
Make = Callable[[str, str, int], list[dict[str, Any]]]


def read(gt: dict[str, Any], found: list[dict[str, Any]], folder: Path) -> tuple[AnnotationStore, Predictions]:
    """Return both as the engine takes them."""
    folder.mkdir()
    (folder / "gt.json").write_text(json.dumps(gt), encoding="utf-8")
    (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")
    return read_ground_truth(folder / "gt.json"), read_results(folder / "found.json")


def drawn(gt: dict[str, Any], found: list[dict[str, Any]], times: dict[int, int]) -> tuple[Any, list[dict[str, Any]]]:
    """Return documents in which every image lies as often as it was drawn, under ids of its own."""
    new = {image: [10_000 * image + copy for copy in range(count)] for image, count in times.items()}
    document = copy.deepcopy(gt)
    document["images"] = [image | {"id": own} for image in gt["images"] for own in new[image["id"]]]
    anns = [ann | {"image_id": own} for ann in gt["annotations"] for own in new[ann["image_id"]]]
    document["annotations"] = [ann | {"id": number} for number, ann in enumerate(anns, 1)]
    return document, [item | {"image_id": own} for item in found for own in new[item["image_id"]]]


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_equals_an_evaluation_of_the_drawn_images(
    iou_type: str, gt_document: dict[str, Any], make_detections: Make, tmp_path: Path
) -> None:
    """Every category, also those that a resample lacks; and the whole set where every image counts once."""
    # Every score is another one: copies of an image lie side by side only then.
    found = [item | {"score": 1 / (2 + n)} for n, item in enumerate(make_detections("plain", iou_type, 5))]
    gt, predictions = read(gt_document, found, tmp_path / "whole")
    tensors, selection, matches = evaluate_matched(gt, predictions, iou_type)
    assert np.array_equal(tensors.precision, evaluate(gt, predictions, iou_type).precision)
    ids = np.sort(gt.image_ids)
    weights, _ = draw_images(ids, 3, seed=1)
    weights[:, 0] = 1
    ap, ap50 = weighted_ap(selection, matches, weights)
    for number in range(3):
        times = dict(zip(ids.tolist(), weights[:, number].tolist(), strict=True))
        again = evaluate(*read(*drawn(gt_document, found, times), tmp_path / f"{number}"), iou_type)
        cells = np.where(again.precision[..., 0] > -1, again.precision[..., 0], np.nan)
        np.testing.assert_allclose(ap[:, number], cells.mean(axis=(0, 1)), rtol=0, atol=1e-12)
        np.testing.assert_allclose(ap50[:, number], cells[0].mean(axis=0), rtol=0, atol=1e-12)
        assert np.isnan(ap[:, number]).any() and (ap[:, number] > 0).any()


def test_numbers_of_a_checkpoint(gt_document: dict[str, Any], make_detections: Make, tmp_path: Path) -> None:
    """Means over the classes that a resample shows; the interval holds the number; the file keeps all of it."""
    gt, predictions = read(gt_document, make_detections("plain", "bbox", 6), tmp_path / "whole")
    tensors, selection, matches = evaluate_matched(gt, predictions, "bbox")
    classes = pd.DataFrame({"category_id": np.array(gt.category_ids), "frequency": gt.category_frequency})
    found = resample(selection, matches, classes, count=70)
    ap, _ = weighted_ap(selection, matches, draw_images(np.sort(gt.image_ids), 70)[0])
    np.testing.assert_allclose(found.values["AP"], np.nanmean(ap, axis=0), rtol=1e-12)
    rare = np.array(gt.category_frequency)[selection.categories] == "r"
    np.testing.assert_allclose(found.values["APr"], np.nanmean(ap[rare], axis=0), rtol=1e-12)
    whole = tensors.precision[..., 0]
    value = whole[whole > -1].mean()
    low, high = found.interval("AP", value) or (1.0, 0.0)
    spread = np.quantile(found.values["AP"], [0.025, 0.975]) - found.values["AP"].mean()
    assert low < value < high and (low - value, high - value) == pytest.approx(tuple(spread))
    save_resamples(tmp_path / "resamples.npz", {"bbox": found})
    again = load_resamples(tmp_path / "resamples.npz")["bbox"]
    assert again.images == found.images and set(again.values) == set(RESAMPLED)
    assert all(np.array_equal(again.values[key], found.values[key], equal_nan=True) for key in RESAMPLED)
    (tmp_path / "resamples.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match="file of resamples"):
        load_resamples(tmp_path / "resamples.npz")


def samples(values: np.ndarray, images: str = "same") -> Resamples:
    """Return resamples of AP, and nothing of the rest."""
    nothing = np.full(len(values), np.nan)
    return Resamples({key: values if key == "AP" else nothing for key in RESAMPLED}, images)


def test_differences_are_paired() -> None:
    """What both checkpoints owe to the images cancels; what cannot be compared is not."""
    luck = np.linspace(0, 1, 1000)
    first, second = samples(luck), samples(luck + 0.01)
    numbers = {"AP": 0.5, "APr": None}, {"AP": 0.51, "APr": 0.2}
    found = compare(first, second, numbers, "AP")
    assert found is not None and found.beyond_chance and found.in_favour == 1.0
    assert (found.value, found.low, found.high) == pytest.approx((0.01, 0.01, 0.01))
    back = compare(second, first, numbers[::-1], "AP")
    assert back is not None and back.value == pytest.approx(-0.01) and back.beyond_chance and back.in_favour == 0.0
    other = compare(first, samples(luck[::-1].copy()), numbers, "AP")
    assert other is not None and not other.beyond_chance and other.in_favour == pytest.approx(0.5)
    same = compare(first, first, (numbers[0], numbers[0]), "AP")
    assert same is not None and not same.beyond_chance and same.in_favour == 0.5
    assert compare(first, second, numbers, "APr") is None
    assert compare(first, samples(luck, "others"), numbers, "AP") is None
    assert first.interval("APr", 0.2) is None and first.interval("AP", None) is None
    assert first.interval("AP", 0.3) == pytest.approx((0.3 - 0.475, 0.3 + 0.475))


def test_the_same_images_are_drawn_for_all_checkpoints() -> None:
    """Draws depend on the images and the seed alone, and every resample has as many images as there are."""
    ids = np.arange(40) * 3
    weights, name = draw_images(ids, 100)
    again, same = draw_images(ids, 100)
    assert np.array_equal(weights, again) and name == same and set(weights.sum(axis=0)) == {40}
    assert draw_images(ids + 1, 100)[1] != name and not np.array_equal(draw_images(ids, 100, seed=1)[0], weights)
