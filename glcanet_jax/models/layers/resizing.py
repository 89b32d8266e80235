"""Resizing as picture libraries do it: pixels are squares, whose edges fall on the image's edges at every size.

As products with small constant matrices, which every compiler and every exporter knows.
"""

import numpy as np
from jaxtyping import Array, Float

from glcanet_jax import geometry
from glcanet_jax.models.layers.pooling import along_axes

SHARPNESS = -0.75  # of PyTorch's cubic kernel; jax.image has -0.5


def _places(cells: int, size: int) -> np.ndarray:
    """Where the centres of ``size`` pixels lie among ``cells``, in cells."""
    return (np.arange(size) + 0.5) * (cells / size) - 0.5


def points(cells: int, size: int) -> np.ndarray:
    """A matrix ``[size, cells]``: bilinear, without means where it makes maps smaller; PyTorch's."""
    return geometry.bilinear(_places(cells, size), cells)


def linear(cells: int, size: int) -> np.ndarray:
    """A matrix ``[size, cells]``: bilinear; where it makes images smaller it takes means as wide as it shrinks."""
    if size >= cells:
        return points(cells, size)
    weights = geometry.tent((_places(cells, size)[:, None] - np.arange(cells)) * (size / cells))
    return weights / weights.sum(axis=1, keepdims=True)


def cubic(cells: int, size: int) -> np.ndarray:
    """A matrix ``[size, cells]``: PyTorch's bicubic interpolation, without means where it makes maps smaller."""
    place = _places(cells, size)
    first, out = np.floor(place).astype(int), np.zeros((size, cells))
    a = SHARPNESS
    for neighbour in range(-1, 3):
        d = np.abs(place - first - neighbour)
        near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4)
        at = np.clip(first + neighbour, 0, cells - 1)  # beyond the edge lies what is at the edge
        np.add.at(out, (np.arange(size), at), np.where(d <= 1, near, far))
    return out


def resize(x: Float[Array, "*b h w c"], size: tuple[int, int], kernel=linear) -> Float[Array, "*b y x c"]:
    """A map at another size, in float32 at least; as it is where it has that size."""
    if x.shape[-3:-1] == tuple(size):
        return x
    return along_axes(x, *(kernel(cells, wanted) for cells, wanted in zip(x.shape[-3:-1], size, strict=True)))
