"""Matrix products and convolutions: where the time goes, and where fewer digits save some of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep.core.context import is_exact
from fewstep.core.running import Run, plain
from fewstep.core.trees import leaves, tree_map

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

    Rounded are the factors and the result of the products in `PRODUCTS`, those of first and second derivatives too;
    what is added to them and what comes between, parameters, statistics, losses and meta-gradient among it, keeps its
    digits. It works below automatic differentiation, so it asks nothing of the model. A meta-gradient needs no scale:
    bfloat16 reaches as far as float32. float16 does not, and no one scale of the loss fits inner and outer loop.

    Not compiled, each operation passes through Python: then it pays for large products alone.

    Args:
        run: How the function runs then: `compiled()` fuses the conversions with what is around them.
    """

    def rounded_run(function: Function) -> Function:
        def rounded(*args: Any) -> Any:
            if is_exact():
                return function(*args)
            with _Rounding():
                return function(*args)

        cast("Any", rounded).rounds = True  # for the comparison of what is compiled
        return run(rounded)

    return rounded_run


class _Rounding(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given: dict[str, Any] = kwargs or {}
        if func not in PRODUCTS or not any(map(_is_single, leaves(list(args)))):
            return func(*args, **given)
        if func in _SUMS:
            term, *factors = args
            beta, product = given.get("beta", 1), given.get("alpha", 1) * _rounded_product(_SUMS[func], factors)
            return beta * term + product if beta else product
        if func is _aten.convolution.default and args[2] is not None:
            outputs = _rounded_product(func, (*args[:2], None, *args[3:]))
            return outputs + args[2].view(-1, *[1] * (outputs.dim() - 2))
        if func is _aten.convolution_backward.default and args[-1][2]:
            of_inputs, of_weight, _ = _rounded_product(func, (*args[:-1], [*args[-1][:2], False]))
            return of_inputs, of_weight, args[0].sum([0, *range(2, args[0].dim())])
        return _rounded_product(func, args)


_SUMS = {_aten.addmm.default: _aten.mm.default, _aten.baddbmm.default: _aten.bmm.default}


def _rounded_product(product: Any, args: Any) -> Any:
    return tree_map(_widened, product(*tree_map(_rounded, tuple(args))))


def _is_single(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float32


def _rounded(leaf: Any) -> Any:
    return leaf.bfloat16() if _is_single(leaf) else leaf


def _widened(leaf: Any) -> Any:
    return leaf.float() if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.bfloat16 else leaf
