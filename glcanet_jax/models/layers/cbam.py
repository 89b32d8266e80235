"""A map weighed by what its channels hold and by where (Woo et al., CBAM: Convolutional Block Attention Module, ECCV 2018).

The layers are those of the authors' published code.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

OPEN = 3.0  # before the sigmoid, which is 0.95 there
LIKE_TORCH = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # of a linear layer: within 1 / sqrt(inputs)
FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def mean_over(x: Array, axis: int | tuple[int, ...]) -> Array:
    """Summed in float32 at least."""
    return jnp.mean(x, axis=axis, dtype=jnp.promote_types(x.dtype, jnp.float32)).astype(x.dtype)


@jax.custom_jvp
def largest(x: Float[Array, "*n c"]) -> Float[Array, "*n"]:
    """Largest of the last axis; the first of those that are has the gradient.

    JAX's own gradient looks for values that equal the maximum. Where XLA computes the values twice, fused into other
    operations and rounded otherwise, none does, and the gradient is not finite.
    """
    return jnp.max(x, axis=-1)


@largest.defjvp
def _gradient_of_largest(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (change,) = primals, tangents
    here = jax.nn.one_hot(jnp.argmax(x, axis=-1), x.shape[-1], dtype=bool)
    return largest(x), jnp.sum(jnp.where(here, change, 0), axis=-1)


class ChannelGate(nn.Module):
    """Channels weighed by their means and maxima over the map, which one perceptron hears each (section 3.1)."""

    reduction: int
    start: float  # what the gates begin with, about, before the sigmoid

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        c = x.shape[-1]
        cells = x.reshape(len(x), -1, c).swapaxes(1, 2)
        y = jnp.stack([mean_over(x, (1, 2)), largest(cells)])  # 2 b c
        y = nn.Dense(max(1, c // self.reduction), dtype=x.dtype, kernel_init=LIKE_TORCH, name="mlp1")(y)
        begin = nn.initializers.constant(self.start / 2)  # it is added twice
        y = nn.Dense(c, dtype=x.dtype, kernel_init=LIKE_TORCH, bias_init=begin, name="mlp2")(nn.relu(y))
        return x * nn.sigmoid(y.sum(axis=0))[:, None, None]


class SpatialGate(nn.Module):
    """Cells weighed by the largest and the mean of their channels, which a 7x7 convolution hears (section 3.2)."""

    conv: Callable
    norm: Callable
    start: float  # what the gates begin with before the sigmoid

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b h w c"]:
        y = jnp.stack([largest(x), mean_over(x, -1)], axis=-1)
        y = self.conv(1, (7, 7), padding=3, use_bias=False, kernel_init=FAN_OUT, name="conv")(y)
        begin = nn.initializers.constant(self.start)
        return x * nn.sigmoid(self.norm(scale_init=nn.initializers.zeros, bias_init=begin, name="norm")(y, train))


class CBAM(nn.Module):
    """Channels first, then cells."""

    conv: Callable
    norm: Callable
    reduction: int = 16
    start: float = 0.0  # what both gates begin with before the sigmoid; 0, as published: at a half

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b h w c"]:
        x = ChannelGate(self.reduction, self.start, name="channels")(x)
        return SpatialGate(self.conv, self.norm, self.start, name="cells")(x, train)
