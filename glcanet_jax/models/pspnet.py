"""PSPNet: pyramid pooling over a dilated ResNet (Zhao et al., Pyramid Scene Parsing Network, CVPR 2017, section 3)."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from glcanet_jax.errors import UserError
from glcanet_jax.models.layers import choices, convolution, pooling, resnet
from glcanet_jax.models.layers.blocks import ConvNorm, fcn_head
from glcanet_jax.models.layers.resnet import backbone_of, new_norm_of
from glcanet_jax.models.layers.sampling import logits_to_pixels

OUTPUT_STRIDE = 8
CHOICES = resnet.CHOICES | choices.COMMON


class PyramidPooling(nn.Module):
    """A map beside its means over 1, 2, 3 and 6 bins a side, each reduced and brought back (section 3.2, figure 3)."""

    bins: tuple[int, ...]
    filters: int  # of each
    block: Callable  # makes a ConvNorm

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b h w c2"]:
        size = x.shape[1:3]
        maps = [x]
        for n in self.bins:
            y = pooling.adaptive_mean(x, n).astype(x.dtype)
            y = self.block(self.filters, kernel=1, name=f"bins{n}")(y, train)
            maps.append(pooling.spread(y, size).astype(x.dtype))
        return jnp.concatenate(maps, axis=-1)


class PSPNet(nn.Module):
    """The network of the paper. Returns logits at every pixel, where its loss is computed, and every named stage.

    Parameters at inference: 46 592 597 for 21 classes, 46 658 774 for 150; training adds the auxiliary head's 2 365 205 and
    2 398 358. The paper prints none. With the authors' stem and 21 classes there are 123 776 more, 46 716 373: the three
    convolutions and norms have 112 832 instead of 9 536, and their 128 channels cost the first block 20 480. OpenVINO's
    model zoo gives 46.5827 M for one with 21 classes, which we make 46.5826 M: the 29 120 scales of the norms are folded
    into the convolutions, and its stem of 32, 32 and 64 filters then has 28 640 instead of 9 472.
    """

    num_classes: int
    depth: int = 50  # of the ResNet
    width: int = 64  # filters of its stem
    stride: str = "v1.5"  # where a bottleneck strides; v1 as the authors', and for weights trained so
    stem: str = "conv7"  # "deep": three 3x3, as the authors'
    bins: tuple[int, ...] = (1, 2, 3, 6)  # a side, of the pyramid
    dropout: int | float = 0.1  # before both classifiers
    aux_weight: int | float = 0.4  # of the auxiliary loss (section 4)
    norm: str = "batch"  # of the backbone; new layers have group for frozen
    dtype: str = "float32"  # of the computation; parameters stay float32
    remat: bool = False  # recompute the backbone's blocks in the backward pass
    fast_conv: bool | None = None  # kernel gradient made for CPUs; None: on CPUs only

    backbone = "resnet"  # what pretrained weights it takes

    def __post_init__(self):
        choices.check(self, CHOICES)
        if not self.bins or min(self.bins) < 1 or len(set(self.bins)) < len(self.bins):
            raise UserError(f"model.bins is {self.bins}; it must hold one or more different numbers from 1 on")
        super().__post_init__()

    @property
    def auxiliary(self) -> dict[str, int | float]:
        """Auxiliary logits that a loss reads, and its weights."""
        return {"aux": self.aux_weight}

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> tuple[Float[Array, "b h w k"], dict[str, Array]]:
        dtype, size = jnp.dtype(self.dtype), x.shape[1:3]
        conv = partial(nn.Conv, dtype=dtype, conv_general_dilated=convolution.choose(self.fast_conv))
        block = partial(ConvNorm, conv=conv, norm=new_norm_of(self))
        drop = partial(nn.Dropout, self.dropout, deterministic=not train)
        out = backbone_of(
            self,
            conv,
            output_stride=OUTPUT_STRIDE,
            stem=self.stem,
        )(name="resnet")(x, train)
        quarter = out["c5"].shape[-1] // 4
        out["pyramid"] = PyramidPooling(self.bins, quarter, block, name="pyramid")(out["c5"], train)
        out["fused"] = block(quarter, name="fuse")(out["pyramid"], train)
        logits = conv(self.num_classes, (1, 1), padding=0, name="classifier")(drop(name="drop")(out["fused"]))
        if train or self.is_initializing():
            y = fcn_head(out["c4"], self.num_classes, conv, block, drop, train, prefix="aux_")
            out["aux/logits"] = logits_to_pixels(y, size)
        out["logits"] = logits_to_pixels(logits, size)
        return out["logits"], out
