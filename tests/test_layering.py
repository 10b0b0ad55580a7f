"""Who may import whom, read from the syntax trees; imports inside functions count as well."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TORCH_SIDE = {"torch", "torchvision", "mmcv", "mmdet", "mmengine"}
OURS = {
    "config",
    "pipeline",
    "run",
    "data",
    "methods",
    "engine",
    "metrics",
    "report",
    "interop",
    "stages",
    "checkpoints",
}
# What each package must not import: packages of others, and packages of ltpipe.
FORBIDDEN = {
    "config": (TORCH_SIDE | {"pandas", "pyarrow", "cv2", "matplotlib"}, OURS - {"config", "pipeline", "run", "data"}),
    "pipeline": (TORCH_SIDE | {"pandas", "pyarrow", "cv2", "matplotlib"}, OURS - {"config", "pipeline", "run"}),
    "run": (TORCH_SIDE | {"pandas", "pyarrow", "cv2", "matplotlib"}, OURS - {"config", "pipeline", "run"}),
    "data": (TORCH_SIDE | {"matplotlib"}, OURS - {"data", "run"} | {"registry"}),
    "metrics": (TORCH_SIDE | {"matplotlib"}, OURS - {"metrics", "data", "run"} | {"registry"}),
    "report": (
        TORCH_SIDE | {"numba", "vernier", "hotcoco"},
        OURS - {"report", "metrics", "data", "run"} | {"registry"},
    ),
    "checkpoints": ({"mmcv", "mmdet", "mmengine"}, OURS - {"checkpoints", "run"}),
    "methods": (set(), OURS - {"methods", "checkpoints", "data", "run"}),
    "engine": (set(), {"stages", "metrics", "report", "interop"}),
    "interop": (set(), {"report"}),
}
LIMIT_LINES, LIMIT_FUNCTION = 320, 45


def modules(package: str) -> list[Path]:
    """Python files of a package."""
    return sorted((ROOT / "ltpipe" / package).rglob("*.py"))


def imports(file: Path) -> Iterator[str]:
    """Full names of all imported modules and names."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide where things come from"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", FORBIDDEN)
def test_packages_keep_their_distance(package: str) -> None:
    others, ours = FORBIDDEN[package]
    wrong = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in modules(package)
        for name in imports(file)
        # Starts torchrun; asked for torch when a training is launched, not before.
        if file.name != "launch.py"
        # Reads detector files; mmengine.config imports no torch.
        if (file.name, name) != ("detector.py", "mmengine.config.Config")
        if name.split(".")[0] in others or (name.split(".")[0] == "ltpipe" and name.split(".")[1] in ours)
    ]
    assert not wrong


def test_only_tests_ask_a_third_evaluation_engine() -> None:
    wrong = [str(file) for file in modules(".") if any(name.split(".")[0] == "hotcoco" for name in imports(file))]
    assert not wrong


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("ltpipe.report.build", TORCH_SIDE | {"numba", "vernier", "hotcoco"}),
        ("ltpipe.metrics.evaluation", TORCH_SIDE | {"vernier", "hotcoco", "matplotlib"}),
    ],
)
def test_what_is_loaded_with_a_module(module: str, absent: set[str]) -> None:
    """Also through other modules."""
    code = f"import sys, {module}; print(*sorted({absent!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.strip() == ""


def test_experiments_read_only_the_samplers_of_the_data_layer() -> None:
    wrong = [
        f"{file.name}: {name}"
        for file in modules("config")
        for name in imports(file)
        if name.startswith("ltpipe.data")
        and not name.startswith(("ltpipe.data.samplers", "ltpipe.data.categories", "ltpipe.data.readers"))
    ]
    assert not wrong


def method_classes() -> dict[str, str]:
    """Module by name of every class that users may choose."""
    found = {}
    for file in modules("methods"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and any("method(" in ast.unparse(d) for d in node.decorator_list):
                found[node.name] = file.stem
    return found


def test_no_method_imports_another() -> None:
    wrong = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in modules("methods")
        for name in imports(file)
        if (parts := name.split("."))[:2] == ["ltpipe", "methods"]
        and (ROOT / "ltpipe" / "methods" / parts[2]).is_dir()
        and parts[2] != file.parent.name
    ]
    assert not wrong


def test_modules_do_not_import_each_other_in_circles() -> None:
    """Imports inside functions count too: they only hide a circle."""
    names = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in modules("")
    }
    graph = {}
    for name, file in names.items():
        found = {one if one in names else one.rpartition(".")[0] for one in imports(file)}
        # A package's own __init__ gathers its modules.
        graph[name] = {one for one in found if one in names and not name.startswith(f"{one}.")}
    TopologicalSorter(graph).prepare()


def test_the_engine_names_no_method() -> None:
    names = set(method_classes())
    wrong = []
    for file in modules("engine"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            word = node.id if isinstance(node, ast.Name) else node.value if isinstance(node, ast.Constant) else None
            if isinstance(word, str) and word.removeprefix("ltpipe.") in names:
                wrong.append(f"{file.name}:{node.lineno}: {word}")  # type: ignore[attr-defined]
    assert not wrong


def test_rules_import_nothing_heavy() -> None:
    for file in [ROOT / "Snakefile", *sorted((ROOT / "workflow" / "rules").glob("*.smk"))]:
        for line in file.read_text(encoding="utf-8").splitlines():
            if "import" in line.split() and "ltpipe" in line:
                assert line.startswith(("from ltpipe.errors", "from ltpipe.pipeline", "from ltpipe.run")), (
                    f"{file.name}: {line}"
                )


def test_a_name_is_that_of_one_module() -> None:
    """Stages are named like what they make, and the folders of methods have modules of the same names by design."""
    named: dict[str, list[str]] = {}
    for file in modules("."):
        room = file.relative_to(ROOT / "ltpipe").parts[0]
        if room not in ("stages", "methods") and file.stem != "__init__":
            named.setdefault(file.stem, []).append(room)
    assert not {name: rooms for name, rooms in named.items() if len(rooms) > 1}


def test_modules_and_functions_stay_readable() -> None:
    """Docstrings of functions do not count: a long list of described arguments is no long function."""
    long = []
    for file in modules("."):
        text = file.read_text(encoding="utf-8")
        if text.count("\n") > LIMIT_LINES:
            long.append(f"{file.name}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                described = (ast.get_docstring(node, clean=False) or "").count("\n") + bool(ast.get_docstring(node))
                length = node.end_lineno - node.lineno + 1 - described  # type: ignore[operator]
                if length > LIMIT_FUNCTION:
                    long.append(f"{file.name}: {node.name}: {length} lines")
    assert not long
