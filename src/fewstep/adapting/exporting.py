"""Adapted models for other programs: ONNX and torch.export, each compared with the module before it is kept."""

from __future__ import annotations

import io
import json
import logging
import warnings
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch

from fewstep.errors import FewstepError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor, nn

Format: TypeAlias = Literal["onnx", "torch"]
FILES: dict[Format, str] = {"onnx": "model.onnx", "torch": "model.pt2"}
"""The file of each format in the folder of an adapted model."""
_NEEDS = ("onnx", "onnxscript", "onnxruntime")
_TOLERANCE = 1e-3
"""Of logits: other kernels add up in another order."""


def check_exportable(format: Format) -> None:  # noqa: A002  (its name on the command line)
    """Check that a format can be written here.

    Raises:
        FewstepError: It is unknown, or a package is missing.
    """
    if format not in FILES:
        raise FewstepError(f"--export must be one of {', '.join(FILES)}: got {format!r}.")
    missing = [name for name in _NEEDS if find_spec(name) is None] if format == "onnx" else []
    if missing:
        raise FewstepError(
            f"ONNX files are written and checked with {', '.join(_NEEDS)}: {', '.join(missing)} cannot be imported. "
            "Install the extra: pip install 'fewstep[export]'. Or use --export torch."
        )


def exported(module: nn.Module, images: Tensor, about: Mapping[str, Any], format: Format) -> bytes:  # noqa: A002
    """The module for any number of pictures: float32 images in [0, 1] `[pictures, channels, height, width]` to logits.

    Args:
        module: In evaluation mode.
        images: Some such images, on which the export must agree with the module.
        about: Comes along, as JSON in the ONNX file's metadata `fewstep` or the torch file's extra file `fewstep.json`.
        format: Of which program.

    Raises:
        FewstepError: It cannot be written, or computes something else than the module.
    """
    check_exportable(format)
    write, read = {"onnx": (_write_onnx, _read_onnx), "torch": (_write_torch, _read_torch)}[format]
    try:
        with _quietly():
            raw = write(module, images, json.dumps(about))
            _compare(module, read(raw), images, format)
    except FewstepError:
        raise
    except Exception as error:  # exporters raise errors of many kinds
        reason = str(error).strip().partition("\n")[0]
        raise FewstepError(
            f"The adapted model cannot be exported as {format} ({type(error).__name__}: {reason}). Try the other "
            "format, or use model.safetensors."
        ) from error
    return raw


@contextmanager
def _quietly() -> Iterator[None]:
    """PyTorch's exporters warn and log about what the user can do nothing for."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@torch.no_grad()
def _compare(module: nn.Module, function: Callable[[Tensor], Tensor], images: Tensor, name: str) -> None:
    """On all support pictures at once, and on one alone."""
    for batch in (images, images[:1]):
        expected, came = module(batch), function(batch)
        if expected.shape != came.shape or not torch.allclose(expected, came, rtol=_TOLERANCE, atol=_TOLERANCE):
            raise FewstepError(
                f"The {name} file must compute what the module does: on {len(batch)} support pictures it does not. It "
                "was not kept. Try the other format, or another version of PyTorch."
            )


def _program(module: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    several = images.repeat(2, 1, 1, 1)  # one picture would be taken for the only number there is
    return torch.export.export(module, (several,), dynamic_shapes=({0: torch.export.Dim("pictures")},))


def _write_torch(module: nn.Module, images: Tensor, about: str) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(_program(module, images), buffer, extra_files={"fewstep.json": about})
    return buffer.getvalue()


def _read_torch(raw: bytes) -> Callable[[Tensor], Tensor]:
    return torch.export.load(io.BytesIO(raw)).module()


def _write_onnx(module: nn.Module, images: Tensor, about: str) -> bytes:
    program = torch.onnx.export(
        _program(module, images),
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: "pictures"},),
    )
    assert program is not None
    program.model.metadata_props["fewstep"] = about
    return program.model_proto.SerializeToString()


def _read_onnx(raw: bytes) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(raw, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
