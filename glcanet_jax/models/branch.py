"""One branch of GLCANet: backbone, pyramid, self-attention and a head (paper sections 3.2 to 3.4; docs/design.md).

Two of them and a fusion are :class:`~glcanet_jax.models.glcanet.GLCANet`. One alone, :class:`OneBranch`, is a network of one
view: the control that tells what the other view is worth.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from glcanet_jax import geometry
from glcanet_jax.errors import UserError
from glcanet_jax.models.layers import attention, choices, collapse, convolution
from glcanet_jax.models.layers.attention import SelfAttention
from glcanet_jax.models.layers.fpn import LEVELS, Laterals, LocalEnhancement, Smooth, add_levels, normed, stride
from glcanet_jax.models.layers.resnet import BLOCKS, backbone_of, norm_layer
from glcanet_jax.models.layers.sampling import pixels_of, upsample

SELF_LEVELS = (4, 5)  # self-attention sits on P5 and P4
CHOICES = {
    "depth": tuple(BLOCKS),
    "stride": ("v1.5", "v1"),
    "lem_norm": ("auto", "batch", "group"),
    "position": ("sine", None),
    "head": ("affine", "nonlinear"),
} | choices.COMMON
Maps = dict[str, Array]


def token_centres(level: int, like: Array, size: Array, box: Array | None = None) -> tuple[Array, Array]:
    """Centres of the rows and columns of a map's cells, as fractions of the context.

    Args:
        like: the map, ``[..., h, w, c]``; size: pixels that it looks at, ``[..., 2]``; box: where those lie in the context,
            ``[..., 4]`` (all of it without).
    """
    centres = []
    for axis, count in enumerate(like.shape[-3:-1]):
        centre = geometry.cell_centres(count, stride(level), size[..., axis, None])
        if box is not None:
            centre = box[..., axis, None] + centre * (box[..., axis + 2, None] - box[..., axis, None])
        centres.append(centre)
    return tuple(centres)


def token_code(position: str | None, centres: tuple[Array, Array], channels: int) -> Array | None:
    """Position codes of the tokens whose rows and columns have these centres, ``[..., h * w, c]``; None without any."""
    if position is None:
        return None
    return rearrange(attention.position_code(*centres, channels), "... h w c -> ... (h w) c")


class Branch(nn.Module):
    """Backbone, pyramid, self-attention and auxiliary head of one view."""

    num_classes: int
    channels: int
    backbone: Callable[..., nn.Module] | None
    conv: Callable
    heads: int
    dtype: Any
    self_attention: bool
    position: str | None
    feed_forward: int = 0
    nonlinear: bool = False  # the smoothing
    enhancement: Callable[..., nn.Module] | None = None
    smooth: Callable[..., nn.Module] = Smooth

    def setup(self):
        if self.backbone is not None:
            self.resnet = self.backbone()
        if self.enhancement is not None:
            self.lem = self.enhancement()
        self.fpn = Laterals(self.channels, self.conv)
        if self.self_attention:
            self.attention = {str(i): SelfAttention(self.heads, self.dtype, self.feed_forward) for i in SELF_LEVELS}
        conv = normed(self.conv, self.dtype) if self.nonlinear else self.conv
        self.smoothing = self.smooth(self.channels, conv, narrow=self.nonlinear)
        self.head = self.conv(self.num_classes, (3, 3), padding=1, kernel_init=nn.initializers.normal(0.01))

    def features(self, x: Float[Array, "b h w c"], train: bool) -> Maps:
        """C2..C5."""
        return self.resnet(x, train)

    def laterals(self, maps: Maps, train: bool) -> Maps:
        """The lateral maps, of an enhanced C2 in the local branch."""
        if self.enhancement is not None:
            maps = {**maps, "c2": self.lem(maps["c2"], train)}
        return self.fpn(maps)

    def attend(
        self, level: int, x: Float[Array, "b h w c"], code: Float[Array, "#b t c"] | None
    ) -> Float[Array, "b h w c"]:
        """A map whose cells have asked each other, at the levels that have self-attention."""
        if not (self.self_attention and level in SELF_LEVELS):
            return x
        h, w = x.shape[1:3]
        tokens = self.attention[str(level)](rearrange(x, "b h w c -> b (h w) c"), code)
        return rearrange(tokens, "b (h w) c -> b h w c", h=h, w=w)

    def pyramid(self, laterals: Maps, size: Array) -> dict[int, Array]:
        """P5..P2 of an image of ``size`` pixels that asks no other view: down from the coarsest."""
        out = {}
        for i in reversed(LEVELS):
            x = laterals[f"lat{i}"]
            if i < max(LEVELS):
                x = x + upsample(out[i + 1], x.shape[1:3])
            code = token_code(self.position, token_centres(i, x, size), self.channels) if i in SELF_LEVELS else None
            out[i] = self.attend(i, x, code)
        return out


def branch_of(network: Any, conv: Callable, backbone: Callable[..., nn.Module]) -> tuple[Callable[..., Branch], dict]:
    """The branches that a network's options ask for, and what one that enhances its C2 has more."""
    dtype = jnp.dtype(network.dtype)
    branch = partial(
        Branch,
        network.num_classes,
        network.fpn_channels,
        backbone=backbone,
        conv=conv,
        heads=network.heads,
        dtype=dtype,
        self_attention=network.self_attention,
        position=network.position,
        feed_forward=network.feed_forward,
        nonlinear=network.head == "nonlinear",
    )
    # a frozen backbone's norms have no statistics for new layers
    auto = "batch" if network.norm == "batch" else "group"
    norm = norm_layer(auto if network.lem_norm == "auto" else network.lem_norm, dtype)
    return branch, {"enhancement": partial(LocalEnhancement, conv=conv, norm=norm)} if network.lem else {}


def check_width(network: Any) -> None:
    """Raises UserError for a pyramid that heads and position codes do not divide, and for layers of no width."""
    if network.feed_forward < 0:
        raise UserError(
            f"model.feed_forward is {network.feed_forward}; it must be 0, for none, or a multiple of channels"
        )
    channels, heads = network.fpn_channels, network.heads
    if channels < 8 or heads < 1 or channels % (4 * heads) or channels % 8:
        raise UserError(f"model.fpn_channels is {channels}; it must be a multiple of 8 and of 4 times heads ({heads})")


class OneBranch(nn.Module):
    """GLCANet's branch alone, for one view: with ``view="patch"`` its local branch without any global one."""

    num_classes: int
    depth: int = 50  # of the ResNet
    width: int = 64  # filters of its stem
    stride: str = "v1.5"  # where a bottleneck strides; v1 for weights trained so
    fpn_channels: int = 256  # of the pyramid
    norm: str = "batch"  # of the backbone
    lem_norm: str = "auto"  # of the local enhancement; auto: batch where the backbone's is batch
    heads: int = 1  # of the attention
    self_attention: bool = True  # on P5 and P4 of each branch
    lem: bool = True  # the local branch's enhancement of C2
    position: str | None = "sine"  # code of the tokens
    feed_forward: int = 0  # hidden width of what follows each attention, a multiple of channels; 0: nothing follows
    head: str = "affine"  # nonlinear: norms and ReLU in the smoothing
    dtype: str = "float32"  # of the computation; parameters stay float32
    remat: bool = False  # recompute the backbone's blocks in the backward pass
    fast_conv: bool | None = None  # kernel gradient made for CPUs; None: on CPUs only

    backbone = "resnet"  # what pretrained weights it takes

    def __post_init__(self):
        choices.check(self, CHOICES)
        check_width(self)
        super().__post_init__()

    def setup(self):
        conv = partial(nn.Conv, dtype=jnp.dtype(self.dtype), conv_general_dilated=convolution.choose(self.fast_conv))
        branch, enhanced = branch_of(self, conv, backbone_of(self, conv))
        self.branch = branch(**enhanced)

    def collapse(self, params: dict[str, Any]) -> dict[str, Any]:
        """What prediction uses instead of an affine smoothing and head (:mod:`layers.collapse`)."""
        if self.head != "affine":
            return {}
        own = params["branch"]
        return {"branch": collapse.collapse(own["smoothing"], own["head"]["kernel"], finest=True)}

    def _collapsed(self, pyramid: dict[int, Array]) -> Float[Array, "b h w k"]:
        own, params = self.get_variable("collapsed", "branch"), self.get_variable("params", "branch")
        kernel, smoothing = params["head"]["kernel"], params["smoothing"]
        mixed = {i: [y] for i, y in collapse.mix_levels(pyramid, own, smoothing).items()} | {min(LEVELS): []}
        mixed = add_levels(mixed, pyramid)
        logits = convolution.shift(mixed, kernel.shape, ((1, 1), (1, 1)))
        return (
            logits + collapse.finest_logits(pyramid, own, smoothing, kernel) + params["head"]["bias"][None, None, None]
        )

    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> tuple[Float[Array, "b qh qw k"], dict[str, Array]]:
        """Logits at stride 4, and every named stage."""
        features = self.branch.features(x, train)
        pyramid = self.branch.pyramid(self.branch.laterals(features, train), pixels_of(x))
        maps, smooth = self.branch.smoothing(pyramid)
        logits = self._collapsed(pyramid) if self.has_variable("collapsed", "branch") else self.branch.head(maps)
        logits = logits.astype(jnp.float32)
        return logits, features | {f"p{i}": y for i, y in pyramid.items()} | smooth | {"x": maps, "logits": logits}
