"""Resizing and sampling at cell centres: fine cell ``j`` reads coarse position ``j * s_fine / s_coarse``, clamped, bilinear.

Half-pixel resizing would put a stride-32 map 8 px off a stride-16 one (docs/design.md, "Geometry").
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from glcanet_jax import geometry


def _double(x: Array, axis: int) -> Array:
    """Twice as many cells along an axis: every cell, and the mean of it and its successor (the last one clamped)."""
    last = x.shape[axis] - 1
    successor = jnp.concatenate(
        [jax.lax.slice_in_dim(x, 1, None, axis=axis), jax.lax.slice_in_dim(x, last, None, axis=axis)], axis
    )
    doubled = jnp.stack([x, 0.5 * (x + successor)], axis=axis + 1)
    return doubled.reshape(*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :])


def upsample(x: Float[Array, "*b h w c"], size: tuple[int, int]) -> Float[Array, "*b H W c"]:
    """Bring a map to a grid of cells 2, 4, 8... times as fine; exact on linear ramps away from the clamp.

    Raises:
        ValueError: ``size`` is not that of a finer grid of the same image.
    """
    for axis, wanted in ((x.ndim - 3, size[0]), (x.ndim - 2, size[1])):
        start = x.shape[axis]
        while x.shape[axis] < wanted:  # halving again and again equals one bilinear step: the pieces are linear
            x = jax.lax.slice_in_dim(
                _double(x, axis), 0, min(2 * x.shape[axis], _next(x.shape[axis], wanted)), axis=axis
            )
        if x.shape[axis] != wanted:
            raise ValueError(f"cannot bring {start} cells to {wanted}: not a finer grid of the same image")
    return x


def resize_halves(x: Float[Array, "*b h w c"], size: tuple[int, int]) -> Float[Array, "*b H W c"]:
    """Half-pixel bilinear resizing without smoothing: PyTorch's without ``align_corners``, for networks that are made so."""
    return jax.image.resize(x, (*x.shape[:-3], *size, x.shape[-1]), "bilinear", antialias=False)


def _next(count: int, wanted: int) -> int:
    """Cells of the next finer grid on the way to ``wanted``: ``wanted`` halved, rounding up, until it is within a doubling."""
    while wanted > 2 * count:
        wanted = -(-wanted // 2)
    return wanted


def pixels_of(images: Float[Array, "*b h w c"]) -> Float[Array, "*b 2"]:
    """Height and width of images, for each of them, as the functions below take them."""
    *batch, h, w, _ = images.shape
    return jnp.broadcast_to(jnp.asarray((h, w), jnp.float32).reshape(*(1,) * len(batch), 2), (*batch, 2))


def logits_to_pixels(logits: Float[Array, "*b h w k"], size: tuple[int, int]) -> Float[Array, "*b H W k"]:
    """Stride-4 logits at every pixel, in float32."""
    return upsample(logits.astype(jnp.float32), size)


def mix(low, high, share):
    """``low``, a ``share`` of it replaced by ``high``: numbers or arrays, numpy's and JAX's alike."""
    return low * (1 - share) + high * share


def lerp(x: Float[Array, "..."], positions: Float[Array, " m"] | Float[np.ndarray, " m"], axis: int) -> Array:
    """``x`` at fractional positions along an axis, clamped; the positions take no gradient."""
    axis, last = axis % x.ndim, x.shape[axis] - 1
    xp = np if isinstance(positions, np.ndarray) else jnp
    positions = xp.clip(positions, 0, last)
    low = xp.clip(xp.floor(positions).astype(np.int32), 0, max(last - 1, 0))
    return _between(axis, x.shape[axis], x, jnp.asarray(low), jnp.asarray(positions - low, x.dtype))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _between(axis: int, count: int, x: Array, low: Array, share: Array) -> Array:
    """The cells ``low`` of the ``count`` along an axis, a ``share`` of each replaced by its successor."""
    high = jnp.minimum(low + 1, count - 1)
    shape = [-1 if i == axis else 1 for i in range(x.ndim)]
    return mix(jnp.take(x, low, axis, mode="clip"), jnp.take(x, high, axis, mode="clip"), share.reshape(shape))


def _between_forward(axis: int, count: int, x: Array, low: Array, share: Array) -> tuple[Array, tuple[Array, Array]]:
    return _between(axis, count, x, low, share), (low, share)


def _between_backward(axis: int, count: int, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, None, None]:
    """As a product: many positions read one cell, and what scatters adds their gradients up in any order on a GPU."""
    low, share = saved
    cells = jnp.arange(count)[None]
    at_low, at_high = (i[:, None] == cells for i in (low, jnp.minimum(low + 1, count - 1)))
    weights = at_low * (1 - share)[:, None] + at_high * share[:, None]
    product = jax.lax.dot_general(weights, cotangent, (((0,), (axis,)), ((), ())), jax.lax.Precision.HIGHEST)
    return jnp.moveaxis(product, 0, axis), None, None


_between.defvjp(_between_forward, _between_backward)


def sample_box(
    maps: Float[Array, "h w c"],
    box: Float[Array, " 4"],
    cells: tuple[int, int],
    stride: int,
    patch: Float[Array, " 2"],
    size: Float[Array, " 2"],
    maps_stride: int | None = None,
) -> Float[Array, "ph pw c"]:
    """Sample a global map at a patch's cells.

    Args:
        maps: a map of the global branch at ``maps_stride`` (by default the patch's).
        box: the patch's box, fractions of the context.
        cells: rows and columns of the patch's own map at ``stride``.
        patch: pixels of the patch (height, width); size: pixels of the global view.
    """
    for axis in (0, 1):
        centres = geometry.cell_centres(cells[axis], stride, patch[axis])
        fraction = box[axis] + centres * (box[axis + 2] - box[axis])
        positions = (fraction * size[axis] - 0.5) / (maps_stride or stride)
        maps = lerp(maps, positions, axis)
    return maps


def sample_boxes(
    maps: Float[Array, "b h w c"],
    boxes: Float[Array, "b n 4"],
    cells: tuple[int, int],
    stride: int,
    patch: Float[Array, "b n 2"],
    size: Float[Array, "b 2"],
    maps_stride: int | None = None,
) -> Float[Array, "b n ph pw c"]:
    """:func:`sample_box` for the ``n`` patches of each of ``b`` contexts."""
    sample = lambda m, box, p, s: sample_box(m, box, cells, stride, p, s, maps_stride)  # noqa: E731
    return jax.vmap(jax.vmap(sample, in_axes=(None, 0, 0, None)))(maps, boxes, patch, size)
