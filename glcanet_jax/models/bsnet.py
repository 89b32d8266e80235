"""BSNet, reconstructed: PSPNet whose convolutions may look for edges, and whose low-level map is weighed by coordinates.

Hou, Guo, Wu, Diao and Xu, BSNet: Dynamic Hybrid Gradient Convolution Based Boundary-Sensitive Network for Remote Sensing Image
Segmentation, IEEE TGRS 60, 2022. No code was found, and of the paper its abstract alone was read: it says that dynamic hybrid gradient
convolutions (DHGC) replace vanilla ones in the encoder, each joining one vanilla and two gradient kernels, and that a
coordinate-sensitive attention (CSA) takes boundaries from low-level features in the decoder. All else here is an assumption;
docs/networks.md lists them.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from glcanet_jax.errors import UserError
from glcanet_jax.models.layers import choices, convolution, resnet
from glcanet_jax.models.layers.blocks import ConvNorm, fcn_head
from glcanet_jax.models.layers.gradient_convolution import HybridConv
from glcanet_jax.models.layers.resnet import backbone_of, new_norm_of
from glcanet_jax.models.layers.sampling import logits_to_pixels, upsample
from glcanet_jax.models.pspnet import PyramidPooling

BINS = (1, 2, 3, 6)  # a side, of the pyramid
STAGES = (1, 2, 3, 4)
CHOICES = resnet.CHOICES | choices.COMMON | {"output_stride": (8, 16, 32)}


class CoordinateAttention(nn.Module):
    """A map weighed by two gates, of its rows and of its columns (Hou, Zhou and Feng, CVPR 2021, section 3.2)."""

    conv: Callable
    norm: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b h w c"]:
        h, c = x.shape[1], x.shape[-1]
        rows, columns = (jnp.mean(x, axis=axis, dtype=jnp.float32).astype(x.dtype) for axis in (2, 1))
        y = jnp.concatenate([rows, columns], axis=1)[:, :, None]  # b h+w 1 c
        y = self.conv(max(8, c // 32), (1, 1), padding=0, use_bias=False, name="squeeze")(y)
        y = nn.hard_swish(self.norm(name="norm")(y, train))
        gate = lambda y, name: nn.sigmoid(self.conv(c, (1, 1), padding=0, name=name)(y))  # noqa: E731
        return x * gate(y[:, :h], "rows") * gate(y[:, h:], "columns").swapaxes(1, 2)


class BSNet(nn.Module):
    """The network as reconstructed. Returns logits at every pixel, where its loss is computed, and every named stage.

    58 634 604 parameters at 6 classes and three bands, all counted from the layers, for there is nothing to compare with:
    ResNet-50 23 508 032, gradient kernels and what chooses them 7 863 024, pyramid 4 198 400, its reduction 18 875 392,
    coordinate attention 56 880, decoder 1 769 984, classifier 1 542; training adds the auxiliary head's 2 361 350.
    """

    num_classes: int
    depth: int = 50  # of the ResNet
    width: int = 64  # filters of its stem
    stride: str = "v1.5"  # where a bottleneck strides; v1 for weights trained so
    stem: str = "conv7"  # three 3x3: "deep" and "v1c"
    output_stride: int = 8  # 16 or 32: the last stages stride instead of dilating
    dhgc: tuple[int, ...] = (
        STAGES  # stages of the ResNet whose 3x3 convolutions have gradient kernels beside the plain ones
    )
    temperature: int | float = 1.0  # of the choice between kernels
    csa: bool = True  # the decoder with coordinate attention; without it and dhgc, the network is PSPNet
    channels: int = 256  # of the decoder
    dropout: int | float = 0.1  # before both classifiers
    aux_weight: int | float = 0.4  # of the auxiliary loss on C4
    norm: str = "batch"  # of the backbone; new layers have group for frozen
    dtype: str = "float32"  # of the computation; parameters stay float32
    remat: bool = False  # recompute the backbone's blocks in the backward pass
    fast_conv: bool | None = None  # kernel gradient made for CPUs; None: on CPUs only

    backbone = "resnet"  # what pretrained weights it takes

    def __post_init__(self):
        choices.check(self, CHOICES)
        choices.check_dropout(self)
        if not set(self.dhgc) <= set(STAGES):
            raise UserError(f"model.dhgc is {self.dhgc}; it must hold stages of the ResNet, from 1 to 4, or none")
        if self.temperature <= 0:
            raise UserError(f"model.temperature is {self.temperature}; it must be above 0")
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
        convolve = convolution.choose(self.fast_conv)
        conv = partial(nn.Conv, dtype=dtype, conv_general_dilated=convolve)
        block = partial(ConvNorm, conv=conv, norm=new_norm_of(self))
        drop = partial(nn.Dropout, self.dropout, deterministic=not train)
        hybrid = partial(HybridConv, dtype=dtype, temperature=self.temperature, conv_general_dilated=convolve)
        out = backbone_of(
            self,
            conv,
            output_stride=self.output_stride,
            stem=self.stem,
            conv3x3=hybrid,
            conv3x3_stages=self.dhgc,
        )(name="resnet")(x, train)
        quarter = out["c5"].shape[-1] // 4
        out["pyramid"] = PyramidPooling(BINS, quarter, block, name="pyramid")(out["c5"], train)
        y = out["fused"] = block(quarter, name="fuse")(out["pyramid"], train)
        if self.csa:
            y = jnp.concatenate([out["c2"], upsample(y, out["c2"].shape[1:3])], axis=-1)
            y = out["attended"] = CoordinateAttention(conv, new_norm_of(self), name="csa")(y, train)
            y = out["decoded"] = block(self.channels, name="decode")(y, train)
        logits = conv(self.num_classes, (1, 1), padding=0, name="classifier")(drop(name="drop")(y))
        if train or self.is_initializing():
            y = fcn_head(out["c4"], self.num_classes, conv, block, drop, train, prefix="aux_")
            out["aux/logits"] = logits_to_pixels(y, size)
        out["logits"] = logits_to_pixels(logits, size)
        return out["logits"], out
