"""The sections of a recipe: what may stand in each, and what goes together within one."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, model_validator

from fewstep.names import Distance, Method, Normalization
from fewstep.tasks.features import Feature, check_categories, features

_MOST = 10**9  # beyond it, memory would end before patience
NonNegativeInt = Annotated[int, Field(ge=0, le=_MOST)]
PositiveInt = Annotated[int, Field(gt=0, le=_MOST)]
Size = Annotated[int, Field(gt=0, le=10**6)]


class Section(BaseModel):
    """Part of a recipe: unknown keys and wrong types are errors, and so is infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True, allow_inf_nan=False)


def _sum_to_one(fractions: list[float]) -> list[float]:
    if not math.isclose(sum(fractions), 1):
        raise ValueError("tasks.fractions must sum to 1")
    return fractions


Fractions = Annotated[list[PositiveFloat], Field(min_length=3, max_length=3), AfterValidator(_sum_to_one)]
"""Shares of meta-train, meta-validation and meta-test."""


class SinusoidTasks(Section):
    """y = A sin(x - phi); see `fewstep.tasks.sinusoid`."""

    kind: Literal["sinusoid"]
    shots: PositiveInt = 10
    """Support examples of a task, K."""
    queries: PositiveInt = 10
    """Query examples of a task."""
    reveal: bool = False
    """Append amplitude and phase to the inputs: the oracle."""
    pool: PositiveInt | None = None
    """Meta-train on this many fixed sinusoids instead of the whole distribution."""


class ImageTasks(Section):
    """N-way, K-shot classification of images; see `fewstep.tasks.few_shot`."""

    ways: Annotated[int, Field(ge=2, le=10**6)] = 5
    """Classes of a task, N."""
    shots: PositiveInt = 1
    """Support images of each class, K."""
    queries: PositiveInt = 1
    """Query images of each class."""
    rotate: bool = False
    """Rotate each class of each task by 0, 90, 180 or 270 degrees."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels (1 for grey levels, 3 for colours), height and width of a prepared image."""
        return 1, 28, 28


class OmniglotTasks(ImageTasks):
    """Handwritten characters; see `fewstep.tasks.omniglot`."""

    kind: Literal["omniglot"]
    rotate: bool = True
    """Rotate each class of each task by 0, 90, 180 or 270 degrees."""


class GlyphsTasks(ImageTasks):
    """Characters of many scripts, drawn from fonts: no download; see `fewstep.tasks.glyphs`."""

    kind: Literal["glyphs"]


class MiniImagenetTasks(ImageTasks):
    """Photographs of 100 kinds of things; see `fewstep.tasks.miniimagenet`."""

    kind: Literal["miniimagenet"]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Red, green and blue; height and width."""
        return 3, 84, 84


class FolderTasks(ImageTasks):
    """The user's own pictures, in a folder for each class; see `fewstep.tasks.folder`."""

    kind: Literal["folder"]
    path: str
    """Folder or zip archive, relative to the recipe."""
    image_size: Annotated[int, Field(gt=0, le=1024)] = 84
    """Height and width that pictures are brought to, in pixels."""
    channels: Literal[1, 3] = 3
    """1 for grey levels, 3 for colours."""
    invert: Literal["auto"] | bool = False
    """Turn dark on light into light on dark, for grey levels; "auto": where the border is light."""
    fit: Literal["pad", "crop", "stretch"] = "pad"
    """What is done to pictures that are not square."""
    unreadable: Literal["refuse", "drop"] = "refuse"
    """Pictures that cannot be read: refuse the folder, or leave them out, and classes that have no others."""
    fractions: Fractions = [0.7, 0.15, 0.15]
    """Of the classes, unless the folder holds `train`, `val` and `test`."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a prepared picture."""
        return self.channels, self.image_size, self.image_size

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.invert is not False and self.channels == 3:
            raise ValueError("tasks.invert goes with tasks.channels = 1: colours are not inverted")
        return self


def _as_text(classes: Any) -> Any:
    """Names as a table's cells are compared with them: whole numbers are text there, and true is True."""
    if not isinstance(classes, list):
        return classes
    whole = [str(name) if isinstance(name, int) else name for name in classes]
    return [name.strip() if isinstance(name, str) else name for name in whole]


Names = Annotated[list[str], BeforeValidator(_as_text), Field(min_length=2)]


class TableTasks(Section):
    """The user's own table; see `fewstep.tasks.table`."""

    kind: Literal["table"]
    path: str
    """CSV or Parquet file, relative to the recipe; `bundled:NAME` is one that comes with fewstep."""
    task: str
    """Column that says to which task a row belongs."""
    inputs: Annotated[list[str], Field(min_length=1)]
    """Columns that the model sees."""
    targets: Annotated[list[str], Field(min_length=1)]
    """Columns that it predicts."""
    classes: Names | None = None
    """Where the one target is a class, which means the same in all tasks: the names of all, as its column has them."""
    categories: dict[str, Names] = {}
    """Input columns that hold categories, and the names of all of each: the model sees a 1 for a row's own."""
    shots: PositiveInt = 5
    """Support rows of a task, K."""
    queries: PositiveInt | None = None
    """Query rows per task; by default all that are not in the support set."""
    incomplete: Literal["refuse", "drop"] = "refuse"
    """What is done with rows that lack a number or name, and with tasks of too few rows: dropped ones are told."""
    fractions: Fractions = [0.7, 0.15, 0.15]
    """Of the tasks."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.classes and len(self.targets) > 1:
            raise ValueError(f"tasks.classes are those of one target column: tasks.targets has {len(self.targets)}")
        if self.classes and (len(set(self.classes)) < len(self.classes) or "" in self.classes):
            raise ValueError(f"tasks.classes must be different and not empty: got {self.classes}")
        check_categories(self.inputs, self.categories)
        return self

    @property
    def features(self) -> list[Feature]:
        """What the model sees of a row, see `fewstep.tasks.features`."""
        return features(self.inputs, self.categories)


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
    """Time steps of an episode."""


class LocomotionTasks(EnvironmentTasks):
    """Half-cheetahs and ants that are to run, at a velocity or in a direction; see `fewstep.rl.envs.locomotion`."""

    kind: Literal["cheetah-velocity", "cheetah-direction", "ant-velocity", "ant-direction"]
    physics: Literal["paper", "gymnasium"] = "paper"
    """Time steps, control ranges, observations and rewards of the paper, or of Gymnasium's current robots."""
    horizon: PositiveInt = 200
    """Time steps of an episode."""


ENVIRONMENTS: tuple[str, ...] = tuple(
    kind for section in (NavigationTasks, LocomotionTasks) for kind in get_args(section.model_fields["kind"].annotation)
)
"""Kinds of tasks that are environments."""


class ReinforceLoss(Section):
    """Policy gradients: REINFORCE inside, a trust-region step outside (section 5.3)."""

    kind: Literal["reinforce"]
    discount: Fraction = 0.99
    """Factor on rewards for each time step that they lie ahead."""
    gae_lambda: Fraction = 1.0
    """Of generalised advantage estimation; 1: returns less the baseline."""

    @property
    def scale(self) -> float:
        """Advantages are standardised, so there is none."""
        return 1.0


class CustomTasks(EnvironmentTasks):
    """A task distribution passed from Python; with loss.kind = "reinforce", an environment."""

    kind: Literal["custom"]


class MlpModel(Section):
    """Fully connected; see `fewstep.models.mlp`."""

    kind: Literal["mlp"]
    context: Annotated[int, Field(ge=0, le=10**6)] = 0
    """Features (of images: channels) that are parameters, appended to every input; see `fewstep.models.context`."""
    hidden: list[Size] = [40, 40]
    """Units of each hidden layer."""
    init: Literal["torch", "xavier"] = "torch"
    """Of the weights: PyTorch's own, or Xavier-uniform with biases of zero."""
    init_std: PositiveFloat | None = None
    """Standard deviation of truncated normal weights, with biases of zero, in place of PyTorch's own."""
    norm: Literal["none", "batch"] = "none"
    """Batch normalisation after each hidden layer, or none."""
    norm_gain: bool = False
    """Whether normalisation has a meta-learned gain."""
    norm_eps: PositiveFloat = 1e-3
    """Added to the variance."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.init != "torch" and self.init_std is not None:
            raise ValueError("model.init_std and model.init = 'xavier' exclude each other: remove one")
        if self.context and self.norm == "batch":
            raise ValueError(
                "model.context has no effect with model.norm = 'batch', which takes away what all examples share: "
                "use model.norm = 'none', or model.kind = 'convnet'"
            )
        return self


class ConvNetModel(Section):
    """Convolutional classifier; see `fewstep.models.convnet`."""

    kind: Literal["convnet"]
    context: Annotated[int, Field(ge=0, le=1000)] = 0
    """Channels that are parameters, appended to every image; see `fewstep.models.context`."""
    filters: Size = 64
    """Output channels of each block."""
    blocks: Annotated[int, Field(gt=0, le=10)] = 4
    """Each halves the image: at most 4 for 28 pixels, which are 1 after four, and 6 for 84."""
    downsample: Literal["stride", "max_pool"] = "stride"
    """How a block halves the image: a convolution of stride 2, or 2x2 max-pooling."""
    pool: Literal["mean", "flatten"] = "mean"
    """What the head sees: the mean over positions, or all of them."""
    norm_gain: bool = False
    """Whether normalisation has a meta-learned gain."""
    norm_eps: PositiveFloat = 1e-3
    """Added to the variance."""
    head_std: PositiveFloat | None = None
    """Standard deviation of the head's first weights; by default Xavier-uniform like the rest."""


class CustomModel(Section):
    """A module passed from Python."""

    kind: Literal["custom"]


class Loss(Section):
    """What is descended, inside and outside."""

    kind: Literal["mse", "cross_entropy", "custom"]
    """Squared error, softmax cross-entropy, or a loss passed from Python."""
    scale: float | Literal["ways"] = 1.0
    """Factor on the mean over examples; "ways": the number of classes, as in the paper's code."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.scale != "ways" and not (self.scale > 0 and math.isfinite(self.scale)):
            raise ValueError("loss.scale must be positive")
        return self


class MetaAlgorithm(Section):
    """A gradient-based meta-learner; see `fewstep.core.algorithms`."""

    kind: Literal["maml", "fomaml", "anil", "boil", "meta_sgd", "reptile", "joint", "custom"]
    """maml differentiates through the inner steps, fomaml does not; anil adapts the head alone, boil all but the head;
    meta_sgd learns a rate for every parameter; reptile moves towards the adapted parameters; joint trains one model on
    all tasks; custom is a function passed from Python."""
    inner_lr: PositiveFloat = 0.01
    """Inner step size alpha; where it is learned, where that begins."""
    steps: NonNegativeInt = 1
    """Inner steps in training; `joint` takes none."""
    rule: Literal["sgd", "momentum", "adam", "learned_sgd"] = "sgd"
    """What an inner step does with the gradient."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of the rule momentum."""
    per: Literal["scalar", "tensor", "parameter"] = "parameter"
    """What has a learned rate of its own (rule `learned_sgd`)."""
    clip: PositiveFloat | None = None
    """Bound on every element of the inner gradient."""
    head: str = "head.*"
    """Pattern of the head's parameters in the model, for anil and boil."""
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


class Averaging(Section):
    """Separate networks, one per task, averaged (appendix C); see `fewstep.learners.averaging`."""

    kind: Literal["averaging"]
    inner_lr: PositiveFloat = 0.01
    """Of fine-tuning."""
    regularizer: Literal["none", "l2", "to_mean"] = "none"
    """What keeps the networks small, or near each other."""
    strength: PositiveFloat = 1e-3
    """Of the regularizer."""

    @property
    def steps(self) -> int:
        """None while training."""
        return 0


class Pretrained(Section):
    """A classifier of all meta-train classes, then of few (section 5.2); see `fewstep.learners.pretrained`."""

    kind: Literal["pretrained"]
    classes: Annotated[int, Field(ge=2, le=10**6)]
    """Meta-train classes: outputs of the pretrained classifier."""
    method: Method = "finetune"
    """How it solves a task, in validation too: a new head and gradient steps, or the nearest support example."""
    inner_lr: PositiveFloat = 0.01
    """Of fine-tuning."""
    steps: NonNegativeInt = 10
    """Of fine-tuning, where nothing else is said."""
    head_std: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation of the new head's weights."""
    distance: Distance = "euclidean"
    """Between features of neighbours."""


class Meta(Section):
    """The outer loop."""

    optimizer: Literal["adam", "adamw", "sgd", "trpo"] = "adam"
    """"trpo" for reinforcement learning, and only there; see `fewstep.core.trust_region`."""
    lr: PositiveFloat = 1e-3
    """Outer step size beta; of the optimizers but trpo."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Momentum of the optimizer sgd."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Of all that the outer loop learns, learned rates included."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How `lr` goes from its value to 0 over the iterations."""
    batch_size: Size = 25
    """Tasks per meta-update; images, for `algorithm.kind = "pretrained"`."""
    iterations: NonNegativeInt = 10_000
    """Meta-updates."""
    start: str | None = None
    """A run, or a ready initialisation, to begin at its meta-parameters, where names and shapes agree with it."""
    max_kl: PositiveFloat = 0.01
    """Radius of the trust region (optimizer trpo): how far a meta-update may change the adapted policies."""
    curvature: Literal["exact", "finite_differences"] = "exact"
    """How the trust region is measured (optimizer trpo)."""
    curvature_every: PositiveInt = 1
    """Every so many-th time step is what the trust region is measured on (optimizer trpo)."""
    cg_iterations: PositiveInt = 10
    """Iterations of the conjugate gradient (optimizer trpo), each a product with the curvature."""
    clip_value: PositiveFloat | None = None
    """Bound on every element of the meta-gradient."""
    clip_norm: PositiveFloat | None = None
    """Bound on the norm of the meta-gradient."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.momentum and self.optimizer != "sgd":
            raise ValueError("meta.momentum goes with meta.optimizer = 'sgd'")
        return self


class Validation(Section):
    """Watching meta-validation tasks while training, to keep the best meta-parameters."""

    every: PositiveInt | None = None
    """Iterations from one validation to the next; by default a tenth of all, and no more than 1000."""
    tasks: PositiveInt = 200
    """How many."""
    steps: NonNegativeInt | None = None
    """Inner steps after which tasks are scored; by default as many as in training."""
    shots: PositiveInt | None = None
    """Support examples; by default as many as in training."""
    queries: PositiveInt | None = None
    """Query examples; by default as many as in training."""
    patience: PositiveInt | None = None
    """Stop after this many validations without improvement."""


class Variant(Section):
    """A further evaluation beside the first, different in what it gives."""

    shots: PositiveInt | None = None
    """Support examples; by default those of the first evaluation."""
    queries: PositiveInt | None = None
    """Query examples; by default those of the first evaluation."""
    normalization: Normalization | None = None
    """Policy of batch normalisation; by default that of the first evaluation."""
    method: Method | None = None
    """How a pretrained classifier solves the tasks; by default as in the first evaluation."""


class Evaluate(Section):
    """What `fewstep evaluate` does by default."""

    tasks: PositiveInt = 600
    """How many, of meta-test."""
    steps: NonNegativeInt = 10
    """Inner steps; the results after each of them are kept."""
    shots: PositiveInt | None = None
    """By default as many as in training."""
    queries: PositiveInt | None = None
    """By default as many as in training."""
    normalization: Normalization | None = None
    """By default as in training."""
    method: Method | None = None
    """Of a pretrained classifier; by default that of the algorithm."""
    repeats: PositiveInt = 1
    """Of a table: how often each task's rows are divided anew into support and query; its result is the mean."""
    trajectories: Size | None = None
    """Of an environment: episodes for each step and each result; by default as many as in training."""
    later_steps: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Of reinforcement learning: factor on inner steps after the first, in validation too."""
    variants: list[Variant] = []
    """Printed beside it."""
    seed: int = 0
    """Of the evaluation tasks: the same for runs of every seed."""
    tune_inner_lr: list[PositiveFloat] = []
    """Step sizes to choose from, on meta-validation tasks, before testing (the paper's pretrained baseline)."""
    tune_distance: list[Distance] = []
    """Distances between neighbours to choose from, likewise."""
    tune_tasks: PositiveInt | None = None
    """Meta-validation tasks to choose on; by default as many as are tested."""


class Execution(Section):
    """How the map over tasks runs; see `fewstep.core.over_tasks`."""

    over_tasks: Literal["auto", "vectorized", "sequential"] = "auto"
    """All tasks at once, or one after the other; by default at once where the model can, large images one by one."""
    chunk_size: PositiveInt | None = None
    """Tasks computed together; by default all. Environments' tasks are thousands of actions each: 2 are fastest."""
    threads: Annotated[int, Field(gt=0, le=1024)] | None = None
    """Threads inside operations; by default torch's choice. Small networks are fastest with 1."""
    compile: bool = False
    """Compile the meta-gradient (`core.running.compiled`): a minute or two, the first time. By default, where the model
    and loss are fewstep's own and the run is long enough to pay for it. Those of your own must depend on nothing but
    their arguments: no counters, schedules or branches on Python state."""
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    """Of products and convolutions: "tf32" rounds their factors on GPUs that have it, in evaluation too. "bf16"
    computes those of the meta-gradient in bfloat16 (`core.products`); evaluation and all else stay in float32."""
    remat: bool = False
    """Compute inner steps again rather than keep them (`core.stepwise`): memory hardly grows with their number."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.chunk_size is not None and self.over_tasks == "sequential":
            raise ValueError("execution.chunk_size goes with 'auto' and 'vectorized'")
        return self
