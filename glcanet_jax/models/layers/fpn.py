"""The feature pyramid of a branch (Lin et al., 2017, as GLNet and GLCANet use it): affine, unless :func:`normed` smooths it.

The top-down walk itself is in :mod:`glcanet_jax.models.glcanet`, where attention sits between its steps.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from glcanet_jax.models.layers.blocks import ConvNorm
from glcanet_jax.models.layers.resnet import GroupNorm
from glcanet_jax.models.layers.sampling import upsample

LEVELS = (2, 3, 4, 5)  # strides 4, 8, 16, 32
GROUP = 16  # channels of a group: in groups of one, what is alike all over a patch would vanish


def stride(level: int) -> int:
    return 2**level


class Laterals(nn.Module):
    """1x1 convolutions of C2..C5 to the pyramid's width."""

    channels: int
    conv: Callable

    @nn.compact
    def __call__(self, maps: dict[str, Array]) -> dict[str, Array]:
        return {
            f"lat{i}": self.conv(self.channels, (1, 1), padding=0, name=f"lateral{i}")(maps[f"c{i}"]) for i in LEVELS
        }


def group_norm(dtype: Any) -> Callable[..., nn.Module]:
    """The norms of a nonlinear head: over one patch (or context) by itself, whatever else is in the batch."""
    return partial(GroupNorm, dtype, size=GROUP)


def normed(conv: Callable, dtype: Any) -> Callable[..., nn.Module]:
    """3x3 convolutions with a norm and ReLU behind them, made as plain ones are."""

    def make(filters: int, _size: tuple[int, int], *, padding: int, name: str) -> nn.Module:
        return ConvNorm(filters, conv, group_norm(dtype), name=name)

    return make


class Smooth(nn.Module):
    """3x3 to the pyramid's width, 3x3 to half of it, per level; all brought to the P2 grid and concatenated: X."""

    channels: int
    conv: Callable
    resize: Callable = upsample  # to the P2 grid
    narrow: bool = False  # half the width from the first on: with norms, for half of the operations

    @nn.compact
    def __call__(self, pyramid: dict[int, Float[Array, "b _ _ c"]]) -> tuple[Float[Array, "b h w x"], dict[str, Array]]:
        size = pyramid[2].shape[1:3]
        out, stages, first = [], {}, self.channels // (1 + self.narrow)
        for i in reversed(LEVELS):
            y = stages[f"first{i}"] = self.conv(first, (3, 3), padding=1, name=f"first{i}")(pyramid[i])
            y = stages[f"second{i}"] = self.conv(self.channels // 2, (3, 3), padding=1, name=f"second{i}")(y)
            out.append(self.resize(y, size))
        return jnp.concatenate(out, axis=-1), stages


def add_levels(
    maps: Mapping[int, list[Float[Array, "b _ _ m"]]], pyramid: Mapping[int, Float[Array, "b _ _ c"]]
) -> Float[Array, "b h w m"]:
    """The sum of maps on the grids of a pyramid at its finest one, resized from each level to the next on the way."""
    total = None
    for i in reversed(LEVELS):
        if total is not None:
            total = upsample(total, pyramid[i].shape[1:3])
        for y in maps[i]:
            total = y if total is None else total + y
    return total


class SharedSmooth(nn.Module):
    """GLNet's smoothing with the global branch's maps beside the local ones at every of its three later sharing points."""

    channels: int
    conv: Callable
    resize: Callable = upsample  # to the P2 grid
    narrow: bool = False

    @nn.compact
    def __call__(
        self,
        pyramid: dict[int, Float[Array, "b _ _ c"]],
        given: Callable[[str], Float[Array, "b _ _ _"]],
    ) -> tuple[Float[Array, "b h w x"], dict[str, Array]]:
        """``given(name)`` is the global map ``p{i}``, ``first{i}`` or ``second{i}``, sampled at the patches."""
        size = pyramid[2].shape[1:3]
        out, stages, first = [], {}, self.channels // (1 + self.narrow)
        for i in reversed(LEVELS):
            y = jnp.concatenate([pyramid[i], given(f"p{i}")], axis=-1)
            y = stages[f"first{i}"] = self.conv(first, (3, 3), padding=1, name=f"first{i}")(y)
            y = jnp.concatenate([y, given(f"first{i}")], axis=-1)
            y = stages[f"second{i}"] = self.conv(self.channels // 2, (3, 3), padding=1, name=f"second{i}")(y)
            out.append(self.resize(jnp.concatenate([y, given(f"second{i}")], axis=-1), size))
        return self.conv(2 * self.channels, (3, 3), padding=1, name="all")(jnp.concatenate(out, axis=-1)), stages


class LocalEnhancement(nn.Module):
    """Local enhancement module (paper section 3.3): sharpens C2 of the local branch with a small residual network.

    The last norm starts with scale and bias at zero, so that the module starts as the identity.
    """

    conv: Callable
    norm: Callable
    channels: int = 64

    @nn.compact
    def __call__(self, c2: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b h w c"]:
        x = self.conv(self.channels, (1, 1), padding=0, use_bias=False, name="reduce")(c2)
        x = nn.relu(self.norm(name="reduce_norm")(x, train))
        for i in (1, 2):
            y = self.conv(self.channels, (3, 3), padding=1, use_bias=False, name=f"block{i}_conv1")(x)
            y = nn.relu(self.norm(name=f"block{i}_norm1")(y, train))
            y = self.conv(self.channels, (3, 3), padding=1, use_bias=False, name=f"block{i}_conv2")(y)
            x = nn.relu(x + self.norm(name=f"block{i}_norm2")(y, train))
        y = self.conv(c2.shape[-1], (1, 1), padding=0, use_bias=False, name="expand")(x)
        return c2 + self.norm(name="expand_norm", scale_init=nn.initializers.zeros)(y, train)
