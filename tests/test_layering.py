"""Who may import whom, read from the syntax trees; imports inside functions count as well."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TORCH_SIDE = {"torch", "torchvision", "mmcv", "mmdet", "mmengine"}
OURS = {"data", "methods", "engine", "evaluation", "convert", "stages"}
# What each package must not import: packages of others, and packages of ltpipe.
FORBIDDEN = {
    "spec": (TORCH_SIDE | {"pandas", "pyarrow", "cv2", "matplotlib"}, OURS - {"data"} | {"registry"}),
    "data": (TORCH_SIDE | {"matplotlib"}, OURS - {"data"} | {"spec", "registry"}),
    "evaluation": (TORCH_SIDE, OURS - {"evaluation", "data"} | {"registry"}),
    "methods": (set(), {"engine", "stages", "evaluation", "convert", "spec"}),
    "engine": (set(), {"stages", "evaluation", "convert"}),
    "convert": (set(), {"stages", "evaluation"}),
}
LIMIT_LINES, LIMIT_FUNCTION = 400, 80


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
        if name.split(".")[0] in others or (name.split(".")[0] == "ltpipe" and name.split(".")[1] in ours)
    ]
    assert not wrong


def test_spec_uses_only_samplers_and_readers_of_the_data_layer() -> None:
    wrong = [
        f"{file.name}: {name}"
        for file in modules("spec")
        for name in imports(file)
        if name.startswith("ltpipe.data") and not name.startswith(("ltpipe.data.samplers", "ltpipe.data.readers"))
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
    chosen = method_classes()
    wrong = [
        f"{file.stem} imports {name}"
        for file in modules("methods")
        if file.stem in chosen.values()
        for name in imports(file)
        if name.startswith("ltpipe.methods.") and chosen.get(name.split(".")[-1], file.stem) != file.stem
    ]
    # Post-hoc IIF is the IIF loss applied to a trained detector, one method in two modules.
    assert [item for item in wrong if item != "iif_calibrator imports ltpipe.methods.iif.IIFLoss"] == []


def test_the_engine_names_no_method() -> None:
    names = set(method_classes())
    wrong = []
    for file in modules("engine"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            word = node.id if isinstance(node, ast.Name) else node.value if isinstance(node, ast.Constant) else None
            if isinstance(word, str) and word.removeprefix("ltpipe.") in names:
                wrong.append(f"{file.name}:{node.lineno}: {word}")  # type: ignore[attr-defined]
    assert not wrong


def test_rules_import_only_the_spec() -> None:
    for file in [ROOT / "Snakefile", *sorted((ROOT / "workflow" / "rules").glob("*.smk"))]:
        for line in file.read_text(encoding="utf-8").splitlines():
            if "import" in line.split() and "ltpipe" in line:
                assert line.startswith(("from ltpipe.errors", "from ltpipe.spec")), f"{file.name}: {line}"


def test_modules_and_functions_stay_readable() -> None:
    long = []
    for file in modules("."):
        text = file.read_text(encoding="utf-8")
        if text.count("\n") > LIMIT_LINES:
            long.append(f"{file.name}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= LIMIT_FUNCTION:  # type: ignore[operator]
                long.append(f"{file.name}: {node.name}")
    assert not long
