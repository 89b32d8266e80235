"""GLCANet: two branches, self-attention in each, masked cross-attention between them (docs/design.md).

``encode_global`` runs once a context, ``encode_local`` needs no context, ``fuse`` joins them; ``__call__`` composes the
three. Letters: ``b`` contexts, ``n`` patches of each, ``h w`` pixels or cells, ``c`` channels, ``k`` classes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from glcanet_jax.errors import UserError
from glcanet_jax.models import branch
from glcanet_jax.models.layers import attention, choices, collapse, convolution
from glcanet_jax.models.layers.attention import CrossAttention
from glcanet_jax.models.layers.fpn import LEVELS, Laterals, SharedSmooth, Smooth, add_levels, group_norm, stride
from glcanet_jax.models.layers.resnet import backbone_of
from glcanet_jax.models.layers.sampling import pixels_of, sample_boxes, upsample

CHOICES = branch.CHOICES | {
    "residual": ("query", "input"),
    "mask": ("footprint", "window", "none"),
    "sharing": ("none", "glnet"),
}
Maps = dict[str, Array]


class Aggregation(nn.Module):
    """The 3x3 convolution of both views' maps side by side (paper section 3.6), of maps that still are on grids of their own.

    Their channels are mixed there, few are left, and those are resized and shifted: the same sums as of the maps resized and
    side by side, which would be a thousand channels at the finest grid.
    """

    num_classes: int
    channels: int  # of all maps side by side
    dtype: Any

    def setup(self):
        shape = 3, 3, self.channels, self.num_classes
        self.kernel = self.param("kernel", nn.initializers.normal(0.01), shape)
        self.bias = self.param("bias", nn.initializers.zeros, (self.num_classes,))

    def mix(self, x: Float[Array, "*b h w c"], first: int) -> Float[Array, "*b h w m"]:
        """A map that begins at channel ``first``, mixed: to be resized like it, and added to others."""
        kernel = self.kernel[:, :, first : first + x.shape[-1]]
        return convolution.mix(x.astype(self.dtype), kernel.astype(self.dtype))

    def __call__(self, mixed: Float[Array, "b h w m"]) -> Float[Array, "b h w k"]:
        """Logits, from the sum of all mixed maps."""
        logits = convolution.shift(mixed, self.kernel.shape, ((1, 1), (1, 1)))
        return logits + self.bias[None, None, None]


class HiddenAggregation(nn.Module):
    """An aggregation that can make a class depend on both views together: a hidden layer of all maps, then 3x3 to the classes.

    As in :class:`Aggregation` a map is mixed on its own grid, the global ones once a context; the norm follows the sum.
    """

    num_classes: int
    channels: int  # of all maps side by side
    dtype: Any

    def setup(self):
        width = self.channels // 8  # half of the pyramid's
        self.hidden = self.param("hidden", nn.initializers.lecun_normal(), (self.channels, width))
        self.norm = group_norm(self.dtype)()
        self.classify = Aggregation(self.num_classes, width, self.dtype)

    def mix(self, x: Float[Array, "*b h w c"], first: int) -> Float[Array, "*b h w m"]:
        """A map that begins at channel ``first``, mixed: to be resized like it, and added to others."""
        kernel = self.hidden[None, None, first : first + x.shape[-1]]
        return convolution.mix(x.astype(self.dtype), kernel.astype(self.dtype))

    def __call__(self, mixed: Float[Array, "b h w m"]) -> Float[Array, "b h w k"]:
        """Logits, from the sum of all mixed maps."""
        return self.classify(self.classify.mix(nn.relu(self.norm(mixed)), 0))


class Fusion(nn.Module):
    """GLCA-FM (paper section 3.5), the refinement of the global features by each patch, and the aggregation (section 3.6)."""

    num_classes: int
    channels: int
    conv: Callable
    heads: int
    residual: str
    levels: tuple[int, ...]
    dtype: Any
    share: bool = False  # GLNet's sharing of C2..C5
    feed_forward: int = 0
    aggregation: Callable[..., nn.Module] = Aggregation

    def setup(self):
        cross = partial(CrossAttention, self.heads, self.residual, dtype=self.dtype, feed_forward=self.feed_forward)
        # the local answer starts at zero through W_V; the global one through the refinement, which needs it alive
        local_init = {"value_init": nn.initializers.zeros} if self.residual == "query" else {}
        global_init = {} if self.residual == "query" else {"out_init": nn.initializers.lecun_normal()}
        self.local_asks = {str(i): cross(**local_init) for i in self.levels}
        global_init["forward_init"] = nn.initializers.lecun_normal()
        self.global_asks = {str(i): cross(**global_init, change=True) for i in self.levels}
        self.refine = {
            str(i): self.conv(2 * self.channels, (1, 1), padding=0, kernel_init=nn.initializers.zeros)
            for i in self.levels
        }
        if self.share:
            # a 1x1 convolution of both branches' maps is the sum of one of each: the global half is made once a context
            self.share_laterals = Laterals(self.channels, partial(self.conv, use_bias=False))
        self.aggregate = self.aggregation(self.num_classes, 4 * self.channels, self.dtype)

    def backbone_share(self, maps: Maps) -> dict[int, Array]:
        """The global branch's share of the local laterals, on the global grid."""
        return {i: self.share_laterals(maps)[f"lat{i}"] for i in LEVELS}


class GLCANet(nn.Module):
    """The network of the paper; every option is a field. Returns ``(logits, out)``, ``out`` holding every named stage."""

    num_classes: int
    depth: int = 50  # of the ResNets
    width: int = 64  # filters of their stems
    stride: str = "v1.5"  # where a bottleneck strides; v1 for weights trained so
    fpn_channels: int = 256  # of the pyramid
    share_backbone: bool = False  # one for both branches
    norm: str = "batch"  # of the backbones
    lem_norm: str = "auto"  # of the local enhancement; auto: batch where the backbones' is batch
    heads: int = 1  # of the attention
    self_attention: bool = True  # on P5 and P4 of each branch
    lem: bool = True  # the local branch's enhancement of C2
    attn_levels: tuple[int, ...] = (5, 4)  # pyramid levels of the cross-attention
    residual: str = "query"  # what the cross-attention's answer is added to
    position: str | None = "sine"  # code of the tokens; None: the paper to the letter
    mask: str = "footprint"  # of the cross-attention: a patch's box in its context, a window around each pixel, or none
    mask_margin: float = 0.5  # around the footprint, in sides of the box
    mask_radius: float = 250.0  # of the window, scene pixels
    sharing: str = "none"  # glnet: concatenation at GLNet's four points instead of cross-attention
    feed_forward: int = 0  # hidden width of what follows each attention, a multiple of channels; 0: nothing follows
    head: str = "affine"  # the paper's; nonlinear: norms and ReLU in the smoothing, a hidden layer in the aggregation
    dtype: str = "float32"  # of the computation; parameters stay float32
    remat: bool = False  # recompute the backbones' blocks in the backward pass
    fast_conv: bool | None = None  # kernel gradient made for CPUs; None: on CPUs only

    backbone = "resnet"  # what pretrained weights it takes
    exact = ("fusion/global_asks_*/query/kernel",)  # near the identity; how near, a shorter type would not tell

    def __post_init__(self):
        self._check()  # at once, not at the first use
        super().__post_init__()

    def setup(self):
        dtype = jnp.dtype(self.dtype)
        conv = partial(nn.Conv, dtype=dtype, conv_general_dilated=convolution.choose(self.fast_conv))
        levels = self.attn_levels if self.sharing == "none" else ()
        new_branch, enhanced = branch.branch_of(self, conv, backbone_of(self, conv))
        own = {"backbone": None} if self.share_backbone else {}
        self.local = new_branch(**own, **enhanced, smooth=SharedSmooth if self.sharing == "glnet" else Smooth)
        setattr(self, "global", new_branch())
        self.fusion = Fusion(
            self.num_classes,
            self.fpn_channels,
            conv,
            self.heads,
            self.residual,
            levels,
            dtype,
            share=self.sharing == "glnet",
            feed_forward=self.feed_forward,
            aggregation=HiddenAggregation if self.head == "nonlinear" else Aggregation,
        )

    def _check(self):
        """Raises UserError for options that do not exist, naming those that do."""
        choices.check(self, CHOICES)
        if not set(self.attn_levels) <= set(LEVELS):
            raise UserError(f"model.attn_levels is {self.attn_levels}; they must be among 5, 4, 3, 2")
        branch.check_width(self)

    def _code(
        self, level: int, like: Array, size: Array, box: Array | None = None
    ) -> tuple[Array | None, tuple[Array, Array]]:
        """Position codes of a map's tokens and the centres of its rows and columns (:func:`branch.token_centres`)."""
        centres = branch.token_centres(level, like, size, box)
        return branch.token_code(self.position, centres, self.fpn_channels), centres

    def _global_stages(self, image: Float[Array, "b h w c"], train: bool) -> Maps:
        own, size = getattr(self, "global"), pixels_of(image)
        features = own.features(image, train)
        pyramid = own.pyramid(own.laterals(features, train), size)
        x, smooth = own.smoothing(pyramid)
        stages = {"size": size} | {f"p{i}": y for i, y in pyramid.items()} | smooth | {"x": x, "logits": own.head(x)}
        if self.has_variable("collapsed", "global"):
            mixed = {i: [y] for i, y in self._mix("global", pyramid).items()}
            stages["mixed"] = add_levels(mixed, pyramid)
        else:
            stages["mixed"] = self.fusion.aggregate.mix(x, 2 * self.fpn_channels)
        if self.sharing == "glnet":
            stages |= {f"c{i}": y for i, y in self.fusion.backbone_share(features).items()}
        return stages

    def collapse(self, params: dict[str, Any]) -> dict[str, Any]:
        """What prediction uses instead of affine smoothing and aggregation, by branch (:mod:`layers.collapse`)."""
        if self.head != "affine" or self.sharing != "none":
            return {}
        kernel = params["fusion"]["aggregate"]["kernel"]
        half = kernel.shape[2] // 2
        halves = kernel[:, :, :half], kernel[:, :, half:]
        return {
            name: collapse.collapse(params[name]["smoothing"], kernel, finest=name == "local")
            for name, kernel in zip(("local", "global"), halves, strict=True)
        }

    def _smoothing(self, branch: str) -> dict[str, Any]:
        return self.get_variable("params", branch)["smoothing"]

    def _mix(self, branch: str, pyramid: dict[int, Array]) -> dict[int, Array]:
        """A pyramid's collapsed levels, mixed, each on its own grid."""
        return collapse.mix_levels(pyramid, self.get_variable("collapsed", branch), self._smoothing(branch))

    def _finest(self, pyramid: dict[int, Array]) -> Array:
        """The share of a patch's P2 in its logits."""
        kernel = self.fusion.aggregate.kernel[:, :, : 2 * self.fpn_channels]
        own = self.get_variable("collapsed", "local")
        return collapse.finest_logits(pyramid, own, self._smoothing("local"), kernel)

    def encode_global(self, global_image: Float[Array, "b h w c"], *, train: bool = False) -> Maps:
        """What ``fuse`` needs of ``b`` contexts, and the global branch's own logits; once a context."""
        return self._context(self._global_stages(global_image, train))

    def _context(self, stages: Maps) -> Maps:
        names = {"size", "mixed"} | {f"p{i}" for i in self.attn_levels}
        if not self.has_variable("collapsed", "global"):  # for losses and probes; prediction does without
            names |= {"x", "logits"}
        return {k: v for k, v in stages.items() if k in names or self.sharing == "glnet"}

    def encode_local(self, patches: Float[Array, "b n h w c"], *, train: bool = False) -> Maps:
        """Lateral maps ``[b, n, h, w, c]`` of the patches: all of the local branch that needs no context."""
        b = patches.shape[0]
        backbone = getattr(self, "global") if self.share_backbone else self.local
        features = backbone.features(rearrange(patches, "b n h w c -> (b n) h w c"), train)
        maps = self.local.laterals(features, train)
        maps = {k: rearrange(v, "(b n) h w c -> b n h w c", b=b) for k, v in maps.items()}
        return maps | {"size": pixels_of(patches)}

    def fuse(
        self, context: Maps, features: Maps, boxes: Float[Array, "b n 4"], *, train: bool = False
    ) -> tuple[Array, Maps]:
        """Joins ``n`` patches of each context to it; patches do not see each other.

        Args:
            context: of ``encode_global``; features: of ``encode_local``; boxes: the patches', as fractions of the context.

        Returns:
            logits ``[b, n, h, w, k]`` at stride 4, and every named stage of the local branch and the fusion.
        """
        local, flat, patched = self.local, _flat, partial(_patched, b=boxes.shape[0])

        def at_boxes(maps: Array, level: int) -> Array:
            """A global map at ``level`` at the cells of the patches, ``[b n, h, w, c]``."""
            shape = features[f"lat{level}"].shape[2:4]
            return flat(sample_boxes(maps, boxes, shape, stride(level), features["size"], context["size"]))

        pyramid, refinements, out = self._descend(context, features, boxes, at_boxes)
        if self.sharing == "glnet":
            level = lambda name: int(name[-1])  # noqa: E731
            x, _ = local.smoothing(pyramid, lambda name: at_boxes(context[name], level(name)))
            parts = {i: [] for i in LEVELS} | {2: [(0, x)]}
        else:
            x, smooth = local.smoothing(pyramid)
            parts = {i: [(n * self.fpn_channels // 2, smooth[f"second{i}"])] for n, i in enumerate(reversed(LEVELS))}
        collapsed = self.has_variable("collapsed", "local")
        if collapsed:
            parts = {i: [] for i in LEVELS}
        for i, y in refinements.items():
            parts[i].append((2 * self.fpn_channels, y))
        mixed = {i: [self.fusion.aggregate.mix(y, first) for first, y in parts[i]] for i in LEVELS}
        if collapsed:
            for i, y in self._mix("local", pyramid).items():
                mixed[i].append(y)
        mixed = add_levels(mixed, pyramid)
        logits = self.fusion.aggregate(mixed + at_boxes(context["mixed"], 2))
        logits = patched(logits + self._finest(pyramid) if collapsed else logits)

        # what losses and probes may look at; whoever does not, does not pay
        out |= {"local/x": x, "local/logits": local.head(x)}
        if "x" in context:
            out["global/x_at_box"] = refined = at_boxes(context["x"], 2)
            for y in refinements.values():
                refined = refined + upsample(y, x.shape[1:3])
            out["fused/x_global"] = refined
        out = {k: v if v.ndim == 5 else patched(v) for k, v in out.items()} | {"logits": logits}
        out["local/logits"] = out["local/logits"].astype(jnp.float32)
        return logits, out

    def _descend(self, context, features, boxes, at_boxes):
        """The local pyramid from the top; by level, what the patches changed of the global map, refined; and every stage."""
        flat, patched = _flat, partial(_patched, b=boxes.shape[0])
        pyramid, refinements, out = {}, {}, {}
        for i in reversed(LEVELS):
            x = flat(features[f"lat{i}"])
            if self.sharing == "glnet":
                x = x + at_boxes(context[f"c{i}"], i)
            if i < max(LEVELS):
                x = x + upsample(pyramid[i + 1], x.shape[1:3])
            code, centres = self._code(i, patched(x), features["size"], boxes)
            x = self.local.attend(i, x, None if code is None else flat(code))
            out[f"local/p{i}"] = x
            if i in self.fusion.levels:
                x, change = self._cross(i, patched(x), context, code, centres, boxes, features["size"])
                x = flat(x)
                out[f"fused/p{i}"], out[f"fused/d{i}"] = x, change
                at_box = _at_own_box(change, boxes, x.shape[1:3], stride(i), features["size"], context["size"])
                refinements[i] = self.fusion.refine[str(i)](flat(at_box))
            pyramid[i] = x
        return pyramid, refinements, out

    def _cross(self, level, x, context, code, centres, boxes, patch):
        """Both directions at a level: the patches' tokens after asking, and D, the change of the global map by each patch."""
        asked = context[f"p{level}"]
        h, w = x.shape[2:4]
        height, width = asked.shape[1:3]
        asked_code, asked_centres = self._code(level, asked, context["size"])
        mask = attention.visibility(
            self.mask, centres, asked_centres, boxes, patch, margin=self.mask_margin, radius=self.mask_radius
        )
        tokens = rearrange(x, "b n h w c -> b n (h w) c")
        asked = rearrange(asked, "b h w c -> b 1 (h w) c")
        asked_code = None if asked_code is None else asked_code[:, None]
        answered = self.fusion.local_asks[str(level)](tokens, asked, code, asked_code, mask)
        transposed = None if mask is None else jnp.swapaxes(mask, -1, -2)
        change = self.fusion.global_asks[str(level)](asked, tokens, asked_code, code, transposed)
        if mask is not None:
            change = jnp.where(mask.any(axis=-2)[..., None], change, jnp.zeros((), change.dtype))
        return (
            rearrange(answered, "b n (h w) c -> b n h w c", h=h, w=w),
            rearrange(change, "b n (h w) c -> b n h w c", h=height, w=width),
        )

    def __call__(
        self,
        global_image: Float[Array, "b h w c"],
        patches: Float[Array, "b n ph pw c"],
        boxes: Float[Array, "b n 4"],
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "b n qh qw k"], Maps]:
        """Logits of every patch at stride 4, and every named stage (``global/p5``, ``local/logits``, ``fused/p4``...)."""
        stages = self._global_stages(global_image, train)
        logits, out = self.fuse(self._context(stages), self.encode_local(patches, train=train), boxes, train=train)
        out |= {f"global/{k}": v for k, v in stages.items() if k != "size"}
        out["global/logits"] = out["global/logits"].astype(jnp.float32)
        return logits, out


def _flat(x: Float[Array, "b n ..."]) -> Float[Array, "bn ..."]:
    return rearrange(x, "b n ... -> (b n) ...")


def _patched(x: Float[Array, "bn ..."], b: Any) -> Float[Array, "b n ..."]:
    return rearrange(x, "(b n) ... -> b n ...", b=b)


def _at_own_box(maps: Array, boxes: Array, *args) -> Array:
    """Maps that differ by patch, ``[b, n, h, w, c]``, sampled each at its own box."""
    merge = lambda x: x.reshape(-1, 1, *x.shape[2:])  # noqa: E731
    cells, step, patch, size = args
    size = jnp.broadcast_to(size[:, None], patch.shape)
    sampled = sample_boxes(merge(maps)[:, 0], merge(boxes), cells, step, merge(patch), merge(size)[:, 0])
    return sampled.reshape(*boxes.shape[:2], *sampled.shape[2:])
