"""Every oracle file is checked by its name prefix; a file that nothing checks is a failure.

The checks live in ``checks/*.py``: each module names a ``METHOD`` (folder) and a table ``CHECKS`` from file-name prefix
to a function of the path.
"""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

Check = Callable[[Path], None]
CHECK_FOLDER = Path(__file__).parent / "checks"
NOT_ORACLES = {".md", ".txt"}


def load_checks() -> dict[str, dict[str, Check]]:
    """Return ``{method: {prefix: check}}`` merged over all check modules."""
    tables: dict[str, dict[str, Check]] = defaultdict(dict)
    for file in sorted(CHECK_FOLDER.glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"oracle_checks_{file.stem}", file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        table = tables[module.METHOD]
        clash = table.keys() & module.CHECKS.keys()
        assert not clash, f"{file.name}: prefixes {sorted(clash)} are already checked by another module"
        table.update(module.CHECKS)
    return tables


CHECKS = load_checks()


def oracle_files(folder: Path) -> list[Path]:
    """Return every oracle file below ``folder/<method>/``."""
    return sorted(f for f in folder.glob("*/*") if f.is_file() and f.suffix not in NOT_ORACLES)


def find_check(path: Path) -> Check | None:
    """Return the check with the longest prefix that matches the file's name."""
    table = CHECKS.get(path.parent.name, {})
    matches = [prefix for prefix in table if path.name.startswith(prefix)]
    return table[max(matches, key=len)] if matches else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one test per oracle file."""
    if "oracle" in metafunc.fixturenames:
        files = oracle_files(metafunc.config.getoption("--oracle-dir").resolve())
        metafunc.parametrize("oracle", files, ids=[f"{f.parent.name}/{f.name}" for f in files])


def test_oracle(oracle: Path) -> None:
    """The file's outputs are reproduced by ltpipe from the file's inputs."""
    check = find_check(oracle)
    assert check is not None, f"no check knows {oracle.parent.name}/{oracle.name}: add a prefix to tests/oracles/checks"
    check(oracle)


def test_there_are_oracles(request: pytest.FixtureRequest) -> None:
    """A wrong folder must not pass by checking nothing."""
    folder = request.config.getoption("--oracle-dir")
    assert oracle_files(folder.resolve()), f"no oracle files in {folder}"
