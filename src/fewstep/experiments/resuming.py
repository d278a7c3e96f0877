"""Whether a run may go on as it is asked to, and with what of its record."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fewstep.errors import RunError
from fewstep.experiments.recipe_files import differing_keys, keys_set
from fewstep.experiments.runs import recipe_of
from fewstep.files import entries
from fewstep.training.records import RunFolder

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from fewstep.experiments.config import Recipe

_LENGTH = ("meta.iterations", "validation.patience")
"""What a run may have more of when it goes on."""


def asks_for_more(asked: Recipe, recorded: Recipe) -> str | None:
    """What to say where a finished run has fewer iterations, or less patience, than its recipe now asks for."""
    patience = asked.validation.patience
    if recorded.validation.patience is not None and patience != recorded.validation.patience:
        return (
            f"The run has validation.patience = {recorded.validation.patience}; the recipe now says {patience}. If it "
            f"stopped for that, go on with --set validation.patience={patience or 10**6}."
        )
    more = asked.meta.iterations
    if more <= recorded.meta.iterations or recorded.meta.schedule != "constant":
        return None
    return (
        f"The run has its {recorded.meta.iterations} iterations; the recipe now says {more}. To go on to these, set "
        f"meta.iterations={more} (--set meta.iterations={more})."
    )


def with_recorded_choices(path: Path, settings: Iterable[str]) -> list[str]:
    """The settings of a resume: its length and execution as recorded, unless they say otherwise."""
    chosen = list(settings)
    if "config.json" not in entries(path):
        return chosen
    recorded = recipe_of(RunFolder(path))
    execution = recorded.execution.model_dump(exclude_none=True)
    known: dict[str, Any] = {f"execution.{key}": execution[key] for key in execution}
    known["meta.iterations"] = recorded.meta.iterations
    if recorded.validation.patience is not None:
        known["validation.patience"] = recorded.validation.patience
    asked = keys_set(chosen)
    if "execution.over_tasks" in asked:  # which chunks do not go with, if it is one task after the other
        known.pop("execution.chunk_size", None)
    return chosen + [f"{key}={json.dumps(value)}" for key, value in known.items() if key not in asked]


def differing(one: Recipe, other: Recipe) -> list[str]:
    """Keys in which recipes differ, but for those that change results by rounding alone, or say where things lie.

    A module from Python may have dropout, which draws otherwise for all tasks at once than for one after the other.
    """
    fields = ["threads"] if one.model.kind == "custom" else [*type(one.execution).model_fields]
    how = {f"execution.{key}" for key in fields} - {"execution.precision"}
    how |= {"name", "tasks.path"}  # what lies there now is compared with what the run was trained on
    return [key for key in differing_keys(one, other) if key not in how]


def existing_run(path: Path, recipe: Recipe, resume: bool) -> RunFolder | None:
    """The run in a folder, to go on with; None where one may begin.

    Raises:
        RunError: The folder holds a run and `resume` is not asked for, or one that cannot go on so, or something else.
    """
    present = entries(path)
    if "config.json" not in present:
        if set(present) - {"versions.json", "data.json"}:  # config.json is written last
            raise RunError(
                f"--out must be a new or empty folder, or a run with --resume: {path} holds {', '.join(present[:3])}"
                f"{' ...' if len(present) > 3 else ''}. Choose another."
            )
        return None
    run = RunFolder(path)
    if not resume and not {"checkpoint.pt", "best.safetensors", "params.safetensors"} & set(present):
        return None  # it never came to save anything: a first attempt that failed blocks nothing
    began = recipe_of(run)
    changed = differing(recipe, began)
    others = [key for key in changed if key not in _LENGTH]
    if not resume:
        go_on = "" if others else "add --resume (resume=True) to go on with it, or "
        raise RunError(
            f"{path} already holds a run of {'another recipe, ' if others else ''}{run.config.get('name')}: {go_on}"
            "choose another --out."
        )
    if others:
        raise RunError(
            f"A run goes on as it began, apart from {', '.join(_LENGTH)} and how it is executed: "
            f"{', '.join(others)} differ from the recipe in {path / 'config.json'}. Leave them as they were, or "
            "choose another --out."
        )
    asked, recorded = recipe.meta.iterations, began.meta.iterations
    if asked != recorded and (asked < recorded or recipe.meta.schedule != "constant"):
        raise RunError(
            "meta.iterations may only grow, and only with meta.schedule = 'constant', since other schedules depend on "
            f"it: the run in {path} has {recorded}, got {asked}. Leave it, or choose another --out."
        )
    if changed and run.is_finished and "checkpoint.pt" not in present:
        raise RunError(
            f"A run goes on from its checkpoint.pt: {path} is finished, but its checkpoint is gone. Begin a new run "
            f"from it with --set meta.start={path} and another --out."
        )
    return run


def moved_to(asked: Recipe, recorded: Recipe) -> str | None:
    """Where a resume says that the recipe's own folder or table lies, if it says otherwise than the run."""
    now, before = (getattr(recipe.tasks, "path", None) for recipe in (asked, recorded))
    return None if now == before or str(now).startswith("bundled:") else now
