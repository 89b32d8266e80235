"""Context encoding: what a whole map holds, as residuals to learned codewords (Zhang et al., Context Encoding for Semantic
Segmentation, CVPR 2018, section 3.1).
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

Init = Callable[..., Array]


def uniform(low: float, high: float) -> Init:
    """An initialiser that draws between two numbers."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, low, high)


class Encoding(nn.Module):
    """Sum of a map's residuals to every codeword, each cell's share of it by how near it is (equations 1 and 2).

    The share is the softmax over codewords of ``s_k |x - d_k|^2``. The factors ``s_k`` begin below zero and are learned
    with their sign, as in the authors' code; the paper writes it beside them. In float32 at least, and without the
    residuals of all cells to all codewords, which would be ``k`` times the map.
    """

    codewords: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b k c"]:
        b, h, w, c = x.shape
        most = (self.codewords * c) ** -0.5
        words = self.param("codewords", uniform(-most, most), (self.codewords, c))
        factors = self.param("factors", uniform(-1.0, 0.0), (self.codewords,))
        x = x.reshape(b, h * w, c).astype(jnp.promote_types(x.dtype, jnp.float32))
        product = partial(jnp.einsum, precision="highest")
        # |x|^2 - 2 x d + |d|^2
        squares = jnp.sum(x**2, -1, keepdims=True) + jnp.sum(words**2, -1)[None, None]
        distances = squares - 2 * product("bnc,kc->bnk", x, words)
        share = jax.nn.softmax(factors[None, None] * distances, axis=-1)
        return product("bnk,bnc->bkc", share, x) - jnp.sum(share, 1)[..., None] * words[None]


class EncodedContext(nn.Module):
    """A vector of what a map holds: encoded, normed over codewords, their mean."""

    codewords: int
    block: Callable  # makes a ConvNorm
    norm: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b c"]:
        y = self.block(x.shape[-1], kernel=1, name="project")(x, train)
        residuals = Encoding(self.codewords, name="encoding")(y)
        # a norm of one scale a codeword: those are its channels
        residuals = self.norm(name="norm")(jnp.swapaxes(residuals, 1, 2)[:, None], train)  # b 1 c k
        return nn.relu(residuals).mean(axis=(1, 3)).astype(x.dtype)


def presence_loss(scores: Float[Array, "b k"], labels: Integer[Array, "b h w"]) -> Float[Array, ""]:
    """Binary cross-entropy of which classes are in an image, each class by itself (section 3.2, the SE-loss).

    The mean over classes and images; images without any label do not count, and labels beyond the classes are nobody's.
    """
    classes = jnp.arange(scores.shape[-1])[None, None, None]
    present = jnp.any(labels[..., None] == classes, axis=(1, 2))
    labelled = jnp.any(present, axis=-1)
    scores, present = scores.astype(jnp.float32), present.astype(jnp.float32)
    wrong = -present * nn.log_sigmoid(scores) - (1 - present) * nn.log_sigmoid(-scores)
    wrong = wrong.mean(-1)
    return jnp.sum(jnp.where(labelled, wrong, 0.0)) / jnp.maximum(jnp.sum(labelled), 1)
