"""The errors that fewstep raises on purpose.

Each message has three parts: what was expected, what came, what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_LISTED = 10  # so many examples of a fault are named in an error; the rest are counted


class FewstepError(Exception):
    """Base of every error that the command line reports as one message instead of a traceback."""


class RecipeError(FewstepError):
    """A recipe, or a value set over it, cannot be run as written."""


class DataError(FewstepError):
    """Data is missing, unreadable or not of the kind that was asked for."""


class RunError(FewstepError):
    """A run folder, or a file in it, cannot be used as asked."""


class NonFiniteError(FewstepError):
    """A loss or a meta-gradient became infinite or not-a-number; nothing was updated with it.

    Args:
        message: What and where.
        tasks: Positions in the meta-batch of the tasks at fault, where these are known.
    """

    def __init__(self, message: str, tasks: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.tasks = frozenset(tasks)


class Interrupted(FewstepError):  # noqa: N818  (a request that was honoured, not a fault)
    """Training was asked to stop (Ctrl-C or SIGTERM) and did, after writing its checkpoint."""


class EpisodeError(FewstepError):
    """An environment of the user's own, or the process that ran it, failed in the middle of episodes."""


def quoted(names: Sequence[str]) -> str:
    """Names for an error, the first ones of many."""
    return listed([repr(name) for name in names])


def listed(items: Sequence[str], separator: str = ", ") -> str:
    """Items for an error, the first ones of many."""
    rest = len(items) - _LISTED
    return separator.join(items[:_LISTED]) + (f"{separator}and {rest} more" if rest > 0 else "")
