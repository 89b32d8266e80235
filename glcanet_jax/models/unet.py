"""U-Net (Ronneberger, Fischer and Brox, 2015, figure 1 and section 2), with its overlap-tile strategy (figure 2)."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from glcanet_jax.models.layers import choices, convolution
from glcanet_jax.models.layers.vgg import conv_name, he_normal, max_pool

LEVELS = (1, 2, 3, 4, 5)  # strides 1, 2, 4, 8, 16
MARGIN = 92  # pixels that the unpadded convolutions eat on each side
CHOICES = {"padding": ("mirror", "same"), "dtype": choices.COMMON["dtype"]}


def mirrored(size: int) -> np.ndarray:
    """Of each row of the network's input, which row of an image of ``size`` it shows (figure 2).

    ``MARGIN`` rows before the image and as many after; after it some more, that all maps which are pooled be even. The
    image is mirrored as often as it takes.
    """
    answered = size + (4 - size) % 16  # rows of the output: 16 n - 60
    period = max(2 * (size - 1), 1)
    rows = np.arange(-MARGIN, answered + MARGIN) % period
    return np.minimum(rows, period - rows) if size > 1 else 0 * rows


def middle(x: Float[Array, "b h w c"], size: tuple[int, ...]) -> Float[Array, "b h2 w2 c"]:
    """The middle of a map."""
    top, left = ((have - want) // 2 for have, want in zip(x.shape[1:3], size, strict=True))
    return x[:, top : top + size[0], left : left + size[1]]


class UpConv(nn.Module):
    """The 2x2 up-convolution: every cell becomes 2x2 cells, each by a product of its own."""

    filters: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        b, h, w, c = x.shape
        init = nn.initializers.variance_scaling(2.0, "fan_in", "normal", batch_axis=(0, 1))  # c inputs an output
        kernel = self.param("kernel", init, (2, 2, c, self.filters), jnp.float32).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.filters,), jnp.float32).astype(self.dtype)
        y = jnp.einsum("bhwc,ijcd->bhiwjd", x, kernel).reshape(b, 2 * h, 2 * w, self.filters)
        return y + bias[None, None, None]


class UNet(nn.Module):
    """Contracting and expansive path of unpadded convolutions, joined at every level; logits for every pixel.

    31,030,658 parameters at two classes and one band; the paper prints no number, this is counted from its figure 1: the
    contracting path has 18,842,048, the four up-convolutions 2,786,240, the convolutions of the expansive path 9,402,240,
    the last one 130. As in the paper no ReLU follows an up-convolution; the network that its authors released has one.
    """

    num_classes: int
    width: int = 64  # filters of the first level; they double with every level
    padding: str = "mirror"  # the image, by what the paper's unpadded convolutions eat; "same": zeros around maps
    dropout: float = 0.5  # at the end of the contracting path, levels 4 and 5
    dtype: str = "float32"  # of the computation; parameters stay float32
    fast_conv: bool | None = None  # kernel gradient made for CPUs; None: on CPUs only

    def __post_init__(self):
        choices.check(self, CHOICES)
        choices.check_dropout(self)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> tuple[Float[Array, "b h w k"], dict[str, Array]]:
        """Logits of every pixel, and ``down1`` ... ``down5``, ``up4`` ... ``up1``, as large as the padding makes them."""
        h, w = x.shape[1:3]
        dtype = jnp.dtype(self.dtype)
        conv = partial(
            nn.Conv,
            kernel_size=(3, 3),
            padding=0 if self.padding == "mirror" else 1,
            kernel_init=he_normal,
            dtype=dtype,
            conv_general_dilated=convolution.choose(self.fast_conv),
        )
        if self.padding == "mirror":
            x = x[:, mirrored(h)][:, :, mirrored(w)]
        else:
            x = jnp.pad(x, ((0, 0), (0, -h % 16), (0, -w % 16), (0, 0)))
        out = {}
        for level in LEVELS:
            x = x if level == 1 else max_pool(x)
            for i in (1, 2):
                x = nn.relu(conv(self.width * 2 ** (level - 1), name=conv_name(level, i))(x))
            if level >= 4:
                x = nn.Dropout(self.dropout, deterministic=not train)(x)
            out[f"down{level}"] = x
        for level in LEVELS[-2::-1]:
            filters = self.width * 2 ** (level - 1)
            x = UpConv(filters, dtype, name=f"up{level}")(x)
            x = jnp.concatenate([middle(out[f"down{level}"], x.shape[1:3]), x], axis=-1)
            for i in (1, 2):
                x = nn.relu(conv(filters, name=f"up{level}_conv{i}")(x))
            out[f"up{level}"] = x
        logits = conv(self.num_classes, kernel_size=(1, 1), padding=0, name="head")(x)[:, :h, :w].astype(jnp.float32)
        return logits, out | {"logits": logits}
