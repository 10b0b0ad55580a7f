"""Checkpoints and side files of other repositories, read without running anything in them.

PyTorch files, zip or legacy, go through :mod:`ltpipe.checkpoints.torch_files`, plain pickles (detectron2's model zoo,
SimCal's indices) through :mod:`ltpipe.checkpoints.plain_pickle`. Whatever else a file asks for is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltpipe.checkpoints.plain_pickle import read_plain_pickle
from ltpipe.checkpoints.torch_files import load_plain
from ltpipe.errors import UserError
from ltpipe.input_files import open_input
from ltpipe.run.files import sha256_file

# torch.save writes this long integer first when it does not write a zip archive.
_LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_ZIP_MAGIC = b"PK\x03\x04"


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
    return load_plain(path) if is_torch_file(path) else read_plain_pickle(path)


def is_torch_file(path: Path) -> bool:
    """Whether ``torch.save`` wrote the file, as a zip archive or in the format before torch 1.6.

    Raises:
        UserError: The file cannot be read.
    """
    with open_input(path, "the checkpoint") as handle:
        start = handle.read(64)
    return start.startswith(_ZIP_MAGIC) or _LEGACY_MAGIC in start


def _tensor(value: Any) -> Tensor | None:
    """Return a tensor or numeric array as a tensor, None for anything else."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiubc":
        return torch.from_numpy(np.array(value, order="C"))
    return None
