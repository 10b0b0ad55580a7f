"""Calibration plans: frequencies, content, distinct samples, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ltpipe.data.calibration_plan import CalibrationPlan, PlanInfo, class_probabilities, draw_plan
from ltpipe.data.class_images import ClassImages
from ltpipe.errors import UserError
from tests.published.sampling import legacy_bilevel

SIZES = [30, 0, 4, 1, 12, 7, 250]
COUNTS = np.array([55, 0, 4, 1, 30, 7, 900])


@pytest.fixture(scope="module")
def classes() -> ClassImages:
    rng = np.random.default_rng(0)
    lists = [np.sort(rng.choice(np.arange(1000, 2000), n, replace=False)) for n in SIZES]
    return ClassImages(np.concatenate([[0], np.cumsum(SIZES)]), np.concatenate(lists), COUNTS)


def chi_square(observed: np.ndarray, probability: np.ndarray) -> float:
    """Return by how many standard deviations the chi-square statistic exceeds its mean."""
    expected = probability * observed.sum()
    used = expected > 0
    freedom = max(used.sum() - 1, 1)
    statistic = ((observed - expected)[used] ** 2 / expected[used]).sum()
    return float((statistic - freedom) / np.sqrt(2 * freedom))


@pytest.mark.parametrize("tau", (0.0, 0.5, 1.0))
@pytest.mark.parametrize("images_per_class", (1, 3))
def test_frequencies(classes: ClassImages, tau: float, images_per_class: int) -> None:
    info = PlanInfo(steps=3000, images_per_class=images_per_class, tau=tau, seed=5)
    plan = draw_plan(classes, info)
    weight = np.minimum(COUNTS, 100.0) ** tau * (COUNTS > 0)
    drawn = plan.class_label[::images_per_class]
    assert chi_square(np.bincount(drawn, minlength=7), weight / weight.sum()) < 5
    assert 1 not in drawn
    for label in np.unique(drawn):
        images = plan.image_id[plan.class_label == label]
        own = classes.images_of(label)
        assert np.isin(images, own).all()
        observed = np.array([(images == i).sum() for i in own])
        assert len(own) == 1 or chi_square(observed, np.full(len(own), 1 / len(own))) < 5
        assert abs(plan.flip[plan.class_label == label].mean() - 0.5) < 5 * 0.5 / np.sqrt(len(images))


def test_layout(classes: ClassImages) -> None:
    plan = draw_plan(classes, PlanInfo(steps=50, classes_per_step=4, images_per_class=3))
    assert plan.class_label.shape == plan.image_id.shape == plan.flip.shape == (600,)
    assert (plan.class_label.dtype, plan.image_id.dtype, plan.flip.dtype) == (np.int32, np.int64, np.bool_)
    for step in range(50):
        labels = plan.class_label[plan.slots(step)].reshape(4, 3)
        assert (labels == labels[:, :1]).all(), "slots of a class lie together"
    assert plan.slots(49).stop == 600


def test_seed_and_length(classes: ClassImages) -> None:
    short, long = (draw_plan(classes, PlanInfo(steps=n, seed=3)) for n in (20, 60))
    other = draw_plan(classes, PlanInfo(steps=20, seed=4))
    for name in ("class_label", "image_id", "flip"):
        assert_array_equal(getattr(long, name)[:320], getattr(short, name))
        assert (getattr(other, name) != getattr(short, name)).any()


def test_units(classes: ClassImages) -> None:
    plan = draw_plan(classes, PlanInfo(steps=100))
    image, flip, sample = plan.samples()
    assert_array_equal(image[sample], plan.image_id)
    assert_array_equal(flip[sample], plan.flip)
    assert len(image) == len(set(zip(plan.image_id.tolist(), plan.flip.tolist(), strict=True)))
    assert (np.diff(image) >= 0).all()


def test_no_flips(classes: ClassImages) -> None:
    assert not draw_plan(classes, PlanInfo(steps=20, flip_probability=0.0)).flip.any()


def test_file(classes: ClassImages, tmp_path: Path) -> None:
    plan = draw_plan(classes, PlanInfo(steps=9, tau=0.5, seed=1, split="ab", annotation_sha256="cd"))
    path = tmp_path / "plan.npz"
    plan.save(path)
    loaded = CalibrationPlan.load(path)
    assert loaded.info == plan.info
    for name in ("class_label", "image_id", "flip"):
        assert_array_equal(getattr(loaded, name), getattr(plan, name))
        assert getattr(loaded, name).dtype == getattr(plan, name).dtype
    np.savez(path, class_label=[1], image_id=[1], flip=[True], metadata='{"steps": 9}')
    with pytest.raises(UserError, match="damaged calibration plan"):
        CalibrationPlan.load(path)
    np.savez(path, class_label=[1], image_id=[1], flip=[True], metadata='{"stairs": 9}')
    with pytest.raises(UserError, match="damaged calibration plan"):
        CalibrationPlan.load(path)
    with pytest.raises(UserError, match="no calibration plan"):
        CalibrationPlan.load(tmp_path / "other.npz")


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"steps": 1, "classes_per_step": 0}, {"steps": 1, "images_per_class": -1}]
)
def test_refused(options: dict) -> None:
    with pytest.raises(UserError, match="bad calibration plan"):
        PlanInfo(**options)


def test_no_class_to_draw() -> None:
    """A class with instances but no usable image cannot be drawn either."""
    nothing = ClassImages(np.zeros(3, dtype=np.int64), np.zeros(0, dtype=np.int64), np.array([3, 0]))
    with pytest.raises(UserError, match="no class has a training image"):
        draw_plan(nothing, PlanInfo(steps=1))
    with pytest.raises(UserError, match="bad flip"):
        PlanInfo(steps=1, flip_probability=1.5)


def test_class_probabilities() -> None:
    counts = np.array([0, 1, 4, 100, 5000])
    assert_allclose(class_probabilities(counts, 0.0), [0, 0.25, 0.25, 0.25, 0.25])
    assert_allclose(class_probabilities(counts, 0.5), np.array([0, 1, 2, 10, 10]) / 23)


def test_legacy_draw_follows_the_same_probabilities(classes: ClassImages) -> None:
    image, label = legacy_bilevel(classes, steps=600, batch_size=32, classes_per_step=16, tau=1.0, seed=0)
    assert chi_square(np.bincount(label[::2], minlength=7), class_probabilities(COUNTS, 1.0)) < 5
    assert all(i in classes.images_of(c) for i, c in zip(image[:200], label[:200], strict=True))
    with pytest.raises(UserError, match="do not fill"):
        legacy_bilevel(classes, steps=1, batch_size=30, classes_per_step=16, tau=0, seed=0)


def test_images_are_drawn_once_per_pass(classes: ClassImages) -> None:
    every = np.unique(classes.image_id)
    steps = 2 * len(every) // 8
    plan = draw_plan(classes, PlanInfo(steps=steps, classes_per_step=4, images_per_class=2, seed=1, draw="images"))
    assert (plan.class_label == -1).all() and len(plan.image_id) == 8 * steps
    passes = plan.image_id[: len(every)], plan.image_id[len(every) : 2 * len(every)]
    assert_array_equal(np.sort(passes[0]), every)
    assert len(np.unique(passes[1])) == len(passes[1]) and (passes[0][:20] != passes[1][:20]).any()
    short = draw_plan(classes, PlanInfo(steps=3, classes_per_step=4, images_per_class=2, seed=1, draw="images"))
    assert_array_equal(short.image_id, plan.image_id[:24])
    assert_array_equal(short.flip, plan.flip[:24])
