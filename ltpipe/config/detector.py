"""Facts about a detector file from its source text, without importing mmengine."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

from ltpipe.errors import UserError

VARIABLES = ("model", "train_pipeline", "test_pipeline")
# Transforms after which a cached teacher or a cached feature no longer belongs to the image.
RANDOM_GEOMETRY = frozenset(
    {
        "Albu",
        "CachedMixUp",
        "CachedMosaic",
        "CopyPaste",
        "Expand",
        "MinIoURandomCrop",
        "MixUp",
        "Mosaic",
        "RandomAffine",
        "RandomChoice",
        "RandomChoiceResize",
        "RandomCrop",
        "RandomCenterCropPad",
        "RandomResize",
        "RandomShift",
        "Rotate",
        "ShearX",
        "ShearY",
        "TranslateX",
        "TranslateY",
    }
)


def detector_files(path: Path) -> Iterator[tuple[Path, ast.Module]]:
    """Yield a detector file and, through ``_base_``, its parents, as syntax trees; missing files are left out.

    Raises:
        UserError: A file is not Python.
    """
    seen: set[Path] = set()
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if not file.is_file() or file in seen:
            continue
        seen.add(file)
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except SyntaxError as error:
            raise UserError("the detector file is not Python", where=f"{file}:{error.lineno}", got=error.msg) from error
        yield file, tree
        waiting.extend(file.parent / parent for parent in _parents(tree))


def file_digests(path: Path) -> dict[str, str]:
    """SHA-256 of a detector file and its parents, by path."""
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file, _ in detector_files(path)}


def check_detector(path: Path, where: object) -> None:
    """Check that the file exists and assigns the variables that a detector consists of.

    Raises:
        UserError: It does not.
    """
    if not path.is_file():
        near = sorted(str(f) for f in path.parent.glob("*.py"))
        raise UserError("the detector file does not exist", where=where, got=path, allowed=near or "a config file")
    assigned = {name for _, tree in detector_files(path) for name in _assigned(tree)}
    for name in VARIABLES:
        if name not in assigned:
            raise UserError("the detector file is incomplete", where=path, got=f"no {name!r}", allowed=VARIABLES)


def has_mask_head(path: Path) -> bool:
    """Whether a mask head is configured in the detector file or its parents."""
    trees = [tree for _, tree in detector_files(path)]
    keywords = {node.arg for tree in trees for node in ast.walk(tree) if isinstance(node, ast.keyword)}
    keys = {node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    return "mask_head" in keywords | keys


def backbone(path: Path) -> str:
    """Short name of the backbone in the detector file, or in its parents where the file does not set it: ``R-50``.

    ``R`` stands for ResNet, ``X`` for ResNeXt; a depth that is not found is 0.
    """
    kind, depth = "", 0
    for _, tree in detector_files(path):
        for node in ast.walk(tree):
            pair: list[tuple[str | None, object]] = []
            if isinstance(node, ast.keyword):
                pair = [(node.arg, _text(node.value))]
            elif isinstance(node, ast.Dict):
                pair = [(str(_text(k)), _text(v)) for k, v in zip(node.keys, node.values, strict=True)]
            for key, value in pair:
                if key == "depth" and isinstance(value, int):
                    depth = depth or value
                elif key == "type" and isinstance(value, str) and value.startswith("ResNe"):
                    kind = kind or ("X" if value == "ResNeXt" else "R")
    return f"{kind}-{depth}"


def switched_on(path: Path, option: str) -> bool:
    """Whether an option is set to True in the detector file, or in its parents where the file does not set it."""
    for _, tree in detector_files(path):
        found = []
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == option:
                found.append(node.value)
            elif isinstance(node, ast.Dict):
                found += [v for k, v in zip(node.keys, node.values, strict=True) if _text(k) == option]
        if found:
            return any(isinstance(value, ast.Constant) and value.value is True for value in found)
    return False


def roi_head_type(path: Path) -> str | None:
    """Type of the RoI head in the detector file, or in its parents where the file does not set it."""
    for _, tree in detector_files(path):
        blocks = [node.value for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "roi_head"]
        for block in blocks:
            for item in block.keywords if isinstance(block, ast.Call) else ():
                if item.arg == "type" and isinstance(item.value, ast.Constant):
                    return str(item.value.value)
    return None


def _text(node: ast.expr | None) -> object:
    return node.value if isinstance(node, ast.Constant) else None


def random_geometry(path: Path) -> list[str]:
    """Names of the transforms in ``train_pipeline`` whose geometry differs from epoch to epoch."""
    for _, tree in detector_files(path):
        for node in tree.body:
            if isinstance(node, ast.Assign) and "train_pipeline" in _targets(node):
                words = [n.value for n in ast.walk(node.value) if isinstance(n, ast.Constant)]
                return [w for w in words if isinstance(w, str) and w.removeprefix("mmdet.") in RANDOM_GEOMETRY]
    return []


def _targets(node: ast.Assign) -> list[str]:
    return [target.id for target in node.targets if isinstance(target, ast.Name)]


def _assigned(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign):
            yield from _targets(node)


def _parents(tree: ast.Module) -> list[str]:
    """Files that a config extends."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and "_base_" in _targets(node):
            value = ast.literal_eval(node.value)
            return [value] if isinstance(value, str) else [str(item) for item in value]
    return []
