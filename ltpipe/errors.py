"""The one error type for mistakes a user can mend.

The command line prints a :class:`UserError` as one paragraph and exits with :data:`EXIT_CODE`; every other exception is
a defect of ltpipe and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

EXIT_CODE = 2
_LONGEST = 4000
FEW, NEAREST = 20, 5


class UserError(Exception):
    """Something the user gave is wrong: says what, where, what was found, what is allowed and how to mend it.

    Args:
        what: The fault in one clause, e.g. ``"unknown sampler"``.
        where: File and key or record, e.g. ``"toy.yaml: base.sampler.type"``.
        got: The offending value.
        allowed: What would be accepted: a sentence, or the list of accepted values.
        fix: The next thing to do.
    """

    def __init__(
        self,
        what: str,
        *,
        where: object | None = None,
        got: object | None = None,
        allowed: str | Iterable[object] | None = None,
        fix: str | None = None,
    ) -> None:
        self.what, self.where, self.got, self.fix = what, where, got, fix
        self.allowed = allowed if allowed is None or isinstance(allowed, str) else ", ".join(str(a) for a in allowed)
        super().__init__(self.__str__())

    def __str__(self) -> str:
        """One line per known fact, the fault first."""
        lines = [self.what]
        for label, value in (("where", self.where), ("got", self.got), ("allowed", self.allowed), ("fix", self.fix)):
            if value is not None:
                lines.append(f"  {label + ':':9s}{_shown(str(value))}")
        return "\n".join(lines)


def _shown(text: str) -> str:
    """Return what a terminal can show of a text, which may be the content of any file."""
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]} ... ({len(text):,} characters)"
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


class PeerLost(UserError):
    """This process lost its connection to another one of the same training, whose end is what there is to tell of."""


def unknown_name(
    kind: str, got: str, allowed: Iterable[str], *, where: object | None = None, shown: int | None = None
) -> UserError:
    """Return the error for a misspelt name, proposing the closest accepted one.

    Args:
        kind: What the name stands for, e.g. ``"sampler"``.
        got: The name found.
        allowed: All accepted names.
        where: File and key.
        shown: Names to list; None: see :func:`listed`.
    """
    names = sorted(allowed)
    near = get_close_matches(str(got), names, n=1)
    fix = f"did you mean {near[0]!r}?" if near else None
    return UserError(f"unknown {kind}", where=where, got=repr(got), allowed=listed(got, names, shown), fix=fix)


def listed(got: object, names: Sequence[str], shown: int | None = None) -> str | None:
    """Return accepted names for a message: all of a few, of many the five that are nearest to what was given.

    Args:
        got: The name found.
        names: All accepted names.
        shown: Names to list; None: all of up to :data:`FEW`.
    """
    if shown is not None or len(names) <= FEW:
        return ", ".join(names[:shown]) or None
    near = get_close_matches(str(got), names, n=NEAREST, cutoff=0.3)
    return f"{', '.join(near)}, ... ({len(names)} in all)" if near else f"{len(names)} names, none of them alike"
