"""Policies around any network, and the distributions of actions that they give."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, final

import torch
from torch import Tensor, nn

from fewstep.core.expect import expect_positive
from fewstep.rl.environment import Continuous

if TYPE_CHECKING:
    from fewstep.rl.environment import ActionSpace


class Distribution(Protocol):
    """pi(. | o): how actions are distributed, one distribution for each observation.

    One of your own is a NamedTuple of tensors, as those below are: it is mapped over tasks, and detached, as a tree.
    """

    def log_prob(self, actions: Tensor) -> Tensor:
        """The logarithm of pi(a | o), `[...]`."""
        ...

    @property
    def mode(self) -> Tensor:
        """The actions that are most probable."""
        ...

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """Actions as a function of the noise that `draw_noise` gives; without it, of noise from torch's own stream."""
        ...

    def kl(self, other: Self) -> Tensor:
        """KL(self || other), `[...]`."""
        ...


class Gaussian(NamedTuple):
    """Normal, independent in each element of an action.

    Attributes:
        mean: `[..., size]`.
        log_std: `[..., size]`.
    """

    mean: Tensor
    log_std: Tensor

    def log_prob(self, actions: Tensor) -> Tensor:
        """-sum_i [(a_i - mu_i)^2 / (2 sigma_i^2) + log sigma_i + log(2 pi) / 2]."""
        standard = (actions - self.mean) * (-self.log_std).exp()
        return -(standard.square() / 2 + self.log_std + math.log(2 * math.pi) / 2).sum(-1)

    @property
    def mode(self) -> Tensor:
        """mu, `[..., size]`."""
        return self.mean

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """The action mu + sigma * noise, of normal noise `[..., size]`, by default from torch's own stream."""
        noise = torch.randn_like(self.mean) if noise is None else noise
        return self.mean + self.log_std.exp() * noise

    def kl(self, other: Gaussian) -> Tensor:
        """sum_i [log(sigma'_i / sigma_i) + (sigma_i^2 + (mu_i - mu'_i)^2) / (2 sigma'_i^2) - 1/2]."""
        spread = (2 * (self.log_std - other.log_std)).exp()
        distance = ((self.mean - other.mean) * (-other.log_std).exp()).square()
        return (other.log_std - self.log_std + (spread + distance - 1) / 2).sum(-1)


class Categorical(NamedTuple):
    """One of several actions.

    Attributes:
        logits: `[..., count]`, up to a constant.
    """

    logits: Tensor

    def log_prob(self, actions: Tensor) -> Tensor:
        """Of indices `[...]`."""
        return self.logits.log_softmax(-1).gather(-1, actions[..., None]).squeeze(-1)

    @property
    def mode(self) -> Tensor:
        """The index with the largest logit, `[...]`."""
        return self.logits.argmax(-1)

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """The index below which the cumulative probability reaches the noise, uniform in [0, 1), `[...]`.

        By default the noise is from torch's own stream.
        """
        noise = torch.rand_like(self.logits[..., 0]) if noise is None else noise
        reached = self.logits.softmax(-1).cumsum(-1)[..., :-1]  # the last is 1, but for rounding
        return (reached <= noise[..., None]).sum(-1)

    def kl(self, other: Categorical) -> Tensor:
        """sum_a pi(a) log(pi(a) / pi'(a))."""
        own, others = self.logits.log_softmax(-1), other.logits.log_softmax(-1)
        return (own.exp() * (own - others)).sum(-1)


@final
class GaussianPolicy(nn.Module):
    """pi(a | o) = N(f(o), sigma^2), whose sigma depends on no observation and is learned and adapted like all else.

    Args:
        network: f, any module from `[examples, features]` to `[examples, size]`.
        size: Elements of an action.
        init_std: sigma at first.
        min_std: Bound below.
    """

    def __init__(self, network: nn.Module, size: int, init_std: float = 1.0, min_std: float = 1e-6) -> None:
        super().__init__()
        expect_positive("init_std", init_std)
        expect_positive("min_std", min_std)
        self.network = network
        self.log_std = nn.Parameter(torch.full((size,), math.log(init_std)))
        self._least = math.log(min_std)

    def forward(self, observations: Tensor) -> Gaussian:
        """Distributions for observations `[..., features]`, one or many."""
        mean = _apply(self.network, observations, len(self.log_std))
        return Gaussian(mean, self.log_std.clamp(min=self._least).expand_as(mean))


@final
class CategoricalPolicy(nn.Module):
    """pi(a | o) = softmax(f(o))_a.

    Args:
        network: f, any module from `[examples, features]` to `[examples, count]`.
        count: Actions to choose from.
    """

    def __init__(self, network: nn.Module, count: int) -> None:
        super().__init__()
        self.network, self._count = network, count

    def forward(self, observations: Tensor) -> Categorical:
        """Distributions for observations `[..., features]`, one or many."""
        return Categorical(_apply(self.network, observations, self._count))


def policy_for(actions: ActionSpace, network: nn.Module) -> GaussianPolicy | CategoricalPolicy:
    """The policy that chooses among such actions.

    Args:
        actions: What there is to choose from.
        network: Any module from `[examples, features]` to `[examples, outputs_for(actions)]`.
    """
    if isinstance(actions, Continuous):
        return GaussianPolicy(network, actions.size)
    return CategoricalPolicy(network, actions.count)


def outputs_for(actions: ActionSpace) -> int:
    """Outputs of a policy's network."""
    return actions.size if isinstance(actions, Continuous) else actions.count


def draw_noise(actions: ActionSpace, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """What `Distribution.sample` turns into actions: `[*shape, size]` normal, or `[*shape]` uniform."""
    if isinstance(actions, Continuous):
        return torch.randn((*shape, actions.size), generator=generator)
    return torch.rand(shape, generator=generator)


def _apply(network: nn.Module, observations: Any, outputs: int) -> Tensor:
    """The network on all observations at once, as examples; or on a single one. Arrays will do."""
    observations = torch.as_tensor(observations)
    like = next(network.parameters(), None)
    if like is not None:
        observations = observations.to(like)
    single = observations.dim() == 1
    examples = observations[None] if single else observations.flatten(0, -2)
    came: Any = network(examples)
    if not isinstance(came, Tensor) or came.shape != (len(examples), outputs):
        what = list(came.shape[1:]) if isinstance(came, Tensor) else f"a {type(came).__name__}"
        raise ValueError(
            f"A policy's network must give {outputs} numbers for each observation, as there are actions to choose "
            f"from or elements in one: got {what}. `fewstep.rl.policy.outputs_for(actions)` is that number."
        )
    return came[0] if single else came.unflatten(0, observations.shape[:-1])
