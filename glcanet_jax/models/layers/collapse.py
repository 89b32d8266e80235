"""Affine heads as one convolution a level, for inference (docs/performance.md, "Affine heads collapsed").

Smoothing (3x3, 3x3) and aggregation (3x3 to few classes) follow each other without anything nonlinear between them: one
convolution of 5x5 to the taps of the aggregation, or of 7x7 to the classes where nothing is resized between them. Rounding
apart that is the same, except near the frame of a map, where each convolution pads its own input with zeros. There the 5x5
is mended by what the padding leaves out, and the 7x7 is replaced by strips of the three convolutions themselves.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from glcanet_jax.models.layers import convolution

FRAME = 2  # cells at the edge of a map where a 7x7 differs from three convolutions
REACH = 3  # cells behind those that the three convolutions need
Kernels = dict[str, Array]


def _through(first: Float[Array, "p q c m"], second: Float[Array, "r s m o"]) -> Float[Array, "p+r-1 q+s-1 c o"]:
    """The kernel of two convolutions at stride 1, one after the other."""
    p, q, c, _ = first.shape
    r, s, _, o = second.shape
    out = jnp.zeros((p + r - 1, q + s - 1, c, o), first.dtype)
    for i in range(r):
        for j in range(s):
            part = jnp.einsum("pqcm,mo->pqco", first, second[i, j], precision="highest")
            out = out.at[i : i + p, j : j + q].add(part)
    return out


def taps(first: dict[str, Array], second: dict[str, Array], kernel: Float[Array, "3 3 m k"], dtype: Any) -> Kernels:
    """The 5x5 of a level: ``first`` and ``second`` smoothing convolution, ``kernel`` that part of the aggregation's.

    Returns:
        ``kernel [5, 5, c, 9k]`` and ``bias [9k]``; for the frame, ``first`` and ``first_bias`` as they are, and
        ``mend [3, 3, m, 9k]``, the second convolution mixed.
    """
    columns = kernel.transpose(2, 0, 1, 3).reshape(kernel.shape[2], -1)  # as convolution.mix lays them
    mixed = jnp.einsum("ijmn,no->ijmo", second["kernel"], columns, precision="highest")
    bias = jnp.einsum("m,ijmo->o", first["bias"], mixed, precision="highest") + second["bias"] @ columns
    whole = _through(first["kernel"], mixed)
    return {
        "kernel": whole.astype(dtype), "bias": bias, "mend": mixed.astype(dtype),
        "first": first["kernel"].astype(dtype), "first_bias": first["bias"],
    }  # fmt: skip


def classes(first: dict[str, Array], second: dict[str, Array], kernel: Float[Array, "3 3 m k"], dtype: Any) -> Kernels:
    """The 7x7 of the finest level, ``kernel [7, 7, c, k]`` and ``bias [k]``, and the three convolutions for its frame."""
    both = _through(second["kernel"], kernel)
    whole = _through(first["kernel"], both)
    bias = jnp.einsum("m,ijmo->o", first["bias"], both, precision="highest")
    bias = bias + jnp.einsum("m,ijmo->o", second["bias"], kernel, precision="highest")
    frame = {"first": first["kernel"], "second": second["kernel"], "last": kernel}
    frame = {k: v.astype(dtype) for k, v in frame.items()}
    biases = {"first_bias": first["bias"], "second_bias": second["bias"]}
    return {"kernel": whole.astype(dtype), "bias": bias} | frame | biases


def _conv(x: Array, kernel: Array, padding: tuple[int, int]) -> Array:
    padding = tuple((p, p) for p in padding)
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def apply_taps(x: Float[Array, "b h w c"], k: Kernels) -> Float[Array, "b h w o"]:
    """What ``convolution.mix`` makes of the smoothed map, with the kernels of :func:`taps`."""
    out = _conv(x, k["kernel"], (2, 2)) + k["bias"].astype(x.dtype)
    # at the frame, the 5x5 counts what the first convolution would say one cell outside the map, where the second sees zeros
    out = out.at[:, :1].add(-_outside(x[:, :1], k, 2, 0, corners=True))
    out = out.at[:, -1:].add(-_outside(x[:, -1:], k, 0, 2, corners=True))
    x, k = x.swapaxes(1, 2), k | {name: k[name].swapaxes(0, 1) for name in ("first", "mend")}
    out = out.at[:, :, :1].add(-_outside(x[:, :1], k, 2, 0, corners=False).swapaxes(1, 2))
    return out.at[:, :, -1:].add(-_outside(x[:, -1:], k, 0, 2, corners=False).swapaxes(1, 2))


def _outside(row: Float[Array, "b 1 w c"], k: Kernels, into: int, back: int, *, corners: bool) -> Array:
    """What the row of cells outside an edge would give to the row inside it.

    Args:
        into: the row of the first kernel that sees ``row`` from outside; back: that of the second one that looks out.
        corners: the outside row has a cell beyond each end of the edge.
    """
    beyond = int(corners)
    outside = _conv(row, k["first"][into : into + 1], (0, 1 + beyond)) + k["first_bias"].astype(row.dtype)
    return _conv(outside, k["mend"][back : back + 1], (0, 1 - beyond))


def apply_classes(x: Float[Array, "b h w c"], k: Kernels) -> Float[Array, "b h w k"]:
    """The level's share of the logits, without the aggregation's own bias, with the kernels of :func:`classes`."""

    def exact(x: Array) -> Array:
        y = _conv(x, k["first"], (1, 1)) + k["first_bias"].astype(x.dtype)
        y = _conv(y, k["second"], (1, 1)) + k["second_bias"].astype(x.dtype)
        return convolution.shift(convolution.mix(y, k["last"]), k["last"].shape, ((1, 1), (1, 1)))

    if min(x.shape[1:3]) <= 2 * FRAME + 1:
        return exact(x)
    seen = FRAME + REACH
    out = _conv(x, k["kernel"], (3, 3)).astype(jnp.promote_types(x.dtype, jnp.float32)) + k["bias"]
    out = out.at[:, :FRAME].set(exact(x[:, :seen])[:, :FRAME])
    out = out.at[:, -FRAME:].set(exact(x[:, -seen:])[:, -FRAME:])
    out = out.at[:, :, :FRAME].set(exact(x[:, :, :seen])[:, :, :FRAME])
    return out.at[:, :, -FRAME:].set(exact(x[:, :, -seen:])[:, :, -FRAME:])
