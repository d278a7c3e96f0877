"""Heads for another number of ways than was trained: a module's last layer, an `nn.Linear`, made anew.

The head has a weight `[ways, features]` and a bias `[ways]`; a class's logit is w_c . f + b_c for features f.

| policy | w_c | b_c |
|---|---|---|
| trained | the trained row of label c | its bias |
| zero | 0 | 0 |
| mean | the mean of the trained rows | the mean of the trained biases |
| prototype | 2 mu_c | -mu_c . mu_c |

mu_c is the mean feature of class c over its support examples, at the initialisation. A prototype head's logits are
-|f - mu_c|^2 up to a term that no class owns: it starts as a prototypical network ("ProtoMAML", Triantafillou et al.
2020, section 3). Whatever the policy, the head then adapts like everything else.

With softmax and gradient descent `mean` gives the predictions of `zero`: what is the same in all rows adds the same to
all logits, and to no gradient, since sum_c (p_c - y_c) = 0.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from fewstep.core.normalization import named_modules, with_own_norms
from fewstep.core.types import Batch, MetaParams, Params

if TYPE_CHECKING:
    from fewstep.names import Normalization

HeadPolicy: TypeAlias = Literal["trained", "zero", "mean", "prototype"]
"""How the head for new classes comes about; "trained" is for as many as were trained."""


def head_name(module: nn.Module) -> str:
    """The dotted name of a module's head: its one `nn.Linear` called "head", at whatever depth.

    Raises:
        ValueError: There is none, or several.
    """
    layers = [name or "the module itself" for name, layer in named_modules(module) if isinstance(layer, nn.Linear)]
    heads = [name for name in layers if name.rpartition(".")[2] == "head"]
    if len(heads) != 1:
        raise ValueError(
            f"A model for any number of ways has one nn.Linear called 'head' as its last layer: got {len(heads)} of "
            f"that name (linear layers: {', '.join(layers) or 'none'}). Name the last layer so."
        )
    return heads[0]


def ways_of(module: nn.Module) -> int:
    """The number of outputs of a module's head."""
    return cast("nn.Linear", module.get_submodule(head_name(module))).out_features


def with_ways(module: nn.Module, ways: int) -> nn.Module:
    """A copy of a module whose head has a number of outputs: as it is, or else with parameters of no meaning yet.

    Args:
        module: Any module with a head; see `head_name`.
        ways: Classes.
    """
    module, head = copy.deepcopy(module), head_name(module)
    old = cast("nn.Linear", module.get_submodule(head))
    if old.out_features == ways:
        return module
    has_bias = cast("Tensor | None", old.bias) is not None
    new = cast("Any", nn.utils).skip_init(nn.Linear, old.in_features, ways, has_bias).to(old.weight)
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(old.get_parameter(name).requires_grad)
    module.set_submodule(head, new)
    return module


@torch.no_grad()
def features(module: nn.Module, params: Params, inputs: Tensor, normalization: Normalization = "support") -> Tensor:
    """What the head sees, `[examples, features]`.

    Args:
        module: As for `with_ways`.
        params: theta, all learnable parameters of the module.
        inputs: Of one task's support set, `[examples, ...]`.
        normalization: Batch normalisation uses these inputs' own statistics unless it is "running".
    """
    head = head_name(module)
    body = with_own_norms(copy.deepcopy(module), normalization).eval()
    body.set_submodule(head, nn.Identity())
    below = {name: value for name, value in params.items() if not name.startswith(f"{head}.")}
    return torch.func.functional_call(body, below, (inputs,))


def with_head(
    policy: HeadPolicy,
    meta: MetaParams,
    module: nn.Module,
    support: Batch,
    ways: int,
    normalization: Normalization = "support",
) -> MetaParams:
    """Meta-parameters whose head has `ways` rows; learned rates of a head's rows become the mean of the trained ones.

    Args:
        policy: See the table above.
        meta: As trained.
        module: As trained.
        support: The new task's examples, with labels from 0 to ways - 1.
        ways: Classes of the new task.
        normalization: As for `features`.

    Raises:
        ValueError: The module has no head, one that is frozen, or for prototypes one without bias.
    """
    if policy == "trained":
        return meta
    head = head_name(module)
    weight, bias = f"{head}.weight", f"{head}.bias"
    names = [name for name in (weight, bias) if name in dict(module.named_parameters())]
    frozen = [name for name in names if name not in meta.model]
    if frozen:
        raise ValueError(f"A head for other classes must be learned: {frozen[0]} is frozen. Set its requires_grad.")
    rows = {name: _mean_row(meta.model[name], ways) for name in names}
    if policy == "zero":
        rows = {name: torch.zeros_like(row) for name, row in rows.items()}
    elif policy == "prototype":
        if bias not in names:
            raise ValueError(
                f"A prototype head holds -|mu_c|^2 in its bias: {head} has none. Give it one, or begin with zero."
            )
        means = class_means(features(module, meta.model, support.inputs, normalization), support.targets, ways)
        rows = {weight: 2 * means, bias: -means.square().sum(1)}
    # A rate of each element goes with the row that it stands in; one for a whole tensor stays.
    rates = [f"lr.{name}" for name in names if f"lr.{name}" in meta.rule and meta.rule[f"lr.{name}"].dim() > 0]
    return MetaParams(meta.model | rows, meta.rule | {name: _mean_row(meta.rule[name], ways) for name in rates})


def class_means(values: Tensor, labels: Tensor, ways: int) -> Tensor:
    """Mean over the examples of each class, `[ways, features]`, whatever their numbers.

    Args:
        values: `[examples, features]`.
        labels: int64 `[examples]`, each class at least once.
        ways: Classes.
    """
    members = nn.functional.one_hot(labels, ways).to(values)
    return members.T @ values / members.sum(0).unsqueeze(1)


def balanced_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over classes of each class's mean cross-entropy: no class weighs more for having more examples.

    Equal to the plain mean where all classes have as many.

    Args:
        logits: `[examples, ways]`.
        labels: int64 `[examples]`, each class at least once.
    """
    counts = nn.functional.one_hot(labels, logits.shape[1]).sum(0)
    return nn.functional.cross_entropy(logits, labels, weight=1 / counts.to(logits))


def _mean_row(rows: Tensor, ways: int) -> Tensor:
    return rows.mean(0, keepdim=True).repeat(ways, *(1,) * (rows.dim() - 1))
