"""Recipes as typed data, without importing torch.

A recipe is a TOML file that lists what differs from the defaults here. Whatever is unknown, of the wrong type or
impossible is a `RecipeError` that names the file, the key and the valid keys.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from fewstep.experiments.sections import (
    Averaging,
    ConvNetModel,
    CustomModel,
    CustomTasks,
    EnvironmentTasks,
    Evaluate,
    Execution,
    FolderTasks,
    GlyphsTasks,
    ImageTasks,
    LocomotionTasks,
    Loss,
    Meta,
    MetaAlgorithm,
    MiniImagenetTasks,
    MlpModel,
    NavigationTasks,
    NonNegativeInt,
    OmniglotTasks,
    Pretrained,
    ReinforceLoss,
    Section,
    SinusoidTasks,
    TableTasks,
    Validation,
)
from fewstep.names import Normalization

PAYS_TO_COMPILE = {"mlp": 20_000, "convnet": 128_000}
"""Iterations from which compiling saves more time than it takes, by the kind of model; of convolutional ones times
filters, since those with few have little to save."""
PAYS_TO_COMPILE_TIME_STEPS = 2_000_000
"""Of the episodes of one inner step, in all iterations together: likewise, for reinforcement learning."""


class Recipe(Section):
    """A whole experiment."""

    name: str = "custom"
    """Printed with results; of a file, by default its name."""
    tasks: Annotated[
        SinusoidTasks
        | OmniglotTasks
        | GlyphsTasks
        | MiniImagenetTasks
        | FolderTasks
        | TableTasks
        | NavigationTasks
        | LocomotionTasks
        | CustomTasks,
        Field(discriminator="kind"),
    ]
    model: Annotated[MlpModel | ConvNetModel | CustomModel, Field(discriminator="kind")]
    loss: Annotated[Loss | ReinforceLoss, Field(discriminator="kind")]
    algorithm: Annotated[MetaAlgorithm | Averaging | Pretrained, Field(discriminator="kind")]
    meta: Meta = Meta()
    validation: Validation = Validation()
    evaluate: Evaluate = Evaluate()
    normalization: Normalization = "transductive"
    """Statistics of batch normalisation for a query set: its own, the support set's, or a pretrained module's."""
    execution: Execution = Execution()
    seed: NonNegativeInt = 0
    """Of the initialisation and of the tasks."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        of_images = isinstance(self.tasks, ImageTasks)
        of_classes = isinstance(self.tasks, TableTasks) and self.tasks.classes is not None
        if self.tasks.kind != "custom" and self.loss.kind == ("mse" if of_images or of_classes else "cross_entropy"):
            where = {"table": "tasks.classes"}.get(self.tasks.kind, "tasks of pictures, tables or your own")
            why = "with classes" if of_images or of_classes else f"whose targets are numbers: classes come with {where}"
            raise ValueError(f"loss.kind = {self.loss.kind!r} does not fit tasks.kind = {self.tasks.kind!r}, {why}")
        if self.evaluate.repeats > 1 and self.tasks.kind != "table":
            raise ValueError(
                "evaluate.repeats divides the rows of tables anew: other tasks are drawn, raise evaluate.tasks"
            )
        if self.loss.scale == "ways" and not of_images:
            raise ValueError("loss.scale = 'ways' needs tasks with ways")
        if self.model.kind == "convnet":
            if not isinstance(self.tasks, ImageTasks):
                raise ValueError(
                    "model.kind = 'convnet' needs tasks of images: use 'mlp', or 'custom' and pass a module"
                )
            size = self.tasks.image_shape[-1]
            most = size.bit_length() - 1
            if self.model.blocks > most:
                raise ValueError(
                    f"model.blocks = {self.model.blocks} halve an image of {size} pixels to nothing: "
                    f"at most {most} leave one"
                )
        check_reinforcement(self)
        if self.model.kind == "mlp" and self.tasks.kind == "custom" and self.loss.kind != "reinforce":
            raise ValueError("model.kind = 'mlp' takes its shapes from the tasks: use 'custom' and pass a module")
        if self.normalization == "running" and self.model.kind != "custom":
            raise ValueError("normalization = 'running' needs a pretrained module of your own (model.kind = 'custom')")
        if isinstance(self.algorithm, MetaAlgorithm):
            learned = self.algorithm.kind == "meta_sgd" or self.algorithm.rule == "learned_sgd"
            if self.evaluate.tune_inner_lr and learned:
                raise ValueError("evaluate.tune_inner_lr cannot tune rates that the outer loop learns: remove it")
            if getattr(self.tasks, "pool", None) is not None:
                raise ValueError("tasks.pool goes with algorithm.kind = 'averaging': remove it")
        elif isinstance(self.algorithm, Averaging):
            self._check_averaging()
        elif not of_images:
            raise ValueError("algorithm.kind = 'pretrained' needs tasks of images, whose classes it can tell apart")
        self._check_methods()
        return self

    def _check_methods(self) -> None:
        methods = {self.evaluate.method, *(variant.method for variant in self.evaluate.variants)}
        if (methods != {None} or self.evaluate.tune_distance) and not isinstance(self.algorithm, Pretrained):
            raise ValueError(
                "evaluate.method and evaluate.tune_distance go with algorithm.kind = 'pretrained': remove them"
            )

    def _check_averaging(self) -> None:
        """Averaging trains plain networks side by side: most of the outer loop means nothing to it."""
        pool = getattr(self.tasks, "pool", None)
        if pool is None:
            raise ValueError("algorithm.kind = 'averaging' trains one network per task: set tasks.pool")
        if self.meta.batch_size != pool:
            raise ValueError("algorithm.kind = 'averaging' needs meta.batch_size equal to tasks.pool")
        ignored = {
            "model.kind = 'custom'": self.model.kind == "custom",
            "meta.start": self.meta.start is not None,
            "meta.clip_value": self.meta.clip_value is not None,
            "meta.clip_norm": self.meta.clip_norm is not None,
            "meta.schedule": self.meta.schedule != "constant",
            "loss.scale": self.loss.scale != 1.0,
            "normalization": self.normalization != "transductive",
            "execution.over_tasks": self.execution.over_tasks != "auto",
            "execution.chunk_size": self.execution.chunk_size is not None,
            "execution.compile": self.execution.compile,
            "execution.remat": self.execution.remat,
            "execution.precision = 'bf16'": self.execution.precision == "bf16",
        }
        if any(ignored.values()):
            named = ", ".join(key for key, given in ignored.items() if given)
            raise ValueError(f"{named} has no meaning with algorithm.kind = 'averaging': remove it")


def validated_every(recipe: Recipe) -> int:
    """Iterations from one validation to the next: a short run is validated too, some ten times."""
    return recipe.validation.every or min(1000, max(1, recipe.meta.iterations // 10))


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
        raise ValueError(f"{_named(ignored)} has no meaning with loss.kind = 'reinforce': remove it")


def _given_for_reinforcement(recipe: Recipe) -> dict[str, bool]:
    return {
        "meta.max_kl": _changed(recipe.meta, "max_kl"),
        "meta.curvature": _changed(recipe.meta, "curvature"),
        "meta.curvature_every": _changed(recipe.meta, "curvature_every"),
        "meta.cg_iterations": _changed(recipe.meta, "cg_iterations"),
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
        f"algorithm.kind = {kind!r}": kind in ("reptile", "averaging", "pretrained", "custom"),
        "model.norm": getattr(recipe.model, "norm", "none") != "none",
        "normalization": recipe.normalization != "transductive",
        "execution.remat": recipe.execution.remat,
        "execution.precision = 'bf16'": recipe.execution.precision == "bf16",
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
