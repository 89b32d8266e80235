"""SegNet (Badrinarayanan, Kendall and Cipolla, 2017, section 3 and figure 2): unpooling to where the maxima came from."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from glcanet_jax.models.layers import choices, convolution
from glcanet_jax.models.layers.resnet import norm_layer
from glcanet_jax.models.layers.vgg import LAYERS, STAGES, VGG16, filters, he_normal, max_places, max_unpool

CHOICES = choices.COMMON


class SegNet(nn.Module):
    """VGG-16-BN and its mirror image, which unpools where the encoder pooled; logits for every pixel.

    29,449,932 parameters at 12 classes and three bands; the literature prints 29.45 M, which is the same. The encoder's
    convolutions have 14,714,688 and its norms 8,448, the decoder's 14,712,448 and 7,424, the last convolution 6,924.
    """

    num_classes: int
    width: int = 64  # filters of VGG's first stage
    norm: str = "batch"  # after every convolution but the last
    dtype: str = "float32"  # of the computation; parameters stay float32
    fast_conv: bool | None = None  # kernel gradient made for CPUs; None: on CPUs only

    backbone = "vgg"  # what pretrained weights it takes

    def __post_init__(self):
        choices.check(self, CHOICES)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> tuple[Float[Array, "b h w k"], dict[str, Array]]:
        """Logits of every pixel, VGG's stages, and ``decoder5`` ... ``decoder2``, as large as ``conv5`` ... ``conv2``."""
        dtype = jnp.dtype(self.dtype)
        conv = partial(nn.Conv, dtype=dtype, conv_general_dilated=convolution.choose(self.fast_conv))
        norm = norm_layer(self.norm, dtype)
        out = VGG16(self.width, 1, conv, norm, name="vgg")(x, train)
        y = out["pool5"]
        for stage, i in reversed(LAYERS[1:]):  # of the stem, the head is the mirror image
            if i == STAGES[stage - 1]:
                before = out[f"conv{stage}"]
                y = max_unpool(y, max_places(before), before.shape[1:3])
            count = filters(self.width, stage if i > 1 else stage - 1)  # the mirror image of conv{stage}_{i}'s inputs
            y = conv(count, (3, 3), padding=1, kernel_init=he_normal, name=f"decoder{stage}_{i}")(y)
            y = nn.relu(norm(name=f"decoder{stage}_norm{i}")(y, train))
            if i == 1:
                out[f"decoder{stage}"] = y
        logits = conv(self.num_classes, (3, 3), padding=1, name="head")(y).astype(jnp.float32)
        return logits, out | {"logits": logits}
