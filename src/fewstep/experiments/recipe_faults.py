"""What is wrong with a recipe, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from pydantic import BaseModel

from fewstep.experiments.config import Recipe

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails


def explained(where: str, error: ValidationError) -> str:
    """What is wrong with a recipe, a line for each fault, with the key and what would be right.

    Args:
        where: What the recipe is called.
        error: As validation raised it.
    """
    lines = [f"{where} is not a possible recipe:"]
    lines += [f"  {_one(detail)}" for detail in error.errors(include_url=False)]
    return "\n".join(lines)


def _one(detail: ErrorDetails) -> str:
    key, section = _locate(detail["loc"])
    valid = ", ".join(field.alias or name for name, field in section.model_fields.items())
    if detail["type"] == "extra_forbidden":
        return f"{key}: unknown key. Valid keys here: {valid}."
    if detail["type"] == "missing":
        return f"{key}: missing. Keys here: {valid}."
    if detail["type"] == "union_tag_not_found":
        return f"{key}: `kind` is missing. Valid kinds: {', '.join(map(repr, _kinds(key)))}."
    if detail["type"] == "union_tag_invalid":
        context = detail.get("ctx", {})
        return f"{key}.kind: {context.get('tag')!r} is unknown. Valid kinds: {context.get('expected_tags')}."
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] in ("list_type", "tuple_type"):
        message = f"{message}, such as ['a', 'b'] (on a command line, --set '{key}=[\"a\", \"b\"]')"
    got = "" if isinstance(detail["input"], BaseModel | dict) else f", got {detail['input']!r}"
    return f"{key + ': ' if key else ''}{message}{got}."


def _kinds(key: str) -> list[str]:
    """Of the section with this name."""
    members = get_args(Recipe.model_fields[key].annotation)
    return [kind for member in members for kind in get_args(member.model_fields["kind"].annotation)]


def _locate(loc: tuple[int | str, ...]) -> tuple[str, type[BaseModel]]:
    """The dotted key of an error, and the section that it stands in."""
    section: type[BaseModel] = Recipe
    parts: list[str] = []
    candidates: list[type[BaseModel]] = []
    for place in loc:
        tagged = [
            c for c in candidates if "kind" in c.model_fields and place in get_args(c.model_fields["kind"].annotation)
        ]
        if tagged:  # pydantic names the member of a union by its `kind`, which is no part of the key
            section, candidates = tagged[0], []
            continue
        field = next((f for n, f in section.model_fields.items() if place in (n, f.alias)), None)
        if field is not None:
            annotation = field.annotation
            if isinstance(annotation, type) and issubclass(annotation, BaseModel) and place != loc[-1]:
                section = annotation
            candidates = [c for c in get_args(annotation) if isinstance(c, type) and issubclass(c, BaseModel)]
        if isinstance(place, int):
            parts[-1] += f"[{place}]"
            section = next((c for c in candidates if "kind" not in c.model_fields), section)
        elif field is not None or parts != ["loss", "scale"]:  # after which pydantic names the type that it tried
            parts.append(str(place))
    return ".".join(parts), section
