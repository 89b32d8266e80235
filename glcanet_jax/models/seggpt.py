"""SegGPT: a vision transformer that paints an image as a painted example beside it shows (Wang et al., SegGPT: Segmenting
Everything In Context, ICCV 2023; the network is that of Painter, CVPR 2023).

The layers are those of the authors' published code. The examples, called prompts, are part of the variables here, so that a
trained network answers for images alone, and training everything else frozen is the paper's in-context tuning.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Integer

from glcanet_jax.errors import UserError
from glcanet_jax.models.layers import choices, convolution
from glcanet_jax.models.layers.resizing import cubic, resize
from glcanet_jax.models.layers.vit import Block, LayerNorm, begin

RGB = 3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # that colours are normalised by, whatever images are
CERTAINTY = 4.0  # times the logarithm of a colour's distance
CHOICES = {
    "kind": ("semantic", "instance"),
    "objective": ("colours", "classes", "both"),
    "dtype": choices.COMMON["dtype"],
}


def along_bands(values: tuple[float, ...], like: Array) -> np.ndarray:
    """A number for each band of arrays of so many axes."""
    return np.float32(values).reshape(*(1,) * (like.ndim - 1), -1)


def palette(classes: int) -> np.ndarray:
    """Colours ``[k, 3]`` of classes, 0 to 255, far apart: Painter's, without its black, which is no class's here."""
    base = int(classes ** (1 / 3)) + 1
    i = np.arange(classes)
    return np.float32(255 - 256 // base * np.stack([i // base**2, i % base**2 // base, i % base], axis=-1))


def painted(labels: Integer[Array, "*b h w"], classes: int) -> Float[Array, "*b h w 3"]:
    """Labels in their classes' normalised colours; what is ignored is black."""
    known = (labels < classes)[..., None]
    colours = jax.nn.one_hot(jnp.where(known[..., 0], labels, 0), classes) @ jnp.asarray(palette(classes))
    return (jnp.where(known, colours, 0.0) / 255 - along_bands(MEAN, colours)) / along_bands(STD, colours)


def nearest(labels: Integer[Array, "*b h w"], side: int) -> Integer[Array, "*b y x"]:
    """Labels on another grid of the same image: of the pixels that lie nearest."""
    for axis in (labels.ndim - 2, labels.ndim - 1):
        cells = labels.shape[axis]
        labels = jnp.take(labels, ((np.arange(side) + 0.5) * cells / side).astype(int), axis=axis)
    return labels


def colour_logits(colours: Float[Array, "b h w 3"], classes: int, spread: float) -> Float[Array, "b h w k"]:
    """``-4 log(1 + (d / spread)^2)`` of the distances d, 0 to 255, to the classes' colours.

    The nearest colour has the largest. As distances count less the larger they are, patches that overlap and disagree about
    a pixel leave the choice between their two colours. By means of squared distances a third that lies between is as near, or nearer.
    """
    rgb = (colours * along_bands(STD, colours) + along_bands(MEAN, colours)) * 255
    rgb = rgb + jax.lax.stop_gradient(jnp.clip(rgb, 0, 255) - rgb)  # as pictures hold them; pulled from outside, too
    squares = jnp.sum(jnp.square(rgb[..., None, :] - palette(classes).reshape(1, 1, 1, classes, RGB)), axis=-1)
    return -CERTAINTY * jnp.log(1 + squares / spread**2)


class PatchEmbedding(nn.Module):
    """Squares of an image as vectors: one layer for three bands, which embeds colours, too, and one for further bands."""

    width: int
    patch: int
    conv: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b y x d"]:
        square = (self.patch, self.patch)
        conv = partial(self.conv, self.width, square, strides=square, padding="VALID")
        bands = x.shape[-1]
        first = jnp.concatenate([x] * RGB, axis=-1)[..., :RGB] if bands < RGB else x[..., :RGB]
        out = conv(name="rgb")(first)
        if bands <= RGB:
            return out
        more = conv(name="more_bands", use_bias=False, kernel_init=nn.initializers.zeros)
        return out + more(x[..., RGB:])


class ColourHead(nn.Module):
    """What the transformer's maps paint below the prompt: a square of every cell, a 3x3, and three colours."""

    patch: int
    width: int
    conv: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b y x d"]) -> Float[Array, "b h w 3"]:
        rows, dtype = x.shape[1] // 2, x.dtype
        x = x[:, rows - 1 :]  # the lower half, and the row above, whose last pixels the convolution sees
        x = nn.Dense(self.patch**2 * self.width, dtype=dtype, kernel_init=begin, name="squares")(x)
        x = rearrange(x, "b y x (p q c) -> b (y p) (x q) c", p=self.patch, q=self.patch)[:, self.patch - 1 :]
        x = self.conv(self.width, (3, 3), padding=((0, 1), (1, 1)), name="conv")(x)
        x = nn.gelu(LayerNorm(name="norm")(x).astype(dtype), approximate=False)
        return self.conv(RGB, (1, 1), padding=0, name="colours")(x).astype(jnp.float32)


class SegGPT(nn.Module):
    """The network of the authors' code. Returns logits at every pixel, and every named stage.

    Images are resized to ``image_size`` a side, and logits back to theirs: patches of 448 px are best. Parameters:
    370 723 203, as the authors' (blocks 302 564 352, the cells' squares 67 125 248, embeddings 994 304, decoder 37 251, norm
    2 048), and 1 204 224 of every prompt for three bands. The paper's 307 M are those of a ViT-L.
    """

    num_classes: int
    image_size: int = 448  # pixels a side that images and prompts are resized to; a multiple of patch_size
    patch_size: int = 16  # pixels a side of a cell
    width: int = 1024  # of the transformer; a multiple of heads
    depth: int = 24  # blocks
    heads: int = 16  # of attention
    hidden: int = 4  # width of the layers behind an attention, a multiple of width
    position_cells: int = 14  # a side of the table of positions, which is resized
    taps: tuple[int, ...] | None = None  # blocks whose answers the decoder reads, from 0; None: the ends of four parts
    merge: int | None = None  # block behind which images and colours become one; None: the third, or the first tap
    decoder_width: int = 64  # channels at every pixel
    prompts: int = 1  # examples beside every image; each costs as much as the first
    kind: str = "semantic"  # of segmentation, as it was told apart in the authors' training
    drop_path: int | float = 0.1  # chance that the last block is left out for an image in training; of the first none
    objective: str = (
        "colours"  # distances of colours, as the paper's; "classes": the common loss on the logits; or both
    )
    beta: int | float = 0.01  # difference of normalised colours below which its square counts
    spread: int | float = 16.0  # levels (of 255) that a colour may well be off, for what logits are sure of
    dtype: str = "float32"  # of the computation; parameters stay float32
    remat: bool = False  # recompute the blocks in the backward pass
    fast_conv: bool | None = None  # kernel gradient made for CPUs; None: on CPUs only

    shown = ("prompt_image", "prompt_target")  # parameters that examples fill
    exact = ("pos_embed", "block*/attention/rel_pos_*", "prompt_*")  # resized, read by a product, resized

    def __post_init__(self):
        choices.check(self, CHOICES)
        if not 0 <= self.drop_path < 1:
            raise UserError(f"model.drop_path is {self.drop_path}; it must be at least 0 and less than 1")
        for whole, part in (("image_size", "patch_size"), ("width", "heads")):
            if getattr(self, whole) % getattr(self, part) or getattr(self, whole) < 1:
                raise UserError(
                    f"model.{whole} is {getattr(self, whole)}; it must be a multiple of model.{part}, {getattr(self, part)}"
                )
        if not 0 <= self.merged <= self.tapped[0]:
            raise UserError(
                f"model.merge is {self.merge}; it must be a block from 0 to the first tap, {self.tapped[0]}"
            )
        super().__post_init__()

    @property
    def tapped(self) -> tuple[int, ...]:
        """The blocks that the decoder reads.

        Raises:
            UserError: they are none of the network's, or not in their order.
        """
        taps = tuple((i + 1) * self.depth // 4 - 1 for i in range(4)) if self.taps is None else self.taps
        if not taps or list(taps) != sorted(set(taps)) or taps[0] < 0 or taps[-1] >= self.depth:
            if self.taps is None:
                raise UserError(f"model.depth is {self.depth}; it must be 4 or more, for a tap of each of four parts")
            raise UserError(
                f"model.taps is {self.taps} of {self.depth} blocks; give rising ones, 0 to {self.depth - 1}"
            )
        return taps

    @property
    def merged(self) -> int:
        """The block behind which the two streams are one."""
        return min(2, self.tapped[0]) if self.merge is None else self.merge

    @property
    def examples(self) -> int:
        """Labelled images that it is shown before it is trained."""
        return self.prompts

    @property
    def loss_alone(self) -> bool:
        """Whether there is no common loss beside that of colours."""
        return self.objective == "colours"

    def loss(
        self, stages: Mapping[str, Array], labels: Integer[Array, "b h w"], key: Array | None = None
    ) -> dict[str, Array]:
        """Smooth L1 between colours, of everything that is painted and labelled: the lower half, which is masked."""
        if self.objective == "classes":
            return {}
        labels = nearest(labels, self.image_size)
        apart = jnp.abs(stages["colours"] - painted(labels, self.num_classes))
        each = jnp.where(apart < self.beta, 0.5 * apart**2 / max(self.beta, 1e-12), apart - 0.5 * self.beta)
        known = labels < self.num_classes
        total = jnp.sum(jnp.where(known, jnp.mean(each, axis=-1), 0.0))
        return {"colours": total / jnp.maximum(jnp.sum(known), 1)}

    def begin_with(
        self, params: Mapping[str, Any], images: Float[Array, "p h w c"], labels: Integer[Array, "p h w"]
    ) -> dict[str, Any]:
        """Parameters whose prompts are these images, normalised, and their labels."""
        side = (self.image_size, self.image_size)
        return dict(params) | {
            "prompt_image": resize(images, side),
            "prompt_target": painted(nearest(labels, self.image_size), self.num_classes),
        }

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> tuple[Float[Array, "b h w k"], dict[str, Array]]:
        size, side, dtype = x.shape[1:3], (self.image_size, self.image_size), jnp.dtype(self.dtype)
        fast = convolution.choose(self.fast_conv)
        conv = partial(nn.Conv, dtype=dtype, conv_general_dilated=fast, kernel_init=begin)
        tokens = self._tokens(resize(x, side), conv)
        grid, out, taps = tokens.shape[3:5], {}, []
        y = rearrange(tokens, "s b p y x d -> (s b p) (y x) d")
        make = nn.remat(Block) if self.remat else Block
        norm = LayerNorm(name="norm")
        for i in range(self.depth):
            drop = self.drop_path * i / max(self.depth - 1, 1)
            shared = self.heads, grid, self.hidden * self.width, drop, self.prompts, train, dtype
            y = make(*shared, name=f"block{i}")(y)
            if i == self.merged:
                y = jnp.mean(y.reshape(2, -1, *y.shape[1:]), axis=0)
            if i in self.tapped:  # the image's half is the same beside every prompt, and one is painted
                first = rearrange(y, "(b p) (y x) d -> b p y x d", p=self.prompts, y=grid[0])[:, 0]
                taps.append(norm(first).astype(y.dtype))
                out[f"tap{i}"] = taps[-1]
        out["colours"] = ColourHead(self.patch_size, self.decoder_width, conv, name="head")(
            jnp.concatenate(taps, axis=-1)
        )
        out["logits"] = resize(colour_logits(out["colours"], self.num_classes, self.spread), size)
        return out["logits"], out

    def _tokens(self, x: Float[Array, "b h w c"], conv: Callable) -> Float[Array, "s b p y x d"]:
        """Cells of the two streams, images and colours: those of a prompt above those of an image, whose colours are masked."""
        side, width, bands = self.image_size, self.width, x.shape[-1]
        param = lambda name, *shape, init=begin: self.param(name, init, shape)  # noqa: E731
        prompt = param("prompt_image", self.prompts, side, side, bands, init=nn.initializers.zeros)
        target = param("prompt_target", self.prompts, side, side, RGB, init=nn.initializers.zeros)
        embed = PatchEmbedding(width, self.patch_size, conv, name="embed")
        image, prompt, target = embed(x), embed(prompt), embed(target)
        token = lambda name: param(name, 1, 1, 1, width)  # noqa: E731
        masked = jnp.broadcast_to(token("mask_token").astype(image.dtype), image.shape)
        shape = (len(x), self.prompts, *image.shape[1:])

        def canvas(above: Array, below: Array) -> Array:
            halves = jnp.broadcast_to(above[None], shape), jnp.broadcast_to(below[:, None], shape)
            return jnp.concatenate(halves, axis=2)

        streams = jnp.stack([canvas(prompt, image), canvas(target, masked)])
        segments = jnp.stack([token("segment_token_x"), token("segment_token_y")])
        kinds = {kind: token(f"type_token_{kind}") for kind in CHOICES["kind"]}
        table = param("pos_embed", 1, self.position_cells**2 + 1, width)[:, 1:]  # the first is of a class's token
        table = table.reshape(1, self.position_cells, self.position_cells, width)
        added = kinds[self.kind] + resize(table, (2 * image.shape[1], image.shape[2]), cubic)
        return streams + (segments + added[None]).astype(streams.dtype)[:, :, None]
