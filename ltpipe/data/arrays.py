"""Files of plain arrays, with a JSON description where one is needed: the one form of everything that is ``.npz``."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltpipe.errors import UserError
from ltpipe.run.files import atomic_path

METADATA = "metadata"


def save_arrays(
    path: str | os.PathLike[str],
    arrays: Mapping[str, NDArray[Any]],
    metadata: Mapping[str, Any] | None = None,
    *,
    compressed: bool = False,
) -> None:
    """Write named arrays and their description to an ``.npz`` file, atomically; equal content gives equal bytes.

    Args:
        path: The file.
        arrays: Arrays of plain numbers by name.
        metadata: JSON-serialisable description, stored as a 0-d unicode array named ``metadata``.
        compressed: Take time to make the file small.
    """
    text = {} if metadata is None else {METADATA: np.array(json.dumps(metadata, sort_keys=True, allow_nan=False))}
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        (np.savez_compressed if compressed else np.savez)(handle, allow_pickle=False, **text, **arrays)


def load_arrays(
    path: str | os.PathLike[str], names: Iterable[str] | None = None, *, kind: str, fix: str
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read what :func:`save_arrays` wrote.

    Args:
        path: The file.
        names: Arrays that must be there, and are read; all by default.
        kind: What the file is called in an error, e.g. ``"replay list"``.
        fix: How to get a good one.

    Returns:
        The arrays by name and the description, empty if there is none.

    Raises:
        UserError: There is no such file, or it is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            listed = [name for name in file.files if name != METADATA] if names is None else names
            arrays = {name: file[name] for name in listed}
            metadata = json.loads(str(file[METADATA])) if METADATA in file.files else {}
    except FileNotFoundError as error:
        raise UserError(f"no {kind}", where=path, fix=fix) from error
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"damaged {kind}", where=path, got=error, fix=fix) from error
    return arrays, metadata
