"""The networks in JAX, as functions of parameters with the names of the torch modules.

Images are NHWC and kernels HWIO, JAX's own layout; converted once at the border.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.speed.workloads import Workload

Params = dict[str, jax.Array]


def parameter(array: np.ndarray) -> jax.Array:
    """A parameter, kernels `[out, in, h, w]` in JAX's layout."""
    return jnp.asarray(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array)


def meta_batch(array: np.ndarray) -> jax.Array:
    """Inputs or targets of all tasks, images `[tasks, examples, c, h, w]` in JAX's layout."""
    return jnp.asarray(array.transpose(0, 1, 3, 4, 2) if array.ndim == 5 else array)


def as_torch(array: jax.Array) -> np.ndarray:
    """A parameter's gradient, in torch's layout."""
    return np.asarray(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array)


def forward(workload: Workload) -> Callable[[Params, jax.Array], jax.Array]:
    """The network of a workload: outputs of parameters and inputs `[examples, ...]`."""
    if workload.network == "mlp":
        return _mlp
    if workload.network == "convnet":
        return lambda params, images: _convnet(params, images, workload)
    if workload.network == "lstm":
        return _lstm
    return lambda params, inputs: _transformer(params, inputs, workload.heads)


def _linear(params: Params, name: str, inputs: jax.Array) -> jax.Array:
    return inputs @ params[f"{name}.weight"].T + params[f"{name}.bias"]


def _mlp(params: Params, inputs: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(_linear(params, "body.0.linear", inputs))
    return _linear(params, "head", jax.nn.relu(_linear(params, "body.1.linear", hidden)))


def _convnet(params: Params, images: jax.Array, workload: Workload) -> jax.Array:
    stride = 2 if workload.downsample == "stride" else 1
    x = images
    for block in (f"body.{i}" for i in range(4)):
        x = jax.lax.conv_general_dilated(
            x,
            params[f"{block}.conv.weight"],
            (stride, stride),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = x + params[f"{block}.conv.bias"]
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        x = (x - mean) * jax.lax.rsqrt(variance + 1e-3) + params[f"{block}.norm.bias"]
        x = jax.nn.relu(x)
        if workload.downsample == "max_pool":
            x = _max_pool(x)
    features = x.mean((1, 2)) if workload.pool == "mean" else x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
    return _linear(params, "head", features)


def _max_pool(x: jax.Array) -> jax.Array:
    """2x2, as the maximum of four slices.

    A little faster here than `reduce_window`. A reshape and a maximum would do, but XLA (jaxlib 0.10.2, CPU) compiles
    its gradient under `vmap` to wrong numbers.
    """
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    top = jnp.maximum(x[:, 0:height:2, 0:width:2], x[:, 0:height:2, 1:width:2])
    return jnp.maximum(top, jnp.maximum(x[:, 1:height:2, 0:width:2], x[:, 1:height:2, 1:width:2]))


def _lstm(params: Params, inputs: jax.Array) -> jax.Array:
    bias = params["lstm.bias_ih_l0"] + params["lstm.bias_hh_l0"]
    projected = inputs @ params["lstm.weight_ih_l0"].T + bias
    start = jnp.zeros((inputs.shape[0], params["lstm.weight_hh_l0"].shape[1]))

    def tick(state: tuple[jax.Array, jax.Array], entry: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        hidden, cell = state
        i, f, g, o = jnp.split(entry + hidden @ params["lstm.weight_hh_l0"].T, 4, axis=-1)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(cell), cell), None

    (hidden, _), _ = jax.lax.scan(tick, (start, start), projected.transpose(1, 0, 2))
    return _linear(params, "head", hidden)


def _transformer(params: Params, inputs: jax.Array, heads: int) -> jax.Array:
    def norm(name: str, x: jax.Array) -> jax.Array:
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        scale, shift = params[f"encoder.{name}.weight"], params[f"encoder.{name}.bias"]
        return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * scale + shift

    n, time, width = inputs.shape
    projected = inputs @ params["encoder.self_attn.in_proj_weight"].T + params["encoder.self_attn.in_proj_bias"]
    query, key, value = projected.reshape(n, time, 3, heads, width // heads).transpose(2, 0, 3, 1, 4)
    scores = jax.nn.softmax(query @ key.swapaxes(-1, -2) / (width // heads) ** 0.5)
    attended = (scores @ value).transpose(0, 2, 1, 3).reshape(n, time, width)
    x = norm("norm1", inputs + _linear(params, "encoder.self_attn.out_proj", attended))
    hidden = jax.nn.relu(_linear(params, "encoder.linear1", x))
    x = norm("norm2", x + _linear(params, "encoder.linear2", hidden))
    return _linear(params, "head", x.mean(1))
