from __future__ import annotations

import pytest

from fewstep.errors import FewstepError


@pytest.fixture(scope="session")
def screenless():
    """For tests that draw robots: skipped where nothing draws without a screen, saying why."""
    pytest.importorskip("mujoco")
    from fewstep.rl.envs.locomotion import LOCOMOTION
    from fewstep.rl.envs.rendering import Camera

    try:
        Camera(LOCOMOTION["cheetah-velocity"]().robot, (32, 32)).close()
    except FewstepError as error:
        if "Drawing needs OpenGL" not in str(error):  # some other fault, which is none of the machine's
            raise
        pytest.skip(str(error))
