"""ICNet: an image at three resolutions through branches of falling depth, fused in a cascade (Zhao et al., ICNet for
Real-Time Semantic Segmentation on High-Resolution Images, ECCV 2018, section 3).

The layers are those of the authors' published network (``icnet_cityscapes.prototxt``), which fill in the paper's sketch.
There the bins of the pyramid of 3 and 6 a side are wider than a third and a sixth and overlap; here they are PSPNet's.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from glcanet_jax.errors import UserError
from glcanet_jax.models.layers import choices, convolution, pooling, resnet
from glcanet_jax.models.layers.blocks import ConvNorm
from glcanet_jax.models.layers.resnet import backbone_of, new_norm_of
from glcanet_jax.models.layers.sampling import upsample

OUTPUT_STRIDE = 8  # of the ResNet, were it not for the halving
SHARED = "stage2_block1"  # the last block of the medium branch; what follows is the low one's alone
CHOICES = resnet.CHOICES | choices.COMMON


class CascadeFusion(nn.Module):
    """Sum of a coarse map on a finer grid and the map of that grid (cascade feature fusion, section 3.3)."""

    filters: int
    block: Callable  # makes a ConvNorm

    @nn.compact
    def __call__(
        self, coarse: Float[Array, "b h w c"], fine: Float[Array, "b h w c2"], train: bool = False
    ) -> Float[Array, "b h w c3"]:
        y = self.block(self.filters, dilation=2, relu=False, name="coarse")(coarse, train)
        return nn.relu(y + self.block(self.filters, kernel=1, relu=False, name="fine")(fine, train))


class ICNet(nn.Module):
    """The network of the paper. Returns logits at stride 4, where its loss is computed, and every named stage.

    Parameters at inference: 6 699 987 for 19 classes; training adds the auxiliary heads' 7 334. The paper prints none. Before
    compression (``width=64``) there are 26 732 684 for 12 classes; OpenVINO's model zoo gives 26.7043 M, without the 28 544
    scales of the norms, which it folds into the convolutions (26.7041 M).
    """

    num_classes: int
    depth: int = 50  # of the ResNet
    width: int = 32  # filters of its stem, and the measure of all others: half of 64, the paper's compression
    stride: str = "v1.5"  # where a bottleneck strides; v1 as the authors', and for weights trained so
    stem: str = "deep"  # three 3x3, as the authors'; "conv7" for torchvision's weights (and width 64)
    bins: tuple[int, ...] = (1, 2, 3, 6)  # a side, of the pyramid
    aux_weights: tuple[int | float, int | float] = (0.16, 0.4)  # of the losses at strides 16 and 8; of the main one 1
    norm: str = "batch"  # of the backbone; new layers have group for frozen
    dtype: str = "float32"  # of the computation; parameters stay float32
    remat: bool = False  # recompute the backbone's blocks in the backward pass
    fast_conv: bool | None = None  # kernel gradient made for CPUs; None: on CPUs only

    backbone = "resnet"  # what pretrained weights it takes

    def __post_init__(self):
        choices.check(self, CHOICES)
        if not self.bins or min(self.bins) < 1:
            raise UserError(f"model.bins is {self.bins}; it must hold one or more numbers from 1 on")
        if len(self.aux_weights) != 2:
            raise UserError(f"model.aux_weights is {self.aux_weights}; it must hold two numbers")
        super().__post_init__()

    @property
    def auxiliary(self) -> dict[str, int | float]:
        """Auxiliary logits that a loss reads, and its weights: cascade label guidance."""
        return dict(zip(("sub4", "sub24"), self.aux_weights, strict=True))

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> tuple[Float[Array, "b h4 w4 k"], dict[str, Array]]:
        dtype = jnp.dtype(self.dtype)
        conv = partial(nn.Conv, dtype=dtype, conv_general_dilated=convolution.choose(self.fast_conv))
        block = partial(ConvNorm, conv=conv, norm=new_norm_of(self))
        fusion = partial(CascadeFusion, 4 * self.width, block)
        classify = partial(conv, self.num_classes, (1, 1), padding=0)
        finer = lambda y, stride: upsample(y, tuple(-(-n // stride) for n in x.shape[1:3]))  # noqa: E731

        out = backbone_of(  # medium branch up to SHARED, at stride 16 of the image; the low one, at stride 32, after it
            self,
            conv,
            output_stride=OUTPUT_STRIDE,
            stem=self.stem,
            halve_after=SHARED,
        )(name="resnet")(x[:, ::2, ::2], train)
        medium, low = out.pop(SHARED), out["c5"]
        out["pyramid"] = low + self._pooled(low)
        low = block(low.shape[-1] // 4, kernel=1, name="low")(out["pyramid"], train)
        high = x
        for i, scale in enumerate((1, 1, 2), 1):
            high = block(scale * self.width, strides=2, name=f"high{i}")(high, train)
        out |= {"sub1": high, "sub2": medium, "sub4": low}

        low = finer(low, 16)
        out["sub24"] = fusion(name="fuse24")(low, medium, train)
        fused = finer(out["sub24"], 8)
        out["sub12"] = fusion(name="fuse12")(fused, high, train)
        if train or self.is_initializing():
            out["sub4/logits"] = classify(name="sub4_classifier")(low).astype(jnp.float32)
            out["sub24/logits"] = classify(name="sub24_classifier")(fused).astype(jnp.float32)
        out["logits"] = classify(name="classifier")(finer(out["sub12"], 4)).astype(jnp.float32)
        return out["logits"], out

    def _pooled(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Sum of the means over each number of bins, spread again: a pyramid without layers of its own."""
        means = (pooling.spread(pooling.adaptive_mean(x, n), x.shape[1:3]) for n in self.bins)
        return sum(means).astype(x.dtype)
