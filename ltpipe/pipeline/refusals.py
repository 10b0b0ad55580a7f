"""What is wrong in the user's files ends Snakemake with one clear message."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ltpipe.errors import UserError


@contextmanager
def clear_refusals() -> Iterator[None]:
    """End Snakemake with the words of a :class:`UserError` alone.

    Snakemake adds to the message of any exception, its own ``WorkflowError`` too, the lines of code it went through.

    Raises:
        SystemExit: In the place of a :class:`UserError`; with 1, Snakemake's own exit code of a failed run.
    """
    try:
        yield
    except UserError as error:
        print(f"ltpipe workflow: {error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
