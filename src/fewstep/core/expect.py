"""What arguments are expected to be, said where they are passed and not from deep inside."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any


def expect_steps(steps: int) -> int:
    """See that a number of inner steps is one, and return it.

    Raises:
        ValueError: It is no whole number, or negative.
    """
    came: object = steps  # from the user's own code
    if not isinstance(came, Integral) or steps < 0:
        raise ValueError(
            f"`steps` must be a whole number, at least 0: got {came!r}. 0 leaves the initialisation as it is."
        )
    return int(steps)


def expect_whole(name: str, value: Any, least: int = 1) -> None:
    """See that an argument is a whole number, at least so much.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(value, Integral) or value < least:
        raise ValueError(f"`{name}` must be a whole number, at least {least}: got {value!r}.")


def expect_number(name: str, value: Any, least: float = 0.0, most: float = math.inf) -> None:
    """See that an argument is a finite number within bounds, which belong to them.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(value, Real) or not math.isfinite(value) or not least <= float(value) <= most:
        bounds = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        raise ValueError(f"`{name}` must be a number, {bounds}: got {value!r}.")


def expect_positive(name: str, value: Any) -> None:
    """See that an argument is a finite number above 0.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(value, Real) or not math.isfinite(value) or not float(value) > 0:
        raise ValueError(f"`{name}` must be a number above 0: got {value!r}.")


def expect_decay(name: str, value: Any) -> None:
    """See that an argument is a number from 0, and below 1: what is divided by 1 - b^k.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(value, Real) or not 0 <= float(value) < 1:
        raise ValueError(f"`{name}` must be a number, at least 0 and below 1: got {value!r}.")


def expect_function(name: str, value: Any, example: str) -> None:
    """See that an argument can be called.

    Raises:
        ValueError: It cannot.
    """
    if not callable(value):
        raise ValueError(f"`{name}` must be a function, such as {example}: got {value!r}.")
