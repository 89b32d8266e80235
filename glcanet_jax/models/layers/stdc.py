"""The first stages of STDC networks (Fan et al., Rethinking BiSeNet For Real-time Semantic Segmentation, CVPR 2021, section 3.1)."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

SHARES = (2, 4, 8, 8)  # of a block's filters, one by what each of its convolutions gives
BLOCKS = 2  # of each stage: STDC-1


def mean_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Mean of 3x3 at stride 2, the zeros around the map counted as its cells."""
    return nn.avg_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (2, 2), "VALID")


class ConcatBlock(nn.Module):
    """Convolutions of falling width one after another, their answers side by side (figure 3, b and c)."""

    filters: int
    stride: int
    conv: Callable
    block: Callable  # makes a ConvNorm

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b h2 w2 c2"]:
        x = self.block(self.filters // SHARES[0], kernel=1, name="conv1")(x, train)
        parts = [x]
        if self.stride == 2:
            parts = [mean_pool(x)]
            apart = partial(self.conv, feature_group_count=x.shape[-1])
            x = self.block(x.shape[-1], conv=apart, strides=2, relu=False, name="down")(x, train)
        for i, share in enumerate(SHARES[1:], 2):
            x = self.block(self.filters // share, name=f"conv{i}")(x, train)
            parts.append(x)
        return jnp.concatenate(parts, axis=-1)


class ShallowSTDC(nn.Module):
    """STDC-1 up to stride 16: ``{"s8", "s16"}``, of 4 and 8 times ``width`` channels."""

    width: int  # filters of the second convolution
    conv: Callable
    block: Callable  # makes a ConvNorm

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> dict[str, Float[Array, "b _ _ _"]]:
        for i, filters in enumerate((self.width // 2, self.width), 1):
            x = self.block(filters, strides=2, name=f"conv{i}")(x, train)
        out = {}
        for stage, stride in enumerate((8, 16), 1):
            for i in range(BLOCKS):
                x = ConcatBlock(
                    self.width * 2 ** (stage + 1),
                    1 if i else 2,
                    self.conv,
                    self.block,
                    name=f"stage{stage}_block{i + 1}",
                )(x, train)
            out[f"s{stride}"] = x
        return out
