"""``validate``: what is refused, and with which words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_project import DETECTOR, Load, write_annotations

from ltpipe.errors import UserError
from ltpipe.spec.checks import check_experiment


def class_list(names: list[str]) -> None:
    """Write ``classes.json``."""
    rows = [{"id": 10 * (i + 1), "name": n, "image_count": 1, "instance_count": 2} for i, n in enumerate(names)]
    Path("classes.json").write_text(json.dumps(rows))


def refused(load: Load, *edits: str, words: list[str]) -> None:
    """Check that the edited experiment is refused with these words."""
    with pytest.raises(UserError) as caught:
        check_experiment(load(*edits), ["small", "other"])
    for word in words:
        assert word in str(caught.value)


def test_the_small_experiment_is_valid(load: Load) -> None:
    assert check_experiment(load(), ["small"]) == []


def test_missing_annotations(load: Load) -> None:
    Path("data/val.json").unlink()
    refused(load, words=["dataset.val.annotations", "missing file", "data/val.json", "dataset.class_list"])
    edit = ("data/val.json", "'${PICTURES:-data}/val.json'")
    refused(load, *edit, words=["environment variable PICTURES"])


def test_missing_images(load: Load) -> None:
    Path("data/train").rmdir()
    refused(load, words=["dataset.train.images", "missing folder"])


def test_a_class_list_stands_for_missing_data(load: Load) -> None:
    for part in ("train", "val"):
        Path(f"data/{part}.json").unlink()
    class_list([f"class{i}" for i in range(6)])
    remarks = check_experiment(load("name: small", "name: small\n  class_list: classes.json"), ["small"])
    assert len(remarks) == 1 and "class list only" in remarks[0]


def test_a_class_list_that_does_not_match(load: Load) -> None:
    class_list(["class0", "class1", "class2", "class3", "class4", "klass5"])
    edit = ("name: small", "name: small\n  class_list: classes.json")
    refused(
        load,
        *edit,
        words=["dataset.class_list", "id 60 is 'klass5' in the class list, 'class5' in", "same ids and names"],
    )


def test_validation_classes_that_do_not_match(load: Load) -> None:
    write_annotations(Path("data/val.json"), ["class0", "klass1"])
    refused(load, words=["dataset.val.annotations", "'klass1'", "'class1'"])


def test_validation_classes_may_be_a_part(load: Load) -> None:
    write_annotations(Path("data/val.json"), ["class0", "class1"])
    assert check_experiment(load(), ["small"]) == []


def test_the_detector_file(load: Load) -> None:
    refused(load, "detector.py", "detektor.py", words=["detector.config", "does not exist", "detector.py"])
    Path("detector.py").write_text("model = dict()")
    refused(load, words=["incomplete", "train_pipeline"])
    Path("detector.py").write_text("model = dict(")
    refused(load, words=["detector.py:1", "not Python"])


def test_the_checkpoint_to_start_from(load: Load) -> None:
    edit = ("{config: detector.py}", "{config: detector.py, load_from: coco.pth}")
    refused(load, *edit, words=["detector.load_from", "coco.pth"])
    Path("coco.pth").touch()
    check_experiment(load(*edit), ["small"])


def test_distillation_without_a_cosine_classifier(load: Load) -> None:
    refused(load, "type: cosine", "type: linear", words=["lst.distill.teacher", "cosine similarities", "linear"])
    check_experiment(
        load("type: cosine", "type: linear", "{iterations: 10}", "{iterations: 10}\n  distill: {teacher: none}"),
        ["small"],
    )


def test_cached_teacher_with_multi_scale_training(load: Load) -> None:
    Path("detector.py").write_text(DETECTOR.replace('"Resize"', '"RandomResize"'))
    refused(load, words=["lst.distill.teacher", "RandomResize", "online"])
    check_experiment(load("{iterations: 10}", "{iterations: 10}\n  distill: {teacher: online}"), ["small"])


def test_what_a_hybrid_cascade_cannot_have(load: Load) -> None:
    hybrid = DETECTOR.replace("roi_head=dict(", 'roi_head=dict(type="HybridTaskCascadeRoIHead", ')
    Path("parent.py").write_text(hybrid)
    Path("detector.py").write_text('_base_ = "parent.py"')
    crat, own = (f"parts: [{{type: crat{options}}}]" for options in ("", ", mask_weights_from: mask"))
    edit = ("{type: cosine}", "{type: cosine}\n  mask: {type: normed}")
    refused(load, *edit, words=["model.mask.type", "hybrid task cascade", "fcn"])
    classifier = "{type: cosine}\n  "
    refused(load, "{type: cosine}", classifier + crat, words=["model.parts[0]", "mask_weights_from: mask"])
    check_experiment(load("{type: cosine}", classifier + own), ["small"])
    Path("detector.py").write_text(
        '_base_ = "parent.py"\nmodel = dict(roi_head=dict(type="CascadeRoIHead", mask_head=[]))'
    )
    for allowed in (edit[1], classifier + crat):
        check_experiment(load("{type: cosine}", allowed), ["small"])


def test_masks_without_a_mask_head(load: Load) -> None:
    Path("detector.py").write_text(DETECTOR.replace("mask_head", "no_head"))
    refused(load, words=["evaluate.iou_types", "segm"])


def test_calibrators_without_features(load: Load) -> None:
    refused(load, "calibrate:", "features: null\ncalibrate:", words=["calibrate.head", "features: null"])


def test_calibrators_and_losses(load: Load) -> None:
    sigmoid = ("  classifier: {type: cosine}", "  classifier: {type: cosine}\n  loss: {type: eql}")
    refused(load, *sigmoid, words=["calibrate.head", "simcal after model.loss.type: eql"])
    check_experiment(load(*sigmoid, "{type: simcal,", "{type: simcal, head: 3fc_rand,"), ["small"])
    refused(load, "{type: simcal,", "{type: lws,", words=["calibrate.head", "lws after model.classifier.type: cosine"])


def test_boundaries_and_iterations_fit_the_classes(load: Load) -> None:
    refused(load, "{base_classes: 2, step: 3}", "{boundaries: [2, 5]}", words=["split.boundaries", "allowed: 6"])
    edit = ("{iterations: 10}", "{iterations: 10}\n  iterations_per_phase: [5]")
    refused(load, *edit, words=["lst.iterations_per_phase", "1 numbers", "2, the number of phases"])


def test_reports(load: Load) -> None:
    refused(load, "report:", "report:\n  compare: [othr]", words=["report.compare", "'othr'", "did you mean 'other'"])
    refused(load, "report:", "report:\n  compare: [small]", words=["compared with itself"])
    refused(load, "checkpoint: phase1", "checkpoint: phase8", words=["report.expected[0].checkpoint", "phase8"])
    edit = ("report:", "evaluate: {iou_types: [bbox]}\nreport:")
    refused(load, *edit, words=["report.expected[0].iou_type", "segm"])


def test_modes_need_two_classifiers(load: Load) -> None:
    modes = ("report:", "evaluate: {modes: [base, cal], thresholds: [10]}\nreport:")
    assert check_experiment(load(*modes), ["small"]) == []
    other = ("head: {type: simcal, schedule: {iterations: 20}}", "head: {type: crt}")
    refused(load, *modes, *other, words=["evaluate.modes", "two classifiers", "['base', 'cal']", "crt"])


def test_oracle_labels_leave_nothing_to_combine(load: Load) -> None:
    with pytest.raises(UserError, match="no scores to combine"):
        load("report:", "evaluate: {oracle_labels: true, thresholds: [10]}\nreport:")


@pytest.mark.parametrize(
    ("level", "head", "allowed"),
    [("fc1", "3fc_ft", "roi"), ("last", "2fc_rand", "roi"), ("last", "3fc_ft_freeze1", "roi, fc1")],
)
def test_stored_activations_must_lie_below_what_is_trained(load: Load, level: str, head: str, allowed: str) -> None:
    stored = ("calibrate:", f"features: {{level: {level}}}\ncalibrate:")
    choice = ("{type: simcal, schedule", f"{{type: simcal, head: {head}, schedule")
    refused(load, *stored, *choice, words=["features.level", "trains layers below", f"allowed: {allowed}"])
    live = ("calibrate:", f"features: {{level: {level}, storage: none}}\ncalibrate:")
    assert check_experiment(load(*live, *choice), ["small"]) == []


def test_a_whole_box_head_needs_pooled_features(load: Load) -> None:
    stored = ("calibrate:", "features: {level: last}\ncalibrate:")
    bags = ("{type: simcal, schedule", "{type: bags, trained: box_head, schedule")
    refused(load, *stored, *bags, words=["features.level", "(bags) reads roi", "allowed: roi"])
    assert check_experiment(load(*stored, bags[0], "{type: bags, schedule"), ["small"]) == []


@pytest.mark.parametrize(("level", "head"), [("fc1", "3fc_ft_freeze1"), ("last", "cls_ft"), ("fc1", "cls_rand")])
def test_exact_activations(load: Load, level: str, head: str) -> None:
    choice = ("{type: simcal, schedule", f"{{type: simcal, head: {head}, schedule")
    exp = load("calibrate:", f"features: {{level: {level}}}\ncalibrate:", *choice)
    assert check_experiment(exp, ["small"]) == []
