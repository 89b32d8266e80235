"""GLNet (Chen et al., "Collaborative Global-Local Networks", CVPR 2019): two pyramids that share maps by concatenation.

``encode_global`` runs once a context; ``encode_local`` and ``fuse`` are the paper's G=>L. With ``mutual``, G<=>L, what the
patches saw goes back: ``collect`` sums their maps on the global grid, ``encode_again`` gives them to a second global branch,
``fuse_again`` aggregates. Letters: ``b`` contexts, ``n`` patches of each, ``h w`` pixels or cells, ``c`` channels, ``k`` classes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

from glcanet_jax.models.layers import choices, convolution, cropping
from glcanet_jax.models.layers.fpn import LEVELS, Laterals, SharedSmooth, Smooth
from glcanet_jax.models.layers.resnet import BLOCKS, backbone_of
from glcanet_jax.models.layers.sampling import pixels_of, upsample

CHOICES = {
    "depth": tuple(BLOCKS),
    "stride": ("v1.5", "v1"),
    "mutual": (False, True),
    "strict": (False, True),
} | choices.COMMON
SHARED = tuple(f"{phase}{i}" for phase in ("c", "p", "first", "second") for i in LEVELS)  # the four sharing points
Maps = dict[str, Array]


def _flat(x: Float[Array, "b n h w c"]) -> Float[Array, "bn h w c"]:
    return rearrange(x, "b n h w c -> (b n) h w c")


def _level(name: str) -> int:
    return int(name[-1])


class Branch(nn.Module):
    """Backbone, pyramid and head of one view; affine after the backbone. With ``doubled``, every input has another branch's beside it."""

    num_classes: int
    channels: int
    backbone: Callable[..., nn.Module]
    conv: Callable
    resize: Callable  # to the next finer grid
    doubled: bool = False

    def setup(self):
        self.resnet = self.backbone()
        self.fpn = Laterals(self.channels, self.conv)
        self.smoothing = (SharedSmooth if self.doubled else Smooth)(self.channels, self.conv, self.resize)
        self.head = self.conv(self.num_classes, (3, 3), padding=1)

    def features(self, x: Float[Array, "b h w c"], train: bool) -> Maps:
        """C2..C5."""
        return self.resnet(x, train)

    def stages(self, maps: Maps, given: Callable[[str], Array] | None = None) -> Maps:
        """P5..P2, both smoothed forms of each, X and the logits.

        Args:
            maps: C2..C5; given: the other branch's map by name, on this branch's grid.
        """
        if given is not None:
            maps = {k: jnp.concatenate([maps[k], given(k)], axis=-1) for k in (f"c{i}" for i in LEVELS)}
        laterals, pyramid = self.fpn(maps), {}
        for i in reversed(LEVELS):
            x = laterals[f"lat{i}"]
            pyramid[i] = x + self.resize(pyramid[i + 1], x.shape[1:3]) if i < max(LEVELS) else x
        x, smooth = self.smoothing(pyramid) if given is None else self.smoothing(pyramid, given)
        logits = self.head(x).astype(jnp.float32)
        return {f"p{i}": y for i, y in pyramid.items()} | smooth | {"x": x, "logits": logits}


class Aggregation(nn.Module):
    """One convolution of both branches' last maps."""

    num_classes: int
    conv: Callable
    fan_in: int  # of the convolution

    def setup(self):
        def bias(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
            bound = self.fan_in**-0.5
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        self.aggregate = self.conv(self.num_classes, (3, 3), padding=1, bias_init=bias)

    def __call__(self, x: Float[Array, "b n h w c"], x_global: Float[Array, "b n h w c"]) -> Float[Array, "b n h w k"]:
        logits = self.aggregate(_flat(jnp.concatenate([x, x_global], axis=-1))).astype(jnp.float32)
        return rearrange(logits, "(b n) h w k -> b n h w k", b=x.shape[0])


class GLNet(nn.Module):
    """The network of the paper; every option is a field. Returns ``(logits, out)``, ``out`` holding every named stage."""

    num_classes: int
    mutual: bool = False  # G<=>L, with the second global branch; False: G=>L
    strict: bool = (
        False  # the released code to the number: whole-cell crops, half-pixel resizing, division by its template
    )
    depth: int = 50  # of the ResNets
    width: int = 64  # filters of their stems
    stride: str = "v1.5"  # where a bottleneck strides; v1 for weights trained so
    fpn_channels: int = 256  # of the pyramid
    norm: str = "batch"  # of the backbones
    dtype: str = "float32"  # of the computation; parameters stay float32
    remat: bool = False  # recompute the backbones' blocks in the backward pass
    fast_conv: bool | None = None  # kernel gradient made for CPUs; None: on CPUs only

    backbone = "resnet"  # what pretrained weights it takes

    def __post_init__(self):
        choices.check(self, CHOICES)  # at once, not at the first use
        super().__post_init__()

    def setup(self):
        dtype = jnp.dtype(self.dtype)
        conv = partial(nn.Conv, dtype=dtype, conv_general_dilated=convolution.choose(self.fast_conv))
        head_conv = partial(conv, kernel_init=nn.initializers.normal(0.01))
        backbone = backbone_of(self, conv)
        resize = cropping.resize if self.strict else upsample
        branch = partial(Branch, self.num_classes, self.fpn_channels, backbone, head_conv, resize)
        setattr(self, "global", branch())
        self.local = branch(doubled=True)
        self.fusion = Aggregation(self.num_classes, head_conv, fan_in=36 * self.fpn_channels)
        if self.mutual:
            self.feedback = branch(doubled=True)

    @property
    def second_pass(self) -> bool:
        """Whether prediction walks the patches twice: ``collect``, ``encode_again``, ``fuse_again``."""
        return self.mutual

    @property
    def stages(self) -> tuple[str, ...]:
        """The phases of training, each holding what the earlier ones trained."""
        return ("global", "rest", "feedback") if self.mutual else ("global", "rest")

    @staticmethod
    def begin_feedback(variables: dict[str, Any]) -> dict[str, Any]:
        """Variables at the start of the last stage: the second global branch starts with the first one's backbone and head."""
        out = dict(variables)
        for collection, parts in (("params", ("resnet", "head")), ("batch_stats", ("resnet",))):
            tree = variables.get(collection, {})
            copied = {k: jax.tree.map(jnp.copy, tree["global"][k]) for k in parts if k in tree.get("global", {})}
            if copied:
                out[collection] = {**tree, "feedback": {**tree.get("feedback", {}), **copied}}
        return out

    # ----------------------------------------------------------------------------------------------------- global to local
    def encode_global(self, global_image: Float[Array, "b h w c"], *, train: bool = False) -> Maps:
        """What the patches need of ``b`` contexts, and the global branch's own logits; once a context."""
        branch = getattr(self, "global")
        maps = branch.features(global_image, train)
        return maps | branch.stages(maps) | {"size": pixels_of(global_image)}

    def encode_local(self, patches: Float[Array, "b n h w c"], *, train: bool = False) -> Maps:
        """C2..C5 ``[b, n, h, w, c]`` of the patches: all of the local branch that needs no context."""
        maps = self.local.features(_flat(patches), train)
        maps = {k: rearrange(v, "(b n) h w c -> b n h w c", b=patches.shape[0]) for k, v in maps.items()}
        return maps | {"size": pixels_of(patches)}

    def _local_stages(self, context: Maps, features: Maps, boxes: Float[Array, "b n 4"]) -> Maps:
        """Every stage of the local branch, ``[b, n, ...]``, with the context's maps beside its own."""

        sizes = features["size"], context["size"]
        readings = {
            i: cropping.read(boxes, context[f"c{i}"].shape[1:3], features[f"c{i}"].shape[2:4], i, *sizes, self.strict)
            for i in LEVELS
        }
        given = lambda name: _flat(readings[_level(name)].crop(context[name]))  # noqa: E731
        stages = self.local.stages({k: _flat(v) for k, v in features.items() if k != "size"}, given)
        return {k: rearrange(v, "(b n) h w c -> b n h w c", b=boxes.shape[0]) for k, v in stages.items()}

    def _last_map(self, context: Maps, local: Maps, boxes: Float[Array, "b n 4"]) -> Float[Array, "b n h w c"]:
        """The context's X at the cells of the patches."""
        cells, counts = context["x"].shape[1:3], local["x"].shape[2:4]
        return cropping.read(boxes, cells, counts, 2, local["size"], context["size"], self.strict).crop(context["x"])

    def fuse(
        self, context: Maps, features: Maps, boxes: Float[Array, "b n 4"], *, train: bool = False
    ) -> tuple[Array, Maps]:
        """Joins ``n`` patches of each context to it, G=>L; patches do not see each other.

        Args:
            context: of ``encode_global``; features: of ``encode_local``; boxes: the patches', as fractions of the context.

        Returns:
            logits ``[b, n, h, w, k]`` at stride 4, and every named stage of the local branch and the aggregation.
        """
        stages = self._local_stages(context, features, boxes)
        x_global = self._last_map(context, stages | {"size": features["size"]}, boxes)
        logits = self.fusion(stages["x"], x_global)
        out = {f"local/{k}": v for k, v in stages.items()}
        return logits, out | {"global/x_at_box": x_global, "logits": logits}

    # ----------------------------------------------------------------------------------------------------- local to global
    def collect(
        self, context: Maps, features: Maps, boxes: Float[Array, "b n 4"], valid: Bool[Array, "b n"]
    ) -> tuple[Maps, Maps]:
        """The local branch once more for the second global one; in inference mode always.

        Returns:
            What ``fuse_again`` needs of every patch, ``[b, n, ...]``, the local branch's own logits among it; and the sums
            over the patches on the global grid. Those of two sets of patches of a context add up.
        """
        stages = self._local_stages(context, features, boxes)
        gathered = {}
        for i in LEVELS:
            cells, counts = context[f"c{i}"].shape[1:3], features[f"c{i}"].shape[2:4]
            sizes = features["size"], context["size"]
            grid = cropping.place(boxes, valid, cells, counts, i, *sizes, self.strict)
            gathered[f"cover{i}"] = grid.cover()
            gathered |= grid.add({k: (features if k[0] == "c" else stages)[k] for k in SHARED if _level(k) == i})
        return {"x": stages["x"], "logits": stages["logits"], "size": features["size"]}, gathered

    def encode_again(
        self, context: Maps, gathered: Maps, global_image: Float[Array, "b h w c"], *, train: bool = False
    ) -> Maps:
        """The second global branch: the context's image with what all its patches saw; ``gathered`` is of all of them."""
        maps = self.feedback.features(global_image, train)

        def given(name: str) -> Array:
            return cropping.merge(gathered[name], gathered[f"cover{_level(name)}"]).astype(maps["c2"].dtype)

        return self.feedback.stages(maps, given) | {"size": context["size"]}

    def fuse_again(
        self, context: Maps, kept: Maps, boxes: Float[Array, "b n 4"], *, train: bool = False
    ) -> tuple[Array, Maps]:
        """Aggregates the patches' last maps with the second global branch's, G<=>L.

        Args:
            context: of ``encode_again``; kept: of ``collect``; boxes: of those patches.
        """
        x_global = self._last_map(context, kept, boxes)
        logits = self.fusion(kept["x"], x_global)
        return logits, {"fused/x_global": x_global, "logits": logits}

    # ------------------------------------------------------------------------------------------------------------- together
    def __call__(
        self,
        global_image: Float[Array, "b h w c"],
        patches: Float[Array, "b n ph pw c"],
        boxes: Float[Array, "b n 4"],
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "b n qh qw k"], Maps]:
        """Logits of every patch at stride 4, and every named stage (``global/p5``, ``local/logits``...).

        With ``mutual`` the patches given are all that a context gets back; the first two branches only infer, without
        gradients or new statistics, as in the third stage of training.
        """
        if not self.mutual:
            context = self.encode_global(global_image, train=train)
            logits, out = self.fuse(context, self.encode_local(patches, train=train), boxes, train=train)
        else:
            first = self.encode_global(global_image)
            valid = jnp.ones(boxes.shape[:2], bool)
            kept, gathered = jax.lax.stop_gradient(self.collect(first, self.encode_local(patches), boxes, valid))
            context = self.encode_again(first, gathered, global_image, train=train)
            logits, out = self.fuse_again(context, kept, boxes, train=train)
            out["local/logits"] = kept["logits"]
        return logits, out | {f"global/{k}": v for k, v in context.items() if k != "size"}
