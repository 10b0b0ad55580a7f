"""Loops over bytes and pixels that numpy cannot express, compiled with numba.

The first process of a machine compiles a function in a second or so; numba keeps the machine code beside the module, or
in the user's cache folder, for all later ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Compile a function of numbers and arrays; it runs outside of Python's lock, and rounds as C does."""
    try:
        result: Function = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither folder can be written: every process compiles for itself
        result = numba.njit(nogil=True)(function)
    return result
