"""Pickles of plain data: containers, numbers, text, and numpy's numbers and arrays. Nothing in them is run.

A pickle names functions to call. Numpy's own builders are no harmless ones: a dtype takes any state, a scalar any
bytes, and together they make pointers out of the bytes of a file, which ends the process. What stands in for them here
looks at every argument. The reader is Python's own one written in Python: the one in C sets aside as much memory as a
file of ten bytes tells it to.
"""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ltpipe.errors import UserError

CODES = frozenset({"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"})


def _refused(what: str) -> pickle.UnpicklingError:
    """Return the error in the words of torch's restricted reader, which also calls what stands here."""
    return pickle.UnpicklingError(f"GLOBAL {what}")


class Dtype:
    """Stands in for ``numpy.dtype``: whole and real numbers and truth values, nothing else.

    Args:
        code: As numpy writes it, e.g. ``"f4"``.
        align: Of structures; no plain number has it.
        copy: Always 1 in pickles.
    """

    def __init__(self, code: Any, align: Any = 0, copy: Any = 1) -> None:
        name = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(name, str) or name not in CODES or align:
            raise _refused(f"numpy.dtype({name!r})")
        self.numpy = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        """Take the byte order; what else numpy writes is fixed for plain numbers."""
        order: Any = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "=") or tuple(state[2:5]) != (None, None, None):
            raise _refused("numpy.dtype, of a structure")
        self.numpy = self.numpy.newbyteorder(order)


class Array(np.ndarray[Any, Any]):
    """Stands in for ``numpy.ndarray`` while a file is read; filled by its state, once that was looked at."""

    def __new__(cls, *arguments: object) -> Array:
        """Return an empty array."""
        if arguments:
            raise _refused("numpy.ndarray, with arguments")
        return super().__new__(cls, (0,), np.uint8)

    def __setstate__(self, state: Any) -> None:
        """Take shape, type and numbers."""
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, Dtype) or not isinstance(shape, tuple):
            raise _refused("numpy.ndarray, of other things than numbers")
        data = _bytes(data)
        if any(type(side) is not int or side < 0 for side in shape) or len(shape) > 32:
            raise _refused("numpy.ndarray, of an impossible shape")
        if math.prod(shape) * dtype.numpy.itemsize != len(data):
            raise _refused("numpy.ndarray, with too few or too many numbers")
        own = dtype.numpy.newbyteorder("=")
        numbers = np.frombuffer(data, dtype.numpy).astype(own)
        checked: Any = (1, shape, own, bool(fortran), numbers.tobytes())
        super().__setstate__(checked)


def scalar(dtype: Any, data: Any) -> Any:
    """Stand in for numpy's builder of single numbers."""
    raw = _bytes(data)
    if not isinstance(dtype, Dtype) or len(raw) != dtype.numpy.itemsize:
        raise _refused("numpy.core.multiarray.scalar, of other things than a number")
    return np.frombuffer(raw, dtype.numpy)[0]


def reconstruct(kind: Any, shape: Any, code: Any) -> Array:
    """Stand in for numpy's builder of arrays, whose arguments do not matter: the state says what they are."""
    if kind is not Array:
        raise _refused("numpy.core.multiarray._reconstruct, of another class")
    return Array()


def encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Stand in for ``_codecs.encode``, by which protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _refused("_codecs.encode, of anything but bytes")
    return text.encode("latin1")


def _bytes(data: Any) -> bytes:
    """Return the bytes of numbers; Python 2 wrote them as text."""
    raw = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(raw, bytes):
        raise _refused("numpy.ndarray, whose numbers are not bytes")
    return raw


NUMPY: dict[str, Any] = {
    "numpy.dtype": Dtype,
    "numpy.ndarray": Array,
    **{f"numpy.{core}.multiarray.scalar": scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": reconstruct for core in ("core", "_core")},
}
_ALLOWED: dict[str, Any] = {
    **{f"{builtins}.{kind.__name__}": kind for builtins in ("builtins", "__builtin__") for kind in (list, dict, int)},
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": encode,
    **NUMPY,
}


class _Unpickler(pickle._Unpickler):
    """Builds containers, numbers and text only."""

    stack: list[Any]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the harmless builders."""
        if f"{module}.{name}" not in _ALLOWED:
            raise _refused(f"{module}.{name}")
        return _ALLOWED[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> Any:
        """Refuse references to objects outside the file."""
        raise _refused("persistent_id")

    def load_build(self) -> None:
        """Fill numpy's numbers; nothing else here has a state."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], Dtype | Array):
            raise _refused(f"{type(self.stack[-1]).__name__}.__setstate__")
        self.stack[-1].__setstate__(state)

    dispatch[pickle.BUILD[0]] = load_build


def read_plain_pickle(path: Path) -> Any:
    """Read a pickle that holds containers, numbers, text and arrays of numbers only.

    Raises:
        UserError: The file cannot be read, is no pickle, or wants to build other objects.
    """
    try:
        with path.open("rb") as handle:
            # Python 2 wrote arrays as text of single bytes.
            return _Unpickler(handle, encoding="latin1").load()
    except OSError as error:
        raise UserError("cannot read the pickle", where=path, got=error.strerror) from error
    except Exception as error:  # a damaged pickle fails in many ways
        raise UserError(
            "not a pickle of plain data", where=path, got=f"{type(error).__name__}: {error}"[:300],
            allowed="dicts, lists, text, numbers and arrays of numbers; everything else could run code",
        ) from error  # fmt: skip
