"""The paper's classification baselines (section 5.2): one classifier of all meta-train classes, then of few."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, final

from torch import Tensor, nn

from fewstep.core.rng import generator
from fewstep.core.types import Batch, MetaParams, Params
from fewstep.learners.nearest_neighbour import NearestNeighbour

if TYPE_CHECKING:
    from fewstep.core.types import Task
    from fewstep.learners.adapted import Adapted
    from fewstep.learners.supervised import SupervisedLearner
    from fewstep.names import Normalization


@final
class PretrainedLearner:
    """Trains an ordinary classifier; tasks of few new classes are solved with all of it but its head.

    Two methods, the paper's "fine-tuning" and "nearest neighbor" baselines: a `SupervisedLearner` descends the
    support loss from a new head for the task's classes; a `NearestNeighbour` compares what the head saw.

    Args:
        classifier: One task in training, `AllClasses`, and no inner steps: `joint()`.
        few_shot: Solves tasks with the `few_shot_network` or the `feature_network` of the classifier, whose
            parameters it is given; every task begins with the head that it has now.
    """

    def __init__(self, classifier: SupervisedLearner, few_shot: SupervisedLearner | NearestNeighbour) -> None:
        self._classifier, self._few_shot = classifier, few_shot
        self._head: Params = {n: v.clone() for n, v in few_shot.meta.model.items() if n.startswith("head.")}

    @property
    def iteration(self) -> int:
        """Updates of the classifier."""
        return self._classifier.iteration

    @iteration.setter
    def iteration(self, value: int) -> None:
        self._classifier.iteration = value

    @property
    def meta(self) -> MetaParams:
        """The classifier of all meta-train classes."""
        return self._classifier.meta

    def step(self, tasks: Task) -> dict[str, float]:
        """One update of the classifier; see `SupervisedLearner.step`."""
        return self._classifier.step(tasks)

    def adapt(self, support: Batch, steps: int | None = None, normalization: Normalization | None = None) -> Adapted:
        """Fine-tune on one task; see `SupervisedLearner.adapt`.

        Raises:
            ValueError: The method is nearest neighbour, which adapts nothing.
        """
        if isinstance(self._few_shot, NearestNeighbour):
            raise ValueError(
                "To adapt, the method must be 'finetune': got 'nearest_neighbour', which changes no parameter. "
                "Set algorithm.method = 'finetune'."
            )
        self._share()
        return self._few_shot.adapt(support, steps, normalization)

    def evaluate(
        self, tasks: Any, steps: int, *, normalization: Normalization | None = None, last_only: bool = False
    ) -> dict[str, Tensor]:
        """Metrics on few-shot tasks, as for `SupervisedLearner` where it is fine-tuned, `[tasks, 1]` of neighbours."""
        self._share()
        return self._few_shot.evaluate(tasks, steps, normalization=normalization, last_only=last_only)

    def constants(self) -> str:
        """As for `SupervisedLearner`."""
        return self._classifier.constants()

    def load_meta(self, meta: MetaParams) -> None:
        """Take over a classifier; see `SupervisedLearner.load_meta`."""
        self._classifier.load_meta(meta)

    def state_dict(self) -> dict[str, Any]:
        """The classifier's; fine-tuning leaves nothing behind."""
        return self._classifier.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self._classifier.load_state_dict(state)

    def _share(self) -> None:
        self._few_shot.load_meta(MetaParams(self._classifier.meta.model | self._head, {}))


def feature_network(classifier: nn.Module) -> nn.Module:
    """A copy of a classifier that gives what its head sees, `[examples, features]`.

    Raises:
        ValueError: It has no linear layer `head`.
    """
    _head_of(classifier)
    return _with_head(classifier, nn.Identity())


def few_shot_network(classifier: nn.Module, ways: int, head_std: float = 0.0, seed: int = 0) -> nn.Module:
    """A copy of a classifier with a new linear head.

    Args:
        classifier: A module whose last layer is a linear one named `head`.
        ways: Classes, the outputs of the new head.
        head_std: Standard deviation of its normal weights; with 0, all classes are equally likely at first.
        seed: Of these weights.

    Raises:
        ValueError: It has no linear layer `head`.
    """
    own = _head_of(classifier)
    head = nn.Linear(own.in_features, ways, device="meta", dtype=own.weight.dtype)  # draws no random number
    head.to_empty(device=own.weight.device)
    nn.init.normal_(head.weight, std=head_std, generator=generator(seed, "head"))
    nn.init.zeros_(head.bias)
    return _with_head(classifier, head)


def _head_of(classifier: nn.Module) -> nn.Linear:
    head = getattr(classifier, "head", None)
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"A classifier to pretrain must have a linear layer named `head`, its last: got {type(head).__name__}. "
            "Name that layer so."
        )
    return head


def _with_head(classifier: nn.Module, head: nn.Module) -> nn.Module:
    changed = copy.deepcopy(classifier)
    changed.head = head
    return changed
