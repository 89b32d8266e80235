"""S-RA-FCN: relations between channels, then between positions, behind three stages of VGG-16 (Mou, Hua and Zhu, A
Relation-Augmented Fully Convolutional Network for Semantic Segmentation in Aerial Scenes, CVPR 2019, section 3).

The authors published no code. Where restatements of the paper differ, what is here is said in docs/networks.md.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from glcanet_jax.errors import UserError
from glcanet_jax.geometry import cells
from glcanet_jax.models.layers import choices, convolution, pooling
from glcanet_jax.models.layers.sampling import resize_halves
from glcanet_jax.models.layers.vgg import VGG16

LEVELS = (3, 4, 5)  # stages of VGG
CHOICES = {
    "relations": ("grid", "input_size"),
    "maps": ("pool", "conv"),
    "dtype": choices.COMMON["dtype"],
}
small = nn.initializers.normal(0.01)  # products of hundreds of terms, which nothing scales, begin near zero


class ChannelRelation(nn.Module):
    """Every channel as a mean of all, weighed by products of what two layers make of the map's mean (section 3.2)."""

    conv: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        mean = pooling.adaptive_mean(x, 1).astype(x.dtype)
        u, v = (
            self.conv(x.shape[-1], (1, 1), padding=0, kernel_init=small, name=name)(mean)[:, 0, 0].astype(jnp.float32)
            for name in ("u", "v")
        )
        weights = nn.softmax(u[:, :, None] * v[:, None, :], axis=-1).astype(x.dtype)  # b c c
        return jnp.einsum("bhwq,bpq->bhwp", x, weights)


class SpatialRelation(nn.Module):
    """A map, and how each of its positions relates to all of a grid: products without scale, never below zero (section 3.3)."""

    side: int  # cells of the grid
    conv: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c2"]:
        b, h, w, c = x.shape
        u, v = (self.conv(c, (1, 1), padding=0, kernel_init=small, name=name)(x) for name in ("u", "v"))
        v = pooling.adaptive_mean(v, self.side).reshape(b, self.side**2, c)  # as it is where the grid is the map's own
        relations = nn.relu(jnp.einsum("bhwc,bnc->bhwn", u.astype(jnp.float32), v))
        return jnp.concatenate([x, relations.astype(x.dtype)], axis=-1)


class SRAFCN(nn.Module):
    """The network of the paper, its relations one after the other. Returns logits at every pixel, and every named stage.

    Each level's classifier has a weight for every position of the map, so that the paper's network takes images of one size:
    ``relations="input_size"``. With ``grid``, every position is related to the means over as many cells as a map of that size
    has: the same for such an image, and an answer for any other.

    17 094 866 parameters at 6 classes, three bands and 256 px: VGG's convolutions 14 714 688, the relations' layers 2 364 416,
    the classifiers 15 762, of (256 + 32^2), (512 + 16^2) and (512 + 8^2) channels. The paper prints none.
    """

    num_classes: int
    width: int = 64  # filters of VGG's first stage
    relations: str = (
        "grid"  # between positions and a grid of means; "input_size": all positions, of images of that size
    )
    input_size: int = 256  # pixels a side; a grid has as many cells as a map of such an image
    maps: str = "pool"  # VGG's maps behind their pooling, at strides 8, 16 and 32; "conv": before it, at 4, 8 and 16
    dtype: str = "float32"  # of the computation; parameters stay float32
    fast_conv: bool | None = None  # kernel gradient made for CPUs; None: on CPUs only

    backbone = "vgg"  # what pretrained weights it takes

    def __post_init__(self):
        choices.check(self, CHOICES)
        if self.input_size < 32:
            raise UserError(f"model.input_size is {self.input_size}; it must be at least 32")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> tuple[Float[Array, "b h w k"], dict[str, Array]]:
        """Logits of every pixel, VGG's stages, and of each level ``channelN``, ``spatialN`` and ``scoreN``."""
        size, wanted = x.shape[1:3], (self.input_size, self.input_size)
        if self.relations == "input_size" and size != wanted:
            if not self.is_initializing():
                raise UserError(
                    f"S-RA-FCN with relations input_size takes images of {wanted[0]} x {wanted[1]} px, not of "
                    f"{size[0]} x {size[1]}; give --model.input-size the size of patches, or --model.relations grid"
                )
            x = jnp.resize(x, (x.shape[0], *wanted, x.shape[-1]))  # shapes alone are asked for
        dtype = jnp.dtype(self.dtype)
        conv = partial(nn.Conv, dtype=dtype, conv_general_dilated=convolution.choose(self.fast_conv))
        out = VGG16(self.width, 1, conv, name="vgg")(x, train)
        logits = 0.0
        for level in LEVELS:
            stride = 2 ** (level - (self.maps == "conv"))
            y = out[f"channel{level}"] = ChannelRelation(conv, name=f"channel{level}")(out[f"{self.maps}{level}"])
            side = cells(self.input_size, stride)
            y = out[f"spatial{level}"] = SpatialRelation(side, conv, name=f"spatial{level}")(y)
            y = out[f"score{level}"] = conv(self.num_classes, (1, 1), padding=0, name=f"score{level}")(y)
            whole = tuple(stride * n for n in y.shape[1:3])
            logits = logits + resize_halves(y.astype(jnp.float32), whole)[:, : x.shape[1], : x.shape[2]]
        out["logits"] = logits if logits.shape[1:3] == size else jnp.resize(logits, (len(x), *size, self.num_classes))
        return out["logits"], out
