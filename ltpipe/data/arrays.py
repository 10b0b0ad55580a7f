"""Small files of plain arrays with a JSON description: the on-disk form of replay lists and calibration plans."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltpipe.errors import UserError
from ltpipe.run.files import atomic_path

METADATA = "metadata"


def save_arrays(path: str | os.PathLike[str], arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any]) -> None:
    """Write named arrays and their description to an ``.npz`` file, atomically; equal content gives equal bytes.

    Args:
        path: The file.
        arrays: Arrays of plain numbers by name.
        metadata: JSON-serialisable description, stored as a 0-d unicode array named ``metadata``.
    """
    text = np.array(json.dumps(metadata, sort_keys=True, allow_nan=False))
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.savez(handle, allow_pickle=False, **{METADATA: text, **arrays})


def load_arrays(
    path: str | os.PathLike[str], names: Iterable[str], *, kind: str, fix: str
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read what :func:`save_arrays` wrote.

    Args:
        path: The file.
        names: Arrays that must be there.
        kind: What the file is called in an error, e.g. ``"replay list"``.
        fix: How to get a good one.

    Returns:
        The arrays by name and the description.

    Raises:
        UserError: There is no such file, or it is damaged.
    """
    with _damage(path, kind, fix), np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in names}, json.loads(str(file[METADATA]))


def load_plain_arrays(path: str | os.PathLike[str], *, kind: str, fix: str) -> dict[str, NDArray[Any]]:
    """Read all arrays of numbers in an ``.npz`` file; arguments and errors as of :func:`load_arrays`."""
    with _damage(path, kind, fix), np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@contextmanager
def _damage(path: str | os.PathLike[str], kind: str, fix: str) -> Iterator[None]:
    """Turn what numpy says of a missing or damaged file, or of one with objects in it, into an error that helps."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"no {kind}", where=path, fix=fix) from error
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"damaged {kind}", where=path, got=error, fix=fix) from error
