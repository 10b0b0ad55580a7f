"""Which edits change which stages' digests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ltpipe.config.experiment import Experiment
from ltpipe.errors import UserError
from ltpipe.pipeline.digests import stage_digest, toy_data_digest
from ltpipe.pipeline.stage import reading
from ltpipe.pipeline.stages import TABLE
from tests.helpers.small_project import EXPERIMENT, Load

KEYS: dict[str, tuple[str | int | None, ...]] = {
    "split": (None, 1, 2), "distill": (1, 2), "lst": (1, 2), "calibrate": ("head",), "evaluate": ("base", "head"),
}  # fmt: skip


def digests(exp: Experiment) -> dict[str, str]:
    """Digest of every stage and key."""

    def pairs() -> Iterator[tuple[str, str]]:
        for stage in TABLE:
            for key in KEYS.get(stage, (None,)):
                yield f"{stage} {key}" if key is not None else stage, stage_digest(exp, stage, key)
        yield "toy_data", toy_data_digest(exp)

    return dict(pairs())


# An edit and the stages that read what it changes; everything else follows through files.
EDITS = [
    ("report:", "evaluate: {nms: 0.6}\nreport:", {"evaluate base", "evaluate head"}),
    ("report:", "evaluate: {thresholds: [5]}\nreport:", {"evaluate head"}),
    ("report:", "evaluate: {oracle_labels: true}\nreport:", {"evaluate base", "evaluate head"}),
    ("report:", "evaluate: {detections_per_class: 100}\nreport:", {"evaluate base", "evaluate head"}),
    ("report:", "evaluate: {checkpoints: [base, phase1]}\nreport:", {"report", "pictures"}),
    ("value: 20", "value: 21", {"report"}),
    ("dataset:", "description: another\ndataset:", {"report"}),
    ("{iterations: 10}", "{iterations: 10, lr: 0.1}", {"lst 1", "lst 2"}),
    ("{iterations: 10}", "{iterations: 11}", {"split 1", "split 2", "lst 1", "lst 2"}),
    ("{iterations: 10}", "{iterations: 10}\n  iterations_per_phase: [10, 9]", {"split 1", "split 2", "lst 1", "lst 2"}),
    ("{iterations: 10}", "{iterations: 10}\n  replay: {variant: cyclic}", {"split 1", "split 2"}),
    ("{iterations: 10}", "{iterations: 10}\n  distill: {weight: 2}", {"lst 1", "lst 2"}),
    ("{epochs: 2}", "{epochs: 3}", {"base"}),
    ("threshold: 0.01", "threshold: 0.02", {"base", "pictures"}),
    ("type: cosine", "type: cosine, scale: 9", {"base", "lst 1", "lst 2"}),
    ("step: 3", "step: 2", {"split", "base"}),
    ("{iterations: 20}", "{iterations: 19}", {"calibrate head"}),
    ("calibrate:", "features: {rois: 99}\ncalibrate:", {"features"}),
    ("calibrate:", "features: {level: last}\ncalibrate:", {"features", "calibrate head"}),
    ("schedule: {iterations: 20}", "seed: 4, schedule: {iterations: 20}", {"calibrate head"}),
    ("dataset:", "seed: 5\ndataset:", {"base", "lst 1", "lst 2", "calibrate head", "pictures"}),
    ("step: 3", "step: 3, ignore_future_gt: true", {"base", "lst 1", "lst 2", "pictures"}),
    ("model:", "model:\n  loss_average: batch", {"base", "lst 1", "lst 2"}),
    ("model:", "model:\n  parts: [{type: fasa}]", {"split", "split 1", "split 2", "base", "lst 1", "lst 2"}),
    ("data/train.json", "data/other.json", {"index"}),
    ("name: small", "name: small\n  frequency_limits: [5, 50]", {"index"}),
]


@pytest.mark.parametrize(("old", "new", "changed"), EDITS, ids=[edit[1][:40] for edit in EDITS])
def test_edits(load: Load, old: str, new: str, changed: set[str]) -> None:
    before, after = digests(load()), digests(load(old, new))
    assert {stage for stage in before if before[stage] != after[stage]} == changed | {"validate"}


def test_one_phase_of_iterations_per_phase(load: Load) -> None:
    phases = "{iterations: 10}\n  iterations_per_phase: [%d, %d]"
    before = digests(load("{iterations: 10}", phases % (5, 6)))
    after = digests(load("{iterations: 10}", phases % (5, 7)))
    assert {stage for stage in before if before[stage] != after[stage]} == {"split 2", "lst 2", "validate"}


def test_digests_do_not_depend_on_order_or_spelled_out_defaults(load: Load) -> None:
    before = digests(load())
    text = EXPERIMENT.replace("{epochs: 2}", "{lr: 0.01, epochs: 2.0}")
    head, tail = text.split("split:")
    split, rest = tail.split("\n", 1)
    Path("configs/experiments/small.yaml").write_text(f"split:{split}\n{head}{rest}")
    from ltpipe.config.loading import load_experiment

    assert digests(load_experiment("small")) == before


def test_the_detector_file_and_its_parents_count(load: Load) -> None:
    exp = load()
    before = digests(exp)
    text = Path("detector.py").read_text()
    Path("parent.py").write_text(text)
    Path("detector.py").write_text('_base_ = "./parent.py"\n')
    middle = digests(exp)
    Path("parent.py").write_text(text.replace("prob=0.5", "prob=0.25"))
    after = digests(exp)
    assert before == middle, "what it resolves to counts, not how it is written"
    changed = {stage for stage in middle if middle[stage] != after[stage]}
    assert changed == {"base", "distill 1", "distill 2", "lst 1", "lst 2", "features", "pictures", "validate"}


def test_a_stage_reads_only_keys_that_exist(load: Load) -> None:
    exp = load()
    whole = exp.model_dump(mode="json")
    assert reading("split.step", without={})(exp, whole, None) == {"split.step": 3}
    with pytest.raises(UserError, match="split.stepp"):
        reading("split.stepp")(exp, whole, None)


def test_one_shot_experiments_have_digests(load: Load) -> None:
    exp = load("split: {base_classes: 2, step: 3}\n", "", "lst:\n  schedule: {iterations: 10}\n", "")
    assert len({stage_digest(exp, stage) for stage in ("split", "base", "features", "report")}) == 4
