"""The sections of a recipe for reinforcement learning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import Field

from fewstep.experiments.section import PositiveInt, Section, Size

if TYPE_CHECKING:
    from fewstep.experiments.config import Recipe

Fraction = Annotated[float, Field(ge=0, le=1)]


class EnvironmentTasks(Section):
    """Markov decision processes of one kind; see `fewstep.rl.environment`."""

    trajectories: Size = 20
    """Episodes of each task that an inner step learns from, and the meta-update."""
    reveal: bool = False
    """Append the task to the observations: the oracle."""


class NavigationTasks(EnvironmentTasks):
    """A point in the plane and a goal that it does not see; see `fewstep.rl.envs.navigation`."""

    kind: Literal["navigation"]
    horizon: PositiveInt = 100


class LocomotionTasks(EnvironmentTasks):
    """Half-cheetahs and ants that are to run, at a velocity or in a direction; see `fewstep.rl.envs.locomotion`."""

    kind: Literal["cheetah-velocity", "cheetah-direction", "ant-velocity", "ant-direction"]
    physics: Literal["paper", "gymnasium"] = "paper"
    """Time steps, control ranges, observations and rewards of the paper, or of Gymnasium's current robots."""
    horizon: PositiveInt = 200


ENVIRONMENTS: tuple[str, ...] = tuple(
    kind for section in (NavigationTasks, LocomotionTasks) for kind in get_args(section.model_fields["kind"].annotation)
)
"""Kinds of tasks that are environments."""


class ReinforceLoss(Section):
    """Policy gradients: REINFORCE inside, a trust-region step outside (section 5.3)."""

    kind: Literal["reinforce"]
    discount: Fraction = 0.99
    gae_lambda: Fraction = 1.0

    @property
    def scale(self) -> float:
        """Advantages are standardised, so there is none."""
        return 1.0


def check_reinforcement(recipe: Recipe) -> None:
    """Check that what belongs to reinforcement learning comes together, and nothing else with it.

    Raises:
        ValueError: It does not.
    """
    reinforces = recipe.loss.kind == "reinforce"
    if recipe.tasks.kind != "custom" and reinforces != isinstance(recipe.tasks, EnvironmentTasks):
        raise ValueError(f"loss.kind = {recipe.loss.kind!r} does not fit tasks.kind = {recipe.tasks.kind!r}")
    if reinforces != (recipe.meta.optimizer == "trpo"):
        raise ValueError(
            f"meta.optimizer = 'trpo' goes with loss.kind = 'reinforce': got {recipe.meta.optimizer!r} and "
            f"{recipe.loss.kind!r}"
        )
    given = _given_for_reinforcement(recipe)
    if not reinforces and any(given.values()):
        raise ValueError(f"{_named(given)} goes with loss.kind = 'reinforce': remove it")
    ignored = _without_meaning(recipe)
    if reinforces and any(ignored.values()):
        raise ValueError(f"loss.kind = 'reinforce' cannot follow {_named(ignored)}: remove it")


def _given_for_reinforcement(recipe: Recipe) -> dict[str, bool]:
    return {
        "meta.max_kl": _changed(recipe.meta, "max_kl"),
        "meta.curvature": _changed(recipe.meta, "curvature"),
        "meta.curvature_tasks": _changed(recipe.meta, "curvature_tasks"),
        "evaluate.trajectories": recipe.evaluate.trajectories is not None,
        "evaluate.later_steps": _changed(recipe.evaluate, "later_steps"),
        "tasks.trajectories": recipe.tasks.kind == "custom" and _changed(recipe.tasks, "trajectories"),
        "tasks.reveal": recipe.tasks.kind == "custom" and _changed(recipe.tasks, "reveal"),
    }


def _without_meaning(recipe: Recipe) -> dict[str, bool]:
    outer = ("lr", "momentum", "weight_decay", "schedule", "clip_value", "clip_norm")
    examples = ("shots", "queries")
    kind = recipe.algorithm.kind
    return {
        f"algorithm.kind = {kind!r}": kind in ("reptile", "averaging", "pretrained"),
        "model.norm": getattr(recipe.model, "norm", "none") != "none",
        "normalization": recipe.normalization != "transductive",
        "execution.compile": recipe.execution.compile,
        "execution.remat": recipe.execution.remat,
        "evaluate.variants": bool(recipe.evaluate.variants),
        **{f"meta.{name}": _changed(recipe.meta, name) for name in outer},
        **{f"validation.{name}": getattr(recipe.validation, name) is not None for name in examples},
        **{f"evaluate.{name}": getattr(recipe.evaluate, name) is not None for name in examples},
    }


def _changed(section: Section, name: str) -> bool:
    field: Any = type(section).model_fields[name]
    return getattr(section, name) != field.default


def _named(given: dict[str, bool]) -> str:
    return ", ".join(key for key, is_given in given.items() if is_given)
