"""From a recipe of reinforcement learning to objects."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, NoReturn

from fewstep.core.over_tasks import sequential, vectorized
from fewstep.core.running import compiled, plain, traced
from fewstep.core.trust_region import TrustRegion
from fewstep.errors import FewstepError, RecipeError
from fewstep.experiments.sections import EnvironmentTasks, LocomotionTasks, NavigationTasks, ReinforceLoss
from fewstep.learners.reinforcement import ReinforcementLearner
from fewstep.rl.environment import ActionSpace, Continuous, Discrete
from fewstep.rl.policy import outputs_for, policy_for

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from fewstep.core.algorithms import Algorithm
    from fewstep.experiments.config import Recipe
    from fewstep.rl.environment import Environment

_AT_ONCE = 2
"""Tasks computed together: what a policy computes of their thousands of actions then stays in the cache of a core."""


def build_environment(recipe: Recipe, custom: Environment | None = None) -> Environment:
    """The environment that the recipe's tasks are of.

    Args:
        recipe: Says which.
        custom: One from Python, for `tasks.kind = "custom"`.

    Raises:
        RecipeError: A custom environment is asked for and not given, or is none.
    """
    # Importing environments tells Gymnasium of them, which takes a while: other recipes need neither.
    from fewstep.rl.envs.locomotion import LOCOMOTION
    from fewstep.rl.envs.navigation import Navigation
    from fewstep.rl.envs.revealed import Revealed

    tasks = recipe.tasks
    assert isinstance(tasks, EnvironmentTasks)
    if isinstance(tasks, NavigationTasks):
        environment: Environment = Navigation(tasks.horizon)
    elif isinstance(tasks, LocomotionTasks):
        environment = replace(LOCOMOTION[tasks.kind](tasks.physics), horizon=tasks.horizon)
    else:
        environment = _checked(custom)
    return Revealed(environment) if tasks.reveal else environment


def spaces_of(environment: Environment) -> dict[str, Any]:
    """What a run remembers of an environment from Python, as plain values: enough to act without it."""
    actions = environment.actions
    kind = "continuous" if isinstance(actions, Continuous) else "discrete"
    return {
        "observation_size": int(environment.observation_size),
        "actions": {"kind": kind, **asdict(actions)},
        "horizon": int(environment.horizon),
    }


def remembered(spaces: dict[str, Any]) -> Environment:
    """An environment that is known by its `spaces_of` alone: none to sample from."""
    actions = dict(spaces["actions"])
    kind = {"continuous": Continuous, "discrete": Discrete}[actions.pop("kind")]
    return Absent(spaces["observation_size"], kind(**actions), spaces["horizon"])


@dataclass(frozen=True)
class Absent:
    """An environment that is not at hand; see `Environment`."""

    observation_size: int
    actions: ActionSpace
    horizon: int

    def sample_tasks(self, num_tasks: int, generator: Generator) -> NoReturn:  # noqa: ARG002
        """Raises FewstepError, since it cannot."""
        raise FewstepError(
            "This run's environment was passed from Python, and only its spaces are known without it. Adapt with a "
            "function that acts with a policy and gives back episodes, or pass the environment: `fewstep.load(run, "
            "task_distribution=...)`."
        )

    def reset(self, tasks: Tensor, trajectories: int, generator: Generator) -> NoReturn:  # noqa: ARG002
        """Likewise."""
        self.sample_tasks(len(tasks), generator)


def _checked(custom: Environment | None) -> Environment:
    wanted = ("observation_size", "actions", "horizon", "sample_tasks", "reset")
    missing = [name for name in wanted if not hasattr(custom, name)]
    wrong = None if custom is None or missing or isinstance(custom, type) else _wrong_value(custom)
    if custom is None or missing or wrong or isinstance(custom, type):
        if custom is None:
            came = "none was passed"
        elif isinstance(custom, type):
            came = f"the class {custom.__name__} was passed, not one made of it"
        elif hasattr(custom, "observation_space"):
            came = (
                "a single Gymnasium environment was passed (fewstep.rl.envs.family.GymnasiumFamily makes tasks of them)"
            )
        else:
            came = wrong or f"{type(custom).__name__} has no {missing[0]!r}"
        raise RecipeError(
            "With tasks.kind = 'custom' and loss.kind = 'reinforce', tasks are a `fewstep.rl.environment.Environment` "
            f"from Python: {came}. Pass one as `task_distribution=`, to `train` as to `load` and `evaluate`."
        )
    return custom


def _wrong_value(environment: Environment) -> str | None:
    for name in ("observation_size", "horizon"):
        value: Any = getattr(environment, name)
        if not isinstance(value, Integral) or value < 1:
            return f"its {name} must be a whole number of at least 1, and is {value!r}"
    actions: Any = environment.actions
    known = isinstance(actions, Continuous | Discrete)
    return None if known else f"its actions must be Continuous or Discrete, and are {actions!r}"


def policy_shape(environment: Environment) -> tuple[tuple[int, ...], int]:
    """The shape of one input of a policy's network, and the number of its outputs."""
    return (environment.observation_size,), outputs_for(environment.actions)


def build_reinforcement_learner(
    recipe: Recipe, network: nn.Module, algorithm: Algorithm, environment: Environment, device: str
) -> ReinforcementLearner:
    """The learner that the recipe describes; raises ValueError where the network does not fit."""
    assert isinstance(recipe.loss, ReinforceLoss)
    assert isinstance(recipe.tasks, EnvironmentTasks)
    chosen = recipe.execution
    # A replay is safe for our own modules, which depend on nothing but their arguments.
    acting = traced if recipe.model.kind != "custom" and chosen.over_tasks == "auto" else plain
    run = compiled() if chosen.compile else acting
    at_once = chosen.chunk_size or _AT_ONCE
    apart = chosen.over_tasks == "sequential"
    over_tasks = sequential(run if chosen.compile else plain) if apart else vectorized(at_once, run)
    return ReinforcementLearner(
        environment,
        policy_for(environment.actions, network),
        algorithm,
        trajectories=recipe.tasks.trajectories,
        discount=recipe.loss.discount,
        gae_lambda=recipe.loss.gae_lambda,
        trust_region=TrustRegion(recipe.meta.max_kl, recipe.meta.curvature, iterations=recipe.meta.cg_iterations),
        curvature_every=recipe.meta.curvature_every,
        later_steps=recipe.evaluate.later_steps,
        over_tasks=over_tasks,
        run=acting,
        device=device,
    )
