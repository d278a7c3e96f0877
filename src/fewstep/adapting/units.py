"""Whether columns that a user gives are in the units of those that a run was trained with."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fewstep.tasks.features import Feature

_FAR = 5
"""Standard deviations from the mean of the training inputs, beyond which hardly a table has any."""

_NEAR = 1e-6
"""How near to 0 and 1 a scaler brings mean and deviation."""

log = logging.getLogger(__name__)


def expect_indicators(inputs: Tensor, features: Sequence[Feature]) -> None:
    """See that a row has 1 for one category of each column that holds categories, and 0 for the others.

    Args:
        inputs: `[rows, features]`, in the user's units.
        features: What they are.

    Raises:
        ValueError: A row has something else.
    """
    for column in dict.fromkeys(each.column for each in features if each.category is not None):
        given = inputs[:, [each.column == column for each in features]]
        if bool(((given != 0) & (given != 1)).any() | (given.sum(1) != 1).any()):
            names = ", ".join(each.name for each in features)
            raise ValueError(
                f"Categories must be told by a 1 for the row's own and a 0 for each other of its column: those of "
                f"{column!r} are not. Give the columns {names}, in this order and as they are."
            )


def tell_of_scaled(what: str, given: Tensor, mean: Tensor, std: Tensor) -> None:
    """Warn of columns that a scaler has been at, where the run scales those it was trained with itself.

    Args:
        what: Inputs or targets.
        given: `[rows, columns]`, float64.
        mean: Of the run's own columns.
        std: Of the run's own columns.
    """
    middle, spread = given.mean(0), given.std(0, correction=0)
    scaled = bool((middle.abs() < _NEAR).all() and (((spread - 1).abs() < _NEAR) | (spread < _NEAR)).all())
    if len(given) > 2 and scaled and bool((mean.abs() > 0.1).any() or ((std - 1).abs() > 0.1).any()):
        log.warning(
            "%s have a mean of 0 and a deviation of 1 as they come, and those that the run was trained with had not: "
            "the run scales them itself. Leave out the scaler before it.",
            what,
        )


def tell_of_far(what: str, columns: Sequence[str], standardised: Tensor) -> None:
    """Warn of columns that lie where nothing was learned, another unit for instance."""
    farthest = dict(zip(columns, standardised.abs().amax(0).tolist(), strict=True))
    far = [f"{name} ({distance:.0f})" for name, distance in farthest.items() if distance > _FAR]
    if far:
        log.warning(
            "%s lie far from those that the run was trained with, in standard deviations of these: %s. Check their "
            "unit; predictions there are guesses.",
            what,
            ", ".join(far),
        )
