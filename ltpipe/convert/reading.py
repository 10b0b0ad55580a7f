"""Checkpoints and side files of other repositories, read without running anything in them.

A pickle names classes and functions to call, so an ordinary reader runs what a file asks for. PyTorch files, zip or
legacy, go through torch's own restricted reader, plain pickles (detectron2's model zoo, SimCal's indices) through one
that builds containers, numbers, text and numpy arrays only. Everything else in a file is an error.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltpipe.convert.class_index import read_plain_pickle
from ltpipe.engine.train import BROKEN_FILE
from ltpipe.errors import UserError
from ltpipe.files import sha256_file

# torch.save writes this long integer first when it does not write a zip archive.
_LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_ZIP_MAGIC = b"PK\x03\x04"
_FORBIDDEN = re.compile(r"GLOBAL ([A-Za-z_][\w.]*)")


@dataclass(frozen=True, eq=False)
class ForeignFile:
    """What a checkpoint of another repository holds.

    Attributes:
        path: The file.
        sha256: Its checksum.
        state: Tensors by name, without the prefix ``module.`` of parallel training.
        meta: Other facts stored with them, e.g. mmcv's ``meta`` with the text of the config.
    """

    path: Path
    sha256: str
    state: dict[str, Tensor]
    meta: Mapping[str, Any]


def read_foreign(path: Path) -> ForeignFile:
    """Read a checkpoint of another repository.

    Raises:
        UserError: The file is missing, cut off, no checkpoint, or asks for more than tensors and plain values.
    """
    content = read_content(path)
    if not isinstance(content, Mapping):
        raise UserError(
            "not a checkpoint", where=path, got=type(content).__name__, allowed="a dict of tensors, or one with such"
        )
    inner = next(
        (content[key] for key in ("state_dict", "model", "blobs") if isinstance(content.get(key), Mapping)), content
    )
    state = {str(key).removeprefix("module."): _tensor(value) for key, value in inner.items()}
    tensors = {key: value for key, value in state.items() if value is not None}
    if not tensors:
        raise UserError(
            "no tensors in the checkpoint", where=path, got=", ".join(map(str, list(content)[:6])) or "an empty dict"
        )
    meta = content.get("meta", {})
    return ForeignFile(path, sha256_file(path), tensors, meta if isinstance(meta, Mapping) else {})


def read_content(path: Path) -> Any:
    """Return what a PyTorch file or a plain pickle holds, on the CPU.

    Raises:
        UserError: It cannot be read, or wants to build other things than tensors, arrays and plain values.
    """
    if not is_torch_file(path):
        return read_plain_pickle(path, arrays=True)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_numpy_globals()):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except BROKEN_FILE as error:
        raise _unreadable(path, error) from error


def is_torch_file(path: Path) -> bool:
    """Whether ``torch.save`` wrote the file, as a zip archive or in the format before torch 1.6.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        with path.open("rb") as handle:
            start = handle.read(64)
    except OSError as error:
        raise UserError("cannot read the checkpoint", where=path, got=error.strerror) from error
    return start.startswith(_ZIP_MAGIC) or _LEGACY_MAGIC in start


def _unreadable(path: Path, error: Exception) -> UserError:
    text = str(error)
    if isinstance(error, pickle.UnpicklingError) and "Weights only" in text:
        named = _FORBIDDEN.search(text)
        return UserError(
            "the file asks to run or build more than tensors and plain values; nothing of it was run",
            where=path,
            got=named[1] if named else "an unknown pickle instruction",
            allowed="tensors, numbers, text, lists, dicts, numpy arrays",
            fix="if you trust its author, load it once in its own repository and save only the state dict",
        )
    got = (text.splitlines() or [type(error).__name__])[0][:200]
    return UserError("unreadable checkpoint", where=path, got=got, fix="copy or download it again")


def _numpy_globals() -> list[Any]:
    """Numpy's own builders, under their names of numpy 1 and 2; optimiser states and metainfo hold such numbers."""
    multiarray = np._core.multiarray  # type: ignore[attr-defined]
    found: list[Any] = [np.ndarray, np.dtype]
    for name in ("scalar", "_reconstruct"):
        builder = getattr(multiarray, name)
        found += [(builder, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core")]
    return found + [type(np.dtype(code)) for code in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u4", "u8", "?")]


def _tensor(value: Any) -> Tensor | None:
    """Return a tensor or numeric array as a tensor, None for anything else."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiubc":
        return torch.from_numpy(np.ascontiguousarray(value).copy())
    return None
