"""EncNet: channels weighed by what the whole image holds, over a dilated ResNet (Zhang et al., Context Encoding for Semantic
Segmentation, CVPR 2018, section 3).

The layers are those of the authors' published code. It has an FCN head on the fourth stage where the paper has a second
encoding, and adds the weighed map to the map where the paper takes it alone.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from glcanet_jax.errors import UserError
from glcanet_jax.models.layers import choices, convolution, resnet
from glcanet_jax.models.layers.blocks import ConvNorm, fcn_head
from glcanet_jax.models.layers.encoding import EncodedContext, presence_loss
from glcanet_jax.models.layers.resnet import backbone_of, new_norm_of
from glcanet_jax.models.layers.sampling import logits_to_pixels

OUTPUT_STRIDE = 8
CHOICES = resnet.CHOICES | choices.COMMON


class EncNet(nn.Module):
    """The network of the authors' code. Returns logits at every pixel, where its loss is computed, and every named stage.

    Parameters at inference, for 7 classes: 33 495 726, which are ResNet-50's 23 508 032 and the head's 9 987 694; with
    ``lateral`` 41 363 118. Training adds the auxiliary head's 2 361 607. The 3 591 of the presence scores are trained and
    kept, but not asked at inference; the two counts above hold them. The paper prints none. With the authors' stem there
    are 123 776 more.
    """

    num_classes: int
    depth: int = 50  # of the ResNet
    width: int = 64  # filters of its stem
    stride: str = "v1.5"  # where a bottleneck strides, as the authors'; v1 for weights trained so
    stem: str = "conv7"  # "deep": three 3x3, as the authors'
    channels: int = 512  # of the head
    codewords: int = 32  # of the encoding
    lateral: bool = False  # C3 and C4 beside C5, as the authors have it for Pascal's data
    dropout: int | float = 0.1  # before both classifiers
    aux_weight: int | float = 0.2  # of the auxiliary loss on the fourth stage
    presence_weight: int | float = 0.2  # of the loss of which classes are in the image
    norm: str = "batch"  # of the backbone; new layers have group for frozen
    dtype: str = "float32"  # of the computation; parameters stay float32
    remat: bool = False  # recompute the backbone's blocks in the backward pass
    fast_conv: bool | None = None  # kernel gradient made for CPUs; None: on CPUs only

    backbone = "resnet"  # what pretrained weights it takes
    exact = ("context/encoding/codewords",)  # distances to them are differences of large numbers

    def __post_init__(self):
        choices.check(self, CHOICES)
        choices.check_dropout(self)
        if self.codewords < 1:
            raise UserError(f"model.codewords is {self.codewords}; it must be 1 or more")
        super().__post_init__()

    @property
    def auxiliary(self) -> dict[str, int | float]:
        """Auxiliary logits that a loss reads, and its weights."""
        return {"aux": self.aux_weight}

    def loss(
        self, stages: dict[str, Array], labels: Integer[Array, "b h w"], key: jax.Array
    ) -> dict[str, Float[Array, ""]]:
        """The loss of presence."""
        return {"presence": self.presence_weight * presence_loss(stages["presence"], labels)}

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> tuple[Float[Array, "b h w k"], dict[str, Array]]:
        dtype, size = jnp.dtype(self.dtype), x.shape[1:3]
        conv = partial(nn.Conv, dtype=dtype, conv_general_dilated=convolution.choose(self.fast_conv))
        block, norm = partial(ConvNorm, conv=conv, norm=new_norm_of(self)), new_norm_of(self)
        drop = partial(nn.Dropout, self.dropout, deterministic=not train)
        out = backbone_of(
            self,
            conv,
            output_stride=OUTPUT_STRIDE,
            stem=self.stem,
            contract_dilation=True,
        )(name="resnet")(x, train)
        y = block(self.channels, name="conv5")(out["c5"], train)
        if self.lateral:
            sides = [block(self.channels, kernel=1, name=f"lateral{i}")(out[f"c{i}"], train) for i in (3, 4)]
            y = block(self.channels, name="fuse")(jnp.concatenate([y, *sides], axis=-1), train)
        context = out["context"] = EncodedContext(self.codewords, block, norm, name="context")(y, train)
        gate = nn.sigmoid(nn.Dense(self.channels, dtype=dtype, name="gate")(context))
        out["weighed"] = nn.relu(y + y * gate[:, None, None])
        logits = conv(self.num_classes, (1, 1), padding=0, name="classifier")(drop(name="drop")(out["weighed"]))
        if train or self.is_initializing():
            out["presence"] = nn.Dense(self.num_classes, name="presence")(context.astype(jnp.float32))
            y = fcn_head(out["c4"], self.num_classes, conv, block, drop, train, prefix="aux_")
            out["aux/logits"] = logits_to_pixels(y, size)
        out["logits"] = logits_to_pixels(logits, size)
        return out["logits"], out
