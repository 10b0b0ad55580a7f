"""Trainings that are cut short, and which iterations they do."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ltpipe.config.experiment import Experiment
from ltpipe.engine.hooks import StepSeedHook
from ltpipe.pipeline.paths import Paths
from tests.helpers.tiny_project import ended, in_child, run_stages


def cut_short(exp: Experiment, paths: Paths, stage: str, key: int | None, at: int, end: Callable[[], None]) -> int:
    """Run a training in a process of its own that ends before an iteration; return how it ended."""

    def work() -> None:
        seed = StepSeedHook.before_train_iter

        def before(self, runner, *rest, **more):
            if runner.iter == at:
                end()
            seed(self, runner, *rest, **more)

        StepSeedHook.before_train_iter = before
        run_stages(exp, paths.results, stage if key is None else (stage, key))

    return ended(in_child(work))


def iterations_of(exp: Experiment, paths: Paths, stage: str, key: int | None = None) -> list[int]:
    """Run a training here; return the iterations it did."""
    done: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        seed = StepSeedHook.before_train_iter

        def before(self, runner, *rest, **more):
            done.append(runner.iter)
            seed(self, runner, *rest, **more)

        patch.setattr(StepSeedHook, "before_train_iter", before)
        run_stages(exp, paths.results, stage if key is None else (stage, key))
    return done
