"""Experiment files that are none or never end, numbers beyond reason: one clear error, soon and in little memory."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from ltpipe.config.loading import load_experiment
from ltpipe.errors import UserError
from ltpipe.yaml_files import dump_yaml, load_yaml
from tests.helpers.limits import limited
from tests.helpers.small_project import EXPERIMENT, Load

FILE = Path("configs/experiments/small.yaml")
BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    + [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 10)]
)
FILES: dict[str, tuple[bytes, str]] = {
    "UTF-16": (EXPERIMENT.encode("utf-16"), "UTF-16, by its first bytes"),
    "UTF-16 without a mark": (EXPERIMENT.encode("utf-16-le"), "zero bytes"),
    "Latin-1": ("description: Bäume\n".encode("latin-1") + EXPERIMENT.encode(), "bytes in line 1 that are none"),
    "binary": (bytes(range(256)) * 40, "not in UTF-8"),
    "control characters": (b"description: \x1b[31mred\n", "control characters are not allowed"),
    "empty": (b"", "a mapping of blocks"),
    "an alias of itself": (b"dataset: &a [*a]\n", "inside what it stands for"),
    "a merge of itself": (b"dataset: &a {<<: *a}\n", "inside what it stands for"),
    "deep flow": (b"dataset: " + b"[" * 100_000, "more than 50 levels"),
    "deep blocks": (b"dataset:\n  " + b"- " * 200_000 + b"x", "more than 50 levels"),
    "a bomb of aliases": (BOMB.encode(), "those of aliases counted each time"),
    "a bomb of merges": (
        b"a: &a {" + b", ".join(b"k%d: 1" % i for i in range(400)) + b"}\nb:\n" + b"- {<<: *a}\n" * 400,
        "those of aliases counted each time",
    ),
    "a number of 100,000 digits": (EXPERIMENT.encode() + b"seed: " + b"9" * 100_000, "a number of 100000 digits"),
    "200,000 boundaries": (
        EXPERIMENT.replace("{base_classes: 2, step: 3}", f"{{boundaries: [{','.join(map(str, range(1, 200_001)))}]}}")
        .encode(),
        "holds more than can be meant",
    ),
    "20,000 boundaries": (
        EXPERIMENT.replace("{base_classes: 2, step: 3}", f"{{boundaries: [{','.join(map(str, range(1, 20_001)))}]}}")
        .encode(),
        "at most 1000 items",
    ),
    "3 MiB": (b"# " + b"x" * (3 << 20), "too large"),
    "keys that are no text": (EXPERIMENT.encode() + b"1: 2\n", "a key is no text"),
    "a key that is a list": (b"[a]: b\n", "unhashable key"),
    "an object": (b"dataset: !!python/object/apply:os.getpid []\n", "could not determine a constructor"),
    "a date that is none": (b"dataset: !!timestamp 2020-99-99\n", "month must be in 1..12"),
    "a list": (b"- a\n", "a mapping of blocks"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_files_that_are_no_experiment(project: Path, kind: str) -> None:
    content, words = FILES[kind]
    FILE.write_bytes(content)
    found = limited(lambda: load_experiment("small"), seconds=2, mib=200)
    assert found.kind == "refused", found
    assert words in found.text and str(FILE) in found.text and len(found.text) < 6000


NUMBERS = [
    ("{epochs: 2}", "{epochs: .inf}", "finite"),
    ("{epochs: 2}", "{epochs: .nan}", "finite"),
    ("{epochs: 2}", "{epochs: 1e9}", "no training needs more passes"),
    ("{epochs: 2}", "{iterations: 1e12}", "takes three years"),
    ("{epochs: 2}", "{lr: .inf}", "finite"),
    ("{epochs: 2}", "{lr: .nan}", "finite"),
    ("{epochs: 2}", "{lr: 1e300}", "trainings compute in 32 bits"),
    ("{epochs: 2}", "{lr: yes}", "valid number"),
    ("{epochs: 2}", "{lr: true}", "true and false are no numbers"),
    ("{epochs: 2}", "{weight_decay: .inf}", "finite"),
    ("{epochs: 2}", "{clip_norm: .nan}", "finite"),
    ("{epochs: 2}", "{lr_mult: {backbone: .inf}}", "finite"),
    ("{epochs: 2}", "{batch_size: 1000000000000}", "at most 65,536 (so many are in memory at once)"),
    ("{epochs: 2}", "{batch_size: 1:30}", "valid integer"),
    ("{epochs: 2}", "{warmup_iterations: 10000000000}", "counts have 32 bits"),
    ("threshold: 0.01", "threshold: .inf", "finite"),
    ("threshold: 0.01", "threshold: true", "true and false are no numbers"),
    ("step: 3", "step: yes", "valid integer"),
    ("{type: cosine}", "{type: cosine, scale: .nan}", "finite"),
    ("value: 20", "value: .nan", "finite"),
    ("detector:", "seed: 4294967296\ndetector:", "seeds of 32 bits"),
    ("detector:", "seed: -1\ndetector:", "greater than or equal to 0"),
    ("detector:", "seed: yes\ndetector:", "valid integer"),
    ("detector:", "seed: true\ndetector:", "true and false are no numbers"),
    ("detector:", "seed: 1:30\ndetector:", "valid integer"),
    ("detector:", "evaluate: {max_detections: 1000000}\ndetector:", "so many are in memory"),
    ("detector:", "features: {steps: 100000000}\ndetector:", "the plan of all steps is in memory"),
    ("detector:", "features: {rois: 1000000}\ndetector:", "so many are in memory"),
    ("data/train.json", f"data/{'x' * 300}.json", "a name of more than 255"),
    ("data/train.json", "x/" * 3000, "more than 4095 bytes"),
]


@pytest.mark.parametrize(("old", "new", "words"), NUMBERS, ids=[new[:50] for _, new, _ in NUMBERS])
def test_numbers_and_names_have_bounds_with_a_reason(load: Load, old: str, new: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        load(old, new)
    assert words in str(caught.value) and f"{FILE}:" in str(caught.value)


def test_words_and_numbers_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    text = "[yes, off, 010, 1:30, 1e-3, 1., .5, -.inf, 0o17, 0x1f, 2020-01-01, ~, , True, 1_000, 0b11, '1', !!str 1]"
    file.write_text(text.replace(", ,", ", null,"), encoding="utf-8")
    wanted = ["yes", "off", 10, "1:30", 0.001, 1.0, 0.5, float("-inf"), 15, 31, "2020-01-01", None, None, True]
    assert load_yaml(file, "the file")[1] == [*wanted, "1_000", "0b11", "1", "1"]


def test_what_is_written_is_read_as_the_same(tmp_path: Path) -> None:
    import yaml

    value = ["yes", "010", "1e3", "1e-3", "0o17", "1:30", "null", "~", "", "1_000", 1e-05, 10, True, None, "é", "<<"]
    file = tmp_path / "a.yaml"
    file.write_text(dump_yaml(value), encoding="utf-8")
    assert load_yaml(file, "the file")[1] == value == yaml.safe_load(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["x" * 300, "x" * 5000, "a\0b", "*", "**a", "[", "", "\n"])
def test_names_of_experiments_that_no_file_has(load: Load, name: str) -> None:
    with pytest.raises(UserError, match="no such experiment"):
        load_experiment(name)
    with pytest.raises(UserError, match="the parent experiment does not exist"):
        load("dataset:", f"extends: {'x' * 300}\ndataset:")


def test_parents_without_end(project: Path) -> None:
    for number in range(30):
        file = FILE.with_name(f"a{number}.yaml")
        file.write_text(f"extends: a{number + 1}.yaml\n", encoding="utf-8")
    with pytest.raises(UserError, match="more than 20 times"):
        load_experiment("a0")


def test_an_experiment_that_is_no_file(project: Path) -> None:
    FILE.unlink()
    os.mkfifo(FILE)
    for ref in (FILE, Path("/dev/zero"), project):
        found = limited(partial(load_experiment, ref))
        assert found.kind == "refused" and "no such experiment" in found.text
