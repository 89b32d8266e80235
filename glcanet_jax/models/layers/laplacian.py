"""Laplacian pyramids (Burt and Adelson, 1983): what every halving of an image loses."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

KERNEL = np.array([1, 4, 6, 4, 1]) / 16  # binomial, along either axis
REACH = len(KERNEL) // 2


def blur(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Every band smoothed by the binomial kernel, mirrored at the edges."""
    for axis in (1, 2):
        size = x.shape[axis]
        wide = jnp.pad(x, [(REACH, REACH) if a == axis else (0, 0) for a in range(4)], mode="reflect")
        x = sum(float(w) * jax.lax.slice_in_dim(wide, i, i + size, axis=axis) for i, w in enumerate(KERNEL))
    return x


def expand(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b h2 w2 c"]:
    """Twice as many cells, those between filled in by the same kernel."""
    b, h, w, c = x.shape
    # zeros between cells; not by a scatter, which is slow in the backward pass and unknown to OpenVINO's graphs
    wide = jnp.stack([x, jnp.zeros_like(x)], 3).reshape(b, h, 2 * w, c)
    wide = jnp.stack([wide, jnp.zeros_like(wide)], 2).reshape(b, 2 * h, 2 * w, c)
    return 4 * blur(wide)[:, : size[0], : size[1]]


def residuals(image: Float[Array, "b h w c"], levels: int) -> list[Float[Array, "b _ _ c"]]:
    """Of each level, the finest first, what is lost when it is smoothed and halved."""
    out = []
    for _ in range(levels):
        small = blur(image)[:, ::2, ::2]
        out.append(image - expand(small, image.shape[1:3]))
        image = small
    return out
