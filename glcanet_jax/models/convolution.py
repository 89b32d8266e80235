"""Convolutions that train on a CPU.

XLA's CPU backend computes the gradient of a kernel as a convolution with a window as large as the image, 5 to 15 times
slower than the forward pass. Here it is ``kh * kw`` matrix products of strided slices, behind a custom VJP; the forward
pass and the gradient of the input are XLA's own, and other backends are left alone.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

MIN_CHANNELS = 64  # under it (the stem) XLA's own kernel gradient is the faster one, unless the kernel is 1x1


def choose(fast: bool | None = None) -> Callable[..., jax.Array]:
    """A convolution for ``nn.Conv(conv_general_dilated=...)``: ours on CPUs, XLA's elsewhere; ``fast`` decides itself."""
    if fast is None:
        fast = jax.default_backend() == "cpu"
    return conv_general_dilated if fast else lax.conv_general_dilated


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    **rest: Any,
) -> jax.Array:
    """``lax.conv_general_dilated`` with a kernel gradient made for CPUs, where the case allows (NHWC, HWIO, no groups)."""
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    layout = (
        numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, ("NHWC", "HWIO", "NHWC"))
        if lhs.ndim == 4
        else False
    )
    plain = (
        feature_group_count == batch_group_count == 1
        and all(d == 1 for d in lhs_dilation or (1,))
        and preferred_element_type is None
    )
    worth = lhs.ndim == 4 and (rhs.shape[:2] == (1, 1) or rhs.shape[2] >= MIN_CHANNELS)
    if not (layout and plain and worth):
        return lax.conv_general_dilated(
            lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
            feature_group_count, batch_group_count, precision, preferred_element_type, **rest,
        )  # fmt: skip
    dilation = tuple(rhs_dilation or (1, 1))
    strides = tuple(window_strides)
    if isinstance(padding, str):
        window = [(k - 1) * d + 1 for k, d in zip(rhs.shape[:2], dilation, strict=True)]
        padding = lax.padtype_to_pads(lhs.shape[1:3], window, strides, padding)
    return _conv(lhs, rhs, strides, tuple(tuple(p) for p in padding), dilation, precision)


def _stock(lhs, rhs, strides, padding, dilation, precision):
    return lax.conv_general_dilated(
        lhs,
        rhs,
        strides,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _conv(lhs, rhs, strides, padding, dilation, precision):
    return _stock(lhs, rhs, strides, padding, dilation, precision)


def _forward(lhs, rhs, strides, padding, dilation, precision):
    return _conv(lhs, rhs, strides, padding, dilation, precision), (lhs, rhs)


def _backward(strides, padding, dilation, precision, saved, cotangent):
    lhs, rhs = saved
    _, input_vjp = jax.vjp(lambda x: _stock(x, rhs, strides, padding, dilation, precision), lhs)
    return input_vjp(cotangent)[0], kernel_gradient(lhs, cotangent, rhs.shape, strides, padding, dilation).astype(
        rhs.dtype
    )


_conv.defvjp(_forward, _backward)


def kernel_gradient(
    lhs: jax.Array,
    cotangent: jax.Array,
    shape: tuple[int, int, int, int],
    strides: tuple[int, int],
    padding: tuple[tuple[int, int], ...],
    dilation: tuple[int, int],
) -> jax.Array:
    """Gradient of the kernel ``[kh, kw, cin, cout]``: at each of its places, the input seen there times the cotangent."""
    kh, kw, cin, cout = shape
    _, oh, ow, _ = cotangent.shape
    # negative padding crops; lax.pad does both
    config = ((0, 0, 0), (*padding[0], 0), (*padding[1], 0), (0, 0, 0))
    x = lax.pad(lhs, jnp.zeros((), lhs.dtype), config)
    accumulate = jnp.promote_types(cotangent.dtype, jnp.float32)
    flat = cotangent.reshape(-1, cout)
    places = []
    for i in range(kh):
        for j in range(kw):
            top, left = i * dilation[0], j * dilation[1]
            seen = x[
                :,
                top : top + (oh - 1) * strides[0] + 1 : strides[0],
                left : left + (ow - 1) * strides[1] + 1 : strides[1],
            ]
            places.append(
                lax.dot_general(
                    seen.reshape(-1, cin), flat, (((0,), (0,)), ((), ())), preferred_element_type=accumulate
                )
            )
    return jnp.stack(places).reshape(kh, kw, cin, cout)
