"""Mask2Former: queries that look for one mask each, and see within it alone (Cheng et al., Masked-attention Mask Transformer for
Universal Image Segmentation, CVPR 2022).

The layers and losses are those of the authors' published network for semantic segmentation (``maskformer2_R50_bs16_160k``).
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Integer

from glcanet_jax.errors import UserError
from glcanet_jax.models.layers import choices, convolution, resnet
from glcanet_jax.models.layers.blocks import ConvNorm
from glcanet_jax.models.layers.deformable import DeformableAttention, Grid, sine_code
from glcanet_jax.models.layers.queries import PLAIN, Perceptron, QueryLayer, layer_norm
from glcanet_jax.models.layers.resnet import GroupNorm, backbone_of
from glcanet_jax.models.layers.sampling import resize_halves
from glcanet_jax.models.layers.set_loss import Points, Weights, set_loss

STRIDE = 32  # images are filled up to multiples of it
STRIDES = (32, 16, 8)  # of the maps that queries look at, in turns
POINTS = 4  # places that a head looks at in a level
GROUPS = 32  # of the pixel decoder's norms
AT_ONCE = 25  # masks brought to the pixels at once
CHOICES = {k: v for k, v in resnet.CHOICES.items() if k != "stem"} | choices.COMMON


class PixelLayer(nn.Module):
    """Tokens of three levels look at places of all three, and at themselves."""

    heads: int
    hidden: int  # width between the last two linear layers
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t d"], code: Float[Array, "t d"], grids: tuple[Grid, ...]
    ) -> Float[Array, "b t d"]:
        norm = layer_norm(self.dtype)
        seen = DeformableAttention(self.heads, POINTS, self.dtype, name="attention")(x, code, grids)
        x = norm(name="attention_norm")(x + seen)
        return norm(name="forward_norm")(x + Perceptron((self.hidden, x.shape[-1]), self.dtype, name="forward")(x))


class PixelDecoder(nn.Module):
    """Maps at strides 32, 16 and 8 by deformable attention, and one at 4 for masks by a pyramid's step (section 3.2.2)."""

    channels: int
    heads: int
    layers: int
    hidden: int
    conv: Callable
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, maps: Mapping[str, Float[Array, "b _ _ _"]], train: bool = False
    ) -> tuple[list[Float[Array, "b _ _ d"]], Float[Array, "b h4 w4 d"]]:
        block = partial(ConvNorm, self.channels, self.conv, partial(GroupNorm, groups=GROUPS, dtype=self.dtype))
        point = partial(block, kernel=1, relu=False)
        sources = [point(use_bias=True, name=f"project{i}")(maps[f"c{i}"], train) for i in (5, 4, 3)]
        grids = tuple(x.shape[1:3] for x in sources)
        levels = self.param("levels", nn.initializers.normal(1.0), (len(grids), self.channels))
        codes = [sine_code(grid, self.channels) + level[None] for grid, level in zip(grids, levels, strict=True)]
        x, code = (
            jnp.concatenate(parts, axis=axis) for parts, axis in (([_tokens(s) for s in sources], 1), (codes, 0))
        )
        make = nn.remat(PixelLayer, static_argnums=(3,)) if self.remat else PixelLayer  # grids; self is 0
        for i in range(1, self.layers + 1):
            x = make(self.heads, self.hidden, self.dtype, name=f"layer{i}")(x, code, grids)
        ends = [sum(map(math.prod, grids[: i + 1])) for i in range(len(grids))]
        out = [y.reshape(-1, *grid, self.channels) for y, grid in zip(jnp.split(x, ends[:-1], 1), grids, strict=True)]
        fine = point(name="lateral")(maps["c2"], train)
        fine = block(name="smooth")(fine + resize_halves(out[-1], fine.shape[1:3]), train)
        return out, self.conv(self.channels, (1, 1), padding=0, name="masks")(fine)


class Predictor(nn.Module):
    """What a query says: a class, or none, and a mask."""

    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, queries: Float[Array, "b q d"], pixels: Float[Array, "b h w d"]
    ) -> tuple[Float[Array, "b q k1"], Float[Array, "b h w q"]]:
        d = queries.shape[-1]
        x = layer_norm(self.dtype)(name="norm")(queries)
        classes = nn.Dense(self.num_classes + 1, dtype=self.dtype, kernel_init=PLAIN, name="classes")(x)
        masks = Perceptron((d, d, d), self.dtype, PLAIN, name="mask")(x)
        masks = jnp.einsum("bhwd,bqd->bhwq", pixels, masks, preferred_element_type=jnp.float32)
        return classes.astype(jnp.float32), masks


def visible(masks: Float[Array, "b h w q"], grid: Grid) -> Bool[Array, "b q s"]:
    """The cells of a coarser map within each query's mask; all of them for a query whose mask is empty (section 3.2.1)."""
    inside = nn.sigmoid(resize_halves(jax.lax.stop_gradient(masks), grid)) >= 0.5
    inside = rearrange(inside, "b h w q -> b q (h w)")
    return inside | ~inside.any(axis=-1, keepdims=True)


def class_scores(
    classes: Float[Array, "b q k1"], masks: Float[Array, "b h w q"], size: tuple[int, int]
) -> Float[Array, "b H W k"]:
    """At every pixel the sum over queries of a class's probability and the mask's (section 3.4 of MaskFormer), as logits.

    Their softmax are the scores by their sum, so that logits of patches can be blended.
    """
    shares = jax.nn.softmax(classes, axis=-1)[..., :-1]
    total, (h, w) = 0.0, (4 * n for n in masks.shape[1:3])
    for first in range(0, masks.shape[-1], AT_ONCE):
        part = slice(first, first + AT_ONCE)
        inside = nn.sigmoid(resize_halves(masks[..., part], (h, w))[:, : size[0], : size[1]])
        total = total + jnp.einsum("bhwq,bqk->bhwk", inside, shares[:, part])
    total = jnp.maximum(total, 1e-30)  # masks may be nowhere
    return jnp.log(total) - jnp.log(total.sum(axis=-1, keepdims=True))


class Mask2Former(nn.Module):
    """The network of the authors' code. Returns logits at every pixel and every named stage.

    Parameters: 44 004 616 for 7 classes: ResNet-50 23 508 032, pixel decoder 6 035 904, queries 14 458 624, and 257 a class
    and for none. The authors print 44 M (for 150 classes, 44 041 367).
    """

    num_classes: int
    depth: int = 50  # of the ResNet
    width: int = 64  # filters of its stem
    stride: str = "v1.5"  # where a bottleneck strides, as the authors'; v1 for weights trained so
    channels: int = 256  # of both decoders; a multiple of 4 and of the heads
    heads: int = 8  # of every attention
    encoder_layers: int = 6  # of the pixel decoder
    encoder_hidden: int = 1024  # width within them
    decoder_layers: int = 9  # of the queries; whole rounds of the three scales
    decoder_hidden: int = 2048  # width within them
    queries: int = 100  # masks that are looked for
    points: int = 12544  # where masks are compared in training
    oversample: int | float = 3  # how many times as many to choose the uncertain ones from
    importance: int | float = 0.75  # share of the points that are chosen so
    class_weight: int | float = 2  # of the classes in loss and matching
    mask_weight: int | float = 5  # of the masks' cross-entropy
    dice_weight: int | float = 5  # of the masks' overlap
    nothing_weight: int | float = 0.1  # of queries without a mask, in the loss of classes
    norm: str = "batch"  # of the ResNet; the authors trained with a frozen one
    dtype: str = "float32"  # of the computation; parameters stay float32
    remat: bool = False  # recompute the blocks of ResNet and pixel decoder in the backward pass
    fast_conv: bool | None = None  # kernel gradient made for CPUs; None: on CPUs only

    backbone = "resnet"  # what pretrained weights it takes
    loss_alone = True

    def __post_init__(self):
        choices.check(self, CHOICES)
        if self.channels % 4 or self.channels % self.heads:
            raise UserError(
                f"model.channels is {self.channels}; it must be a multiple of 4 and of the {self.heads} heads"
            )
        super().__post_init__()

    def loss(
        self, stages: Mapping[str, Array], labels: Integer[Array, "b h w"], key: Array
    ) -> dict[str, Float[Array, ""]]:
        """Of what all layers' queries say: their classes, and two of their masks (section 3.3)."""
        weights = Weights(self.class_weight, self.mask_weight, self.dice_weight, self.nothing_weight)
        points = Points(self.points, self.oversample, self.importance)
        return set_loss(stages["classes"], stages["masks"], labels, key, weights, points)

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> tuple[Float[Array, "b h w k"], dict[str, Array]]:
        dtype, size = jnp.dtype(self.dtype), x.shape[1:3]
        conv = partial(nn.Conv, dtype=dtype, conv_general_dilated=convolution.choose(self.fast_conv))
        x = jnp.pad(x, ((0, 0), *((0, -n % STRIDE) for n in size), (0, 0)))
        out = backbone_of(self, conv)(name="resnet")(x, train)
        decoder = PixelDecoder(
            self.channels, self.heads, self.encoder_layers, self.encoder_hidden, conv, dtype, self.remat, name="pixels"
        )
        maps, out["pixels"] = decoder(out, train)
        out |= {f"d{stride}": y for stride, y in zip(STRIDES, maps, strict=True)}
        said = self._ask(maps, out["pixels"])
        out["logits"] = class_scores(*said[-1], size)
        if train or self.is_initializing():
            out["classes"], out["masks"] = (jnp.stack(parts, axis=1) for parts in zip(*said, strict=True))
        return out["logits"], out

    def _ask(self, maps: list[Float[Array, "b _ _ d"]], pixels: Float[Array, "b h4 w4 d"]) -> list[tuple[Array, Array]]:
        """What queries say before the first layer and behind each: classes ``[b, q, k + 1]`` and masks ``[b, h4, w4, q]``."""
        table = partial(self.param, init_fn=nn.initializers.normal(1.0))
        features, code = (table(f"query_{name}", shape=(self.queries, self.channels)) for name in ("features", "code"))
        levels = table("levels", shape=(len(maps), self.channels))
        grids = [y.shape[1:3] for y in maps]
        asked = [_tokens(y) + level[None, None].astype(y.dtype) for y, level in zip(maps, levels, strict=True)]
        codes = [sine_code(grid, self.channels) for grid in grids]
        # of the image, by nothing: OpenVINO 2026's compiler crashes where the first layer's queries are constants
        x = features[None].astype(pixels.dtype) + 0 * pixels[:, :1, 0]
        predict = Predictor(self.num_classes, pixels.dtype, name="predictor")
        said = [predict(x, pixels)]
        for i in range(self.decoder_layers):
            at = i % len(maps)
            mask = visible(said[-1][1], grids[at])
            layer = QueryLayer(self.heads, self.decoder_hidden, pixels.dtype, name=f"layer{i + 1}")
            x = layer(x, code, asked[at], codes[at], mask)
            said.append(predict(x, pixels))
        return said


def _tokens(x: Float[Array, "b h w d"]) -> Float[Array, "b t d"]:
    return rearrange(x, "b h w d -> b (h w) d")
