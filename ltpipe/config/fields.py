"""What all blocks of an experiment share."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
)
from pydantic_core import core_schema

# What Linux takes.
PATH_BYTES, NAME_BYTES = 4095, 255
_ADDRESS = re.compile(r"([A-Za-z][\w+-]+):/(.*)")


class Number:
    """What a number must be beside its type: neither true nor false, and not above a limit that has a reason.

    Args:
        most: The limit; its negative is the lowest value.
        why: The reason, for the error.
        told: Whether editors are told the limit, too.
    """

    def __init__(self, most: float, why: str, *, told: bool = True) -> None:
        self.most, self.why, self.told = most, why, told

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Add the check to that of the type."""
        return core_schema.no_info_wrap_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Tell the limit."""
        return {**handler(schema), "maximum": self.most} if self.told else handler(schema)

    def _check(self, value: Any, inner: core_schema.ValidatorFunctionWrapHandler) -> Any:
        if isinstance(value, bool):
            raise ValueError("true and false are no numbers")
        found = inner(value)
        if not -self.most <= found <= self.most:
            raise ValueError(f"the number is too large: at most {self.most:,} ({self.why})")
        return found


_WHOLE = Number(2**31 - 1, "counts have 32 bits", told=False)
_REAL = Number(1e30, "trainings compute in 32 bits", told=False)
Whole = Annotated[int, _WHOLE]
Real = Annotated[float, Field(allow_inf_nan=False), _REAL]
Fraction = Annotated[float, Field(ge=0, le=1), _REAL]
PositiveFraction = Annotated[float, Field(gt=0, le=1), _REAL]
Positive = Annotated[int, Field(gt=0), _WHOLE]
NonNegative = Annotated[int, Field(ge=0), _WHOLE]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False), _REAL]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False), _REAL]
Seed = Annotated[int, Field(ge=0), Number(2**32 - 1, "random generators take seeds of 32 bits")]
InMemory = Annotated[int, Field(gt=0), Number(2**16, "so many are in memory at once")]
Iterations = Annotated[int, Field(gt=0), Number(10**8, "at a step a second that takes three years")]
Passes = Annotated[float, Field(gt=0, allow_inf_nan=False), Number(10**5, "no training needs more passes")]


def printable(value: Any) -> Any:
    """Return a value; a path must be one that a disk can hold, and that fits into one line of a log or a command.

    Raises:
        ValueError: A path has a line break or another control character, no valid UTF-8, is too long or an address.
    """
    if isinstance(value, Path):
        if address := _ADDRESS.match(str(value)):
            # Two slashes became one when it was made a path.
            raise ValueError(
                f"a file is meant, and {address[1]}://{address[2]} is an address: download it, name the file"
            )
        if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in str(value)):
            raise ValueError(
                "a path has a line break, another control character, or bytes that are no UTF-8: rename it"
            )
        if len(os.fsencode(value)) > PATH_BYTES or any(len(os.fsencode(part)) > NAME_BYTES for part in value.parts):
            raise ValueError(f"a path has more than {PATH_BYTES} bytes, or a name of more than {NAME_BYTES}")
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
