"""Weights that a detector file names to start from (``init_cfg=dict(type="Pretrained", ...)``), without torch.

mmengine's own tables say which file a name stands for. They hold torchvision's ImageNet weights under their old names
(``torchvision://resnet50``), so that torchvision itself is needed for its newer names only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from ltpipe.errors import UserError, unknown_name

_TABLES = {
    "torchvision": "torchvision_0.12.json",
    "modelzoo": "torchvision_0.12.json",
    "open-mmlab": "openmmlab.json",
    "openmmlab": "openmmlab.json",
    "mmcls": "mmcls.json",
}
_PACKAGE = "pip"
SCHEMES = ("http", "https", _PACKAGE, *_TABLES)


def named_weights(config: Any) -> list[str]:
    """Return the files, addresses and names that a model config starts from, without duplicates.

    Args:
        config: The ``model`` of a resolved detector, or any part of one.
    """
    return list(dict.fromkeys(_weights(config)))


def _weights(config: Any) -> Iterator[str]:
    if isinstance(config, Mapping):
        for key, value in config.items():
            if key == "init_cfg":
                for one in value if isinstance(value, list | tuple) else [value]:
                    if isinstance(one, Mapping) and one.get("type") in ("Pretrained", "PretrainedInit"):
                        yield str(one["checkpoint"])
            elif key == "pretrained" and isinstance(value, str):
                yield value
            else:
                yield from _weights(value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from _weights(value)


def address(name: str, where: object) -> str | Path | None:
    """Return the URL or file that a name stands for; None: only torchvision, which is installed, knows.

    Args:
        name: As in a detector file.
        where: What names it, for the error.

    Raises:
        UserError: There is no such name, or it needs a package that is not installed.
    """
    scheme, slashes, rest = name.partition("://")
    if not slashes:
        return Path(name).expanduser()
    if scheme in ("http", "https"):
        return name
    if scheme == _PACKAGE:
        return _in_package(rest, where)
    if scheme not in _TABLES:
        raise UserError(
            "start weights that ltpipe cannot get",
            where=where,
            got=name,
            allowed=f"a file, or an address that begins with {', '.join(f'{s}://' for s in SCHEMES)}",
            fix="save them as a file of tensors and name that file",
        )
    known = _table(_TABLES[scheme])
    if scheme.startswith("open"):
        rest = _table("deprecated.json").get(rest, rest)
    if rest in known:
        return known[rest]
    if scheme not in ("torchvision", "modelzoo"):
        raise unknown_name(f"start weights of {scheme}", rest, known, where=where)
    if find_spec("torchvision") is None:
        raise UserError(
            "these start weights need torchvision, which is not installed",
            where=where,
            got=name,
            allowed=f"without it: {', '.join(sorted(n for n in known if n.startswith('resne')))} and others",
            fix="install the torchvision that belongs to the installed torch (envs/constraints.txt names it), choose "
            "another name, or name a file",
        )
    return None


def _in_package(name: str, where: object) -> Path:
    """Return the file of weights that an installed Python package consists of; the package is not imported.

    Raises:
        UserError: It is not installed, or has no such file or several.
    """
    try:
        package = metadata.distribution(name)
    except metadata.PackageNotFoundError as error:
        raise UserError(
            "these start weights are a Python package, which is not installed",
            where=where, got=f"{_PACKAGE}://{name}", fix=f"pip install {name}",
        ) from error  # fmt: skip
    found = [file for file in package.files or () if file.suffix in (".pth", ".pt")]
    if len(found) != 1:
        raise UserError(
            "a package without weights, or with several files of them",
            where=where, got=f"{_PACKAGE}://{name}: {', '.join(map(str, found)) or 'none'}",
            allowed="a package with one file that ends in .pth or .pt", fix="name the file itself",
        )  # fmt: skip
    return Path(str(package.locate_file(found[0])))


@cache
def _table(name: str) -> dict[str, str]:
    """Return one of mmengine's tables of names."""
    package = find_spec("mmengine")
    assert package is not None and package.origin is not None
    found = json.loads((Path(package.origin).parent / "hub" / name).read_text(encoding="utf-8"))
    return {key: value for key, value in found.items() if isinstance(value, str)}


def cached_file(url: str) -> Path:
    """Return where torch keeps what it has downloaded from an address."""
    cache_home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", os.path.join(cache_home, "torch"))
    return Path(home).expanduser() / "hub" / "checkpoints" / Path(urlparse(url).path).name
