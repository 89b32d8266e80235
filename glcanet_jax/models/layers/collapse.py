"""Affine heads as one convolution a level, for inference (docs/performance.md, "Affine heads collapsed").

Smoothing (3x3, 3x3) and aggregation (3x3 to few classes) follow each other without anything nonlinear between them: one
convolution of 5x5 to the taps of the aggregation, or of 7x7 to the classes where nothing is resized between them. Rounding
apart that is the same, except near the frame of a map, where each convolution pads its own input with zeros. There the 5x5
is mended by what the padding leaves out, and the 7x7 is replaced by strips of the three convolutions themselves.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from glcanet_jax.models.layers import convolution
from glcanet_jax.models.layers.fpn import LEVELS

FRAME = 2  # cells at the edge of a map where a 7x7 differs from three convolutions
REACH = 3  # cells behind those that the three convolutions need
FINEST = min(LEVELS)
Either = np.ndarray | Array  # before the weights are on a device, or traced
Layer = Mapping[str, Either]  # kernel and bias of a convolution
Layers = Mapping[str, Layer]


# ------------------------------------------------------------------------------------------------------ kernels, made once
# by numpy, or by jax.numpy where they are traced; products of what is traced have all digits, on accelerators too
def _through(first: Float[Either, "p q c m"], second: Float[Either, "r s m o"]) -> Float[Either, "p+r-1 q+s-1 c o"]:
    """The kernel of two convolutions at stride 1, one after the other."""
    xp, (r, s) = first.__array_namespace__(), second.shape[:2]
    places = [(i, j) for i in range(r) for j in range(s)]
    around = [((i, r - 1 - i), (j, s - 1 - j), (0, 0), (0, 0)) for i, j in places]
    return sum(xp.pad(first @ second[place], pads) for place, pads in zip(places, around, strict=True))


def _columns(kernel: Float[Either, "3 3 m k"]) -> Float[Either, "m 9*k"]:
    """The aggregation's kernel as one matrix, as convolution.mix has it."""
    return kernel.transpose(2, 0, 1, 3).reshape(kernel.shape[2], -1)


def taps(first: Layer, second: Layer, kernel: Float[Either, "3 3 m k"]) -> dict[str, Either]:
    """The 5x5 of a level: ``first`` and ``second`` smoothing convolution, ``kernel`` that part of the aggregation's.

    Returns:
        ``kernel [5, 5, c, 9k]`` and ``bias [9k]``; ``mend [3, 3, m, 9k]``, the second convolution mixed, for the frame.
    """
    columns = _columns(kernel)
    mixed = second["kernel"] @ columns
    bias = (first["bias"] @ mixed).sum((0, 1)) + second["bias"] @ columns
    return {"kernel": _through(first["kernel"], mixed), "bias": bias, "mend": mixed}


def classes(first: Layer, second: Layer, kernel: Float[Either, "3 3 m k"]) -> dict[str, Either]:
    """The 7x7 of the finest level, ``kernel [7, 7, c, k]`` and ``bias [k]``."""
    both = _through(second["kernel"], kernel)
    bias = (first["bias"] @ both).sum((0, 1)) + (second["bias"] @ kernel).sum((0, 1))
    return {"kernel": _through(first["kernel"], both), "bias": bias}


def collapse(smoothing: Layers, kernel: Float[Either, "3 3 x k"], *, finest: bool) -> dict[str, dict[str, Either]]:
    """What :func:`mix_levels` and :func:`apply_classes` need of a branch, by level.

    Args:
        smoothing: parameters of :class:`~glcanet_jax.models.layers.fpn.Smooth`; kernel: the part of the aggregation's that
            takes what it makes, the coarsest level first.
        finest: P2 goes to the classes at once, for nothing is added to its taps on another grid.
    """
    width, out = kernel.shape[2] // len(LEVELS), {}
    with jax.default_matmul_precision("highest"):
        for place, i in enumerate(reversed(LEVELS)):
            make = classes if finest and i == FINEST else taps
            part = kernel[:, :, place * width : (place + 1) * width]
            out[str(i)] = make(smoothing[f"first{i}"], smoothing[f"second{i}"], part)
    return out


# --------------------------------------------------------------------------------------------------------------- their use
def _conv(x: Array, kernel: Array, padding: tuple[int, int]) -> Array:
    sides = tuple((p, p) for p in padding)
    return lax.conv_general_dilated(x, kernel, (1, 1), sides, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _plus(x: Array, layer: Layer, padding: tuple[int, int] = (1, 1)) -> Array:
    return _conv(x, layer["kernel"], padding) + layer["bias"].astype(x.dtype)[None, None, None]


def apply_taps(x: Float[Array, "b h w c"], own: Layer, first: Layer) -> Float[Array, "b h w o"]:
    """What ``convolution.mix`` makes of the smoothed map, with the kernels of :func:`taps` and the first convolution."""
    out = _plus(x, own, (2, 2))
    # at the frame, the 5x5 counts what the first convolution would say one cell outside the map, where the second sees zeros
    out = out.at[:, :1].add(-_outside(x[:, :1], own, first, 2, 0, corners=True))
    out = out.at[:, -1:].add(-_outside(x[:, -1:], own, first, 0, 2, corners=True))
    x = x.swapaxes(1, 2)
    own, first = own | {"mend": own["mend"].swapaxes(0, 1)}, first | {"kernel": first["kernel"].swapaxes(0, 1)}
    out = out.at[:, :, :1].add(-_outside(x[:, :1], own, first, 2, 0, corners=False).swapaxes(1, 2))
    return out.at[:, :, -1:].add(-_outside(x[:, -1:], own, first, 0, 2, corners=False).swapaxes(1, 2))


def _outside(row: Float[Array, "b 1 w c"], own: Layer, first: Layer, into: int, back: int, *, corners: bool) -> Array:
    """What the row of cells outside an edge would give to the row inside it.

    Args:
        into: the row of the first kernel that sees ``row`` from outside; back: that of the second one that looks out.
        corners: the outside row has a cell beyond each end of the edge.
    """
    beyond = int(corners)
    outside = _plus(row, first | {"kernel": first["kernel"][into : into + 1]}, (0, 1 + beyond))
    return _conv(outside, own["mend"][back : back + 1], (0, 1 - beyond))


def apply_classes(
    x: Float[Array, "b h w c"], own: Layer, first: Layer, second: Layer, kernel: Float[Array, "3 3 m k"]
) -> Float[Array, "b h w k"]:
    """The finest level's share of the logits, without the aggregation's bias, with the kernels of :func:`classes`."""

    def exact(x: Array) -> Array:
        y = _plus(_plus(x, first), second)
        return convolution.shift(convolution.mix(y, kernel), kernel.shape, ((1, 1), (1, 1)))

    if min(x.shape[1:3]) <= 2 * FRAME + 1:
        return exact(x)
    seen = FRAME + REACH
    out = (
        _conv(x, own["kernel"], (3, 3)).astype(jnp.promote_types(x.dtype, jnp.float32)) + own["bias"][None, None, None]
    )
    out = out.at[:, :FRAME].set(exact(x[:, :seen])[:, :FRAME])
    out = out.at[:, -FRAME:].set(exact(x[:, -seen:])[:, -FRAME:])
    out = out.at[:, :, :FRAME].set(exact(x[:, :, :seen])[:, :, :FRAME])
    return out.at[:, :, -FRAME:].set(exact(x[:, :, -seen:])[:, :, -FRAME:])


def mix_levels(
    pyramid: Mapping[int, Float[Array, "b _ _ c"]], own: Mapping[str, Layer], smoothing: Layers
) -> dict[int, Float[Array, "b _ _ o"]]:
    """The maps of all levels with taps, mixed, each on its own grid."""
    return {
        i: apply_taps(pyramid[i], own[str(i)], smoothing[f"first{i}"])
        for i in reversed(LEVELS)
        if "mend" in own[str(i)]
    }


def finest_logits(
    pyramid: Mapping[int, Float[Array, "b _ _ c"]],
    own: Mapping[str, Layer],
    smoothing: Layers,
    kernel: Float[Array, "3 3 x k"],
) -> Float[Array, "b h w k"]:
    """:func:`apply_classes` for P2; ``kernel`` is the aggregation's part for the whole branch."""
    part = jnp.split(kernel, len(LEVELS), axis=2)[-1].astype(pyramid[FINEST].dtype)
    names = f"first{FINEST}", f"second{FINEST}"
    return apply_classes(pyramid[FINEST], own[str(FINEST)], *(smoothing[name] for name in names), part)
