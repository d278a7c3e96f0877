"""Matrix products and convolutions: where the time goes, and where fewer digits save some of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep.core.context import is_exact
from fewstep.core.running import Run, plain
from fewstep.core.trees import tree_map

if TYPE_CHECKING:
    from fewstep.core.running import Function

_aten: Any = torch.ops.aten
PRODUCTS = {
    _aten.convolution.default,
    _aten.convolution_backward.default,
    _aten.mm.default,
    _aten.bmm.default,
    _aten.addmm.default,
    _aten.baddbmm.default,
}


def bfloat16(run: Run = plain) -> Run:
    """Computes products and convolutions of float32 in bfloat16, and runs otherwise as it is told.

    Rounded are the factors and the result of every product, those of first and second derivatives too; what comes
    between them, parameters, statistics, losses and meta-gradient among it, keeps its digits. It works below automatic
    differentiation, so it asks nothing of the model. A meta-gradient needs no scale: bfloat16 reaches as far as
    float32. float16 does not, and no one scale of the loss fits inner and outer loop.

    Args:
        run: How the function runs then: `compiled()` fuses the conversions with what is around them.
    """

    def rounded_run(function: Function) -> Function:
        def rounded(*args: Any) -> Any:
            if is_exact():
                return function(*args)
            with _Rounding():
                return function(*args)

        return run(rounded)

    return rounded_run


class _Rounding(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given: dict[str, Any] = kwargs or {}
        if func not in PRODUCTS:
            return func(*args, **given)
        if func in _SUMS:  # what is added keeps its digits
            term, *factors = args
            product = self.__torch_dispatch__(_SUMS[func], types, factors)
            return given.get("beta", 1) * term + given.get("alpha", 1) * product
        return tree_map(_widened, func(*tree_map(_rounded, tuple(args)), **given))


_SUMS = {_aten.addmm.default: _aten.mm.default, _aten.baddbmm.default: _aten.bmm.default}


def _rounded(leaf: Any) -> Any:
    return leaf.bfloat16() if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float32 else leaf


def _widened(leaf: Any) -> Any:
    return leaf.float() if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.bfloat16 else leaf
