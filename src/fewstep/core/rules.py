"""Inner-loop rules: how one gradient becomes one inner step.

A rule is a frozen value with the four methods of `UpdateRule`. The concrete rules are optimizers written as pure
functions, so that the outer loop can differentiate through them; the wrappers change one thing about any rule, and
compose: `Detached(Only("head.*", Sgd(0.1)))` is first-order ANIL.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, cast, final, get_args, runtime_checkable

import torch
from torch import Tensor

from fewstep.core.context import vmapped
from fewstep.core.expect import expect_decay, expect_number
from fewstep.core.types import Params

if TYPE_CHECKING:
    from collections.abc import Iterator

State: TypeAlias = dict[str, Params]
"""What a rule carries from one inner step to the next; empty for SGD."""

Per: TypeAlias = Literal["scalar", "tensor", "parameter"]
"""What has a learned rate of its own: everything together, each tensor, or each of its elements."""


class UpdateRule(Protocol):
    """How one gradient becomes one inner step. Every method sees adapted parameters only."""

    @property
    def second_order(self) -> bool:
        """Whether the outer gradient flows through the inner gradients."""
        ...

    def selects(self, name: str) -> bool:
        """Whether the inner loop adapts this parameter."""
        ...

    def hyperparameters(self, params: Params) -> Params:
        """What the outer loop may learn about this rule, at its initial value: `{}` for MAML."""
        ...

    def init(self, params: Params) -> State:
        """The state before the first step: `{}` for SGD; moments for momentum and Adam."""
        ...

    def __call__(self, params: Params, grads: Params, state: State, learned: Params, step: int) -> tuple[Params, State]:
        """One update.

        Args:
            params: The adapted parameters, theta^(k).
            grads: Gradient of the support loss at `params`.
            state: As left by the step before.
            learned: The current values of `hyperparameters`.
            step: k, from 0.

        Returns:
            theta^(k+1) and the new state.
        """
        ...


def expect_rule(rule: object) -> None:
    """See that something is an inner rule.

    Raises:
        ValueError: It is not.
    """
    methods = ("selects", "hyperparameters", "init", "__call__")
    is_rule = all(callable(getattr(rule, name, None)) for name in methods) and hasattr(rule, "second_order")
    if isinstance(rule, type) or not is_rule:
        raise ValueError(f"An inner rule is a value such as fewstep.Sgd(0.01), the step size in it: got {rule!r}.")
    try:
        hash(rule)
    except TypeError as error:
        raise ValueError(
            f"An inner rule is a value that nothing changes: got {rule!r}, which has no hash ({error}). Make its class "
            "`@dataclass(frozen=True)`, and of lists in it tuples."
        ) from None


def checked_step(rule: UpdateRule, came: Any) -> tuple[Params, State]:
    """What a rule, perhaps of the user's own, returned.

    Raises:
        ValueError: It is not the parameters after the step and the state.
    """
    kind = type(cast("object", came))
    if issubclass(kind, tuple) and len(came) == 2:
        return came
    raise ValueError(
        f"An inner rule returns the parameters after a step and its state, (params, state): {type(rule).__name__} "
        f"returned a {kind.__name__}. One without state returns what it was given."
    )


def selected(params: Params, rule: UpdateRule) -> Params:
    """The parameters that the inner loop adapts."""
    return {name: value for name, value in params.items() if rule.selects(name)}


@dataclass(frozen=True)
class _Rule:
    """The defaults of a concrete rule: adapts everything, second-order, nothing to learn, no state."""

    lr: float

    def __post_init__(self) -> None:
        expect_number("lr", self.lr)  # a step goes down the gradient by itself

    @property
    def second_order(self) -> bool:
        return True

    def selects(self, name: str) -> bool:  # noqa: ARG002
        return True

    def hyperparameters(self, params: Params) -> Params:  # noqa: ARG002
        return {}

    def init(self, params: Params) -> State:  # noqa: ARG002
        return {}


@final
@dataclass(frozen=True)
class Sgd(_Rule):
    """Gradient descent (Finn et al. 2017, equation 1): theta' = theta - lr * g.

    Attributes:
        lr: alpha, the inner step size.
    """

    lr: float

    def __call__(
        self,
        params: Params,
        grads: Params,
        state: State,
        learned: Params,  # noqa: ARG002
        step: int,  # noqa: ARG002
    ) -> tuple[Params, State]:
        """One step; see `UpdateRule`."""
        return {name: value - self.lr * grads[name] for name, value in params.items()}, state


@final
@dataclass(frozen=True)
class Momentum(_Rule):
    """Heavy-ball gradient descent, as in `torch.optim.SGD`: v' = m v + g, theta' = theta - lr v'.

    Attributes:
        lr: Inner step size.
        momentum: m.
        nesterov: Step along g + m v' instead of v'.
    """

    lr: float
    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_number("momentum", self.momentum, 0, 1)

    def init(self, params: Params) -> State:
        """Zero velocity."""
        return {"velocity": {name: torch.zeros_like(value) for name, value in params.items()}}

    def __call__(
        self,
        params: Params,
        grads: Params,
        state: State,
        learned: Params,  # noqa: ARG002
        step: int,  # noqa: ARG002
    ) -> tuple[Params, State]:
        """One step; see `UpdateRule`."""
        velocity = {name: self.momentum * v + grads[name] for name, v in state["velocity"].items()}
        along = {name: grads[name] + self.momentum * v for name, v in velocity.items()} if self.nesterov else velocity
        return {name: value - self.lr * along[name] for name, value in params.items()}, {"velocity": velocity}


@final
@dataclass(frozen=True)
class Adam(_Rule):
    """Adam (Kingma and Ba 2015), as in `torch.optim.Adam`, differentiable everywhere.

    m' = b1 m + (1-b1) g,  v' = b2 v + (1-b2) g^2,  theta' = theta - lr m^ / (sqrt(v^) + eps), hats for bias correction.

    Attributes:
        lr: Inner step size.
        beta1: b1.
        beta2: b2.
        eps: Added to the root.
    """

    lr: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_decay("beta1", self.beta1)
        expect_decay("beta2", self.beta2)
        expect_number("eps", self.eps)

    def init(self, params: Params) -> State:
        """Zero moments."""
        return {
            moment: {name: torch.zeros_like(value) for name, value in params.items()} for moment in ("mean", "square")
        }

    def __call__(
        self,
        params: Params,
        grads: Params,
        state: State,
        learned: Params,  # noqa: ARG002
        step: int,
    ) -> tuple[Params, State]:
        """One step; see `UpdateRule`."""
        mean = {n: self.beta1 * m + (1 - self.beta1) * grads[n] for n, m in state["mean"].items()}
        square = {n: self.beta2 * v + (1 - self.beta2) * grads[n].square() for n, v in state["square"].items()}
        mean_bias, square_bias = 1 - self.beta1 ** (step + 1), 1 - self.beta2 ** (step + 1)
        adapted = {
            n: value - self.lr * (mean[n] / mean_bias) / (_safe_sqrt(square[n] / square_bias) + self.eps)
            for n, value in params.items()
        }
        return adapted, {"mean": mean, "square": square}


def _safe_sqrt(square: Tensor) -> Tensor:
    """Sqrt with derivative 0 at 0: a parameter with no gradient would otherwise give 0 * inf = nan outside."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)


@final
@dataclass(frozen=True)
class LearnedSgd(_Rule):
    """Gradient descent whose rates the outer loop learns: theta' = theta - a * g, a in `MetaParams.rule`.

    Attributes:
        lr: Initial value of every rate.
        per: What has a rate of its own: everything together ("scalar"), each "tensor" (Antoniou et al. 2019), or
            each "parameter", elementwise (Meta-SGD, Li et al. 2017).
    """

    lr: float
    per: Per = "parameter"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per not in get_args(Per):
            raise ValueError(f"`per` must be one of {', '.join(get_args(Per))}: got {self.per!r}.")

    def hyperparameters(self, params: Params) -> Params:
        """The rates, all at `lr`."""
        if self.per == "scalar":
            return {"lr": next(iter(params.values())).new_tensor(self.lr)}
        if self.per == "tensor":
            return {f"lr.{name}": value.new_tensor(self.lr) for name, value in params.items()}
        return {f"lr.{name}": torch.full_like(value, self.lr) for name, value in params.items()}

    def __call__(
        self,
        params: Params,
        grads: Params,
        state: State,
        learned: Params,
        step: int,  # noqa: ARG002
    ) -> tuple[Params, State]:
        """One step; see `UpdateRule`."""
        rates = {n: learned["lr" if self.per == "scalar" else f"lr.{n}"] for n in params}
        return {n: value - rates[n] * grads[n] for n, value in params.items()}, state


@dataclass(frozen=True)
class _Wrapper:
    """Does what the wrapped rule does; each wrapper overrides what it changes."""

    rule: UpdateRule

    def __post_init__(self) -> None:
        expect_rule(self.rule)

    @property
    def second_order(self) -> bool:
        return self.rule.second_order

    def selects(self, name: str) -> bool:
        return self.rule.selects(name)

    def hyperparameters(self, params: Params) -> Params:
        return self.rule.hyperparameters(params)

    def init(self, params: Params) -> State:
        return self.rule.init(params)

    def __call__(self, params: Params, grads: Params, state: State, learned: Params, step: int) -> tuple[Params, State]:
        return self.rule(params, grads, state, learned, step)


@final
@dataclass(frozen=True)
class Detached(_Wrapper):
    """First order: inner gradients are constants to the outer loop (section 5.2, "first-order approximation").

    `inner_step` honours it by differentiating at a detached point, so no graph of the inner gradient is ever built.
    """

    @property
    def second_order(self) -> bool:
        """Never."""
        return False


@final
@dataclass(frozen=True)
class Clipped(_Wrapper):
    """Clips every element of the inner gradient to [-bound, bound] before the wrapped rule sees it."""

    bound: float

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_number("bound", self.bound)

    def __call__(self, params: Params, grads: Params, state: State, learned: Params, step: int) -> tuple[Params, State]:
        """One step; see `UpdateRule`."""
        clipped = {name: grad.clamp(-self.bound, self.bound) for name, grad in grads.items()}
        return self.rule(params, clipped, state, learned, step)


@final
@dataclass(frozen=True)
class Slowed(_Wrapper):
    """Makes every step after the first shorter by a factor; the paper's reinforcement learning halves them at test."""

    factor: float

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_number("factor", self.factor)

    def __call__(self, params: Params, grads: Params, state: State, learned: Params, step: int) -> tuple[Params, State]:
        """One step; see `UpdateRule`."""
        moved, state = self.rule(params, grads, state, learned, step)
        if step == 0:
            return moved, state
        return {name: value + self.factor * (moved[name] - value) for name, value in params.items()}, state


@final
@dataclass(frozen=True)
class InEachTask(_Wrapper):
    """A rule for parameters that lead with a `tasks` axis: what it does in each task, it does as if alone."""

    def init(self, params: Params) -> State:
        """The state of every task."""
        return vmapped(self.rule.init)(params)

    def __call__(self, params: Params, grads: Params, state: State, learned: Params, step: int) -> tuple[Params, State]:
        """One step; see `UpdateRule`. What is learned, all tasks share."""

        def one(params: Params, grads: Params, state: State) -> tuple[Params, State]:
            return self.rule(params, grads, state, learned, step)

        return vmapped(one)(params, grads, state)


@runtime_checkable
class _Choosy(Protocol):
    """What chooses parameters by patterns."""

    def unused(self, params: Params) -> list[str]: ...


@dataclass(frozen=True)
class _Patterned(_Wrapper):
    """A wrapper that chooses parameters by name; a pattern that matches none is a mistake, not a choice."""

    patterns: tuple[str, ...]

    def __init__(self, patterns: str | tuple[str, ...], rule: UpdateRule) -> None:
        expect_rule(rule)
        object.__setattr__(self, "rule", rule)
        object.__setattr__(self, "patterns", (patterns,) if isinstance(patterns, str) else tuple(patterns))

    def matches(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)

    def unused(self, params: Params) -> list[str]:
        """Patterns that mean nothing for such parameters."""
        return [each for each in self.patterns if not any(fnmatchcase(name, each) for name in params)]


@final
@dataclass(frozen=True, init=False)
class Only(_Patterned):
    """Adapts only the parameters whose name matches a shell pattern: `Only("head.*", Sgd(0.1))` is ANIL."""

    def selects(self, name: str) -> bool:
        """Whether the name matches and the wrapped rule selects it."""
        return self.matches(name) and self.rule.selects(name)


@final
@dataclass(frozen=True, init=False)
class Except(_Patterned):
    """Adapts all parameters but those whose name matches: `Except("head.*", Sgd(0.1))` is BOIL."""

    def selects(self, name: str) -> bool:
        """Whether the name does not match and the wrapped rule selects it."""
        return not self.matches(name) and self.rule.selects(name)


def check_rule(rule: UpdateRule, params: Params) -> None:
    """Check that every pattern of a rule means something for these parameters.

    Args:
        rule: An inner-loop rule, perhaps of several wrappers.
        params: The model's learnable parameters.

    Raises:
        ValueError: A pattern matches no parameter, or the rule adapts none.
    """
    for part, seen in _parts(rule, params):
        unused: list[str] = part.unused(seen) if isinstance(part, _Choosy) else []
        for pattern in unused:
            raise ValueError(
                f"{type(part).__name__} expects patterns that each choose a parameter: {pattern!r} chooses none of "
                f"{', '.join(seen)}. Use shell patterns such as 'head.*' or '*.bias' that match these names, in "
                "Groups the special ones before '*'; anil and boil take theirs as `head`."
            )
    if not selected(params, rule):
        raise ValueError(
            f"The inner loop must adapt at least one parameter: {rule} selects none of {', '.join(params)}. "
            "Change its patterns, or unfreeze a parameter (requires_grad=True)."
        )


def _parts(rule: UpdateRule, params: Params) -> Iterator[tuple[UpdateRule, Params]]:
    """A rule and all that it is made of, each with the parameters that are its own.

    What wraps others, one of your own too, has them as `rule` or `rules`; what divides parameters among them says how
    in `grouped`.
    """
    yield rule, params
    whole: Any = rule
    if hasattr(whole, "grouped"):
        inner: list[tuple[UpdateRule, Params]] = whole.grouped(params)
    else:
        wrapped = [*getattr(whole, "rules", ()), *([whole.rule] if hasattr(whole, "rule") else [])]
        inner = [(each, params) for each in wrapped]
    for each, seen in inner:
        yield from _parts(each, seen)
