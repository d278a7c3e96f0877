"""What the sections of all recipes share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_MOST = 10**9  # beyond it, memory would end before patience
NonNegativeInt = Annotated[int, Field(ge=0, le=_MOST)]
PositiveInt = Annotated[int, Field(gt=0, le=_MOST)]
Size = Annotated[int, Field(gt=0, le=10**6)]


class Section(BaseModel):
    """Part of a recipe: unknown keys and wrong types are errors, and so is infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True, allow_inf_nan=False)
