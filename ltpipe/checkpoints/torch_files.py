"""PyTorch files, read as data: tensors, numbers, text and containers. Whatever else a file asks for is refused.

Every file goes through here: results, states of killed runs, checkpoints from elsewhere, and, as soon as
``ltpipe.engine`` is imported, those that mmengine reads (its own reader runs a file that the restricted one refuses).
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from ltpipe.checkpoints.plain_pickle import NUMPY
from ltpipe.errors import UserError

# What damaged files raise; numpy's files as well.
BROKEN_FILE = (RuntimeError, EOFError, OSError, KeyError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile)
# What to do about a state of a killed run that is refused.
AFRESH = "this stage did not write it like that: remove it, or start afresh with --fresh"
# How torch's restricted reader words a refusal, unlike a damaged file.
_REFUSAL = re.compile(
    r"GLOBAL ([A-Za-z_][^\s,;]*)|unrecognized function ([^\n]+)|(Can only [^\n]+)|(Only persist[^\n]+)"
)


class Refused(UserError):
    """A file asks for more than data."""


class History:
    """Stands in for mmengine's ``HistoryBuffer``, which checkpoints of its own runs hold for every logged value.

    Attributes:
        state: What was stored: ``_log_history`` and ``_count_history`` (arrays of one length), ``max_length``.
    """

    state: dict[str, Any]

    def __setstate__(self, state: Any) -> None:
        """Take the values; what they are is looked at by whoever uses them."""
        self.state = dict(state)


def _method_name(kind: Any, name: Any) -> str:
    """Stand in for ``getattr``, by which a ``HistoryBuffer`` names its own methods: nothing is looked up."""
    if kind is not History or not isinstance(name, str):
        raise pickle.UnpicklingError("GLOBAL getattr")
    return name


_BUILDERS: dict[str, Any] = {
    **NUMPY,
    "mmengine.logging.history_buffer.HistoryBuffer": History,
    **{f"{builtins}.getattr": _method_name for builtins in ("builtins", "__builtin__")},
}


def load_plain(
    path: str | Path,
    map_location: Any = "cpu",
    fix: str = "if you trust its author, load it once in its own repository and save only the state dict",
) -> Any:
    """Return the content of a file of ``torch.save``; numpy's numbers and arrays in it are read as well.

    So are the histories of logged values in checkpoints of mmengine's own runs, as :class:`History`.

    Args:
        path: The file.
        map_location: As in ``torch.load``.
        fix: What to do about a file that is refused.

    Raises:
        Refused: It wants to run or build more than data.
        UserError: It is missing, cut off or no such file.
    """
    if not Path(path).is_file():
        raise UserError("missing checkpoint", where=path, got="no such file")
    builders: list[Any] = [(builder, name) for name, builder in _BUILDERS.items()]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(builders):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # a damaged file fails in many ways
        text = str(error)
        refusal = _REFUSAL.search(text) if isinstance(error, pickle.UnpicklingError) else None
        if refusal is not None and not _damaged(path):
            raise Refused(
                "the file asks to run or build more than tensors and plain values; nothing of it was run",
                where=path,
                got=next(filter(None, refusal.groups())),
                allowed="tensors, numbers, text, lists, dicts, numpy arrays",
                fix=fix,
            ) from error
        raise UserError(
            "unreadable checkpoint",
            where=path,
            got=(text.rpartition("WeightsUnpickler error: ")[2].strip().splitlines() or [type(error).__name__])[0][
                :200
            ],
            allowed="a torch file of tensors and plain values",
            fix="copy or download it again; if a stage made it, rerun that with -R",
        ) from error


def _damaged(path: str | Path) -> bool:
    """Whether the checksums in a zip archive say that it is not what was written."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is not None
    except Exception:  # no archive, or one that only torch can read
        return False
