"""A convolution that chooses, image by image, how much of it looks for edges (BSNet's DHGC, as reconstructed here)."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

DIFFERENCE = (-1.0, 0.0, 1.0)  # along one axis; Sobel's kernel is its product with (1, 2, 1) along the other
EAGERNESS = 5.0  # of the plain kernel at the start: its share is 0.987
profile_init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


class GradientKernels(nn.Module):
    """Two learned 3x3 kernels that sum to zero along an axis, and the shares of a plain kernel and of these for each image.

    The shares are those of dynamic convolutions (Chen et al., CVPR 2020): the map's mean, a layer of a quarter of the channels,
    and a softmax.
    """

    filters: int
    temperature: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> tuple[Float[Array, "3 3 c k"], Float[Array, "b 3"]]:
        """The two kernels side by side, ``k`` twice the filters; and the shares."""
        c = x.shape[-1]
        rows, columns = (self.param(name, profile_init, (3, c, self.filters)) for name in ("rows", "columns"))
        step = jnp.asarray(DIFFERENCE)
        kernels = step[:, None, None, None] * columns[None], step[None, :, None, None] * rows[:, None]
        mean = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        y = nn.relu(nn.Dense(max(1, c // 4), name="squeeze")(mean))
        start = lambda key, shape, dtype: jnp.asarray((EAGERNESS, 0, 0), dtype)  # noqa: E731
        y = nn.Dense(3, name="choose", kernel_init=nn.initializers.zeros, bias_init=start)(y)
        return jnp.concatenate(kernels, axis=-1), nn.softmax(y / self.temperature, axis=-1)


class HybridConv(nn.Module):
    """A 3x3 convolution whose kernel is, for each image, a mean of a plain one and two of gradients; for ``nn.Conv``.

    Means of kernels are means of answers, so that all three are one convolution for the whole batch. The plain kernel has the
    name and shape of ``nn.Conv``'s, so that trained ones fit.
    """

    features: int
    kernel_size: tuple[int, int]
    strides: int = 1
    padding: int = 0
    kernel_dilation: int = 1
    use_bias: bool = False
    dtype: Any = jnp.float32
    temperature: float = 1.0
    conv_general_dilated: Callable[..., Array] = lax.conv_general_dilated

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (*self.kernel_size, x.shape[-1], self.features))
        edges, shares = GradientKernels(self.features, self.temperature, name="edges")(x)
        kernels = jnp.concatenate([kernel.astype(jnp.float32), edges], axis=-1).astype(self.dtype)
        y = self.conv_general_dilated(
            x.astype(self.dtype),
            kernels,
            (self.strides,) * 2,
            ((self.padding,) * 2,) * 2,
            rhs_dilation=(self.kernel_dilation,) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        y = y.reshape(*y.shape[:3], 3, self.features)
        return jnp.einsum("bhwif,bi->bhwf", y, shares.astype(y.dtype))
