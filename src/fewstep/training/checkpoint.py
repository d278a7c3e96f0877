"""Checkpoints, written as a whole or not at all, and read with care."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fewstep.core.types import MetaParams
from fewstep.errors import RunError
from fewstep.files import replaced
from fewstep.training.records import FORMAT

if TYPE_CHECKING:
    from pathlib import Path


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a training state.

    Args:
        path: Usually `checkpoint.pt` of a run.
        state: Tensors and plain values.

    Raises:
        RunError: It cannot be written; an earlier checkpoint stands.
    """
    with replaced(path) as temporary:
        try:
            torch.save({"format": FORMAT, **state}, temporary)
        except RuntimeError as error:  # torch reports a full disk so
            raise OSError(str(error).partition("\n")[0]) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a training state; only tensors and plain values are ever unpickled.

    Raises:
        RunError: It is damaged, or of another version.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise RunError(
            f"A checkpoint must be a whole file written by fewstep: {path} cannot be read "
            f"({str(error).partition(chr(10))[0]}). Restore it from a copy; or delete it, if the run is unfinished: "
            "`--resume` then starts it again from its beginning."
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT or not {"learner", "progress"} <= state.keys():
        came = state.get("format") if isinstance(state, dict) else None
        raise RunError(
            f"{path} must be a checkpoint of format {FORMAT}: its format is {came}. "
            "Use the version of fewstep that versions.json beside it names."
        )
    return state


def save_meta(path: Path, meta: MetaParams, about: dict[str, str]) -> None:
    """Write meta-parameters as safetensors, named `model.*` and `rule.*`, with a few words about them."""
    tensors = {
        f"{part}.{name}": value.detach().cpu().contiguous()
        for part, values in meta._asdict().items()
        for name, value in values.items()
    }
    with replaced(path) as temporary:
        temporary.write_bytes(save(tensors, metadata={"format": f"fewstep-{FORMAT}", **about}))


def sha256(file: Path) -> str:
    """What a file holds, as a fingerprint."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def load_meta(path: Path) -> tuple[MetaParams, dict[str, str]]:
    """Read meta-parameters, and the words about them.

    Raises:
        RunError: The file is missing, damaged, or not one of meta-parameters.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"Meta-parameters must be a whole safetensors file: {path} cannot be read ({error}). "
            "Restore it from a copy, or train again."
        ) from None
    parts: dict[str, dict[str, torch.Tensor]] = {part: {} for part in MetaParams._fields}
    for full_name, tensor in tensors.items():
        part, _, name = full_name.partition(".")
        if part not in parts:
            raise RunError(
                f"{path} must hold meta-parameters named model.* and rule.*: it has {full_name!r}. "
                "Give a file that fewstep wrote."
            )
        parts[part][name] = tensor
    return MetaParams(**parts), about
