"""ResNet backbones (He et al., 2016), with explicit padding, returning C2..C5.

Feature cell ``j`` of a map at stride ``s`` is centred on input pixel ``s * j``; Flax's ``SAME`` would pad unevenly at
stride 2 and shift it. The last stages can dilate instead of striding (Yu et al., 2017; PSPNet, DeepLab, ICNet).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from glcanet_jax.models.layers import pooling

BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
STRIDES = (4, 8, 16, 32)  # of C2..C5
STEMS = {"deep": (1, 1, 2), "v1c": (0.5, 0.5, 1)}  # filters of three 3x3, in widths
CHOICES = {"depth": tuple(BLOCKS), "stride": ("v1.5", "v1"), "stem": ("conv7", *STEMS)}  # of networks built on one


class BatchNorm(nn.BatchNorm):
    """Flax's BatchNorm, told its mode like every block here."""

    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b h w c"]:
        return super().__call__(x, use_running_average=not train)


class FrozenBatchNorm(nn.Module):
    """BatchNorm with fixed statistics, scale and bias, as a pretrained backbone on small batches wants it."""

    dtype: Any = jnp.float32
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b h w c"]:
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32).value
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32).value
        factor = scale / jnp.sqrt(var + self.epsilon)
        factor, shift = lax.stop_gradient((factor, bias - mean * factor))
        return (x * factor.astype(x.dtype)[None, None, None] + shift.astype(x.dtype)[None, None, None]).astype(
            self.dtype
        )


class GroupNorm(nn.Module):
    """Group normalisation (Wu and He, 2018) in 8 groups, or the most that divide the channels; in float32."""

    dtype: Any = jnp.float32
    groups: int = 8
    scale_init: Callable = nn.initializers.ones
    bias_init: Callable = nn.initializers.zeros
    size: int | None = None  # channels of a group, instead of how many groups

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b h w c"]:
        channels = x.shape[-1]
        scale = self.param("scale", self.scale_init, (channels,), jnp.float32)
        bias = self.param("bias", self.bias_init, (channels,), jnp.float32)
        most = self.groups if self.size is None else max(1, channels // self.size)
        groups = max(g for g in range(1, most + 1) if channels % g == 0)
        y = nn.GroupNorm(num_groups=groups, epsilon=1e-5, use_bias=False, use_scale=False, dtype=jnp.float32)(x)
        return (y * scale[None, None, None] + bias[None, None, None]).astype(self.dtype)


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Largest of 3x3 at stride 2, padding 1, of values that are nowhere below zero."""
    return pooling.max_around(x, 3, stride=2, outside=0.0)  # as good as -inf here


def norm_layer(mode: str, dtype: Any = jnp.float32) -> Callable[..., nn.Module]:
    """``batch`` (statistics of the batch in training), ``frozen`` (running ones, fixed affine) or ``group``."""
    if mode == "batch":
        return partial(BatchNorm, momentum=0.9, epsilon=1e-5, dtype=dtype)
    if mode == "frozen":
        return partial(FrozenBatchNorm, dtype=dtype)
    return partial(GroupNorm, dtype=dtype)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (section 4.1, figure 5 left)."""

    filters: int
    stride: int
    conv: Callable
    norm: Callable
    dilation: int = 1  # of both
    second_dilation: int | None = None  # of the second, where it has its own
    conv3x3: Callable | None = None  # makes the 3x3; None: conv
    attend: Callable | None = None  # makes what weighs the residual before the shortcut is added

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b h2 w2 c2"]:
        make = self.conv3x3 or self.conv
        conv = lambda rate: partial(make, self.filters, (3, 3), padding=rate, kernel_dilation=rate)  # noqa: E731
        y = conv(self.dilation)(strides=self.stride, name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y, train))
        y = conv(self.second_dilation or self.dilation)(name="conv2")(y)
        y = self.norm(name="norm2")(y, train)
        if self.attend:
            y = self.attend(name="cbam")(y, train)
        if x.shape != y.shape:
            x = self.conv(self.filters, (1, 1), strides=self.stride, padding=0, name="shortcut_conv")(x)
            x = self.norm(name="shortcut_norm")(x, train)
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a shortcut (figure 5 right). v1 strides on the first 1x1, v1.5 on the 3x3."""

    filters: int
    stride: int
    conv: Callable
    norm: Callable
    stride_on_first: bool = False
    dilation: int = 1  # of the 3x3
    conv3x3: Callable | None = None  # makes the 3x3; None: conv
    attend: Callable | None = None  # makes what weighs the residual before the shortcut is added

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b h2 w2 c2"]:
        first, second = (self.stride, 1) if self.stride_on_first else (1, self.stride)
        y = self.conv(self.filters, (1, 1), strides=first, padding=0, name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y, train))
        dilated = partial(self.conv3x3 or self.conv, padding=self.dilation, kernel_dilation=self.dilation)
        y = dilated(self.filters, (3, 3), strides=second, name="conv2")(y)
        y = nn.relu(self.norm(name="norm2")(y, train))
        y = self.conv(4 * self.filters, (1, 1), padding=0, name="conv3")(y)
        y = self.norm(name="norm3")(y, train)
        if self.attend:
            y = self.attend(name="cbam")(y, train)
        if x.shape != y.shape:
            x = self.conv(4 * self.filters, (1, 1), strides=self.stride, padding=0, name="shortcut_conv")(x)
            x = self.norm(name="shortcut_norm")(x, train)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """ResNet-10, 18, 34, 50 or 101 without its classifier; any number of input bands.

    At an output stride of 16 or 8 the last one or two stages dilate, every block of a stage alike, as in PSPNet (section
    3.2), unless told otherwise. With ``stride="v1"`` that changes no cell of the strided network, it only adds cells between them.
    """

    depth: int = 50
    width: int = 64  # filters of the stem; every stage scales with it
    stride: str = "v1.5"  # or "v1": where a bottleneck strides
    conv: Callable = partial(nn.Conv, use_bias=False)
    norm: Callable = norm_layer("batch")
    remat: bool = False
    output_stride: int = 32  # 16 or 8: the last one or two stages dilate by 2, or by 2 and 4
    multi_grid: tuple[
        int, ...
    ] = ()  # dilations of the last stage's blocks, times the stage's (DeepLabv3, section 3.2.1)
    stem: str = "conv7"  # or three 3x3: "deep" and "v1c"
    contract_dilation: bool = False  # a stage's first block by half (EncNet, mmsegmentation)
    dilate_once: bool = False  # of basic blocks the first convolution alone (mmsegmentation)
    conv3x3: Callable | None = None  # makes the 3x3 of some stages' blocks (BSNet)
    conv3x3_stages: tuple[int, ...] = ()  # which, from 1 to 4
    attend: Callable | None = None  # makes what weighs every block's residual before the shortcut is added (CBAM)
    halve_after: str | None = None  # a block: kept under its name, and only every second of its cells goes on (ICNet)

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> dict[str, Float[Array, "b _ _ _"]]:
        block = BasicBlock if self.depth < 50 else Bottleneck
        if self.remat:
            block = nn.remat(block, static_argnums=(2,))  # train; self is 0
        if self.depth >= 50:
            block = partial(block, stride_on_first=self.stride == "v1")
        elif self.dilate_once:
            block = partial(block, second_dilation=1)
        x = max_pool(self._stem(x, train))
        out = {}
        for stage, (blocks, stride) in enumerate(zip(BLOCKS[self.depth], STRIDES, strict=True)):
            dilation = max(1, stride // self.output_stride)
            rates = self.multi_grid if stage == 3 and self.multi_grid else (1,) * blocks
            for i in range(blocks):
                name = f"stage{stage + 1}_block{i + 1}"
                rate = max(1, dilation // 2) if self.contract_dilation and i == 0 else dilation
                x = block(
                    filters=self.width * 2**stage,
                    stride=2 if stage > 0 and i == 0 and stride <= self.output_stride else 1,
                    conv=self.conv,
                    norm=self.norm,
                    conv3x3=self.conv3x3 if stage + 1 in self.conv3x3_stages else None,
                    attend=self.attend,
                    dilation=rate * rates[i],
                    name=name,
                )(x, train)
                if name == self.halve_after:
                    out[name] = x
                    x = x[:, ::2, ::2]
            out[f"c{stage + 2}"] = x
        return out

    def _stem(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h2 w2 c2"]:
        """One 7x7, or three 3x3: ``deep``, as in PSPNet's and ICNet's published layers, or half as wide, ``v1c`` (He et al., Bag
        of Tricks, 2019, as mmsegmentation has it).
        """
        if self.stem == "conv7":
            x = self.conv(self.width, (7, 7), strides=2, padding=3, name="stem_conv")(x)
            return nn.relu(self.norm(name="stem_norm")(x, train))
        for i, widths in enumerate(STEMS[self.stem], 1):
            number, stride = ("", 2) if i == 1 else (str(i), 1)
            filters = max(1, int(widths * self.width))
            x = self.conv(filters, (3, 3), strides=stride, padding=1, name=f"stem_conv{number}")(x)
            x = nn.relu(self.norm(name=f"stem_norm{number}")(x, train))
        return x


def backbone_of(network: Any, conv: Callable, **more: Any) -> Callable[..., ResNet]:
    """The ResNet that a network's options ``depth``, ``width``, ``stride``, ``norm``, ``dtype`` and ``remat`` ask for."""
    return partial(
        ResNet,
        depth=network.depth,
        width=network.width,
        stride=network.stride,
        conv=partial(conv, use_bias=False),
        norm=norm_layer(network.norm, jnp.dtype(network.dtype)),
        remat=network.remat,
        **more,
    )


def new_norm_of(network: Any) -> Callable[..., nn.Module]:
    """The norm of layers beside a backbone: the backbone's, but of groups for a frozen one, which they have no statistics for."""
    return norm_layer("group" if network.norm == "frozen" else network.norm, jnp.dtype(network.dtype))
