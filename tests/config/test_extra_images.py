"""Held-out images: when an experiment has them, and which stages notice."""

from __future__ import annotations

import pytest

from ltpipe.config.choices import extra_images
from ltpipe.pipeline.digests import stage_digest
from tests.helpers.small_project import Load

MODEL = "model:\n"


def with_part(load: Load, part: str) -> str | None:
    return extra_images(load(MODEL, f"{MODEL}  parts: [{part}]\n"))


@pytest.mark.parametrize(
    ("part", "images"),
    [
        ("{type: fasa}", "holdout"),
        ("{type: fasa, preset: repro}", "val"),
        ("{type: fasa, preset: repro, adapt_split: holdout}", "holdout"),
        ("{type: fasa, adapt_split: val}", "val"),
        ("{type: crat}", None),
        ("{type: crat}, {type: fasa}", "holdout"),
    ],
)
def test_the_first_option_that_is_set_decides(load: Load, part: str, images: str | None) -> None:
    assert with_part(load, part) == images


def test_only_holding_out_changes_the_split(load: Load) -> None:
    plain = load()
    on_val = load(MODEL, f"{MODEL}  parts: [{{type: fasa, adapt_split: val}}]\n")
    held = load(MODEL, f"{MODEL}  parts: [{{type: fasa}}]\n")
    assert extra_images(plain) is None
    assert stage_digest(plain, "split") == stage_digest(on_val, "split") != stage_digest(held, "split")
    assert len({stage_digest(exp, "base") for exp in (plain, on_val, held)}) == 3
