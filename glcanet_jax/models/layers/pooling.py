"""Means over a coarse grid of bins, and bins spread over a map again: products with two small constant matrices.

And maxima over windows that overlap.
"""

from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from glcanet_jax import geometry


def bin_means(size: int, bins: int) -> np.ndarray:
    """A matrix ``[bins, size]`` of means along an axis: bin ``i`` holds cells ``floor(i size / bins)`` up to, but not
    with, ``ceil((i + 1) size / bins)``; neighbours share a cell where they do not divide evenly.
    """
    out = np.zeros((bins, size))
    for i in range(bins):
        start, stop = i * size // bins, -(-(i + 1) * size // bins)
        out[i, start:stop] = 1 / (stop - start)
    return out


def align_corners(bins: int, size: int) -> np.ndarray:
    """A matrix ``[size, bins]`` of bilinear resizing along an axis: the first and last bin lie on the first and last cell."""
    return geometry.bilinear(np.arange(size) * ((bins - 1) / max(size - 1, 1)), bins)


def adaptive_mean(x: Float[Array, "b h w c"], bins: int) -> Float[Array, "b n n c"]:
    """Adaptive average pooling to ``bins`` a side, in float32 at least."""
    h, w = x.shape[1:3]
    return along_axes(x, bin_means(h, bins), bin_means(w, bins))


def spread(x: Float[Array, "b n m c"], size: tuple[int, int]) -> Float[Array, "b h w c"]:
    """Bins over a whole map again, in float32 at least."""
    return along_axes(x, *(align_corners(bins, cells) for bins, cells in zip(x.shape[1:3], size, strict=True)))


def along_axes(x: Float[Array, "*b h w c"], rows: np.ndarray, columns: np.ndarray) -> Float[Array, "*b y x c"]:
    """Products with a matrix ``[y, h]`` along the rows and one ``[x, w]`` along the columns, in float32 at least."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    x = jnp.einsum("nh,...hwc->...nwc", jnp.asarray(rows, dtype), x.astype(dtype), precision="highest")
    return jnp.einsum("mw,...nwc->...nmc", jnp.asarray(columns, dtype), x, precision="highest")


def max_around(
    x: Float[Array, "b h w c"], size: int, stride: int = 1, outside: float = -np.inf
) -> Float[Array, "b h2 w2 c"]:
    """Largest of ``size`` by ``size`` cells about every cell, or every second, third ...

    As maxima of strided slices: XLA's own window has a gradient three times slower on CPUs.

    Args:
        size: odd; outside: what lies around the map.
    """
    for axis in (1, 2):
        out = -(-x.shape[axis] // stride)
        around = [(size // 2, size // 2) if a == axis else (0, 0) for a in range(4)]
        x = jnp.pad(x, around, constant_values=outside)
        reach = stride * (out - 1) + 1
        shifted = (jax.lax.slice_in_dim(x, i, i + reach, stride=stride, axis=axis) for i in range(size))
        x = reduce(jnp.maximum, shifted)
    return x
