"""How the surrounding computation runs, for layers that can be computed in several ways.

While a compiler's recording is made, for instance, batch normalisation is written out in small operations, which the
compiler fuses; otherwise it is one operation of PyTorch's. The layer asks `is_recording_for_compiler()`.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_map

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

_for_compiler: ContextVar[bool] = ContextVar("recording for a compiler", default=False)
_vmapped: ContextVar[bool] = ContextVar("all tasks at once", default=False)
_exact: ContextVar[bool] = ContextVar("exactly", default=False)


def is_recording_for_compiler() -> bool:
    """Whether operations are being recorded to be compiled: then many small ones, which fuse, beat one large."""
    return _for_compiler.get()


def is_vmapped() -> bool:
    """Whether all tasks are computed at once: then only operations that have a vmap rule can run."""
    return _vmapped.get()


def is_exact() -> bool:
    """Whether operations run `exactly`."""
    return _exact.get()


@contextmanager
def exactly() -> Generator[None]:
    """Nothing that is computed within is rounded to fewer digits than it comes with; recordings stay what they are."""
    token = _exact.set(True)
    try:
        with tensor_float(False):
            yield
    finally:
        _exact.reset(token)


def allows_tensor_float() -> bool:
    """Whether a GPU may round the factors of float32 products now."""
    try:
        return bool(torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32)
    except RuntimeError:  # set in PyTorch's newer way
        return torch.backends.cuda.matmul.fp32_precision == "tf32"


@contextmanager
def tensor_float(allowed: bool) -> Generator[None]:
    """Whether a GPU may round the factors of float32 products within to TensorFloat-32; then as before.

    What was set through PyTorch's newer `fp32_precision` stays: the two cannot be mixed.
    """
    kinds: Any = (torch.backends.cuda.matmul, torch.backends.cudnn)
    try:
        before = [kind.allow_tf32 for kind in kinds]
    except RuntimeError:
        kinds, before = (), []
    for kind in kinds:
        kind.allow_tf32 = allowed
    try:
        yield
    finally:
        for kind, old in zip(kinds, before, strict=True):
            kind.allow_tf32 = old


@contextmanager
def recording_for_compiler(whether: bool) -> Generator[None]:
    """What is recorded within is to be compiled, or is not."""
    token = _for_compiler.set(whether)
    try:
        yield
    finally:
        _for_compiler.reset(token)


def vmapped(function: Callable[..., Any], shared: int = 0) -> Callable[..., Any]:
    """The function for all tasks at once, which `is_vmapped` tells those inside; random numbers differ by task.

    Args:
        function: Of trees of tensors; what is no tensor is the same for all tasks.
        shared: How many of its arguments come first that are the same for all tasks, too.
    """

    @wraps(function)
    def told(*args: Any) -> Any:
        token = _vmapped.set(True)
        try:
            return function(*args)
        finally:
            _vmapped.reset(token)

    def mapped(*args: Any) -> Any:
        axes = [tree_map(_axis, each) for each in args[shared:]]
        return torch.vmap(told, (*[None] * shared, *axes), randomness="different")(*args)

    return mapped


def _axis(leaf: Any) -> int | None:
    return 0 if isinstance(leaf, torch.Tensor) else None
