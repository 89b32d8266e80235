"""Blocks of a vision transformer whose scores know how far apart two cells are, by rows and by columns (Li et al., MViTv2,
CVPR 2022, equation 4).
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from glcanet_jax.models.layers.attention import attend

EPSILON = 1e-6  # of all norms
begin = nn.initializers.truncated_normal(0.02)
# variances as means of squared differences: the other formula loses digits
LayerNorm = partial(nn.LayerNorm, epsilon=EPSILON, use_fast_variance=False, dtype=jnp.float32)


def offsets(cells: int) -> np.ndarray:
    """A matrix ``[cells * cells, 2 * cells - 1]`` that reads a table of distances for every pair of cells of an axis."""
    apart = np.arange(cells)[:, None] - np.arange(cells) + cells - 1  # of the query, less that of the key
    return np.eye(2 * cells - 1, dtype=np.float32)[apart.ravel()]


class RelativeAttention(nn.Module):
    """Self-attention of a map's cells; scores are ``q k / sqrt(d) + q r_rows + q r_columns``."""

    heads: int
    grid: tuple[int, int]  # rows and columns of the map
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        d = x.shape[-1]
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=begin)
        q, k, v = rearrange(dense(3 * d, name="qkv")(x), "b t (n h d) -> n b t h d", n=3, h=self.heads)
        relative = self._by("h", q, 0), self._by("w", q, 1)
        out = rearrange(attend(q, k, v, relative=relative), "b t h d -> b t (h d)")
        return dense(d, name="proj")(out)

    def _by(self, name: str, q: Float[Array, "b t h d"], axis: int) -> Float[Array, "b t h n"]:
        """What is added to the scores of every query by the place of a key along an axis."""
        cells, d = self.grid[axis], q.shape[-1]
        table = self.param(f"rel_pos_{name}", nn.initializers.zeros, (2 * cells - 1, d))
        # as a product: what gathers has a gradient that scatters
        table = jnp.dot(offsets(cells), table.astype(jnp.float32), precision="highest").astype(q.dtype)
        q = rearrange(q, "b (y x) h d -> b y x h d", y=self.grid[0])
        by = ("byxhd,ykd->byxhk", "byxhd,xkd->byxhk")[axis]
        out = jnp.einsum(by, q, table.reshape(cells, cells, d), preferred_element_type=jnp.float32)
        return rearrange(out, "b y x h k -> b (y x) h k")


class Block(nn.Module):
    """Attention, then two layers, each behind a norm and added to what came in.

    Where a batch holds an image beside several prompts, the image's cells (the lower half) are given the mean of what the
    attentions say to them beside each prompt (Wang et al., SegGPT, ICCV 2023, section 3.3, feature ensemble).
    """

    heads: int
    grid: tuple[int, int]
    hidden: int
    drop: float = 0.0  # chance that a sum is left out in training, of each image by itself
    prompts: int = 1  # that lie one after another in the batch
    train: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        norm = lambda name, x: LayerNorm(name=name)(x).astype(self.dtype)  # noqa: E731
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=begin)
        drop = partial(nn.Dropout, self.drop, broadcast_dims=(1, 2), deterministic=not self.train)
        y = RelativeAttention(self.heads, self.grid, self.dtype, name="attention")(norm("norm1", x))
        x = x + drop(name="drop1")(self._shared(y))
        y = jax.nn.gelu(dense(self.hidden, name="mlp1")(norm("norm2", x)), approximate=False)
        return x + drop(name="drop2")(dense(x.shape[-1], name="mlp2")(y))

    def _shared(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        if self.prompts == 1:
            return x
        prompt, image = jnp.split(rearrange(x, "(b p) t d -> b p t d", p=self.prompts), 2, axis=2)
        image = jnp.broadcast_to(jnp.mean(image, axis=1, keepdims=True), image.shape)
        return rearrange(jnp.concatenate([prompt, image], axis=2), "b p t d -> (b p) t d")
