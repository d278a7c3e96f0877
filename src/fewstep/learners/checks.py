"""Checks of what a learner is given.

Most run once: when the learner is built, or on its first tasks. `non_finite` runs when a loss turns out infinite or
nan, and finds the task and the cause.
"""

from __future__ import annotations

import logging
import math
import re
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from fewstep.core.expect import expect_function, expect_number
from fewstep.core.rules import UpdateRule, selected
from fewstep.core.running import plain, traced
from fewstep.core.trees import leaves, tree_map
from fewstep.core.types import Batch, MetaParams
from fewstep.errors import NonFiniteError
from fewstep.memory import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence

    from fewstep.core.algorithms import Algorithm
    from fewstep.core.functional import FunctionalModule
    from fewstep.core.types import LossFn, OverTasks, Task, TaskGradient

log = logging.getLogger(__name__)

_PASSES = 3
"""Of a module over the first examples, to see what its loss depends on."""

_EXAMPLES = {
    "loss": "torch.nn.functional.mse_loss",
    "optimizer": "torch.optim.Adam",
    "schedule": "lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.999)",
    "over_tasks": "fewstep.sequential()",
    "run": "fewstep.core.running.compiled()",
}


_DIVERGED = (
    "Before any step the loss is not finite: check the scale of the inputs, or lower the meta learning rate (meta.lr)."
)
_DIVERGES = (
    "The inner loop diverges: lower the inner learning rate, take fewer steps, or clip the inner gradient "
    "(algorithm.clip) or the meta-gradient (meta.clip_norm)."
)


def check_functions(**given: Any) -> None:
    """See that arguments of a learner, by name, can be called; None stands for a default.

    Raises:
        ValueError: One cannot.
    """
    for name, function in given.items():
        if function is None:
            continue
        expect_function(name, function, _EXAMPLES[name])
        if name in ("over_tasks", "run") and _makes_one(function):
            raise ValueError(
                f"`{name}` must be what {function.__name__} returns: got the function itself. Call it, with "
                "parentheses."
            )


def _makes_one(function: Any) -> bool:
    """Whether it is one of ours that is to be called first."""
    made = "<locals>" in getattr(function, "__qualname__", "<locals>")
    ours = str(getattr(function, "__module__", "")).startswith("fewstep.core.")
    return ours and not made and function not in (plain, traced)


def check_state(came: Mapping[str, Any], *parts: str) -> None:
    """See that a state has all parts that a learner saves, before any of them is taken over.

    Raises:
        ValueError: It lacks one.
    """
    missing = [part for part in parts if part not in came]
    if "meta" in parts and "meta" in came:
        missing += [f"meta.{part}" for part in MetaParams._fields if part not in came["meta"]]
    if missing:
        raise ValueError(
            f"A state is what `state_dict` of such a learner returned: this one lacks {', '.join(missing)}, and has "
            f"{', '.join(map(str, came)) or 'nothing'}. Meta-parameters alone are taken over by `load_meta`."
        )


def check_numbers(**given: float | None) -> None:
    """See that arguments of a learner, by name, are numbers of at least 0; None stands for none.

    Raises:
        ValueError: One is not.
    """
    for name, number in given.items():
        if number is not None:
            expect_number(name, number)


def check_learned(rule: UpdateRule, meta: MetaParams) -> None:
    """See that what a rule learns is among the meta-parameters.

    Raises:
        ValueError: It is not.
    """
    wanted = rule.hyperparameters(selected(meta.model, rule))
    if missing := wanted.keys() - meta.rule.keys():
        raise ValueError(
            f"A rule for evaluation steps with what was meta-learned: {rule} wants {', '.join(sorted(missing))}, and "
            f"learned were {', '.join(meta.rule) or 'no hyper-parameters'}. Give one whose step size is a number, or "
            "wrap `learner.algorithm.rule`."
        )


def check_examples(examples: Any, kind: str = "support") -> None:
    """See that the support or query examples of one task are a batch of tensors, with at least one example.

    Raises:
        ValueError: They are not.
    """
    if not isinstance(examples, Batch):
        raise ValueError(
            f"A {kind} set is a Batch of inputs and targets of one task, fewstep.Batch(inputs, targets): got "
            f"{type(examples).__name__}."
        )
    strangers = set[str]()

    def note(leaf: Any) -> None:
        if not isinstance(leaf, Tensor):
            strangers.add(type(leaf).__name__)

    tree_map(note, examples)
    tensors = leaves(examples)
    if "ndarray" in strangers or not tensors:
        raise ValueError(
            f"Examples are tensors: got {', '.join(sorted(strangers))}. Make them of arrays with torch.as_tensor."
        )
    if any(tensor.dim() and len(tensor) == 0 for tensor in tensors):
        raise ValueError(f"A {kind} set has at least one example: got none.")


@contextmanager
def advising_first_order(algorithm: Algorithm) -> Generator[None]:
    """Where an operation has no second derivative, say what does without."""
    try:
        yield
    except RuntimeError as error:  # of which NotImplementedError, what a missing derivative raises, is a kind
        wants_two = algorithm.rule.second_order and algorithm.steps > 0
        if wants_two and re.search(r"derivative|_backward\b.*not implemented|backwards? twice", str(error)):
            error.add_note(
                "fewstep: if an operation of the module or the loss has no second derivative, choose a first-order "
                "algorithm, fewstep.fomaml for instance, which takes none; or write it with other operations."
            )
        raise


def tell_of_sizes(examples: Batch, kind: str) -> None:
    """Warn where a tensor of inputs or targets has no axis left but that of examples, and these are not as many."""
    came = [list(each.shape) for each in examples if isinstance(each, Tensor)]
    if len(came) == 2 and came[0][:1] != came[1][:1] and (len(came[0]) == 1 or not came[1]):
        log.warning(
            "A %s set of inputs %s and targets %s, which are not of the same number of examples: is the axis of tasks "
            "missing? A meta-batch is [tasks, examples, ...]",
            kind,
            *came,
        )


def tell_of_unreached(
    module: FunctionalModule, loss: Callable[[Any, Any], Tensor], parts: Sequence[Batch], device: torch.device
) -> None:
    """Warn of parameters that the loss depends on nowhere: what a module reaches otherwise is not what is learned.

    Args:
        module: In training mode, where a layer may be left out by chance: so it is run several times.
        loss: Of its outputs.
        parts: The support and the query set of a task, whichever there are.
        device: Where it computes.
    """
    unreached = set(module.params)
    with cast("Any", torch.random).fork_rng([device] if device.type == "cuda" else []):
        for batch in [*parts] * _PASSES:
            if not unreached:
                return
            unreached &= _unreached(module, loss, batch)
    if unreached and len(unreached) < len(module.params):  # of no gradient at all, the first iteration tells
        names = [name for name in module.params if name in unreached]
        log.warning(
            "On the first task the loss does not depend on %s, which then learn nothing. If that is not meant: a "
            "forward pass uses the module's attributes, and no function or list of layers that was made beforehand",
            ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else ""),
        )


def _unreached(module: FunctionalModule, loss: Callable[[Any, Any], Tensor], batch: Batch) -> set[str]:
    params = {name: value.detach().requires_grad_() for name, value in module.params.items()}
    gradients: list[Tensor | None] = []
    try:
        with torch.enable_grad():
            value = loss(module(params, batch.inputs), batch.targets)
            if value.requires_grad:
                gradients += torch.autograd.grad(value, list(params.values()), allow_unused=True)
    except (IndexError, RuntimeError, ValueError):
        return set()  # what cannot run or be differentiated says so itself where it has to be
    return {name for name, gradient in zip(params, gradients, strict=False) if gradient is None}


def tell_of_tied(module: FunctionalModule, rule: UpdateRule) -> None:
    """Warn where a rule treats the names of one tensor differently: it goes by the first."""
    for other, name in module.tied.items():
        if rule.selects(other) != rule.selects(name):
            log.warning(
                "%s is %s, tied, and goes by that name, under which the inner loop %s it",
                other,
                name,
                "adapts" if rule.selects(name) else "does not adapt",
            )


def check_model(
    module: FunctionalModule, metrics: Mapping[str, Callable[[Any, Any], Any]], support: Batch, device: torch.device
) -> None:
    """Try a module, its loss and its metrics on one support set, without touching the random stream.

    Raises:
        ValueError: The module cannot take such examples, changes its own state, or a metric is no single number.
    """
    check_examples(support)
    with cast("Any", torch.random).fork_rng([device] if device.type == "cuda" else []):
        try:
            outputs = module.check_pure(support.inputs)
        except (RuntimeError, ValueError) as error:
            own, came = _precisions(module.params), _precisions(support.inputs)
            if own.isdisjoint(came) and came:
                raise ValueError(
                    f"Inputs have the precision of the parameters, {', '.join(sorted(own))}: got "
                    f"{', '.join(sorted(came))}. Convert them, with .float() for instance."
                ) from error
            if isinstance(error, ValueError) or is_out_of_memory(error):  # says itself what it wants
                raise
            raise ValueError(
                f"The module cannot take the inputs of one task, {_described(support.inputs)}: {_words(error)}. They "
                "are [examples, ...], of the type that its first layer computes with."
            ) from error
        for name, metric in metrics.items():
            what = "The loss" if name == "loss" else f"The metric {name!r}"
            try:
                with warnings.catch_warnings():
                    # As many numbers in another shape are broadcast by mistake: the mean is then over all pairs.
                    if _as_many_otherwise(outputs, support.targets):
                        warnings.filterwarnings("error", message="Using a target size")
                    value = metric(outputs, support.targets)
            except (RuntimeError, ValueError, IndexError, UserWarning) as error:
                if is_out_of_memory(error):
                    raise
                raise ValueError(
                    f"{what} cannot compare what the module gives for one task, {_described(outputs)}, with its "
                    f"targets, {_described(support.targets)}: {_words(error)}. Targets of cross-entropy are indices of "
                    "classes, int64 [examples]; of squared errors, floats shaped as the outputs are."
                ) from error
            if not isinstance(value, Tensor) or value.dim() != 0:
                came = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"{what} must return one number as a tensor without axes: got {came}. Take the mean over the "
                    "examples, and compute it with PyTorch alone."
                )


def _as_many_otherwise(one: Any, other: Any) -> bool:
    both = isinstance(one, Tensor) and isinstance(other, Tensor)
    return both and one.shape != other.shape and one.numel() == other.numel()


def _described(tree: Any) -> str:
    """Types and shapes, "float32 [5, 1]" for instance."""
    each = [f"{str(leaf.dtype).removeprefix('torch.')} {list(leaf.shape)}" for leaf in leaves(tree)]
    return ", ".join(each) or type(tree).__name__


def _words(error: Exception) -> str:
    return str(error).strip().rstrip(".")


def _precisions(tree: Any) -> set[str]:
    return {str(leaf.dtype).removeprefix("torch.") for leaf in leaves(tree) if leaf.is_floating_point()}


def non_finite(
    support_loss: LossFn,
    task_gradient: TaskGradient,
    meta: MetaParams,
    groups: Iterable[Task],
    over_tasks: OverTasks,
    iteration: int,
) -> NonFiniteError:
    """Find the tasks at fault, once there is a fault: the healthy iterations pay nothing for it."""
    described, remedies = list[str](), dict[str, None]()
    first = 0
    for group in groups:
        support_losses = over_tasks(lambda meta, task: support_loss(meta.model, task.support))(meta, group)
        gradients, query_losses = over_tasks(task_gradient)(meta, group)
        for i, query_loss in enumerate(query_losses):
            if bad := _bad_examples(group, i):
                came, remedy = f"its {bad}", "Look for bad values in the data."
            elif not math.isfinite(support_losses[i]):
                came, remedy = f"support loss {support_losses[i].item()}", _DIVERGED
            elif not math.isfinite(query_loss):
                came, remedy = f"query loss {query_loss.item()}", _DIVERGES
            elif not all(bool(leaf[i].isfinite().all()) for leaf in leaves(gradients)):
                came, remedy = "meta-gradient", _DIVERGES
            else:
                continue
            described.append(f"task {first + i} ({came})")
            remedies[remedy] = None
        first += len(query_losses)
    what = ", ".join(described[:5]) or "the mean over the meta-batch"
    more = f" and {len(described) - 5} more tasks" if len(described) > 5 else ""
    return NonFiniteError(
        f"Losses and meta-gradients must be finite: iteration {iteration} gave infinity or nan in "
        f"{what}{more}. {' '.join(remedies or [_DIVERGES])}"
    )


def _bad_examples(tasks: Task, index: int) -> str:
    """Which of a task's examples hold infinity or nan, "query targets" for instance; "" if none do."""
    for part, batch in tasks._asdict().items():
        for what, tree in batch._asdict().items():
            if not all(bool(leaf[index].isfinite().all()) for leaf in leaves(tree)):
                return f"{part} {what}"
    return ""


def diverged(support: Batch, steps: int) -> NonFiniteError:
    """Say why parameters adapted to one support set are not finite."""
    if not all(bool(leaf.isfinite().all()) for leaf in leaves(support)):
        return NonFiniteError("Examples must be finite: there is infinity or nan among those to adapt to. Remove them.")
    return NonFiniteError(
        f"Adaptation must stay finite: after {steps} steps it is not. Check the units of the examples, take fewer "
        "steps, or train with a lower inner learning rate."
    )
