"""Options shared by all tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Spinning OpenMP threads make small tensors several times slower on shared machines.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# The same on every machine: one thread, and no loader processes but in tests that pretend more cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("LTPIPE_CORES", "2")

import pytest  # noqa: E402

DEFAULT_ORACLES = Path(__file__).parent / "oracles" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--oracle-dir``, ``--annotation-cases`` and ``--photographs``, folders that tests check, and ``--fix``."""
    parser.addoption("--oracle-dir", type=Path, default=DEFAULT_ORACLES, help="folder with <method>/<oracle files>")
    parser.addoption("--annotation-cases", type=Path, help="folder with annotation files and expected.json")
    parser.addoption("--photographs", type=Path, help="folder with train.json, val.json, images/train and images/val")
    parser.addoption("--fix", action="store_true", help="write generated files (the JSON schema) anew")


@pytest.fixture
def forked_python(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have programs that are started with ``sys.executable`` forked, with everything imported: see its helper."""
    from tests.helpers.commands import python_script

    monkeypatch.setattr(sys, "executable", str(python_script(tmp_path_factory.mktemp("bin"))))
