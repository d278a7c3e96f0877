"""An inner-loop rule for each group of parameters, as an optimizer's parameter groups."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, final

from fewstep.core.rules import expect_rule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fewstep.core.rules import State, UpdateRule
    from fewstep.core.types import Params


@final
@dataclass(frozen=True, init=False)
class Groups:
    """Each parameter follows the rule of the first pattern that its name matches; one that matches none stays.

    `Groups({"head.*": Sgd(0.1), "*": Sgd(0.01)})` takes ten times longer steps with the head than with the body.

    Attributes:
        patterns: Shell patterns of parameters' names.
        rules: The rule of each.

    Raises:
        ValueError: There are no groups, some rules are second-order and others are not, or something is no rule.
    """

    patterns: tuple[str, ...]
    rules: tuple[UpdateRule, ...]

    def __init__(self, rules: Mapping[str, UpdateRule]) -> None:
        for rule in rules.values():
            expect_rule(rule)
        object.__setattr__(self, "patterns", tuple(rules))
        object.__setattr__(self, "rules", tuple(rules.values()))
        if len({rule.second_order for rule in self.rules}) != 1:
            raise ValueError(
                f"Groups are all second-order or all first-order, and at least one: got {self.rules}. Put Detached "
                "around the whole instead of around some of them."
            )

    @property
    def second_order(self) -> bool:
        """That of all of them."""
        return self.rules[0].second_order

    def selects(self, name: str) -> bool:
        """Whether a pattern matches the name and its rule selects it."""
        group = self._group(name)
        return group is not None and self.rules[group].selects(name)

    def unused(self, params: Params) -> list[str]:
        """Patterns of groups without members: others before them have all that they match, or they match nothing."""
        used = {self._group(name) for name in params}
        return [pattern for group, pattern in enumerate(self.patterns) if group not in used]

    def grouped(self, params: Params) -> list[tuple[UpdateRule, Params]]:
        """The rule of each group, and its members."""
        members: list[Params] = [{} for _ in self.rules]
        for name, value in params.items():
            group = self._group(name)
            if group is not None:
                members[group][name] = value
        return list(zip(self.rules, members, strict=True))

    def hyperparameters(self, params: Params) -> Params:
        """Those of all groups.

        Raises:
            ValueError: Two groups have one of the same name.
        """
        found: Params = {}
        for rule, members in self.grouped(params):
            learned = rule.hyperparameters(members)
            if both := found.keys() & learned.keys():
                raise ValueError(
                    f"What groups learn must have different names: {', '.join(both)} comes twice. Take LearnedSgd with "
                    "per='tensor' or 'parameter'."
                )
            found |= learned
        return found

    def init(self, params: Params) -> State:
        """The states of all groups, each under its number."""
        grouped = enumerate(self.grouped(params))
        return {f"{i} {key}": value for i, (rule, members) in grouped for key, value in rule.init(members).items()}

    def __call__(self, params: Params, grads: Params, state: State, learned: Params, step: int) -> tuple[Params, State]:
        """One step; see `UpdateRule`."""
        moved: Params = {}
        after: State = {}
        for i, (rule, members) in enumerate(self.grouped(params)):
            own = {key.partition(" ")[2]: value for key, value in state.items() if key.partition(" ")[0] == str(i)}
            group, own = rule(members, {name: grads[name] for name in members}, own, learned, step)
            moved |= group
            after |= {f"{i} {key}": value for key, value in own.items()}
        return moved, after

    def _group(self, name: str) -> int | None:
        return next((i for i, pattern in enumerate(self.patterns) if fnmatchcase(name, pattern)), None)
