"""Few-shot classification without adaptation: the label of the nearest support example."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.core.functional import FunctionalModule
from fewstep.core.meta import same_size_groups
from fewstep.core.normalization import policy_followed
from fewstep.core.over_tasks import auto
from fewstep.core.trees import concatenate, to_device
from fewstep.core.types import MetaParams, OverTasks, Task
from fewstep.learners.learner import take_over

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fewstep.learners.supervised import Loss
    from fewstep.names import Distance, Normalization


def nearest_neighbour_scores(
    queries: Tensor, examples: Tensor, labels: Tensor, ways: int, distance: Distance = "euclidean"
) -> Tensor:
    """How near each query is to each class: s_c = -min d(query, example) over the examples of class c.

    The largest score is that of the nearest neighbour's class.

    Args:
        queries: Features `[queries, features]`.
        examples: Features `[examples, features]`.
        labels: Classes of the examples `[examples]`.
        ways: N, number of classes.
        distance: "euclidean", or "cosine", which orders by the angle: the Euclidean distance at length 1.

    Returns:
        Scores `[queries, ways]`; minus infinity for a class without examples.
    """
    if distance == "cosine":
        queries, examples = functional.normalize(queries, dim=-1), functional.normalize(examples, dim=-1)
    distances = (queries.unsqueeze(-2) - examples).square().sum(-1).sqrt()
    of_class = labels.unsqueeze(-1) == torch.arange(ways, device=labels.device)
    return -torch.where(of_class, distances.unsqueeze(-1), torch.inf).amin(-2)


@final
class NearestNeighbour:
    """Classifies queries by their nearest support example in the space of a network's features.

    Args:
        features: From inputs `[examples, ...]` to features `[examples, features]`.
        loss: Scalar loss of scores, as logits, and labels.
        ways: Classes per task.
        distance: Between features.
        normalization: Policy for batch normalisation.
        metrics: More functions of scores and labels to evaluate, by name; "loss" is always there.
        over_tasks: How the map over tasks is executed.
        device: Where parameters and computation live.
    """

    def __init__(
        self,
        features: nn.Module,
        loss: Loss,
        ways: int,
        *,
        distance: Distance = "euclidean",
        normalization: Normalization = "transductive",
        metrics: Mapping[str, Loss] | None = None,
        over_tasks: OverTasks | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self._module = FunctionalModule(features, normalization, second_order=False).to(device)
        self._module.train(False)
        self.meta = MetaParams(self._module.params, {})
        self._ways = ways
        self._distance: Distance = distance
        self._normalization: Normalization = normalization
        self._metrics: dict[str, Loss] = {"loss": loss, **(metrics or {})}
        self._over_tasks = over_tasks or auto()
        self._device = torch.device(device)
        self._scored: dict[Normalization, Callable[[MetaParams, Task], dict[str, Tensor]]] = {}

    @torch.no_grad()
    def evaluate(
        self,
        tasks: Task | Sequence[Task],
        steps: int = 0,  # noqa: ARG002
        *,
        normalization: Normalization | None = None,
        last_only: bool = False,  # noqa: ARG002
    ) -> dict[str, Tensor]:
        """Query metrics; there are no steps.

        Args:
            tasks: A `Task` with a leading `tasks` axis, or a list of them, one for each size.
            steps: Ignored.
            normalization: Policy for the query sets, by default the one built with.
            last_only: Ignored.

        Returns:
            For each metric, `[tasks, 1]`.

        Raises:
            ValueError: The policy is not one that this network can follow.
        """
        policy = policy_followed(normalization, self._normalization)
        if policy not in self._scored:
            self._scored[policy] = self._scoring(policy)
        mapped = self._over_tasks(self._scored[policy])
        groups = [to_device(group, self._device) for group in same_size_groups(tasks)]
        scored = concatenate([mapped(self.meta, group) for group in groups])
        return {name: values.unsqueeze(1).cpu() for name, values in scored.items()}

    def load_meta(self, meta: MetaParams) -> None:
        """Take over the parameters of the network.

        Raises:
            ValueError: They belong to another network.
        """
        own = {name: value for name, value in meta.model.items() if name in self.meta.model}  # not the head
        take_over(self.meta, MetaParams(own, {}))

    def _scoring(self, normalization: Normalization) -> Callable[[MetaParams, Task], dict[str, Tensor]]:
        def scored(meta: MetaParams, task: Task) -> dict[str, Tensor]:
            support, query = task
            statistics = self._module.statistics(meta.model, support.inputs) if normalization == "support" else None
            examples: Any = self._module(meta.model, support.inputs)
            queries: Any = self._module(meta.model, query.inputs, statistics)
            scores = nearest_neighbour_scores(queries, examples, support.targets, self._ways, self._distance)
            return {name: metric(scores, query.targets) for name, metric in self._metrics.items()}

        return scored
