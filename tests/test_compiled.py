"""Compiled loops, with a folder for their machine code and without one."""

from __future__ import annotations

from typing import Any

import numba
import pytest

from ltpipe.compiled import compiled


def add(first: int, second: int) -> int:
    return first + second


def test_no_folder_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then every process compiles for itself."""
    kept: Any = compiled(add)
    assert kept(1, 2) == 3 and kept.stats.cache_path is not None
    njit = numba.njit

    def without_folder(**options: Any) -> Any:
        if options.get("cache"):
            raise RuntimeError("cannot cache function 'add': no locator available")
        return njit(**options)

    monkeypatch.setattr(numba, "njit", without_folder)
    alone: Any = compiled(add)
    assert alone(1, 2) == 3 and alone.stats.cache_path is None
