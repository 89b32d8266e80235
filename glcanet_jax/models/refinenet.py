"""RefineNet: a cascade that refines coarse maps by finer ones (Lin et al., RefineNet: Multi-Path Refinement Networks for
High-Resolution Semantic Segmentation, CVPR 2017, section 3).

The layers are those of the authors' published models: four stages of chained pooling where the paper draws two, pooled
before they are convolved. There is no norm behind the ResNet.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from glcanet_jax.models.layers import choices, convolution, pooling, resnet
from glcanet_jax.models.layers.resnet import backbone_of
from glcanet_jax.models.layers.sampling import upsample

ADAPT, POOLED, REFINE = 2, 4, 3  # residual units before the fusion, stages of the pooling, residual units after it
CHOICES = {k: v for k, v in resnet.CHOICES.items() if k != "stem"} | choices.COMMON
# a sum of what is chained: its parts begin small, for 75 million weights stand without a norm
small_normal = nn.initializers.variance_scaling(0.1, "fan_in", "normal")


class ResidualUnit(nn.Module):
    """ReLU and a 3x3, twice, added to the map (figure 3b). Begins as the identity, which is ours."""

    conv: Callable  # makes a 3x3 convolution: filters

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        y = self.conv(x.shape[-1], name="conv1")(nn.relu(x))
        return x + self.conv(x.shape[-1], use_bias=False, kernel_init=nn.initializers.zeros, name="conv2")(nn.relu(y))


class ChainedPooling(nn.Module):
    """A map and what a chain of 5x5 maxima and 3x3 convolutions makes of it, all added up (figure 3d)."""

    conv: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        y = x
        for i in range(1, POOLED + 1):
            y = pooling.max_around(y, 5)
            y = self.conv(x.shape[-1], use_bias=False, kernel_init=small_normal, name=f"conv{i}")(y)
            x = x + y
        return x


class RefineBlock(nn.Module):
    """A map of the ResNet and the coarser block's answer become one, with a wide surround (section 3.2, figure 3a)."""

    filters: int
    conv: Callable

    @nn.compact
    def __call__(
        self, fine: Float[Array, "b h w c"], coarse: Float[Array, "b h2 w2 c2"] | None = None
    ) -> Float[Array, "b h w c2"]:
        x = self.conv(self.filters, use_bias=False, name="reduce")(fine)
        for i in range(1, ADAPT + 1):
            x = ResidualUnit(self.conv, name=f"adapt{i}")(x)
        if coarse is not None:
            x = self.conv(self.filters, use_bias=False, name="join")(x) + upsample(coarse, x.shape[1:3])
        x = ChainedPooling(self.conv, name="pool")(nn.relu(x))
        for i in range(1, REFINE + 1):
            x = ResidualUnit(self.conv, name=f"refine{i}")(x)
        return x


class RefineNet(nn.Module):
    """The network of the authors' models. Returns logits at stride 4, where its loss is computed, and every named stage.

    Parameters: 99 028 039 for 7 classes, of which ResNet-50 has 23 508 032. For 21 classes and ResNet-101 there are
    118 052 437; the paper of Light-Weight RefineNet prints 118 M.
    """

    num_classes: int
    depth: int = 50  # of the ResNet
    width: int = 64  # filters of its stem
    stride: str = "v1.5"  # where a bottleneck strides; v1 for weights trained so
    channels: int = 256  # of the three finer blocks
    coarse_channels: int = 512  # of the block on C5
    dropout: int | float = 0.5  # before C4, C5 and the classifier
    norm: str = "batch"  # of the ResNet; the authors trained with a frozen one
    dtype: str = "float32"  # of the computation; parameters stay float32
    remat: bool = False  # recompute the backbone's blocks in the backward pass
    fast_conv: bool | None = None  # kernel gradient made for CPUs; None: on CPUs only

    backbone = "resnet"  # what pretrained weights it takes

    def __post_init__(self):
        choices.check(self, CHOICES)
        choices.check_dropout(self)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> tuple[Float[Array, "b h4 w4 k"], dict[str, Array]]:
        conv = partial(nn.Conv, dtype=jnp.dtype(self.dtype), conv_general_dilated=convolution.choose(self.fast_conv))
        conv3 = partial(conv, kernel_size=(3, 3), padding=1)
        drop = partial(nn.Dropout, self.dropout, deterministic=not train)
        out = backbone_of(self, conv)(name="resnet")(x, train)
        y = None
        for level in (5, 4, 3, 2):
            filters = self.coarse_channels if level == 5 else self.channels
            fine = drop(name=f"drop{level}")(out[f"c{level}"]) if level > 3 else out[f"c{level}"]
            y = out[f"r{level}"] = RefineBlock(filters, conv3, name=f"block{level}")(fine, y)
            if level > 2:
                y = conv3(self.channels, use_bias=False, name=f"hand{level}")(y)
        classify = conv3(self.num_classes, kernel_init=nn.initializers.normal(0.01), name="classifier")
        out["logits"] = classify(drop(name="drop")(y)).astype(jnp.float32)
        return out["logits"], out
