"""What all blocks of an experiment share."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, field_validator, model_serializer

_ADDRESS = re.compile(r"([A-Za-z][\w+-]+):/(.*)")
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]


def printable(value: Any) -> Any:
    """Return a value; a path must be one that fits into one line of a log, a record or a command.

    Raises:
        ValueError: A path has a line break or another control character, is no valid UTF-8, or was an address.
    """
    if isinstance(value, Path) and (address := _ADDRESS.match(str(value))):
        # Two slashes became one when it was made a path.
        raise ValueError(f"a file is meant, and {address[1]}://{address[2]} is an address: download it, name the file")
    if isinstance(value, Path) and any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in str(value)):
        raise ValueError("a path has a line break, another control character, or bytes that are no UTF-8: rename it")
    return value


class _Paths(BaseModel):
    """Every path in a block is checked."""

    @field_validator("*")
    @classmethod
    def _printable(cls, value: Any) -> Any:
        return printable(value)


class Block(_Paths):
    """A block of an experiment file: immutable, unknown keys are errors.

    Attributes:
        later: Keys that are younger than results which people keep: at their default they are left out of what is
            written, so that digests and locks of experiments that do not use them stay as they were.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    later: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_later(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        unused = {key for key in self.later if getattr(self, key) == fields[key].default}
        return {key: value for key, value in handler(self).items() if key not in unused}


class Choice(_Paths):
    """A method chosen by name, with its options: ``{type: seesaw, p: 0.8}``.

    The options are checked against the method's own signature by :mod:`ltpipe.config.catalogue`; after loading they are
    complete, defaults included.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str = Field(description="name of the method in the catalogue")

    @property
    def options(self) -> dict[str, Any]:
        """The method's options by name."""
        return dict(self.model_extra or {})
