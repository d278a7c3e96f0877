"""Every key of a recipe, with its values, default and meaning: what `fewstep recipes --keys` and docs/recipes.md say.

python -m fewstep.experiments.recipe_reference > docs/recipes.md
"""

from __future__ import annotations

import ast
import inspect
import types
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic_core import PydanticUndefined

from fewstep.experiments import config, sections
from fewstep.experiments.sections import Section, Variant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

_HEAD = """# What a recipe may say

A recipe is a TOML file with the sections below. It names only what differs from the defaults;
`--set section.key=value` and `settings=[...]` set a value over it. `fewstep recipes NAME` shows a bundled one to begin
with, `fewstep recipes --keys` this page. What is unknown, of the wrong type, or does not go together is refused with
the valid keys.

`loss.kind` follows from `tasks.kind`, and `meta.optimizer` from `loss.kind`, where they are not given. Patterns match
names of parameters (`body.*`, `*.bias`).
"""
_LIMITS = {"gt": "> ", "ge": ">= ", "lt": "< ", "le": "<= "}
_ENOUGH = 10**6
"""An upper limit from which on it only guards against slips."""


def reference() -> str:
    """All keys, as Markdown: a table for each section, and for each kind that a section may be of."""
    fields = config.Recipe.model_fields
    lines = [_HEAD, "## At the top", "", *_table("", {n: f for n, f in fields.items() if not _kinds(f)}, config.Recipe)]
    for name, field in fields.items():
        kinds = _kinds(field)
        if kinds:
            lines += [f"## {name}", ""]
        for kind in kinds:
            names = _literals(kind.model_fields["kind"].annotation) if "kind" in kind.model_fields else []
            keys = {key: value for key, value in kind.model_fields.items() if key != "kind"}
            lines += [_sentence(kind, f"`{name}.kind` = " + ", ".join(f"`{n}`" for n in names) if names else ""), ""]
            lines += _table(f"{name}.", keys, kind) if keys else []
    lines += ["## Each of evaluate.variants", "", *_table("", Variant.model_fields, Variant)]
    return "\n".join(lines).rstrip() + "\n"


def _sentence(kind: type[Section], names: str) -> str:
    what = (kind.__doc__ or "").partition("; see ")[0].strip().rstrip(".")
    return f"**{names}**: {what[0].lower()}{what[1:]}. {meaning(kind, 'kind')}".rstrip() if names else f"{what}."


def _table(prefix: str, fields: dict[str, FieldInfo], kind: type[Section]) -> list[str]:
    rows = [(f"`{prefix}{field.alias or key}`", *_described(kind, key, field)) for key, field in fields.items()]
    return ["| key | value | default | meaning |", "|---|---|---|---|", *(f"| {' | '.join(r)} |" for r in rows), ""]


def _described(kind: type[Section], key: str, field: FieldInfo) -> tuple[str, str, str]:
    default = field.get_default(call_default_factory=True, validated_data={})
    shown = "" if default is None else "**required**" if default is PydanticUndefined else f"`{_toml(default)}`"
    return _value(field.annotation, field.metadata), shown, meaning(kind, key)


def meaning(kind: type[Section], key: str) -> str:
    """What stands below a key in the source, its own or that of the section that it comes from."""
    for owner in kind.__mro__:
        if (owner.__name__, key) in _docstrings():
            return _docstrings()[owner.__name__, key]
    return ""


@cache
def _docstrings() -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    for module in (sections, config):
        tree = ast.parse(inspect.getsource(module))
        for section in (each for each in tree.body if isinstance(each, ast.ClassDef)):
            for assigned, said in pairwise(section.body):
                match assigned, said:
                    case ast.AnnAssign(target=ast.Name(id=key)), ast.Expr(value=ast.Constant(value=str(text))):
                        found[section.name, key] = " ".join(text.split())
                    case _:
                        pass
    return found


def _kinds(field: FieldInfo) -> list[type[Section]]:
    """The sections that a field may be; none where it is a plain value."""
    options = get_args(field.annotation) if _is_union(field.annotation) else (field.annotation,)
    return [option for option in options if isinstance(option, type) and issubclass(option, Section)]


def _value(annotation: Any, metadata: list[Any]) -> str:
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return _value(inner, [*metadata, *more])
    if _is_union(annotation):
        return " or ".join(_value(option, metadata) for option in get_args(annotation) if option is not type(None))
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{each}`" for each in _literals(annotation))
    if get_origin(annotation) is list:
        (inner,) = get_args(annotation)
        exact = next((each.min_length for each in metadata if getattr(each, "min_length", 0) > 1), "")
        return f"list of {exact} {_value(inner, [])}".replace("  ", " ")
    if get_origin(annotation) is dict:
        return f"table of columns, each with a {_value(get_args(annotation)[1], [])}"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "table"
    name = {bool: "true or false", int: "whole number", float: "number", str: "text"}[annotation]
    return f"{name} {', '.join(_limits(metadata))}".strip()


def _limits(metadata: list[Any]) -> Iterator[str]:
    known = [each for found in metadata for each in (found, *getattr(found, "metadata", ()))]
    for attribute, sign in _LIMITS.items():
        for value in (getattr(each, attribute, None) for each in known):
            if value is not None and value < _ENOUGH:
                yield f"{sign}{value}"


def _literals(annotation: Any) -> list[str]:
    return [_toml(each) for each in get_args(annotation)]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else f"{value:_}" if isinstance(value, int) else str(value)


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


if __name__ == "__main__":
    print(reference(), end="")
