"""DeepLabv3+: atrous spatial pyramid and a small decoder (Chen et al., Encoder-Decoder with Atrous Separable Convolution
for Semantic Image Segmentation, ECCV 2018, section 3.1), over a ResNet.

The spatial pyramid and the grid of the last stage are DeepLabv3's (Chen et al., 2017, sections 3.3 and 3.2.1). The paper's
separable convolutions belong to its Xception; with a ResNet they are plain ones here, in the pyramid and the decoder too.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from glcanet_jax.errors import UserError
from glcanet_jax.models.layers import choices, convolution, pooling, resnet
from glcanet_jax.models.layers.blocks import ConvNorm
from glcanet_jax.models.layers.resnet import BLOCKS, backbone_of, new_norm_of
from glcanet_jax.models.layers.sampling import logits_to_pixels, upsample

CHOICES = resnet.CHOICES | choices.COMMON | {"output_stride": (16, 8)}


class SpatialPyramid(nn.Module):
    """A 1x1, a 3x3 at each rate and the mean of the image, side by side, then reduced (DeepLabv3, section 3.3)."""

    filters: int
    rates: tuple[int, ...]
    block: Callable  # makes a ConvNorm
    kernel: int = 1  # of the reduction

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b h w c2"]:
        b, h, w = x.shape[:3]
        maps = [self.block(self.filters, kernel=1, name="point")(x, train)]
        for i, rate in enumerate(self.rates, 1):
            maps.append(self.block(self.filters, dilation=rate, name=f"atrous{i}")(x, train))
        mean = pooling.adaptive_mean(x, 1).astype(x.dtype)
        mean = self.block(self.filters, kernel=1, name="image")(mean, train)
        maps.append(jnp.broadcast_to(mean, (b, h, w, self.filters)))
        return self.block(self.filters, kernel=self.kernel, name="project")(jnp.concatenate(maps, axis=-1), train)


class DeepLabV3Plus(nn.Module):
    """The network of the paper. Returns logits at every pixel, where its loss is computed, and every named stage.

    Parameters: 40 352 181 for 21 classes. The paper prints none (it counts multiply-adds, of other backbones), so the count
    follows from the layers: ResNet-50 23 508 032, spatial pyramid 15 535 104, C2's reduction 12 384, two 3x3 of the
    decoder 700 928 and 590 336, classifier 5 397. Versions with one 3x3 in the decoder have 590 336 fewer, 39.76 M.
    """

    num_classes: int
    depth: int = 50  # of the ResNet
    width: int = 64  # filters of its stem
    stride: str = "v1.5"  # where a bottleneck strides; v1 for weights trained so
    stem: str = "conv7"  # deep: three 3x3
    output_stride: int = 16  # or 8
    multi_grid: tuple[int, ...] = (1, 2, 4)  # of the last stage's blocks, as many as it has; () for none
    rates: tuple[int, ...] = (6, 12, 18)  # of the spatial pyramid at an output stride of 16; doubled at 8
    channels: int = 256  # of the spatial pyramid and the decoder
    low_channels: int = 48  # of C2 in the decoder
    dropout: int | float = 0.1  # after the spatial pyramid
    norm: str = "batch"  # of the backbone; new layers have group for frozen
    dtype: str = "float32"  # of the computation; parameters stay float32
    remat: bool = False  # recompute the backbone's blocks in the backward pass
    fast_conv: bool | None = None  # kernel gradient made for CPUs; None: on CPUs only

    backbone = "resnet"  # what pretrained weights it takes

    def __post_init__(self):
        choices.check(self, CHOICES)
        if 0 < len(self.multi_grid) < BLOCKS[self.depth][-1]:
            raise UserError(
                f"model.multi_grid is {self.multi_grid}; it must have a rate for each of the {BLOCKS[self.depth][-1]} blocks of "
                f"the last stage of ResNet-{self.depth}, or none"
            )
        if min((*self.multi_grid, *self.rates), default=1) < 1:
            raise UserError(f"model.multi_grid {self.multi_grid} and model.rates {self.rates} must be 1 or more")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> tuple[Float[Array, "b h w k"], dict[str, Array]]:
        dtype, size = jnp.dtype(self.dtype), x.shape[1:3]
        conv = partial(nn.Conv, dtype=dtype, conv_general_dilated=convolution.choose(self.fast_conv))
        block = partial(ConvNorm, conv=conv, norm=new_norm_of(self))
        out = backbone_of(
            self,
            conv,
            output_stride=self.output_stride,
            multi_grid=self.multi_grid,
            stem=self.stem,
        )(name="resnet")(x, train)
        rates = tuple(16 // self.output_stride * rate for rate in self.rates)
        out["aspp"] = SpatialPyramid(self.channels, rates, block, name="aspp")(out["c5"], train)
        y = nn.Dropout(self.dropout, deterministic=not train, name="drop")(out["aspp"])
        low = block(self.low_channels, kernel=1, name="low")(out["c2"], train)
        y = jnp.concatenate([upsample(y, low.shape[1:3]), low], axis=-1)
        for i in (1, 2):
            y = block(self.channels, name=f"decode{i}")(y, train)
        out["decoded"] = y
        logits = conv(self.num_classes, (1, 1), padding=0, name="classifier")(y)
        out["logits"] = logits_to_pixels(logits, size)
        return out["logits"], out
