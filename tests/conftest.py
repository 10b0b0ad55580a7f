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

# Files of more than 20 seconds, the longest first: whoever starts one at the very end has the others wait.
SLOW = (
    "workflow/test_dag.py",
    "faults/test_recovery.py",
    "workflow/test_content.py",
    "stages/test_export.py",
    "workflow/test_tiny_chain.py",
    "stages/test_resume.py",
    "workflow/test_own_data.py",
    "engine/test_combinations.py",
    "stages/test_one_stage.py",
    "stages/test_data_kinds.py",
    "metrics/test_score.py",
    "stages/test_resume_methods.py",
    "metrics/test_official.py",
    "workflow/test_names.py",
    "engine/test_config.py",
    "stages/test_strangers_files.py",
)
DEFAULT_ORACLES = Path(__file__).parent / "oracles" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--oracle-dir``, ``--annotation-cases`` and ``--photographs``, folders that tests check, and ``--fix``."""
    parser.addoption("--oracle-dir", type=Path, default=DEFAULT_ORACLES, help="folder with <method>/<oracle files>")
    parser.addoption("--annotation-cases", type=Path, help="folder with annotation files and expected.json")
    parser.addoption("--photographs", type=Path, help="folder with train.json, val.json, images/train and images/val")
    parser.addoption("--fix", action="store_true", help="write generated files (the JSON schema) anew")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the slow files where files are shared out to several processes."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        ranks = {Path(__file__).parent / name: rank for rank, name in enumerate(SLOW)}
        items.sort(key=lambda item: ranks.get(item.path, len(SLOW)))


@pytest.fixture
def forked_python(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have programs that are started with ``sys.executable`` forked, with everything imported: see its helper."""
    from tests.helpers.commands import python_script

    monkeypatch.setattr(sys, "executable", str(python_script(tmp_path_factory.mktemp("bin"))))
