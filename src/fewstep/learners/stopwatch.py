"""Where the time goes."""

from __future__ import annotations

import time
from typing import final


@final
class Stopwatch:
    """Adds up seconds by activity.

    Attributes:
        seconds: By activity.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, activity: str) -> None:
        """The time since the last lap went into this activity."""
        now = time.perf_counter()
        self.seconds[activity] = self.seconds.get(activity, 0.0) + now - self._since
        self._since = now
