"""Attention that looks at a few learned places of every level of a pyramid (Zhu et al., Deformable DETR, ICLR 2021, section 4.1)."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from glcanet_jax.models.layers.points import corners

Grid = tuple[int, int]  # rows and columns of a map
LONGEST = 10000.0  # of the code's wavelengths, in units of the shortest


def sine_code(grid: Grid, channels: int) -> Float[Array, "t c"]:
    """Places of a map's cells as sines and cosines, rows in the first half of the channels (Carion et al., DETR, 2020, appendix A.4).

    As Mask2Former has it: from the cells' numbers, counted from one, by their count. ``channels`` is a multiple of four.
    """
    half = channels // 2
    rates = LONGEST ** (2 * (np.arange(half) // 2) / half)

    def along(count: int) -> np.ndarray:
        angles = (np.arange(1, count + 1) / (count + 1e-6) * 2 * np.pi)[:, None] / rates
        return np.stack([np.sin(angles[:, ::2]), np.cos(angles[:, 1::2])], axis=-1).reshape(count, half)

    h, w = grid
    rows, columns = (jnp.asarray(along(count), jnp.float32) for count in grid)
    rows, columns = (jnp.broadcast_to(x, (h, w, half)) for x in (rows[:, None], columns[None]))
    return jnp.concatenate([rows, columns], axis=-1).reshape(h * w, channels)


def centres(grid: Grid) -> np.ndarray:
    """Centres of a map's cells, ``x, y`` as fractions of it, ``[t, 2]``."""
    y, x = ((np.arange(count) + 0.5) / count for count in grid)
    return np.stack(np.broadcast_arrays(x[None], y[:, None]), axis=-1).reshape(-1, 2).astype(np.float32)


def spread(heads: int, levels: int, points: int) -> Callable[..., Array]:
    """Offsets to begin with: each head looks in a direction of its own, its points one cell further each (section A.4)."""
    angles = np.arange(heads) * 2 * math.pi / heads
    towards = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    towards /= np.abs(towards).max(axis=-1, keepdims=True)
    offsets = towards[:, None, None] * np.arange(1, points + 1)[:, None]
    offsets = np.broadcast_to(offsets, (heads, levels, points, 2)).reshape(-1)
    return lambda key, shape, dtype=jnp.float32: jnp.asarray(offsets, dtype)


class DeformableAttention(nn.Module):
    """Each token sums what a few places of each level hold, places and weights being linear in the token (equation 3)."""

    heads: int
    points: int  # of each level, for each head
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t d"], code: Float[Array, "t d"], grids: Sequence[Grid]
    ) -> Float[Array, "b t d"]:
        """Of the tokens of all levels, one level after another.

        Args:
            code: where tokens are, which places and weights hear of; grids: of the levels.
        """
        b, t, d = x.shape
        sizes = dict(h=self.heads, l=len(grids), p=self.points)
        count = math.prod(sizes.values())
        plain = partial(nn.Dense, dtype=self.dtype, kernel_init=nn.initializers.zeros)
        dense = partial(nn.Dense, d, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform())
        asked = x + code[None].astype(x.dtype)
        values = rearrange(dense(name="value")(x), "b t (h e) -> b h t e", h=self.heads)
        offsets = plain(2 * count, bias_init=spread(self.heads, len(grids), self.points), name="offsets")(asked)
        offsets = rearrange(offsets.astype(jnp.float32), "b t (h l p two) -> l b h t p two", two=2, **sizes)
        shares = rearrange(plain(count, name="weights")(asked), "b t (h n) -> b h t n", h=self.heads)
        shares = jax.nn.softmax(shares.astype(jnp.float32), axis=-1)
        shares = rearrange(shares, "b h t (l p) -> l b h t p", p=self.points)
        own = jnp.asarray(np.concatenate([centres(grid) for grid in grids]))
        total, start = 0.0, 0
        for grid, offset, share in zip(grids, offsets, shares, strict=True):
            stop = start + math.prod(grid)
            places = own[None, None, :, None] + offset / jnp.asarray(grid[::-1], jnp.float32)[(None,) * 4]
            index, weights = corners(places, grid)
            weights = (weights * share[..., None]).reshape(b, self.heads, t, -1, 1)
            near = jnp.take_along_axis(
                values[:, :, start:stop], index.reshape(b, self.heads, -1, 1), axis=2, mode="clip"
            )
            near = near.reshape(b, self.heads, t, -1, d // self.heads)
            total = total + jnp.sum(near * weights.astype(near.dtype), axis=3, dtype=jnp.float32)
            start = stop
        return dense(name="out")(rearrange(total, "b h t e -> b t (h e)").astype(x.dtype))
