"""FCN-8s (Long, Shelhamer and Darrell, 2015, section 4 and figure 3; Shelhamer et al., 2017) on VGG-16."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from glcanet_jax import geometry
from glcanet_jax.models.layers import choices, convolution
from glcanet_jax.models.layers.vgg import VGG16, he_normal

PADDING = 100  # of the image; fc6 fits an image of any size then
CROPS = {"pool4": 5, "pool3": 9, "image": 31}  # first cell of each that the upsampled scores below it begin at
CHOICES = {"padding": ("wide", "same"), "dtype": choices.COMMON["dtype"]}


def bilinear(size: int) -> np.ndarray:
    """One axis of the kernel ``size`` wide that upsamples ``size // 2`` times (section 3.3)."""
    return geometry.tent((np.arange(size) - (size - 1) / 2) / (size // 2))


def bilinear_init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """A kernel ``[s, s, c, c]`` that upsamples every channel by itself."""
    one = bilinear(shape[0])
    return jnp.asarray(np.einsum("i,j,kl->ijkl", one, one, np.eye(*shape[2:])), dtype)


def bilinear_upsample(x: Float[Array, "b h w c"], factor: int) -> Float[Array, "b h2 w2 c"]:
    """The transposed convolution with a bilinear kernel ``2 * factor`` wide: ``factor * (h + 1)`` rows, zeros around ``x``.

    Two cells answer for every output along an axis, so it is two products instead of a convolution.
    """
    late, early = bilinear(2 * factor).reshape(2, factor).astype(x.dtype)
    for axis in (1, 2):
        x = jnp.moveaxis(x, axis, 1)
        x = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))[:, :, None]  # b h+2 1 w c
        x = x[:, 1:] * late[None, None, :, None, None] + x[:, :-1] * early[None, None, :, None, None]
        x = jnp.moveaxis(x.reshape(x.shape[0], -1, *x.shape[3:]), 1, axis)  # from b h+1 factor w c
    return x


def crop(x: Float[Array, "b h w c"], first: int, size: tuple[int, ...]) -> Float[Array, "b h2 w2 c"]:
    """``size`` cells from ``first`` on, along both axes."""
    return x[:, first : first + size[0], first : first + size[1]]


class FCN8s(nn.Module):
    """VGG-16 as a convolutional classifier, its scores joined to those of pool4 and pool3; logits for every pixel.

    134,376,863 parameters at 21 classes and three bands. The paper's table 1 prints 134 M for the network without skips,
    which has 134,346,581: VGG's convolutions 14,714,688, fc6 102,764,544, fc7 16,781,312, the scores of fc7 86,037. The
    skips add 30,282: the scores of pool4 10,773 and of pool3 5,397, and two learned upsamplings of 7,056. The last
    upsampling is fixed, so no parameter; the authors' file stores it as 112,896 more numbers.
    """

    num_classes: int
    width: int = 64  # filters of VGG's first stage
    fc: int = 4096  # filters of fc6 and fc7
    padding: str = "wide"  # 100 px around the image, the paper's; "same": zeros around maps, cheaper for small images
    dropout: float = 0.5  # after fc6 and fc7
    dtype: str = "float32"  # of the computation; parameters stay float32
    fast_conv: bool | None = None  # kernel gradient made for CPUs; None: on CPUs only

    backbone = "vgg"  # what pretrained weights it takes

    def __post_init__(self):
        choices.check(self, CHOICES)
        choices.check_dropout(self)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> tuple[Float[Array, "b h w k"], dict[str, Array]]:
        """Logits of every pixel, and ``pool3`` ..., ``fc7``, ``score5`` ... ``score3``, each at its own size."""
        h, w = x.shape[1:3]
        dtype = jnp.dtype(self.dtype)
        conv = partial(nn.Conv, padding=0, dtype=dtype, conv_general_dilated=convolution.choose(self.fast_conv))
        score = partial(conv, self.num_classes, (1, 1), kernel_init=nn.initializers.zeros)
        double = partial(
            nn.ConvTranspose,
            self.num_classes,
            (4, 4),
            strides=(2, 2),
            padding=((3, 3), (3, 3)),  # every cell an input reaches
            use_bias=False,
            kernel_init=bilinear_init,
            dtype=dtype,
        )
        wide = self.padding == "wide"
        out = VGG16(self.width, PADDING if wide else 1, conv, name="vgg")(x, train)
        y = self._classifier(out["pool5"], conv, train)
        scores = score(name="score_fc7")(y)
        out |= {"fc7": y, "score5": scores}
        for level in (4, 3):
            name = f"pool{level}"
            scores, skip = double(name=f"up{level}")(scores), score(name=f"score_{name}")(out[name])
            if wide:
                scores = scores + crop(skip, CROPS[name], scores.shape[1:3])
            else:  # the upsampled map begins a cell before the other, the last one half a kernel before the image
                scores = crop(scores, 1, skip.shape[1:3]) + skip
            out[f"score{level}"] = scores
        logits = crop(bilinear_upsample(scores.astype(jnp.float32), 8), CROPS["image"] if wide else 4, (h, w))
        return logits, out | {"logits": logits}

    def _classifier(self, x: Array, conv: Callable, train: bool) -> Array:
        """VGG's first two fully connected layers, as convolutions."""
        for name, kernel in (("fc6", 7), ("fc7", 1)):
            around = 0 if self.padding == "wide" else kernel // 2
            x = nn.relu(conv(self.fc, (kernel, kernel), padding=around, kernel_init=he_normal, name=name)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return x
