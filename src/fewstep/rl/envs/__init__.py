"""Families of environments whose members are the tasks.

Importing this package tells Gymnasium, where it is installed, of fewstep's environments, so that
`gymnasium.make("fewstep.rl.envs:fewstep/HalfCheetahVelocity-v0")` finds them.
"""

from __future__ import annotations

from contextlib import suppress
from importlib.util import find_spec

from fewstep.errors import FewstepError
from fewstep.rl.envs import extras

GYMNASIUM = {
    "fewstep/HalfCheetahVelocity-v0": "cheetah-velocity",
    "fewstep/HalfCheetahDirection-v0": "cheetah-direction",
    "fewstep/AntVelocity-v0": "ant-velocity",
    "fewstep/AntDirection-v0": "ant-direction",
}
"""Gymnasium's names of fewstep's environments, and fewstep's own."""

HORIZON = 200
"""H, the time steps of one episode (Finn et al. 2017, section 5.3)."""


def register() -> None:
    """Tell Gymnasium of the environments; once is enough, and more does no harm.

    Raises:
        FewstepError: Gymnasium is not installed.
    """
    gymnasium = extras.gymnasium()
    for name, ours in GYMNASIUM.items():
        if name not in gymnasium.registry:
            gymnasium.register(
                name,
                entry_point="fewstep.rl.envs.single:SingleTask",
                max_episode_steps=HORIZON,
                kwargs={"name": ours},
            )


if find_spec("gymnasium"):
    with suppress(FewstepError):  # a broken one: what needs it will say so
        register()
