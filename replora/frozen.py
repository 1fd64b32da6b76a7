"""What every configuration model of the project stands on."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Fraction", "Frozen", "Place", "Positive"]

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class Frozen(BaseModel):
    """Base of every configuration model: immutable, unknown keys are errors, no NaN or infinity.

    Attributes:
        HINT: What to write, said where a file has no section.
    """

    HINT: ClassVar[str] = ""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class Place(Frozen):
    """Base of sections that say where and how a run is computed.

    They move no result (beyond rounding), so they are no part of a fingerprint and no sweep varies them.
    """
