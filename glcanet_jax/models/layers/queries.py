"""Parts of transformers whose norms stand behind each part, as Mask2Former has them (Cheng et al., CVPR 2022, section 3.2)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

from glcanet_jax.models.layers.attention import attend

# a matrix of three side by side, as the authors draw queries, keys and values, has half of one's variance
PROJECTION = nn.initializers.variance_scaling(0.5, "fan_in", "uniform")
# PyTorch's own, of layers that nobody begins otherwise
PLAIN = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def layer_norm(dtype: Any) -> Callable[..., nn.Module]:
    """Makes a norm of tokens."""
    return partial(nn.LayerNorm, epsilon=1e-5, dtype=dtype)


class Perceptron(nn.Module):
    """Linear layers with a ReLU between each and the next."""

    widths: tuple[int, ...]
    dtype: Any = jnp.float32
    kernel_init: Callable = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b d"]:
        for i, width in enumerate(self.widths, 1):
            x = nn.relu(x) if i > 1 else x
            x = nn.Dense(width, dtype=self.dtype, kernel_init=self.kernel_init, name=f"layer{i}")(x)
        return x


class HeadedAttention(nn.Module):
    """Attention of several heads, with biases; codes of places enter the scores alone."""

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t d"],
        code: Float[Array, "t d"],
        asked: Float[Array, "b s d"],
        asked_code: Float[Array, "s d"],
        mask: Bool[Array, "b t s"] | None = None,
    ) -> Float[Array, "b t d"]:
        dense = partial(nn.Dense, x.shape[-1], dtype=self.dtype)
        split = partial(rearrange, pattern="b t (h e) -> b t h e", h=self.heads)
        q = dense(kernel_init=PROJECTION, name="query")(x + code[None].astype(x.dtype))
        k = dense(kernel_init=PROJECTION, name="key")(asked + asked_code[None].astype(asked.dtype))
        v = dense(kernel_init=PROJECTION, name="value")(asked)
        out = rearrange(attend(split(q), split(k), split(v), mask), "b t h e -> b t (h e)")
        return dense(kernel_init=nn.initializers.xavier_uniform(), name="out")(out)


class QueryLayer(nn.Module):
    """Queries look at what they may see of a map, at each other, and at themselves (figure 2, right)."""

    heads: int
    hidden: int  # width between the last two linear layers
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b q d"],
        code: Float[Array, "q d"],
        asked: Float[Array, "b s d"],
        asked_code: Float[Array, "s d"],
        mask: Bool[Array, "b q s"],
    ) -> Float[Array, "b q d"]:
        norm, attention = layer_norm(self.dtype), partial(HeadedAttention, self.heads, self.dtype)
        x = norm(name="cross_norm")(x + attention(name="cross")(x, code, asked, asked_code, mask))
        x = norm(name="self_norm")(x + attention(name="self")(x, code, x, code))
        return norm(name="forward_norm")(x + Perceptron((self.hidden, x.shape[-1]), self.dtype, name="forward")(x))
