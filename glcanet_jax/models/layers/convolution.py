"""Convolutions that train on a CPU.

XLA's CPU backend computes the gradient of a kernel as a convolution with a window as large as the image, up to 15 times
slower than the forward pass. Here it is ``kh * kw`` matrix products of strided slices, behind a custom VJP; the forward
pass and the gradient of the input are XLA's own, except that a 1x1 convolution is one product throughout, and one of few
outputs a product whose parts are shifted. Other backends are left alone. ``experiments.speed`` measures.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

BAND = (
    4096  # output cells of one band of rows: of 1, 2, 4 thousand and whole images the fastest over ResNet-50's shapes
)

# numbers of a kernel that outweighs every map it sees (FCN's fc6 has 103 million): it is read once for each of three products
LARGE = 2**24


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
    """``lax.conv_general_dilated`` made for training on CPUs, where the case allows (NHWC, HWIO, no groups)."""
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
    if not (layout and plain):
        return lax.conv_general_dilated(
            lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
            feature_group_count, batch_group_count, precision, preferred_element_type, **rest,
        )  # fmt: skip
    dilation = tuple(rhs_dilation or (1, 1))
    strides = tuple(window_strides)
    if isinstance(padding, str):
        window = [(k - 1) * d + 1 for k, d in zip(rhs.shape[:2], dilation, strict=True)]
        padding = lax.padtype_to_pads(lhs.shape[1:3], window, strides, padding)
    padding = tuple(tuple(p) for p in padding)
    if rhs.shape[:2] == (1, 1) and padding == ((0, 0), (0, 0)):
        return _pointwise(lhs, rhs[0, 0], strides, precision)
    if rhs.size >= LARGE:
        return _unfolded(lhs, rhs, strides, padding, dilation, precision)
    if strides == (1, 1) and rhs.shape[3] * rhs.shape[0] * rhs.shape[1] <= rhs.shape[2]:
        return shift(mix(lhs, rhs, precision), rhs.shape, padding, dilation).astype(lhs.dtype)
    return _conv(lhs, rhs, strides, padding, dilation, precision)


def _pointwise(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], precision: Any) -> jax.Array:
    """A 1x1 convolution as one product, whose gradients are products, too."""
    x = x[:, :: strides[0], :: strides[1]]
    y = jnp.matmul(x.reshape(-1, x.shape[-1]), kernel, precision=precision)
    return y.reshape(*x.shape[:3], kernel.shape[-1])


def mix(x: jax.Array, kernel: jax.Array, precision: Any = None) -> jax.Array:
    """What each place of a kernel makes of each cell, as one product; :func:`shift` of it is the convolution.

    For few outputs (class heads) a few times faster on CPUs than a convolution, forward and backward. And it commutes with
    resizing, which treats all channels alike, so that maps of a coarse grid are mixed there.

    Args:
        x: ``[..., h, w, cin]``; kernel: ``[kh, kw, cin, cout]``.

    Returns:
        ``[..., h, w, kh * kw * cout]``, in the type of ``x``.
    """
    kh, kw, cin, cout = kernel.shape
    columns = kernel.transpose(2, 0, 1, 3).reshape(cin, kh * kw * cout)
    y = jnp.matmul(x.reshape(-1, cin), columns, precision=precision)
    return y.reshape(*x.shape[:-1], kh * kw * cout)


def shift(
    mixed: jax.Array,
    shape: tuple[int, int, int, int],
    padding: tuple[tuple[int, int], ...],
    dilation: tuple[int, int] = (1, 1),
) -> jax.Array:
    """A convolution at stride 1 from what :func:`mix` made with a kernel of ``shape``: every place's share, shifted, added up.

    Args:
        mixed: ``[b, h, w, kh * kw * cout]``.

    Returns:
        ``[b, h2, w2, cout]``, summed in float32 at least.
    """
    kh, kw, _, cout = shape
    x = lax.pad(mixed, jnp.zeros((), mixed.dtype), ((0, 0, 0), (*padding[0], 0), (*padding[1], 0), (0, 0, 0)))
    oh, ow = (n - (k - 1) * d for n, k, d in zip(x.shape[1:3], (kh, kw), dilation, strict=True))
    total = None
    for i in range(kh):
        for j in range(kw):
            top, left, first = i * dilation[0], j * dilation[1], (i * kw + j) * cout
            part = x[:, top : top + oh, left : left + ow, first : first + cout].astype(_accumulate(x.dtype))
            total = part if total is None else total + part
    return total


def _unfolded(
    x: jax.Array, kernel: jax.Array, strides: tuple, padding: tuple, dilation: tuple, precision: Any
) -> jax.Array:
    """A convolution as one product of what each output sees, side by side; its gradients are products, too."""
    kh, kw, cin, cout = kernel.shape
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (*padding[0], 0), (*padding[1], 0), (0, 0, 0)))
    windows = [(k - 1) * d + 1 for k, d in zip((kh, kw), dilation, strict=True)]
    oh, ow = ((n - window) // step + 1 for n, window, step in zip(x.shape[1:3], windows, strides, strict=True))

    def seen(i: int, j: int) -> jax.Array:
        top, left = i * dilation[0], j * dilation[1]
        rows, columns = top + (oh - 1) * strides[0] + 1, left + (ow - 1) * strides[1] + 1
        return x[:, top : rows : strides[0], left : columns : strides[1]]

    columns = jnp.concatenate([seen(i, j) for i in range(kh) for j in range(kw)], axis=-1)
    y = jnp.matmul(columns.reshape(-1, kh * kw * cin), kernel.reshape(-1, cout), precision=precision)
    return y.reshape(x.shape[0], oh, ow, cout)


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
    config = ((0, 0, 0), (*padding[0], 0), (*padding[1], 0), (0, 0, 0))  # negative padding crops; lax.pad does both
    x = lax.pad(lhs, jnp.zeros((), lhs.dtype), config)
    kh, kw, cin, cout = shape
    if strides == (1, 1) and kh * kw > 1 and 4 * cout <= cin:
        return _by_outputs(x, cotangent, shape, dilation)
    return _by_rows(x, cotangent, shape, strides, dilation)


def _by_outputs(x: jax.Array, cotangent: jax.Array, shape: tuple, dilation: tuple[int, int]) -> jax.Array:
    """For few outputs (class heads): shift the small cotangent about instead of the large input, then one product."""
    kh, kw, cin, cout = shape
    low = [(i * dilation[0], j * dilation[1]) for i in range(kh) for j in range(kw)]
    spare = (x.shape[1] - cotangent.shape[1], x.shape[2] - cotangent.shape[2])
    zero = jnp.zeros((), cotangent.dtype)
    shifted = [
        lax.pad(cotangent, zero, ((0, 0, 0), (i, spare[0] - i, 0), (j, spare[1] - j, 0), (0, 0, 0))) for i, j in low
    ]
    product = _contract(x.reshape(-1, cin), jnp.concatenate(shifted, axis=-1).reshape(-1, kh * kw * cout))
    return product.reshape(cin, kh, kw, cout).transpose(1, 2, 0, 3)


def _by_rows(
    x: jax.Array, cotangent: jax.Array, shape: tuple, strides: tuple[int, int], dilation: tuple[int, int]
) -> jax.Array:
    """``kh * kw`` products of strided slices, over bands of rows of one image after another: the slices stay in the cache."""
    kh, kw, cin, cout = shape
    b, oh, ow, _ = cotangent.shape
    bands = -(-oh // max(1, BAND // ow))
    rows = -(-oh // bands)
    # input rows and columns from a band's first output to its last
    reach, wide = (rows - 1) * strides[0] + 1, (ow - 1) * strides[1] + 1
    tall = (bands * rows - 1) * strides[0] + (kh - 1) * dilation[0] + 1
    cotangent = jnp.pad(cotangent, ((0, 0), (0, bands * rows - oh), (0, 0), (0, 0)))
    x = jnp.pad(x, ((0, 0), (0, max(0, tall - x.shape[1])), (0, 0), (0, 0)))

    accumulator = jnp.zeros((kh * kw, cin, cout), _accumulate(cotangent.dtype))

    def band(total: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
        image, first = index // bands, index % bands * rows
        flat = lax.dynamic_slice(cotangent, (image, first, 0, 0), (1, rows, ow, cout)).reshape(-1, cout)

        def place(at: jax.Array, total: jax.Array) -> jax.Array:  # a loop: apart, each place is a kernel to compile
            corner = first * strides[0] + at // kw * dilation[0], at % kw * dilation[1]
            part = lax.dynamic_slice(x, (image, *corner, 0), (1, reach, wide, cin))[:, :: strides[0], :: strides[1]]
            return total.at[at].add(_contract(part.reshape(-1, cin), flat))

        return lax.fori_loop(0, kh * kw, place, total), None

    total, _ = lax.scan(band, accumulator, jnp.arange(b * bands))
    return total.reshape(shape)


def _accumulate(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)


def _contract(x: jax.Array, y: jax.Array) -> jax.Array:
    """``x^T y``, summed in float32 at least."""
    return lax.dot_general(x, y, (((0,), (0,)), ((), ())), preferred_element_type=_accumulate(y.dtype))
