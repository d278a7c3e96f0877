"""Recipes read and changed, without importing torch.

Whatever is unknown, of the wrong type or impossible is a `RecipeError` that names the file, the key and the valid keys.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import resources
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from fewstep.errors import RecipeError
from fewstep.experiments.config import Recipe
from fewstep.experiments.recipe_defaults import fill_in
from fewstep.experiments.recipe_faults import explained

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fewstep.experiments.sections import Evaluate


def bundled_recipes() -> dict[str, str]:
    """The recipes that come with fewstep: name and first line of the header, sorted by name."""
    folder = resources.files("fewstep.experiments") / "recipes"
    found: dict[str, str] = {}
    for entry in sorted(folder.iterdir(), key=lambda e: e.name.removesuffix(".toml")):
        if entry.name.endswith(".toml"):
            first = entry.read_text(encoding="utf-8").partition("\n")[0]
            found[entry.name.removesuffix(".toml")] = first.lstrip("# ")
    return found


def bundled_text(name: str) -> str:
    """The file of a recipe that comes with fewstep.

    Raises:
        RecipeError: There is none of this name.
    """
    if name not in bundled_recipes():
        near = get_close_matches(name, bundled_recipes(), n=1)
        raise RecipeError(
            f"NAME must be one of the bundled recipes: got {name!r}. "
            f"{f'Did you mean {near[0]}?' if near else 'See `fewstep recipes`.'}"
        )
    return (resources.files("fewstep.experiments") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")


def load_recipe(
    source: str | Path | Mapping[str, Any],
    settings: Iterable[str] | Mapping[str, Any] = (),
    where: str = "the recipe passed from Python",
) -> Recipe:
    """Read a recipe and set values over it.

    Args:
        source: A bundled name, the path of a TOML file, or the values themselves.
        settings: `key=value` strings, or values by key; keys are dotted, values are TOML (a bare word is a string).
        where: What errors call values that come from no file.

    Returns:
        The recipe, complete with defaults. Relative paths are resolved against the recipe's folder, or else this one.

    Raises:
        RecipeError: It cannot be read, or is not a possible experiment.
    """
    where, values = _read(source, where)
    settings = as_text(settings)
    for setting in settings:
        _set(values, setting)
    _drop_steps_of_another_kind(values, keys_set(settings))
    if settings:
        where += f" with {', '.join(settings)}" if len(settings) <= 3 else f" with {len(settings)} settings"
    _resolve(values, Path())
    fill_in(values)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(explained(where, error)) from None
    return recipe


def _drop_steps_of_another_kind(values: Mapping[str, Any], keys: set[str]) -> None:
    """Of inner steps a file for another algorithm may well speak, of which joint training takes none."""
    algorithm = values.get("algorithm")
    chosen = "algorithm.kind" in keys and "algorithm.steps" not in keys
    if chosen and isinstance(algorithm, dict) and algorithm["kind"] == "joint":
        algorithm.pop("steps", None)


def evaluation_plan(recipe: Recipe, given: Mapping[str, Any]) -> Evaluate:
    """The recipe's `evaluate`, with what was asked for over it and nothing left open that the recipe answers.

    Raises:
        RecipeError: Something asked for is not possible.
    """
    asked = {key: value for key, value in given.items() if value is not None}
    if recipe.loss.kind == "reinforce" and asked.keys() & {"shots", "queries", "normalization", "method"}:
        raise RecipeError(
            "Shots, queries, normalization and method belong to examples: a run of reinforcement learning is evaluated "
            "with trajectories, steps and tasks. Leave them out."
        )
    if recipe.tasks.kind == "custom" and asked.keys() & {"shots", "queries"}:
        raise RecipeError("Tasks passed from Python come with their own shots and queries: leave both out.")
    policy = asked.get("normalization") or recipe.evaluate.normalization or recipe.normalization
    if policy != recipe.normalization and "running" in (policy, recipe.normalization):
        raise RecipeError(
            f"A run trained with normalization = {recipe.normalization!r} cannot be evaluated with {policy!r}: "
            "'transductive' and 'support' can stand in for each other, 'running' cannot."
        )
    if recipe.loss.kind == "reinforce":
        training = {"trajectories": getattr(recipe.tasks, "trajectories", None)}
    else:
        training = {
            "shots": getattr(recipe.tasks, "shots", None),
            "queries": getattr(recipe.tasks, "queries", None),
            "normalization": recipe.normalization,
            "method": getattr(recipe.algorithm, "method", None),
        }
    chosen = recipe.evaluate.model_dump() | asked
    chosen |= {key: value for key, value in training.items() if chosen[key] is None}
    try:
        plan = Recipe.model_validate(recipe.model_dump(by_alias=True) | {"evaluate": chosen}).evaluate
    except ValidationError as error:
        raise RecipeError(explained("the evaluation asked for", error)) from None
    normalizes = getattr(recipe.model, "norm", None) != "none"
    return plan if normalizes else plan.model_copy(update={"normalization": None})  # nothing could follow a policy


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain JSON values, complete: what the run folder stores."""
    return recipe.model_dump(mode="json", by_alias=True)


def differing_keys(one: Recipe, other: Recipe) -> list[str]:
    """Dotted keys whose values differ between two recipes."""
    flat_one, flat_other = dict(_flatten(recipe_values(one))), dict(_flatten(recipe_values(other)))
    return sorted(k for k in flat_one | flat_other if flat_one.get(k) != flat_other.get(k))


def keys_set(settings: Iterable[str]) -> set[str]:
    """Dotted keys that settings give a value, those of tables one by one."""
    values: dict[str, Any] = {}
    for setting in settings:
        _set(values, setting)
    return {key for key, _ in _flatten(values)}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _read(source: str | Path | Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    if not isinstance(source, str | Path):
        given: Any = source
        if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
            raise RecipeError(
                "A recipe is a bundled name, the path of a TOML file, or a dict of its sections by name: got "
                f"{given!r}. `fewstep recipes` lists the names."
            )
        return where, _copied(source)
    bundled = resources.files("fewstep.experiments") / "recipes" / f"{source}.toml"
    path = Path(source)
    if re.fullmatch(r"[\w-]+", str(source)) and bundled.is_file():
        where, text = f"bundled recipe {source}", bundled.read_text(encoding="utf-8")
    elif path.suffix == ".toml":
        where = str(path)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise RecipeError(f"A recipe must be a readable TOML file: {path}: {reason}.") from None
    elif (path / "config.json").is_file():
        raise RecipeError(
            f"RECIPE must be a bundled name or the path of a .toml file: {path} is a run. Give the recipe that it "
            f"began with; the run itself goes on with `fewstep train RECIPE --out {path} --resume`."
        )
    elif path.suffix.lower() in (".csv", ".tsv", ".txt", ".parquet") or path.is_dir():
        kind = "folder" if path.is_dir() else "table"
        columns = ', task = "...", inputs = ["..."], targets = ["..."]' if kind == "table" else ""
        raise RecipeError(
            f"RECIPE must be a bundled name or the path of a .toml file, which says what to learn from: {path} is a "
            f'{kind}. Write tasks = {{ kind = "{kind}", path = "{path}"{columns} }} and the rest into one: the README '
            "shows how, `fewstep recipes --keys` lists all that it may say."
        )
    else:
        near = get_close_matches(str(source), bundled_recipes(), n=1)
        raise RecipeError(
            f"RECIPE must be a bundled name or the path of a .toml file: got {str(source)!r}. "
            f"{f'Did you mean {near[0]}? ' if near else ''}Bundled are: {', '.join(bundled_recipes())}."
        )
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{where}: not valid TOML: {error}.") from None
    values.setdefault("name", path.stem)
    if path.suffix == ".toml":
        _resolve(values, path.parent)
    return where, values


def _resolve(values: dict[str, Any], folder: Path) -> None:
    """Say from everywhere where the recipe's own data lie, and where training begins."""
    tasks, meta = values.get("tasks"), values.get("meta")
    if isinstance(tasks, dict) and isinstance(tasks.get("path"), str):
        tasks["path"] = _resolved(tasks["path"], folder)
    if isinstance(meta, dict) and isinstance(meta.get("start"), str):
        meta["start"] = _start(meta["start"], folder)


def _start(run: str, folder: Path) -> str:
    """A folder as seen from another; a single word that names none may be a ready initialisation."""
    found = _path("meta.start", run, folder)
    return str(found) if found.exists() or len(Path(run).parts) > 1 else run


def _resolved(table: str, folder: Path) -> str:
    return table if table.startswith("bundled:") else str(_path("tasks.path", table, folder))


def _path(key: str, text: str, folder: Path) -> Path:
    try:
        return (folder / Path(text).expanduser()).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # an unknown user, or a character that no path has
        raise RecipeError(f"{key} must be a path: got {text!r} ({error}).") from None


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copied(v) if isinstance(v, dict) else v for k, v in values.items()}


def as_text(settings: Iterable[str] | Mapping[str, Any]) -> list[str]:
    """Settings as `key=value`, those of a dict with its sections key by key.

    Raises:
        RecipeError: They are something else.
    """
    if isinstance(settings, str):
        raise RecipeError("Settings are a list of 'key=value', or a dict: got a str. Put it in brackets.")
    if not isinstance(settings, Mapping):
        return list(settings)
    found: list[str] = []
    for key, value in settings.items():
        is_section = isinstance(value, Mapping) and "." not in key  # below, keys may be names of the user's
        found += (
            as_text({f"{key}.{name}": each for name, each in value.items()})
            if is_section
            else [f"{key}={_toml(value, key)}"]
        )
    return found


def _toml(value: Any, key: str) -> str:
    """A value as TOML writes it, on one line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Integral):  # NumPy's numbers, too
        return repr(int(value))
    if isinstance(value, Real):
        return repr(float(value))
    if isinstance(value, str | Path):
        return json.dumps(str(value), ensure_ascii=False)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(each, key) for each in value)}]"
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{json.dumps(name)} = {_toml(each, key)}' for name, each in value.items())} }}"
    raise RecipeError(
        f"A setting is a number, a string, a truth value, or a list of these: got {value!r} for {key}."
        + (" Leave it out for the default." if value is None else "")
    )


def _set(values: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(f"--set must look like key=value, for instance meta.lr=0.01: got {setting!r}.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        if not re.fullmatch(r"[\w./:~*-]+", text.strip()):
            raise RecipeError(
                f"--set {setting}: the value must be TOML: got {text!r}. Quote strings: '{key}=\"...\"'."
            ) from None
        value = text.strip()
    if isinstance(value, float) and value.is_integer() and "e" in text.lower():
        value = int(value)  # 1e5 iterations, which TOML takes for no whole number
    if parts == ["tasks", "path"] and isinstance(value, str):
        value = _resolved(value, Path.cwd())
    if parts == ["meta", "start"] and isinstance(value, str):
        value = _start(value, Path.cwd())
    section = values
    for part in parts[:-1]:
        section = section.setdefault(part, {})
        if not isinstance(section, dict):
            raise RecipeError(f"--set {setting}: {part} is a value and has no keys of its own.")
    section[parts[-1]] = value
