"""The half-cheetah and the ant, each in two physics settings: `paper` and `gymnasium`.

A robot is data: which model is loaded, what is changed in it, what is observed and what is paid. The models themselves
are those that Gymnasium installs, read and edited when an environment is made.

`paper` follows the simulation that the authors released with the paper (a fork of rllab); `gymnasium` is version 5 of
Gymnasium's environments. docs/environments.md has both side by side.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, final

from fewstep.errors import FewstepError
from fewstep.rl.envs import extras

if TYPE_CHECKING:
    from collections.abc import Callable

Physics: TypeAlias = Literal["paper", "gymnasium"]


class Observed(NamedTuple):
    """One stretch of an observation.

    Attributes:
        field: Name in MuJoCo's data.
        start: The first entry that is observed, of those of one robot.
        only: Observe this entry alone.
        clip: Values are clipped to [-clip, clip]; None leaves them as they are.
    """

    field: str
    start: int = 0
    only: int | None = None
    clip: float | None = None


@final
@dataclass(frozen=True)
class Robot:
    """One robot in one physics setting; lengths in m, times in s, forces in N.

    Attributes:
        asset: The file that describes it.
        edit: What is changed in the description.
        frame_skip: Simulation steps per action.
        stage: MuJoCo's stage up to which quantities are computed anew after an action, so that what is observed and
            paid describes the state that the action led to.
        start: Name of the field with the joints' initial positions; None begins with the model's own.
        position_noise: Of initial positions: a standard deviation, or half the width of a uniform distribution.
        uniform: Whether it is the latter.
        observed: What an observation consists of.
        center_of_mass: Whether the velocity is that of the whole robot's centre of mass, rather than how far the torso
            moved during the action, over its duration.
        control_cost: Times the sum of squared actions, in [-1, 1].
        contact_cost: Times the sum of squared contact forces, clipped to [-1, 1].
        survival: Paid in every step.
        last_step: Whether `survival` is also paid in the step that ends an episode.
        velocity_bonus: Paid in every step where the goal is a velocity.
        heights: The torso's heights between which an episode goes on; None never ends one.
        fastest: The upper end of the goal velocities.
    """

    asset: str
    edit: Callable[[Any], None]
    frame_skip: int
    stage: Literal["none", "vel", "acc"]
    start: str | None
    position_noise: float
    uniform: bool
    observed: tuple[Observed, ...]
    center_of_mass: bool
    control_cost: float
    contact_cost: float = 0.0
    survival: float = 0.0
    last_step: bool = True
    velocity_bonus: float = 0.0
    heights: tuple[float, float] | None = None
    fastest: float = 2.0


VELOCITY_NOISE = 0.1
"""Standard deviation of initial velocities, of every robot in both settings."""

_TORSO = 1


def _with_center_of_mass(spec: Any) -> None:
    """Have MuJoCo compute the velocity of the whole robot's centre of mass, which it does where a sensor reads it."""
    mujoco = extras.mujoco()
    spec.add_sensor(
        name="velocity",
        type=mujoco.mjtSensor.mjSENS_SUBTREELINVEL,
        objtype=mujoco.mjtObj.mjOBJ_BODY,
        objname="torso",
    )


def _with_contact_forces(spec: Any) -> None:
    """Have MuJoCo compute `cfrc_ext`, which it does only where a sensor of accelerations needs it."""
    mujoco = extras.mujoco()
    spec.body("torso").add_site(name="accelerometer")
    spec.add_sensor(
        name="acceleration",
        type=mujoco.mjtSensor.mjSENS_ACCELEROMETER,
        objtype=mujoco.mjtObj.mjOBJ_SITE,
        objname="accelerometer",
    )


def _as_in_rllab(spec: Any) -> None:
    """The ant of rllab: 0.02 s per step, torques as controls, and softness of contacts of its own."""
    spec.option.timestep = 0.02
    for geom in spec.geoms:
        geom.solref[:2] = (0.02, 1.0)
        geom.solimp[:3] = (0.8, 0.8, 0.01)
    for actuator in spec.actuators:
        actuator.ctrlrange[:] = (-actuator.gear[0], actuator.gear[0])
        actuator.gear[0] = 1.0
    _with_center_of_mass(spec)
    _with_contact_forces(spec)


def _unchanged(spec: Any) -> None:
    """Gymnasium's model as it is."""


ROBOTS: dict[tuple[str, Physics], Robot] = {
    ("cheetah", "paper"): Robot(
        asset="half_cheetah.xml",
        edit=_with_center_of_mass,
        frame_skip=1,
        stage="vel",
        start=None,
        position_noise=0.01,
        uniform=False,
        observed=(Observed("qpos", start=1), Observed("qvel"), Observed("subtree_com", only=_TORSO)),
        center_of_mass=True,
        control_cost=0.05,
    ),
    ("cheetah", "gymnasium"): Robot(
        asset="half_cheetah.xml",
        edit=_unchanged,
        frame_skip=5,
        stage="none",
        start=None,
        position_noise=0.1,
        uniform=True,
        observed=(Observed("qpos", start=1), Observed("qvel")),
        center_of_mass=False,
        control_cost=0.1,
    ),
    ("ant", "paper"): Robot(
        asset="ant.xml",
        edit=_as_in_rllab,
        frame_skip=1,
        stage="acc",
        start="init_qpos",
        position_noise=0.01,
        uniform=False,
        observed=(
            Observed("qpos"),
            Observed("qvel"),
            Observed("cfrc_ext", clip=1.0),
            Observed("xmat", only=_TORSO),
            Observed("subtree_com", only=_TORSO),
        ),
        center_of_mass=True,
        control_cost=0.005,
        contact_cost=0.0005,
        survival=0.05,
        velocity_bonus=1.0,
        heights=(0.2, 1.0),
        fastest=3.0,
    ),
    ("ant", "gymnasium"): Robot(
        asset="ant.xml",
        edit=_with_contact_forces,
        frame_skip=5,
        stage="acc",
        start=None,
        position_noise=0.1,
        uniform=True,
        observed=(Observed("qpos", start=2), Observed("qvel"), Observed("cfrc_ext", start=1, clip=1.0)),
        center_of_mass=False,
        control_cost=0.5,
        contact_cost=0.0005,
        survival=1.0,
        last_step=False,
        heights=(0.2, 1.0),
        fastest=3.0,
    ),
}


@cache
def model(robot: Robot) -> Any:
    """The robot's compiled model, an `MjModel`; made once, and changed by nobody.

    Raises:
        FewstepError: The extra is not installed, or the description has moved.
    """
    mujoco = extras.mujoco()
    path = extras.asset(robot.asset)
    if not path.is_file():
        raise FewstepError(
            f"The model {robot.asset} was expected among Gymnasium's files, at {path}, and is not there. "
            "Run: pip install --force-reinstall gymnasium"
        )
    spec = mujoco.MjSpec.from_file(str(path))
    robot.edit(spec)
    with warnings.catch_warnings():  # an attribute of Gymnasium's file that MuJoCo would rather see replaced
        warnings.filterwarnings("ignore", message=".*settotalmass.*")
        return spec.compile()
