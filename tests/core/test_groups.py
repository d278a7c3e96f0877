from __future__ import annotations

from typing import Any

import pytest

from fewstep.core import algorithms
from fewstep.core.adapt import adapt
from fewstep.core.functional import FunctionalModule
from fewstep.core.groups import Groups
from fewstep.core.rules import Adam, Detached, LearnedSgd, Momentum, Only, Sgd, check_rule

from .problems import (
    SmallNet,
    assert_matches_finite_differences,
    assert_same,
    meta_params,
    one,
    regression_tasks,
    seeded,
    supervised,
)

MODEL = FunctionalModule(seeded(SmallNet))
SUPPORT_LOSS, QUERY_LOSS = supervised(MODEL)
TASKS = regression_tasks(2)
WEIGHTS = [name for name in MODEL.params if name.endswith("weight")]


def adapted(rule: Any, steps: int = 3) -> Any:
    support = one(TASKS, 0).support
    return adapt(SUPPORT_LOSS, meta_params(MODEL.params, rule), [support] * steps, rule)


@pytest.mark.parametrize("rule", [Sgd(0.1), Momentum(0.1), Adam(0.1), LearnedSgd(0.1)])
def test_groups_of_one_rule_do_what_the_rule_does(rule: Any) -> None:
    assert_same(adapted(Groups({"*weight": rule, "*": rule})), adapted(rule), atol=0, rtol=0)


def test_each_parameter_follows_the_first_rule_that_matches_and_others_stay() -> None:
    first = WEIGHTS[0]
    moved = adapted(Groups({first: Sgd(0.1), "*weight": Momentum(0.02)}), steps=1)
    expected = adapted(Sgd(0.1), steps=1)
    assert_same(moved[first], expected[first])
    for name, before in MODEL.params.items():
        if name in WEIGHTS[1:]:
            assert_same(moved[name] - before, (expected[name] - before) / 5, atol=1e-12)
        elif name not in WEIGHTS:
            assert moved[name] is before


@pytest.mark.parametrize("steps", [1, 3])
def test_the_meta_gradient_through_groups_equals_finite_differences(steps: int) -> None:
    rule = Groups({"*weight": Momentum(0.1), "*bias": LearnedSgd(0.05, per="tensor")})
    algorithm = algorithms.maml(rule, steps)
    task_gradient = algorithm.gradient(SUPPORT_LOSS, QUERY_LOSS, algorithm.rule, algorithm.steps)
    assert_matches_finite_differences(task_gradient, meta_params(MODEL.params, rule), TASKS)


def test_groups_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="all second-order or all first-order"):
        Groups({"*weight": Sgd(0.1), "*bias": Detached(Sgd(0.1))})
    with pytest.raises(ValueError, match="all second-order or all first-order, and at least one"):
        Groups({})
    with pytest.raises(ValueError, match="An inner rule is a value"):
        Groups({"*": 0.1})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="lr comes twice"):
        meta_params(MODEL.params, Groups({"*weight": LearnedSgd(0.1, "scalar"), "*": LearnedSgd(0.1, "scalar")}))
    with pytest.raises(ValueError, match=r"Groups expects patterns that each choose a parameter: 'nothing\.\*'"):
        check_rule(Only("*", Groups({"nothing.*": Sgd(0.1), "*": Sgd(0.1)})), MODEL.params)
    with pytest.raises(ValueError, match="Only expects patterns that each choose a parameter: 'nothing'"):
        check_rule(Groups({"*": Only("nothing", Sgd(0.1))}), MODEL.params)
    with pytest.raises(ValueError, match=rf"'{WEIGHTS[1]}' chooses none of {WEIGHTS[0]}\. Use"):  # of another group
        check_rule(Groups({WEIGHTS[0]: Only(WEIGHTS[1], LearnedSgd(0.1, "scalar")), "*": Sgd(0.1)}), MODEL.params)
    with pytest.raises(ValueError, match=r"'\*bias' chooses none .* the special ones before '\*'"):
        check_rule(Groups({"*": Sgd(0.1), "*bias": Sgd(0.5)}), MODEL.params)


def test_groups_are_values() -> None:
    one_, other = (Groups({"*": Sgd(0.1)}) for _ in range(2))
    assert one_ == other
    assert hash(one_) == hash(other)
