"""What all blocks of an experiment share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]


class Block(BaseModel):
    """A block of an experiment file: immutable, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Choice(BaseModel):
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
