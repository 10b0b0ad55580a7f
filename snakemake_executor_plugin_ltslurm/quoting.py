"""What shells make of the command of a job, which Snakemake puts together with Python's ``repr`` for quotes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable


def taken_literally(arguments: str, python: str, inputs: Iterable[object], *, arrays: bool = False) -> bool:
    """Whether a shell expands nothing in the arguments of a job's Python.

    ``repr`` writes a text with an apostrophe between double quotes, where ``$(...)`` still runs, and a backslash twice.
    What begins with a quote is not quoted at all.

    Args:
        arguments: What follows Python on the command line.
        python: Its path, which is not quoted.
        inputs: Input files.
        arrays: Whether jobs are submitted as arrays, whose command stands between double quotes as it is.
    """
    parts = re.findall(r"""'[^']*'|"[^"]*"|.""", arguments, re.DOTALL)
    active = "".join(part for part in parts if len(part) == 1 or part[0] == '"' or arrays)
    quotes = {part for part in parts if part in ("'", '"')}
    bare = [file for file in inputs if str(file).startswith(("'", '"'))]
    return not (re.search(r"[$`]", active) or "\\" in arguments or quotes or bare) and shlex.quote(python) == python


def between_double_quotes(command: str) -> str:
    """Return a command for ``--wrap="COMMAND"``, where the parent plugin escapes nothing but double quotes.

    Without this the shell that submits runs what a name holds between ``$(`` and ``)``.
    """
    return re.sub(r"[\\$`]", r"\\\g<0>", command)
