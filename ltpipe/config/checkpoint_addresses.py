"""Checkpoints that are downloaded: which address a config of mmdet stands for, and which file an address."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from ltpipe.errors import UserError
from ltpipe.yaml_files import load_yaml

FOLDER = Path("checkpoints")
_PREFIX = "mmdet::"


def downloaded(address: str) -> Path:
    """Return the file that an address is kept in.

    Raises:
        UserError: The address names no file.
    """
    name = Path(unquote(urlparse(address).path)).name
    if not name:
        raise UserError("an address without a file", where="detector.load_from", got=address)
    return FOLDER / name


def published_checkpoint(config: str) -> str:
    """Return the address of the checkpoint that mmdet's model index publishes for one of its configs.

    Args:
        config: ``mmdet::FOLDER/FILE.py``.

    Raises:
        UserError: It is no config of mmdet, or none is published for it.
    """
    where = "detector.load_from"
    if not config.startswith(_PREFIX):
        raise UserError(
            "only configs of mmdet have a checkpoint in its model index",
            where=where, got=f"mmdet, with detector.config: {config}",
            allowed="detector.config: mmdet::FOLDER/FILE.py, or the address of a checkpoint",
        )  # fmt: skip
    folder, _, name = config.removeprefix(_PREFIX).rpartition("/")
    known = _index(folder)
    found = known.get(Path(name).stem)
    if found is None:
        raise UserError(
            "mmdet publishes no checkpoint for this config",
            where=where, got=config, allowed=[f"{_PREFIX}{folder}/{other}.py" for other in sorted(known)] or None,
            fix="choose one of these, or give the address of a checkpoint",
        )  # fmt: skip
    return found


@cache
def _index(folder: str) -> dict[str, str]:
    """Return the addresses of a folder of mmdet's configs by the name of the config."""
    package = find_spec("mmdet")
    assert package is not None and package.origin is not None
    file = Path(package.origin).parent / ".mim" / "configs" / folder / "metafile.yml"
    if not file.is_file():
        return {}
    content: Any = load_yaml(file, "the index of models")[1]
    models = content.get("Models", []) if isinstance(content, dict) else content
    return {Path(str(one["Config"])).stem: str(one["Weights"]) for one in models if one.get("Weights")}
