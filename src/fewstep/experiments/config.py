"""Recipes as typed data, without importing torch.

A recipe is a TOML file that lists what differs from the defaults here. Whatever is unknown, of the wrong type or
impossible is a `RecipeError` that names the file, the key and the valid keys.
"""

from __future__ import annotations

import math
import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    ValidationError,
    model_validator,
)

from fewstep.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic_core import ErrorDetails

_MOST = 10**9  # beyond it, memory would end before patience
NonNegativeInt = Annotated[int, Field(ge=0, le=_MOST)]
PositiveInt = Annotated[int, Field(gt=0, le=_MOST)]
Size = Annotated[int, Field(gt=0, le=10**6)]
Split = Literal["train", "val", "test"]
Normalization = Literal["transductive", "support", "running"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True, allow_inf_nan=False)


class SinusoidTasks(_Section):
    """y = A sin(x - phi); see `fewstep.tasks.sinusoid`."""

    kind: Literal["sinusoid"]
    shots: PositiveInt = 10
    queries: PositiveInt = 10
    reveal: bool = False
    """Append amplitude and phase to the inputs: the oracle."""
    pool: PositiveInt | None = None
    """Meta-train on this many fixed sinusoids instead of the whole distribution."""


class OmniglotTasks(_Section):
    """Handwritten characters; see `fewstep.tasks.omniglot`."""

    kind: Literal["omniglot"]
    ways: Annotated[int, Field(ge=2, le=10**6)] = 5
    shots: PositiveInt = 1
    queries: PositiveInt = 1
    rotate: bool = True
    """Rotate each class of each task by 0, 90, 180 or 270 degrees."""


class TableTasks(_Section):
    """The user's own table; see `fewstep.tasks.table`."""

    kind: Literal["table"]
    path: str
    """CSV or Parquet file, relative to the recipe; `bundled:NAME` is one that comes with fewstep."""
    task: str
    """Column that says to which task a row belongs."""
    inputs: Annotated[list[str], Field(min_length=1)]
    targets: Annotated[list[str], Field(min_length=1)]
    shots: PositiveInt = 5
    queries: PositiveInt | None = None
    """Query rows per task; by default all that are not in the support set."""
    fractions: Annotated[list[PositiveFloat], Field(min_length=3, max_length=3)] = [0.7, 0.15, 0.15]
    """Shares of the tasks for meta-train, meta-validation and meta-test."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not math.isclose(sum(self.fractions), 1):
            raise ValueError("tasks.fractions must sum to 1")
        return self


class CustomTasks(_Section):
    """A task distribution passed from Python."""

    kind: Literal["custom"]


class MlpModel(_Section):
    """Fully connected; see `fewstep.models.mlp`."""

    kind: Literal["mlp"]
    hidden: list[Size] = [40, 40]
    init_std: PositiveFloat | None = None


class ConvNetModel(_Section):
    """Convolutional classifier; see `fewstep.models.convnet`."""

    kind: Literal["convnet"]
    filters: Size = 64
    blocks: Annotated[int, Field(gt=0, le=4)] = 4
    """At most 4: each halves the image, and 28 pixels are 1 after four."""
    downsample: Literal["stride", "max_pool"] = "stride"
    pool: Literal["mean", "flatten"] = "mean"
    norm_gain: bool = False
    norm_eps: PositiveFloat = 1e-3
    head_std: PositiveFloat | None = None


class CustomModel(_Section):
    """A module passed from Python."""

    kind: Literal["custom"]


class Loss(_Section):
    """What is descended, inside and outside."""

    kind: Literal["mse", "cross_entropy", "custom"]
    scale: float | Literal["ways"] = 1.0
    """Factor on the mean over examples; "ways": the number of classes, as in the paper's code."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.scale != "ways" and not (self.scale > 0 and math.isfinite(self.scale)):
            raise ValueError("loss.scale must be positive")
        return self


class MetaAlgorithm(_Section):
    """A gradient-based meta-learner; see `fewstep.core.algorithms`."""

    kind: Literal["maml", "fomaml", "anil", "boil", "meta_sgd", "reptile", "joint"]
    inner_lr: PositiveFloat = 0.01
    steps: NonNegativeInt = 1
    """Inner steps in training; `joint` takes none."""
    rule: Literal["sgd", "momentum", "adam", "learned_sgd"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    per: Literal["scalar", "tensor", "parameter"] = "parameter"
    """What has a learned rate of its own (rule `learned_sgd`)."""
    clip: PositiveFloat | None = None
    """Bound on every element of the inner gradient."""
    head: str = "head.*"
    """Pattern of the head's parameters, for anil and boil."""
    only: list[str] = []
    """Patterns of the parameters that the inner loop adapts; empty: all."""
    except_: list[str] = Field(default=[], alias="except")
    """Patterns of the parameters that it does not adapt."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        changed = {n for n, f in MetaAlgorithm.model_fields.items() if getattr(self, n) != f.default}
        if self.kind == "joint":
            if self.steps and "steps" in self.model_fields_set:
                raise ValueError("joint takes no inner steps in training: remove algorithm.steps")
            object.__setattr__(self, "steps", 0)
        elif self.steps == 0:
            raise ValueError(f"{self.kind} needs at least one inner step: raise algorithm.steps, or use joint")
        if self.kind == "meta_sgd" and self.rule != "sgd":
            raise ValueError("meta_sgd is the rule learned_sgd: remove algorithm.rule")
        if "per" in changed and self.rule != "learned_sgd":
            raise ValueError("algorithm.per goes with algorithm.rule = 'learned_sgd'")
        if "momentum" in changed and self.rule != "momentum":
            raise ValueError("algorithm.momentum goes with algorithm.rule = 'momentum'")
        if self.rule == "learned_sgd" and self.kind in ("reptile", "joint"):
            raise ValueError(f"{self.kind} cannot learn rates: use another algorithm.rule")
        if "head" in changed and self.kind not in ("anil", "boil"):
            raise ValueError("algorithm.head goes with anil and boil; others choose with algorithm.only")
        return self


class Averaging(_Section):
    """Separate networks, one per task, averaged (appendix C); see `fewstep.learners.averaging`."""

    kind: Literal["averaging"]
    inner_lr: PositiveFloat = 0.01
    regularizer: Literal["none", "l2", "to_mean"] = "none"
    strength: PositiveFloat = 1e-3

    @property
    def steps(self) -> int:
        """None while training."""
        return 0


class Meta(_Section):
    """The outer loop."""

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: PositiveFloat = 1e-3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of the optimizer sgd."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Of all that the outer loop learns, learned rates included."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How `lr` goes from its value to 0 over the iterations."""
    batch_size: Size = 25
    """Tasks per meta-update."""
    iterations: NonNegativeInt = 10_000
    clip_value: PositiveFloat | None = None
    clip_norm: PositiveFloat | None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.momentum and self.optimizer != "sgd":
            raise ValueError("meta.momentum goes with meta.optimizer = 'sgd'")
        return self


class Validation(_Section):
    """Watching meta-validation tasks while training, to keep the best meta-parameters."""

    every: PositiveInt = 1000
    tasks: PositiveInt = 200
    steps: NonNegativeInt | None = None
    """Inner steps after which tasks are scored; by default as many as in training."""
    shots: PositiveInt | None = None
    """Support examples; by default as many as in training."""
    queries: PositiveInt | None = None
    """Query examples; by default as many as in training."""
    patience: PositiveInt | None = None
    """Stop after this many validations without improvement."""


class Variant(_Section):
    """A further evaluation beside the first, different in what it gives."""

    shots: PositiveInt | None = None
    queries: PositiveInt | None = None
    normalization: Normalization | None = None


class Evaluate(_Section):
    """What `fewstep evaluate` does by default."""

    tasks: PositiveInt = 600
    steps: NonNegativeInt = 10
    shots: PositiveInt | None = None
    """By default as many as in training; queries and normalization likewise."""
    queries: PositiveInt | None = None
    normalization: Normalization | None = None
    variants: list[Variant] = []
    """Printed beside it."""
    seed: int = 0
    """Of the evaluation tasks: the same for runs of every seed."""
    tune_inner_lr: list[PositiveFloat] = []
    """Step sizes to choose from, on meta-validation tasks, before testing (the paper's pretrained baseline)."""


class Execution(_Section):
    """How the map over tasks runs; see `fewstep.core.over_tasks`."""

    over_tasks: Literal["auto", "vectorized", "sequential"] = "auto"
    chunk_size: PositiveInt | None = None
    threads: Annotated[int, Field(gt=0, le=1024)] | None = None
    """Threads inside operations; by default torch's choice. Small networks are fastest with 1."""
    compile: bool = False
    """Compile the meta-gradient (`core.running.compiled`): a minute or two, the first time. By default, where the model
    and loss are fewstep's own and the run is long enough to pay for it."""
    tf32: bool = False
    """Round the factors of products to TensorFloat-32 on GPUs that have it: faster, with three digits."""
    remat: bool = False
    """Compute inner steps again rather than keep them (`core.stepwise`): memory hardly grows with their number."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.chunk_size is not None and self.over_tasks == "sequential":
            raise ValueError("execution.chunk_size goes with 'auto' and 'vectorized'")
        return self


_PAYS_TO_COMPILE = {"mlp": 20_000, "convnet": 2_000}
"""Iterations from which compiling saves more time than it takes, by the kind of model."""


class Recipe(_Section):
    """A whole experiment."""

    name: str = "custom"
    tasks: Annotated[SinusoidTasks | OmniglotTasks | TableTasks | CustomTasks, Field(discriminator="kind")]
    model: Annotated[MlpModel | ConvNetModel | CustomModel, Field(discriminator="kind")]
    loss: Loss
    algorithm: Annotated[MetaAlgorithm | Averaging, Field(discriminator="kind")]
    meta: Meta = Meta()
    validation: Validation = Validation()
    evaluate: Evaluate = Evaluate()
    normalization: Normalization = "transductive"
    execution: Execution = Execution()
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _possible(self) -> Self:
        classifies = self.tasks.kind == "omniglot"
        if self.tasks.kind != "custom" and self.loss.kind == ("mse" if classifies else "cross_entropy"):
            raise ValueError(f"loss.kind = {self.loss.kind!r} does not fit tasks.kind = {self.tasks.kind!r}")
        if self.loss.scale == "ways" and not classifies:
            raise ValueError("loss.scale = 'ways' needs tasks with ways")
        if self.model.kind == "convnet" and not classifies:
            raise ValueError("model.kind = 'convnet' needs tasks of images: use 'mlp', or 'custom' and pass a module")
        if self.model.kind == "mlp" and self.tasks.kind not in ("sinusoid", "table"):
            raise ValueError("model.kind = 'mlp' needs tasks of vectors: use 'convnet', or 'custom' and pass a module")
        if self.normalization == "running" and self.model.kind != "custom":
            raise ValueError("normalization = 'running' needs a pretrained module of your own (model.kind = 'custom')")
        own = self.model.kind != "custom" and self.loss.kind != "custom"
        if self.execution.compile and not own:
            raise ValueError(
                "execution.compile = true is for models and losses of fewstep's own: for yours, build a "
                "SupervisedLearner with over_tasks=stepwise(run=compiled()), from fewstep.core.stepwise and .running"
            )
        if isinstance(self.algorithm, MetaAlgorithm):
            learned = self.algorithm.kind == "meta_sgd" or self.algorithm.rule == "learned_sgd"
            if self.evaluate.tune_inner_lr and learned:
                raise ValueError("evaluate.tune_inner_lr cannot tune rates that the outer loop learns: remove it")
            if getattr(self.tasks, "pool", None) is not None:
                raise ValueError("tasks.pool goes with algorithm.kind = 'averaging': remove it")
        else:
            self._check_averaging()
        return self

    def _check_averaging(self) -> None:
        """Averaging trains plain networks side by side: most of the outer loop means nothing to it."""
        pool = getattr(self.tasks, "pool", None)
        if pool is None:
            raise ValueError("algorithm.kind = 'averaging' trains one network per task: set tasks.pool")
        if self.meta.batch_size != pool:
            raise ValueError("algorithm.kind = 'averaging' needs meta.batch_size equal to tasks.pool")
        ignored = {
            "model.kind = 'custom'": self.model.kind == "custom",
            "meta.clip_value": self.meta.clip_value is not None,
            "meta.clip_norm": self.meta.clip_norm is not None,
            "meta.schedule": self.meta.schedule != "constant",
            "loss.scale": self.loss.scale != 1.0,
            "execution.over_tasks": self.execution.over_tasks != "auto",
            "execution.chunk_size": self.execution.chunk_size is not None,
            "execution.compile": self.execution.compile,
            "execution.remat": self.execution.remat,
        }
        if any(ignored.values()):
            named = ", ".join(key for key, given in ignored.items() if given)
            raise ValueError(f"algorithm.kind = 'averaging' cannot follow {named}: remove it")


def bundled_recipes() -> dict[str, str]:
    """The recipes that come with fewstep: name and first line of the header, sorted by name."""
    folder = resources.files("fewstep.experiments") / "recipes"
    found: dict[str, str] = {}
    for entry in sorted(folder.iterdir(), key=lambda e: e.name.removesuffix(".toml")):
        if entry.name.endswith(".toml"):
            first = entry.read_text(encoding="utf-8").partition("\n")[0]
            found[entry.name.removesuffix(".toml")] = first.lstrip("# ")
    return found


def load_recipe(
    source: str | Path | Mapping[str, Any],
    settings: Iterable[str] = (),
    where: str = "the recipe passed from Python",
) -> Recipe:
    """Read a recipe and set values over it.

    Args:
        source: A bundled name, the path of a TOML file, or the values themselves.
        settings: `key=value` strings; keys are dotted, values are TOML (a bare word is a string).
        where: What errors call values that come from no file.

    Returns:
        The recipe, complete with defaults. Relative table paths are resolved against the recipe's folder.

    Raises:
        RecipeError: It cannot be read, or is not a possible experiment.
    """
    where, values = _read(source, where)
    for setting in settings:
        _set(values, setting)
    _fill_in(values)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(_explain(where, error)) from None
    return recipe


def evaluation_plan(recipe: Recipe, given: Mapping[str, Any]) -> Evaluate:
    """The recipe's `evaluate`, with what was asked for over it and nothing left open that the recipe answers.

    Raises:
        RecipeError: Something asked for is not possible.
    """
    asked = {key: value for key, value in given.items() if value is not None}
    if recipe.tasks.kind == "custom" and asked.keys() & {"shots", "queries"}:
        raise RecipeError("Tasks passed from Python come with their own shots and queries: leave both out.")
    policy = asked.get("normalization") or recipe.evaluate.normalization or recipe.normalization
    if policy != recipe.normalization and "running" in (policy, recipe.normalization):
        raise RecipeError(
            f"A run trained with normalization = {recipe.normalization!r} cannot be evaluated with {policy!r}: "
            "'transductive' and 'support' can stand in for each other, 'running' cannot."
        )
    training = {
        "shots": getattr(recipe.tasks, "shots", None),
        "queries": getattr(recipe.tasks, "queries", None),
        "normalization": recipe.normalization,
    }
    chosen = recipe.evaluate.model_dump() | asked
    chosen |= {key: value for key, value in training.items() if chosen[key] is None}
    try:
        return Recipe.model_validate(recipe.model_dump(by_alias=True) | {"evaluate": chosen}).evaluate
    except ValidationError as error:
        raise RecipeError(_explain("the evaluation asked for", error)) from None


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain JSON values, complete: what the run folder stores."""
    return recipe.model_dump(mode="json", by_alias=True)


def differing_keys(one: Recipe, other: Recipe) -> list[str]:
    """Dotted keys whose values differ between two recipes."""
    flat_one, flat_other = dict(_flatten(recipe_values(one))), dict(_flatten(recipe_values(other)))
    return sorted(k for k in flat_one | flat_other if flat_one.get(k) != flat_other.get(k))


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _read(source: str | Path | Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    if not isinstance(source, str | Path):
        return where, _copied(source)
    bundled = resources.files("fewstep.experiments") / "recipes" / f"{source}.toml"
    path = Path(source)
    if isinstance(source, str) and re.fullmatch(r"[\w-]+", source) and bundled.is_file():
        where, text = f"bundled recipe {source}", bundled.read_text(encoding="utf-8")
    elif path.suffix == ".toml":
        where = str(path)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            raise RecipeError(f"A recipe must be a readable TOML file: {path}: {error}.") from None
    else:
        raise RecipeError(
            f"RECIPE must be a bundled name or the path of a .toml file: got {str(source)!r}. "
            f"Bundled are: {', '.join(bundled_recipes())}."
        )
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{where}: not valid TOML: {error}.") from None
    values.setdefault("name", path.stem)
    tasks = values.get("tasks")
    if isinstance(tasks, dict) and isinstance(tasks.get("path"), str) and path.suffix == ".toml":
        tasks["path"] = _resolved(tasks["path"], path.parent)
    return where, values


def _resolved(table: str, folder: Path) -> str:
    if table.startswith("bundled:"):
        return table
    try:
        return str((folder / Path(table).expanduser()).resolve())
    except (OSError, RuntimeError, ValueError) as error:  # an unknown user, or a character that no path has
        raise RecipeError(f"tasks.path must be a path: got {table!r} ({error}).") from None


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copied(v) if isinstance(v, dict) else v for k, v in values.items()}


def _set(values: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(f"--set must look like key=value, for instance meta.lr=0.01: got {setting!r}.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        if not re.fullmatch(r"[\w./:~*-]+", text.strip()):
            raise RecipeError(
                f"--set {setting}: the value must be TOML: got {text!r}. Quote strings: '{key}=\"...\"'."
            ) from None
        value = text.strip()
    if parts == ["tasks", "path"] and isinstance(value, str):
        value = _resolved(value, Path.cwd())
    section = values
    for part in parts[:-1]:
        section = section.setdefault(part, {})
        if not isinstance(section, dict):
            raise RecipeError(f"--set {setting}: {part} is a value and has no keys of its own.")
    section[parts[-1]] = value


def _fill_in(values: dict[str, Any]) -> None:
    """Defaults that depend on other values: the loss follows from the kind of tasks."""
    tasks, loss = values.get("tasks"), values.setdefault("loss", {})
    if isinstance(tasks, dict) and isinstance(loss, dict) and "kind" not in loss:
        natural = {"sinusoid": "mse", "table": "mse", "omniglot": "cross_entropy"}.get(str(tasks.get("kind")))
        if natural:
            loss["kind"] = natural
    _fill_in_compile(values)


def _fill_in_compile(values: dict[str, Any]) -> None:
    """Whether to compile follows from the recipe alone, so that a run executes alike wherever it goes on."""

    def value(section: str, key: str, default: Any = None) -> Any:
        found = values.get(section, {})
        return found.get(key, default) if isinstance(found, dict) else None

    execution = values.setdefault("execution", {})
    if not isinstance(execution, dict) or "compile" in execution:
        return
    least = _PAYS_TO_COMPILE.get(str(value("model", "kind")))
    iterations = value("meta", "iterations", Meta().iterations)
    meta_learns = value("algorithm", "kind") != "averaging"
    one_size = value("tasks", "kind") != "table" or value("tasks", "queries") is not None
    by_default = value("loss", "kind") != "custom" and execution.get("over_tasks", "auto") == "auto"
    execution["compile"] = bool(
        least and isinstance(iterations, int) and iterations >= least and meta_learns and one_size and by_default
    )


def _explain(where: str, error: ValidationError) -> str:
    lines = [f"{where} is not a possible recipe:"]
    lines += [f"  {_explain_one(detail)}" for detail in error.errors(include_url=False)]
    return "\n".join(lines)


def _explain_one(detail: ErrorDetails) -> str:
    key, section = _locate(detail["loc"])
    valid = ", ".join(field.alias or name for name, field in section.model_fields.items())
    if detail["type"] == "extra_forbidden":
        return f"{key}: unknown key. Valid keys here: {valid}."
    if detail["type"] == "missing":
        return f"{key}: missing. Keys here: {valid}."
    if detail["type"] == "union_tag_not_found":
        return f"{key}: `kind` is missing. {detail['msg']}."
    if detail["type"] == "union_tag_invalid":
        context = detail.get("ctx", {})
        return f"{key}.kind: {context.get('tag')!r} is unknown. Valid kinds: {context.get('expected_tags')}."
    message = detail["msg"].removeprefix("Value error, ")
    got = "" if isinstance(detail["input"], BaseModel | dict) else f", got {detail['input']!r}"
    return f"{key + ': ' if key else ''}{message}{got}. Valid keys here: {valid}."


def _locate(loc: tuple[int | str, ...]) -> tuple[str, type[BaseModel]]:
    """The dotted key of an error, and the section that it stands in."""
    section: type[BaseModel] = Recipe
    parts: list[str] = []
    candidates: list[type[BaseModel]] = []
    for place in loc:
        tagged = [
            c for c in candidates if "kind" in c.model_fields and place in get_args(c.model_fields["kind"].annotation)
        ]
        if tagged:  # pydantic names the member of a union by its `kind`, which is no part of the key
            section, candidates = tagged[0], []
            continue
        field = next((f for n, f in section.model_fields.items() if place in (n, f.alias)), None)
        if field is not None:
            annotation = field.annotation
            if isinstance(annotation, type) and issubclass(annotation, BaseModel) and place != loc[-1]:
                section = annotation
            candidates = [c for c in get_args(annotation) if isinstance(c, type) and issubclass(c, BaseModel)]
        if isinstance(place, int):
            parts[-1] += f"[{place}]"
            section = next((c for c in candidates if "kind" not in c.model_fields), section)
        elif field is not None or section is not Loss:
            parts.append(str(place))
    return ".".join(parts), section
