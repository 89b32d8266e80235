"""A fully convolutional network on a ResNet with CBAM (Woo et al., CBAM: Convolutional Block Attention Module, ECCV 2018).

CBAM is a module, not a network of segmentation, and the paper of GLCANet does not say which network carries it in the row of that
name. Its text has that row take heights as a further channel, which CBAM does not do: it may belong to another method. What is here
is our choice: the module where its authors have it, in every residual block, or on the last map alone, and the head of an FCN.
"""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from glcanet_jax.models.layers import cbam, choices, convolution, resnet
from glcanet_jax.models.layers.blocks import ConvNorm, fcn_head
from glcanet_jax.models.layers.resnet import backbone_of, new_norm_of
from glcanet_jax.models.layers.sampling import logits_to_pixels

OUTPUT_STRIDE = 8
CHOICES = resnet.CHOICES | choices.COMMON | {"where": ("blocks", "c5")}


class CBAMFCN(nn.Module):
    """The network as chosen here. Returns logits at every pixel, where its loss is computed, and every named stage.

    Parameters at inference, for 7 classes: 35 482 423, which are ResNet-50's 23 508 032, the modules' 2 532 592 and the head's
    9 441 799; training adds the auxiliary head's 2 361 607. With ImageNet's classifier the ResNet has 28 089 624; the paper
    prints 28.09 M.
    """

    num_classes: int
    depth: int = 50  # of the ResNet
    width: int = 64  # filters of its stem
    stride: str = "v1.5"  # where a bottleneck strides; v1 for weights trained so
    stem: str = "conv7"  # three 3x3: "deep" and "v1c"
    where: str = "blocks"  # CBAM in every residual block, as its authors have it, or once behind the last, "c5"
    reduction: int = 16  # of the channels, within the channel gates
    open_gates: bool = False  # gates begin at 0.95 instead of at a half: for weights of a ResNet without them
    dropout: int | float = 0.1  # before both classifiers
    aux_weight: int | float = 0.4  # of the auxiliary loss on the fourth stage
    norm: str = "batch"  # of the backbone; gates and new layers have group for frozen
    dtype: str = "float32"  # of the computation; parameters stay float32
    remat: bool = False  # recompute the backbone's blocks in the backward pass
    fast_conv: bool | None = None  # kernel gradient made for CPUs; None: on CPUs only

    backbone = "resnet"  # what pretrained weights it takes

    def __post_init__(self):
        choices.check(self, CHOICES)
        choices.check_dropout(self)
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
        norm = new_norm_of(self)
        block = partial(ConvNorm, conv=conv, norm=norm)
        drop = partial(nn.Dropout, self.dropout, deterministic=not train)
        slow = partial(norm, momentum=0.99) if self.norm == "batch" else norm  # statistics, as the authors' code has it
        attend = partial(cbam.CBAM, conv, slow, self.reduction, cbam.OPEN if self.open_gates else 0.0)
        inside = {"attend": attend} if self.where == "blocks" else {}
        out = backbone_of(self, conv, output_stride=OUTPUT_STRIDE, stem=self.stem, **inside)(name="resnet")(x, train)
        y = out["c5"]
        if self.where == "c5":
            y = out["attended"] = attend(name="cbam")(y, train)
        logits = fcn_head(y, self.num_classes, conv, block, drop, train, prefix="head_")
        if train or self.is_initializing():
            y = fcn_head(out["c4"], self.num_classes, conv, block, drop, train, prefix="aux_")
            out["aux/logits"] = logits_to_pixels(y, size)
        out["logits"] = logits_to_pixels(logits, size)
        return out["logits"], out
