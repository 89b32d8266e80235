"""A map weighed by what its channels hold and by where (Woo et al., CBAM: Convolutional Block Attention Module, ECCV 2018).

The layers are those of the authors' published code.
"""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

OPEN = 3.0  # before the sigmoid, which is 0.95 there
LIKE_TORCH = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # of a linear layer: within 1 / sqrt(inputs)
FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def mean_over(x: Array, axis: int | tuple[int, ...]) -> Array:
    """Summed in float32 at least."""
    return jnp.mean(x, axis=axis, dtype=jnp.promote_types(x.dtype, jnp.float32)).astype(x.dtype)


class ChannelGate(nn.Module):
    """Channels weighed by their means and maxima over the map, which one perceptron hears each (section 3.1)."""

    reduction: int
    start: float  # what the gates begin with, about, before the sigmoid

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        c = x.shape[-1]
        y = jnp.stack([mean_over(x, (1, 2)), jnp.max(x, axis=(1, 2))])  # 2 b c
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
        y = jnp.stack([jnp.max(x, axis=-1), mean_over(x, -1)], axis=-1)
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
