"""How many cores this process may use. Standard library only."""

from __future__ import annotations

import os

from ltpipe.errors import UserError

VARIABLE = "LTPIPE_CORES"


def cores() -> int:
    """Return the cores this process may use, or what the environment variable ``LTPIPE_CORES`` says instead.

    Fewer than there are make fewer loader processes. Tests pretend more.

    Raises:
        UserError: The variable is not a positive number.
    """
    said = os.environ.get(VARIABLE)
    if said is None:
        return len(os.sched_getaffinity(0))
    if not said.isdecimal() or int(said) == 0:
        raise UserError("this is no number of cores", where=f"environment variable {VARIABLE}", got=repr(said))
    return int(said)
