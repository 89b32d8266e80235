"""ISDNet: a shallow network on an image's details beside a deep one on the image shrunk (Guo et al., ISDNet: Integrating
Shallow and Deep Networks for Efficient Ultra-high Resolution Segmentation, CVPR 2022).

The layers are those of the authors' published network (``isdnet_r18-d8_1224x1224_80k_DeepGlobe``, ``isdhead.py``), on
mmsegmentation's ResNet-18-v1c and spatial pyramid.
"""

from collections.abc import Callable, Mapping
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from glcanet_jax.errors import UserError
from glcanet_jax.models.deeplabv3plus import SpatialPyramid
from glcanet_jax.models.layers import choices, convolution, laplacian, resnet
from glcanet_jax.models.layers.blocks import ConvNorm, fcn_head
from glcanet_jax.models.layers.resnet import backbone_of, new_norm_of
from glcanet_jax.models.layers.sampling import resize_halves, upsample
from glcanet_jax.models.layers.stdc import ShallowSTDC

OUTPUT_STRIDE = 8  # of the ResNet, on the image shrunk
GROUPS = 16  # of channels, between which relations are asked
LEVELS = 2  # of the Laplacian pyramid
UPSAMPLING = (4, 2, 2)  # of the decoder of details, before each of its convolutions
AUXILIARY = ("deep", "deep16", "deep8", "c4")  # logits that training alone makes
CHOICES = resnet.CHOICES | choices.COMMON | {"shrink": (2, 4, 8), "resizing": ("centres", "half")}


def between_centres(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b h2 w2 c"]:
    """A map on another grid of the same image: the means between cells of a coarser one, the cells of a finer one."""
    if x.shape[1] <= size[0] and x.shape[2] <= size[1]:
        return upsample(x, size)
    step = x.shape[1] // size[0]
    return x[:, ::step, ::step][:, : size[0], : size[1]]


RESIZING = {"centres": between_centres, "half": resize_halves}


class Gate(nn.Module):
    """A 3x3 convolution, and what a 1x1 one makes of the mean of its answer: one number a channel (section 3.3)."""

    channels: int
    block: Callable  # makes a ConvNorm

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> tuple[Float[Array, "b h w c2"], Float[Array, "b c2"]]:
        x = self.block(self.channels, name="conv")(x, train)
        mean = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)
        return x, self.block(self.channels, kernel=1, relu=False, name="gate")(mean, train)[:, 0, 0]


class RelationAwareFusion(nn.Module):
    """Sum of a shallow and a deep map, each weighed by channel, both weights hearing how their groups relate (section 3.3)."""

    channels: int
    block: Callable  # makes a ConvNorm
    dense: Callable
    resize: Callable

    @nn.compact
    def __call__(
        self, shallow: Float[Array, "b h w c"], deep: Float[Array, "b h2 w2 c2"], train: bool = False
    ) -> tuple[Float[Array, "b h w c2"], Float[Array, "b h w c2"]]:
        """The deep map on the finer grid, and the sum."""
        (shallow, ours), (deep, theirs) = (
            Gate(self.channels, self.block, name=f"{name}_gate")(x, train)
            for name, x in (("shallow", shallow), ("deep", deep))
        )
        groups = lambda gate: gate.reshape(-1, GROUPS, self.channels // GROUPS)  # noqa: E731
        relations = jnp.einsum("bic,bjc->bij", groups(ours), groups(theirs)).reshape(-1, GROUPS**2)

        def weigh(x: Array, gate: Array, name: str) -> Array:
            heard = nn.relu(self.dense(self.channels, name=f"{name}_mlp1")(relations))
            heard = nn.relu(self.dense(self.channels, name=f"{name}_mlp2")(heard))
            share = self.param(f"{name}_share", nn.initializers.zeros, (1,)).astype(gate.dtype)
            return x * nn.sigmoid(gate + share[None] * heard)[:, None, None]

        shallow, deep = weigh(shallow, ours, "shallow"), weigh(deep, theirs, "deep")
        deep = self.block(self.channels, name="deep_conv")(self.resize(deep, shallow.shape[1:3]), train)
        return deep, self.block(self.channels, relu=False, name="smooth")(shallow + deep, train)


class Head(nn.Module):
    """A 3x3 convolution to half of the channels, and a classifier."""

    outputs: int
    conv: Callable
    block: Callable  # makes a ConvNorm

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b h w k"]:
        x = self.block(x.shape[-1] // 2, name="conv")(x, train)
        return self.conv(self.outputs, (1, 1), padding=0, name="classifier")(x)


class DetailDecoder(nn.Module):
    """What the deep map says of the image's details: they, and the last features before them (section 3.4)."""

    bands: int
    conv: Callable
    block: Callable  # makes a ConvNorm

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> tuple[Float[Array, "b h2 w2 n"], Float[Array, "b h2 w2 c"]]:
        channels = x.shape[-1]
        for i, (times, filters) in enumerate(zip(UPSAMPLING, (channels // 2, channels // 2, channels), strict=True), 1):
            x = jnp.repeat(jnp.repeat(x, times, axis=1), times, axis=2)
            x = self.block(filters, name=f"conv{i}")(x, train)
        return Head(self.bands, self.conv, self.block, name="head")(x, train), x


class ISDNet(nn.Module):
    """The network of the authors' code. Returns logits at every pixel, where its loss is computed, and every named stage.

    Parameters at inference: 17 224 107 for 7 classes: ResNet-18-v1c 11 195 744, spatial pyramid 2 639 360, shallow network
    1 278 976, fusions at strides 16 and 8 1 165 314 and 870 402, head 74 311. Training adds the decoder of details 258 883 and
    four heads, 297 564. The paper prints none; the authors' modules, built in PyTorch, have as many.
    """

    num_classes: int
    depth: int = 18  # of the ResNet, which sees the image shrunk
    width: int = 64  # filters of its stem
    stride: str = "v1.5"  # where a bottleneck strides
    stem: str = "v1c"  # three 3x3, as the authors'; "conv7" for torchvision's weights
    shrink: int = 4  # how many times the ResNet's image is smaller
    rates: tuple[int, ...] = (12, 24, 36)  # of the spatial pyramid
    channels: int = 128  # of the spatial pyramid and the fusions; a multiple of 16
    shallow_width: int = 64  # filters of the shallow network's second convolution; even
    resizing: str = "centres"  # of maps, at the centres of cells; "half": half-pixel, for weights trained so
    dropout: int | float = 0.1  # of whole channels, before the classifiers
    aux_weights: tuple[int | float, ...] = (
        1.0,
        1.0,
        1.0,
        0.4,
    )  # of the losses on the deep map as it is and at strides 16 and 8, and on C4
    detail_weight: int | float = 0.1  # of the squared error of the image's details
    affinity_weight: int | float = 1.0  # of the difference between the relations of cells, deep and detailed
    norm: str = "batch"  # of the backbone; new layers have group for frozen
    dtype: str = "float32"  # of the computation; parameters stay float32
    remat: bool = False  # recompute the backbone's blocks in the backward pass
    fast_conv: bool | None = None  # kernel gradient made for CPUs; None: on CPUs only

    backbone = "resnet"  # what pretrained weights it takes

    def __post_init__(self):
        choices.check(self, CHOICES)
        choices.check_dropout(self)
        if self.channels % GROUPS or self.channels < GROUPS:
            raise UserError(f"model.channels is {self.channels}; it must be a multiple of {GROUPS}")
        if self.shallow_width % 2 or self.shallow_width < 2:
            raise UserError(f"model.shallow_width is {self.shallow_width}; it must be an even number from 2 on")
        if len(self.aux_weights) != len(AUXILIARY):
            raise UserError(f"model.aux_weights is {self.aux_weights}; it must hold {len(AUXILIARY)} numbers")
        super().__post_init__()

    @property
    def auxiliary(self) -> dict[str, int | float]:
        """Auxiliary logits that a loss reads, and its weights."""
        return dict(zip(AUXILIARY, self.aux_weights, strict=True))

    def loss(
        self, stages: Mapping[str, Array], labels: Integer[Array, "b h w"], key: Array | None = None
    ) -> dict[str, Array]:
        """Beside those of logits: of the details that the deep map tells, and of how it relates cells (section 3.4)."""
        labelled = (labels < self.num_classes).any(axis=(1, 2))

        def mean(x: Float[Array, "b ..."]) -> Array:
            each = jnp.mean(x, axis=tuple(range(1, x.ndim)))
            return jnp.sum(jnp.where(labelled, each, 0.0)) / jnp.maximum(jnp.sum(labelled), 1)

        detail = mean((stages["detail"] - stages["residual"]) ** 2)
        deep, fine = (_relations(stages[name]) for name in ("aspp", "detail_features"))
        affinity = mean(jnp.abs(deep - jax.lax.stop_gradient(fine)))
        return {"detail": self.detail_weight * detail, "affinity": self.affinity_weight * affinity}

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> tuple[Float[Array, "b h w k"], dict[str, Array]]:
        dtype, size = jnp.dtype(self.dtype), x.shape[1:3]
        conv = partial(nn.Conv, dtype=dtype, conv_general_dilated=convolution.choose(self.fast_conv))
        block = partial(ConvNorm, conv=conv, norm=new_norm_of(self))
        drop = partial(nn.Dropout, self.dropout, broadcast_dims=(1, 2), deterministic=not train)
        resize = RESIZING[self.resizing]
        fusion = partial(RelationAwareFusion, self.channels, block, partial(nn.Dense, dtype=dtype), resize)
        head = partial(Head, self.num_classes, conv, block)
        pixels = lambda y: resize(y.astype(jnp.float32), size)  # noqa: E731

        small = x[:, :: self.shrink, :: self.shrink]
        dilated = {"output_stride": OUTPUT_STRIDE, "contract_dilation": True, "dilate_once": True}
        trunk = backbone_of(self, conv, stem=self.stem, **dilated)
        out = trunk(name="resnet")(small, train)
        pyramid = SpatialPyramid(self.channels, self.rates, block, kernel=3, name="aspp")
        out["aspp"] = deep = pyramid(out["c5"], train)
        fine, coarse = laplacian.residuals(x, LEVELS)
        coarse = resize(coarse, size)
        shallow = ShallowSTDC(self.shallow_width, conv, block, name="shallow")
        out |= shallow(jnp.concatenate([fine, coarse], axis=-1), train)
        deep16, out["fused16"] = fusion(name="fuse16")(out["s16"], deep, train)
        deep8, out["fused8"] = fusion(name="fuse8")(out["s8"], out["fused16"], train)
        if train or self.is_initializing():
            classify = conv(self.num_classes, (1, 1), padding=0, name="deep_classifier")
            out["deep/logits"] = pixels(classify(drop(name="deep_drop")(deep)))
            out["c4/logits"] = pixels(fcn_head(out["c4"], self.num_classes, conv, block, drop, train, prefix="c4_"))
            out["deep16/logits"] = pixels(head(name="deep16_head")(deep16, train))
            out["deep8/logits"] = pixels(head(name="deep8_head")(deep8, train))
            detail, features = DetailDecoder(x.shape[-1], conv, block, name="details")(deep, train)
            out["residual"] = fine + coarse
            out["detail"] = self._at_pixels(detail.astype(jnp.float32), size)
            out["detail_features"] = resize(features, deep.shape[1:3])
        y = drop(name="drop")(out["fused8"])
        out["logits"] = pixels(head(name="head")(y, train))
        return out["logits"], out

    def _at_pixels(self, details: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b h2 w2 c"]:
        """Details at every pixel; between centres, the cells beyond the image are left out."""
        if self.resizing == "centres":
            step = 8 * self.shrink // 16  # pixels a cell
            details = details[:, : -(-size[0] // step), : -(-size[1] // step)]
        return RESIZING[self.resizing](details, size)


def _relations(x: Float[Array, "b h w c"]) -> Float[Array, "b n n"]:
    """Products of every two cells' features, each channel made of length one over the map."""
    x = x.reshape(x.shape[0], -1, x.shape[-1]).astype(jnp.float32)
    length = jnp.sqrt(jnp.maximum(jnp.sum(x**2, axis=-2, keepdims=True), 1e-24))  # a gradient for silent channels, too
    x = x / (length + 1e-6)
    return x @ x.swapaxes(-1, -2)
