"""Maps read at places, in the half-pixel convention: a map's cells fill the unit square, zero lies around it, bilinear between
the cells' centres. Of networks that are made so; the others read at cell centres (:mod:`glcanet_jax.models.layers.sampling`).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Integer


def corners(places: Float[Array, "*n 2"], size: tuple[int, int]) -> tuple[Integer[Array, "*n 4"], Float[Array, "*n 4"]]:
    """The four cells around places, and their weights, zero for cells that are not of the map.

    Args:
        places: ``x, y`` as fractions of the map; size: its rows and columns.

    Returns:
        The cells' numbers, row by row; outside of the map those of others.
    """
    h, w = size
    x, y = places[..., 0] * w - 0.5, places[..., 1] * h - 0.5

    def along(at: Array, cells: int) -> list[tuple[Array, Array]]:
        low = jnp.floor(at)
        near = ((low, 1 - (at - low)), (low + 1, at - low))
        return [
            (jnp.clip(cell, 0, cells - 1).astype(jnp.int32), jnp.where((cell >= 0) & (cell < cells), share, 0.0))
            for cell, share in near
        ]

    pairs = [(row, column) for row in along(y, h) for column in along(x, w)]
    index = jnp.stack([row[0] * w + column[0] for row, column in pairs], axis=-1)
    return index, jnp.stack([row[1] * column[1] for row, column in pairs], axis=-1)


def read(maps: Float[Array, "s c"], places: Float[Array, "n 2"], size: tuple[int, int]) -> Float[Array, "n c"]:
    """A map of ``s`` cells, row by row, at places, as :func:`corners` has them."""
    index, weights = corners(places, size)
    return jnp.sum(jnp.take(maps, index, axis=0, mode="clip") * weights[..., None], axis=-2)
