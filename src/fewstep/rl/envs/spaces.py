"""What Gymnasium's spaces are to a policy: features to observe, and actions in [-1, 1] or choices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import numpy as np

from fewstep.errors import FewstepError
from fewstep.rl.environment import ActionSpace, Continuous, Discrete
from fewstep.rl.envs import extras

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor


@final
class Spaces:
    """The spaces of one Gymnasium environment.

    Observations are Boxes, and are flattened. Actions are Discrete, or bounded Boxes, to which [-1, 1] is mapped.

    Args:
        environment: Has them; nothing else of it is kept.

    Attributes:
        actions: What a policy chooses from.

    Raises:
        FewstepError: They are of another kind.
    """

    def __init__(self, environment: Any) -> None:
        self._observations, self._actions = environment.observation_space, environment.action_space
        if not isinstance(self._observations, extras.gymnasium().spaces.Box):
            raise FewstepError(
                f"Observations are expected to be a Box: got {self._observations}. Wrap the environment, for instance "
                "in gymnasium.wrappers.FlattenObservation."
            )
        self.actions = _action_space(self._actions)

    @property
    def observation_size(self) -> int:
        """Features of one observation."""
        return int(np.prod(self._observations.shape))

    def native(self, actions: Tensor) -> npt.NDArray[Any]:
        """A policy's actions in the environment's own terms, for its `step`.

        Args:
            actions: Elements in [-1, 1], or what is beyond brought there, `[..., size]`; or indices of choices `[...]`.

        Returns:
            Elements of the bounded Box that [-1, 1] is mapped to, or choices, `[..., *shape of the space]`.
        """
        given = actions.detach().cpu().numpy()
        if isinstance(self.actions, Discrete):
            return given.astype(np.int64) + self._actions.start
        low, high = (bound.astype(np.float64) for bound in (self._actions.low, self._actions.high))
        given = np.clip(given, -1.0, 1.0).reshape(*given.shape[:-1], *self._actions.shape)
        reached = np.clip(low + (given + 1.0) / 2.0 * (high - low), low, high)
        whole = np.issubdtype(self._actions.dtype, np.integer)
        return (np.rint(reached) if whole else reached).astype(self._actions.dtype)


def _action_space(space: Any) -> ActionSpace:
    spaces = extras.gymnasium().spaces
    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n))
    if isinstance(space, spaces.Box) and space.is_bounded():
        return Continuous(int(np.prod(space.shape)))
    raise FewstepError(
        f"Actions are expected to be Discrete, or a Box with finite bounds: got {space}. Wrap the environment in a "
        "gymnasium.ActionWrapper that has such a space and translates its actions."
    )
