"""scikit-learn estimators that begin at a meta-learned initialisation.

    classifier = FewShotClassifier.from_run("omniglot-5way-1shot").fit(support, labels)
    classifier.predict(queries)

`fit` is the inner loop: it adapts the initialisation to the examples given. So the estimators go wherever
scikit-learn's do, into pipelines, cross-validation and grid searches, and onto disk with joblib.
"""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, final

import numpy as np
import torch
from torch.nn import functional

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "The estimators need scikit-learn >= 1.6: it cannot be imported. Install the extra: pip install "
        "'fewstep[sklearn]'."
    ) from error

from fewstep.adapting.fitting import fit_classifier, fit_same_outputs, head_policy
from fewstep.adapting.initialisation import classes_of, initialisation, preparation_of, untrained
from fewstep.adapting.units import expect_indicators, tell_of_far, tell_of_scaled
from fewstep.core.rng import derived_seed, drawing_from
from fewstep.core.types import Batch
from fewstep.errors import RecipeError
from fewstep.experiments.build import mean_squared_error, shapes_of
from fewstep.experiments.runs import open_run, recipe_of, standardization
from fewstep.experiments.sections import ImageTasks, TableTasks
from fewstep.models.mlp import mlp
from fewstep.tasks.images import prepare_arrays
from fewstep.tasks.table import Standardization

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from fewstep.adapting.initialisation import Initialisation, LossName
    from fewstep.learners.adapted import Adapted
    from fewstep.learners.heads import HeadPolicy
    from fewstep.names import Checkpoint
    from fewstep.tasks.features import Feature
    from fewstep.tasks.images import Preparation
    from fewstep.training.records import RunFolder

_AT_ONCE = 256
"""Examples that are predicted together; the result does not depend on it."""
_DARK = 64
"""A level that the whitest pixel of some examples has, of 255 levels."""

log = logging.getLogger(__name__)


class _FewShot(BaseEstimator):
    """What both estimators share: examples in scikit-learn's form, as an initialisation takes them."""

    _loss: ClassVar[LossName]
    run: str | Path | None
    steps: int | None
    model: nn.Module | None
    checkpoint: Checkpoint
    random_state: Any
    device: str
    n_features_in_: int
    _features: Sequence[Feature]
    _targets: Sequence[str]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def _sees_pictures(self, *, reset: bool) -> bool:
        """As the run says, at `fit`; from then on as it said."""
        if not reset:
            return self.preparation_ is not None
        return self.run is not None and isinstance(recipe_of(open_run(self.run)).tasks, ImageTasks)

    def _validated(self, X: Any, y: Any, *, reset: bool, **checks: bool) -> tuple[np.ndarray, Any]:  # noqa: N803
        """`X` as float64 `[examples, features]`, of pictures in [0, 1], and `y` checked; `y` is None for queries.

        What has more axes is one row for each example to scikit-learn; `shape_` remembers how it came.
        """
        X = X if hasattr(X, "shape") else np.asarray(X)
        shape = tuple(X.shape[1:]) if len(X.shape) > 2 else None
        if shape is not None:
            X = np.reshape(X, (len(X), -1))
        if reset or y is not None:
            X, y = validate_data(self, X, y, reset=reset, **checks)
        else:
            X = validate_data(self, X, reset=False)
        if reset:
            self.shape_ = shape or (self.n_features_in_,)
        elif shape is not None and shape != self.shape_:
            raise ValueError(
                f"Every example must have the shape of the first ones, {list(self.shape_)}: got {list(shape)}. Bring "
                "them to one shape, or fit anew."
            )
        if not self._sees_pictures(reset=reset):
            return np.ascontiguousarray(X, np.float64), y  # torch takes no reversed ones
        if reset:
            self.white_ = _white(X)
        return _fractions(X, self.white_), y

    def _start(self, outputs: int) -> Initialisation:
        """From where to adapt; with it, how inputs become what the module sees: `preparation_`, `scale_`."""
        if self.run is None:
            start = untrained(self.model or self._network(outputs), self._loss)
        else:
            start = initialisation(self.run, self.model, self.checkpoint, self._loss)
        tasks = start.recipe.tasks
        self.preparation_: Preparation | None = None
        self.scale_: Standardization | None = None
        if self.run is not None and isinstance(tasks, ImageTasks):
            self.preparation_ = preparation_of(self.run)
        if self.run is not None and isinstance(tasks, TableTasks):
            self.scale_, self._features, self._targets = standardization(self.run), tasks.features, tasks.targets
        if self.preparation_ is None and (shapes := shapes_of(start.recipe)):
            self._require(*shapes, outputs)
        self.steps_ = start.recipe.evaluate.steps if self.steps is None else self.steps
        return start

    def _network(self, outputs: int) -> nn.Module:
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with drawing_from(derived_seed(seed, "model"), torch.get_default_device()):
            return mlp(self.shape_, outputs)

    def _require(self, shape: tuple[int, ...], targets: int, outputs: int) -> None:
        if (shape, targets) != (self.shape_, outputs):
            which = f": {', '.join(each.name for each in self._features)}" if self.scale_ is not None else ""
            raise ValueError(
                f"Examples must have the columns of the run's tasks, {shape[0]} in X and {targets} in y: got "
                f"{self.n_features_in_} and {outputs}. Give those columns, in the order of the recipe{which}."
            )

    def _inputs(self, X: np.ndarray) -> Tensor:  # noqa: N803
        """Rows as `_validated` gives them -> what the module takes, float32 `[examples, ...]`."""
        if self.preparation_ is not None:
            levels = np.rint(255 * X).astype(np.uint8)
            return prepare_arrays(levels.reshape(-1, *_as_picture(self.shape_)), self.preparation_).float() / 255
        rows = torch.tensor(X)
        if self.scale_ is not None:
            if self.run is not None:
                expect_indicators(rows, self._features)
            rows = self.scale_.inputs(rows)
            if self.run is not None:
                tell_of_far("Inputs", [each.name for each in self._features], rows)
        return rows.reshape(-1, *self.shape_).float()

    def _keep(self, adapted: Adapted) -> None:
        """Predictions are in double precision: an example's own do not depend on which others come with it."""
        self.module_ = adapted.as_module().cpu().double()

    @torch.no_grad()
    def _outputs(self, X: Any) -> Tensor:  # noqa: N803
        check_is_fitted(self, "module_")
        inputs = self._inputs(self._validated(X, None, reset=False)[0])
        return torch.cat([self.module_(part.double()) for part in inputs.split(_AT_ONCE)])


@final
class FewShotClassifier(ClassifierMixin, _FewShot):
    """A classifier that adapts a meta-learned initialisation to a few examples of each class.

    `X` is `[examples, features]`, or with more axes as the run's module takes it. For a run on pictures it is
    `[examples, height, width]` or `[examples, channels, height, width]` of any size, or flattened; whole numbers from 0
    to 255 or fractions from 0 to 1. Pictures are prepared as those of the run were. Labels are of any kind, and classes
    of any number. Each class weighs the same, however many examples it has. For a run on a table of classes
    (`tasks.classes`) labels are these, all or some of them, and weigh as in training.

    Args:
        run: A run folder or the name of a ready initialisation, trained by cross-entropy. None learns from the examples
            alone: a fresh network (`model`, or one of two hidden layers of 40) is trained by the same inner loop, in
            100 steps of Adam on standardised features. That is what meta-learning has to beat.
        steps: Gradient steps; by default what the run's recipe is evaluated with.
        head: Where the head begins, "trained", "zero", "mean" or "prototype" (`fewstep.learners.heads`); by default as
            trained, for as many classes, else as prototypes.
        model: The module that the run was trained with, if it was passed from Python.
        checkpoint: "best" by validation, or "final".
        random_state: Seed of a fresh network; a run needs none.
        device: Where to adapt; predictions are made on the CPU.

    Attributes:
        classes_: The labels, sorted.
        module_: The adapted module, float64, in evaluation mode.
        head_, steps_: How it was adapted.
        n_features_in_: Numbers in an example; `shape_` is how they came, `white_` the level of white of pictures.
    """

    _loss = "cross_entropy"

    def __init__(
        self,
        run: str | Path | None = None,
        *,
        steps: int | None = None,
        head: HeadPolicy | None = None,
        model: nn.Module | None = None,
        checkpoint: Checkpoint = "best",
        random_state: Any = 0,
        device: str = "cpu",
    ) -> None:
        self.run, self.steps, self.model = run, steps, model
        self.head: HeadPolicy | None = head
        self.checkpoint, self.random_state, self.device = checkpoint, random_state, device

    @classmethod
    def from_run(
        cls,
        run: str | Path | RunFolder,
        *,
        steps: int | None = None,
        head: HeadPolicy | None = None,
        model: nn.Module | None = None,
        checkpoint: Checkpoint = "best",
        device: str = "cpu",
    ) -> Self:
        """The estimator of a run that can be adapted; the constructor, as scikit-learn's do, looks only at `fit`.

        Raises:
            FewstepError: The run has learned nothing yet, or something else.
        """
        initialisation(run, model, checkpoint, cls._loss)
        return cls(_name(run), steps=steps, head=head, model=model, checkpoint=checkpoint, device=device)

    def fit(self, X: Any, y: Any) -> Self:  # noqa: N803
        """Adapt the initialisation to these examples.

        Raises:
            ValueError: Examples are of a wrong form, or of fewer than two classes.
            FewstepError: The run cannot be adapted so.
        """
        X, y = self._validated(X, y, reset=True)
        check_classification_targets(y)
        own = self._classes_of_run(y)
        classes = _at_least_two(np.unique(y)) if own is None else own
        return self._adapt(X, _labels(y, classes), classes)

    def partial_fit(self, X: Any, y: Any, classes: Sequence[Any] | None = None) -> Self:  # noqa: N803
        """Adapt the initialisation anew, to these examples and all before: the same as `fit` with all of them.

        Args:
            X: More examples, of one class or several.
            y: Their labels.
            classes: All classes that will come, at the first call; of a run on a table of classes they are known. One
                that has not come yet has probability 0, if it is not of the run's own.

        Raises:
            ValueError: As for `fit`; or a label is none of the classes.
        """
        first = not hasattr(self, "_support")
        X, y = self._validated(X, y, reset=first)
        check_classification_targets(y)
        known = self._classes_of_run(y) if first else self.classes_
        if first and known is not None and classes is not None and {*classes} != {*known.tolist()}:
            raise ValueError(f"The classes of the run are {known.tolist()}: got {[*classes]}. Leave `classes` out.")
        if known is None:
            if classes is None:
                raise ValueError(
                    "`classes` must hold all labels at the first call of partial_fit: got None. Give them."
                )
            known = _at_least_two(np.unique(np.asarray(classes)))
        labels = _labels(y, known)
        if not first:
            X, labels = (np.concatenate(both) for both in zip(self._support, (X, labels), strict=True))
        return self._adapt(X, labels, known)

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Probability of each class `[examples, classes]`, in the order of `classes_`; not calibrated."""
        outputs = self._outputs(X)
        probabilities = np.zeros((len(outputs), len(self.classes_)))
        probabilities[:, self._seen] = outputs.softmax(1).numpy()
        return probabilities

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """The most probable class of each example."""
        most = self.predict_proba(X).argmax(1)
        return self.classes_[most]

    def _adapt(self, X: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> Self:  # noqa: N803
        """To the classes that have come, others have no example to tell them by; or to those that the run knows."""
        of_run = self._classes_of_run(classes) is not None
        if of_run and self.head not in (None, "trained"):
            raise RecipeError(
                f"A head is begun anew for other classes than in training: got head={self.head!r} for a run whose "
                f"classes are always {', '.join(map(str, classes))}. Leave it out."
            )
        if of_run:  # whose outputs are in an order of its own
            order = self._order_of_run(classes)
            seen, own = order, np.argsort(order)[labels]
        else:
            seen, own = np.unique(labels, return_inverse=True)
        start = self._start(len(seen))
        if self.run is None:
            self.scale_ = _features_scale(X)
        self.head_: HeadPolicy = "trained" if of_run else head_policy(start, len(seen), self.head)
        support = Batch(self._inputs(X), torch.tensor(own))
        if of_run:
            adapted = fit_same_outputs(start, support, self.steps_, functional.cross_entropy, device=self.device)
        else:
            adapted = fit_classifier(start, support, len(seen), self.steps_, self.head_, device=self.device)
        self._keep(adapted)
        self._support, self._seen, self.classes_ = (X, labels), seen, classes
        return self

    def _classes_of_run(self, labels: np.ndarray) -> np.ndarray | None:
        """Those of a table, if they mean the same in all of the run's tasks; as numbers, if the labels are."""
        classes = None if self.run is None else classes_of(recipe_of(open_run(self.run)))
        if classes is None:
            return None
        if labels.dtype.kind not in "iuf" or not all(re.fullmatch(r"0|-?[1-9]\d{0,15}", name) for name in classes):
            return np.unique(classes)
        numbers = np.unique([int(name) for name in classes])
        alike = numbers.astype(labels.dtype)  # which may be too narrow
        return alike if (alike == numbers).all() else numbers

    def _order_of_run(self, classes: np.ndarray) -> np.ndarray:
        """The place among the sorted classes of that of each output."""
        assert self.run is not None
        names = [str(int(name)) if classes.dtype.kind in "iuf" else str(name) for name in classes]
        return np.array([names.index(name) for name in classes_of(recipe_of(open_run(self.run))) or ()])


@final
class FewShotRegressor(RegressorMixin, _FewShot):
    """A regressor that adapts a meta-learned initialisation to a few examples.

    `X` is `[examples, features]` and `y` `[examples]` or `[examples, targets]`, in your own units: for a run on a table
    they are standardised as the run's were, and predictions come back in your units.

    Args:
        run: A run folder or the name of a ready initialisation, trained by the mean squared error. None as for
            `FewShotClassifier`; targets are standardised too.
        steps: As for `FewShotClassifier`, like all that follow.
        model: See there.
        checkpoint: See there.
        random_state: See there.
        device: See there.

    Attributes:
        module_: The adapted module, float64, in evaluation mode: between standardised numbers, where there is `scale_`.
        steps_: Gradient steps that it took.
        n_features_in_: Numbers in an example; `shape_` is how they came.
    """

    _loss = "mse"

    def __init__(
        self,
        run: str | Path | None = None,
        *,
        steps: int | None = None,
        model: nn.Module | None = None,
        checkpoint: Checkpoint = "best",
        random_state: Any = 0,
        device: str = "cpu",
    ) -> None:
        self.run, self.steps, self.model = run, steps, model
        self.checkpoint, self.random_state, self.device = checkpoint, random_state, device

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    @classmethod
    def from_run(
        cls,
        run: str | Path | RunFolder,
        *,
        steps: int | None = None,
        model: nn.Module | None = None,
        checkpoint: Checkpoint = "best",
        device: str = "cpu",
    ) -> Self:
        """As `FewShotClassifier.from_run`."""
        initialisation(run, model, checkpoint, cls._loss)
        return cls(_name(run), steps=steps, model=model, checkpoint=checkpoint, device=device)

    def fit(self, X: Any, y: Any) -> Self:  # noqa: N803
        """Adapt the initialisation to these examples.

        Raises:
            ValueError: Examples are of a wrong form.
            FewstepError: The run cannot be adapted so.
        """
        X, y = self._validated(X, y, reset=True, multi_output=True, y_numeric=True)
        return self._adapt(X, np.ascontiguousarray(y, np.float64))

    def partial_fit(self, X: Any, y: Any) -> Self:  # noqa: N803
        """Adapt the initialisation anew, to these examples and all before: the same as `fit` with all of them.

        Raises:
            ValueError: As for `fit`; or these have other features or targets.
        """
        if not hasattr(self, "module_"):
            return self.fit(X, y)
        X, y = self._validated(X, y, reset=False, multi_output=True, y_numeric=True)
        before, targets = self._support
        if y.shape[1:] != targets.shape[1:]:
            raise ValueError(
                f"`y` must be as at the first call, {list(targets.shape[1:]) or 'a number'} for each example: got "
                f"{list(y.shape[1:]) or 'a number'}. Give the same targets, or fit anew."
            )
        return self._adapt(np.concatenate([before, X]), np.concatenate([targets, y]))

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """The targets of each example, in the form of those that were given."""
        outputs = self._outputs(X)
        outputs = outputs if self.scale_ is None else self.scale_.restore(outputs)
        return outputs.numpy().reshape(-1, *self._support[1].shape[1:])

    def _adapt(self, X: np.ndarray, y: np.ndarray) -> Self:  # noqa: N803
        targets = torch.tensor(y.reshape(len(y), -1))
        start = self._start(targets.shape[1])
        if self.run is None:
            self.scale_ = Standardization.fit([Batch(torch.tensor(X), targets)])
        scaled = targets.float() if self.scale_ is None else self.scale_.targets(targets)
        if self.run is not None and self.scale_ is not None:
            tell_of_far("Targets", self._targets, scaled)
            scale, given = self.scale_, torch.from_numpy(X)
            tell_of_scaled("Inputs", given, scale.input_mean, scale.input_std)
            tell_of_scaled("Targets", targets, scale.target_mean, scale.target_std)
        support = Batch(self._inputs(X), scaled)
        self._keep(fit_same_outputs(start, support, self.steps_, mean_squared_error, device=self.device))
        self._support = X, y
        return self


def _name(run: str | Path | RunFolder) -> str:
    """What a parameter of an estimator can be: copied, compared and printed."""
    return str(run) if isinstance(run, str | Path) else str(run.path)


def _features_scale(X: np.ndarray) -> Standardization:  # noqa: N803
    rows = torch.tensor(X)
    return Standardization.fit([Batch(rows, rows)])


def _labels(y: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The place of each label among the classes, which are sorted."""
    y = y.astype(str) if y.dtype.kind == "O" and classes.dtype.kind == "U" else y
    strangers = np.setdiff1d(y, classes)
    if len(strangers):
        raise ValueError(
            f"Labels must be among the classes of the first call, or of the run, {classes.tolist()}: got "
            f"{strangers.tolist()}. Name all classes at the first call, or fit anew."
        )
    return np.searchsorted(classes, y)


def _at_least_two(classes: np.ndarray) -> np.ndarray:
    if len(classes) < 2:
        raise ValueError(
            f"A classifier needs two classes or more: got only one class, {classes.tolist()}. Add examples of another."
        )
    return classes


def _white(pixels: np.ndarray) -> int:
    """The level of white: 255 of whole numbers of which one is above 1, else 1."""
    whole = bool((pixels % 1 == 0).all())
    white = 255 if whole and pixels.max() > 1 else 1
    if white == 255 and pixels.max() < _DARK:
        log.warning(
            "Pixels from 0 to %g are taken for very dark ones: white is 255. If it is %g here, divide by it, in fit "
            "and predict alike",
            pixels.max(),
            pixels.max(),
        )
    return white


def _fractions(pixels: np.ndarray, white: int) -> np.ndarray:
    """Pixels on the scale of those that were adapted to -> fractions from 0 to 1, float64."""
    most = pixels.max()
    on_scale = pixels.min() >= 0 and most <= white and (white == 1 or bool((pixels % 1 == 0).all()))
    if white == 255 and pixels.dtype.kind not in "iu" and 0 < most <= 1:  # ink or none, as fractions
        on_scale = False
    if not on_scale:
        scale = "whole numbers from 0 to 255" if white == 255 else "fractions from 0 to 1"
        raise ValueError(
            f"Pixels must keep one scale in fit and predict, here {scale}: got {pixels.dtype} from {pixels.min():g} "
            f"to {most:g}. Whole numbers from 0 to 255 and fractions from 0 to 1 are possible: divide by the level of "
            "white."
        )
    return pixels / white


def _as_picture(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Channels, height and width of an example of this shape: as it says, or of a square if it is flat.

    Raises:
        ValueError: It is no picture.
    """
    if len(shape) == 2:
        return (1, *shape)
    if len(shape) == 3 and shape[0] in (1, 3):
        return shape
    for channels in (1, 3) if len(shape) == 1 else ():
        side = math.isqrt(shape[0] // channels)
        if channels * side**2 == shape[0]:
            return channels, side, side
    raise ValueError(
        "A picture is [height, width], [channels, height, width] with 1 or 3 channels, or a flattened square of that: "
        f"got {list(shape)}. Reshape X, channels first."
    )
