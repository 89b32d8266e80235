"""Small blocks that several networks are made of."""

from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array, Float


class ConvNorm(nn.Module):
    """A convolution with explicit padding (``dilation * (kernel // 2)``), a norm, and ReLU unless told otherwise."""

    filters: int
    conv: Callable  # makes a convolution: filters, kernel size ...
    norm: Callable
    kernel: int = 3
    strides: int = 1
    dilation: int = 1
    relu: bool = True
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b h2 w2 c2"]:
        x = self.conv(
            self.filters,
            (self.kernel, self.kernel),
            strides=self.strides,
            padding=self.dilation * (self.kernel // 2),
            kernel_dilation=self.dilation,
            use_bias=self.use_bias,
            name="conv",
        )(x)
        x = self.norm(name="norm")(x, train)
        return nn.relu(x) if self.relu else x


def fcn_head(
    x: Float[Array, "b h w c"],
    num_classes: int,
    conv: Callable,
    block: Callable,
    drop: Callable,
    train: bool,
    prefix: str,
) -> Float[Array, "b h w k"]:
    """Scores of a map by a 3x3 to a quarter of its channels, dropout and a 1x1, inside of a network's compact method.

    Args:
        conv, block, drop: make a convolution, a :class:`ConvNorm` and a dropout; prefix: of the layers' names.
    """
    y = block(x.shape[-1] // 4, name=f"{prefix}conv")(x, train)
    return conv(num_classes, (1, 1), padding=0, name=f"{prefix}classifier")(drop(name=f"{prefix}drop")(y))
