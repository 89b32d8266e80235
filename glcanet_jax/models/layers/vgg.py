"""VGG-16 (Simonyan and Zisserman, 2015, table 1, configuration D) without its classifier, and the pooling that goes with it.

FCN-8s takes its pooled maps; SegNet also asks where each pooled maximum came from. Odd sizes are pooled in ceil mode, as in
Caffe, where both were made: a map ``h`` high becomes ``ceil(h / 2)`` high.
"""

from collections.abc import Callable
from functools import partial, reduce

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

STAGES = (2, 2, 3, 3, 3)  # convolutions before each pooling
LAYERS = tuple((stage, i) for stage, count in enumerate(STAGES, 1) for i in range(1, count + 1))
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def conv_name(stage: int, i: int) -> str:
    """``stem_conv``, ``conv1_2`` ... ``conv5_3``."""
    return "stem_conv" if (stage, i) == (1, 1) else f"conv{stage}_{i}"


def filters(width: int, stage: int) -> int:
    """Filters of a stage's convolutions: w, 2w, 4w, 8w, 8w."""
    return width * min(2 ** (stage - 1), 8)


def corners(x: Float[Array, "b h w c"]) -> list[Float[Array, "b h2 w2 c"]]:
    """The four cells of every 2x2 window, row by row; what lies outside of an odd map is -inf."""
    odd = [(0, x.shape[axis] % 2 if axis in (1, 2) else 0) for axis in range(4)]
    x = jnp.pad(x, odd, constant_values=-jnp.inf)
    return [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Largest of 2x2 at stride 2, in ceil mode."""
    return reduce(jnp.maximum, corners(x))


def max_places(x: Float[Array, "b h w c"]) -> Int[Array, "b h2 w2 c"]:
    """Which cell of its window, 0 to 3 row by row, each maximum of :func:`max_pool` is; the first of equals."""
    return jnp.argmax(jnp.stack(corners(x)), axis=0).astype(jnp.int8)


def max_unpool(
    x: Float[Array, "b h2 w2 c"], places: Int[Array, "b h2 w2 c"], size: tuple[int, int]
) -> Float[Array, "b h w c"]:
    """Values back at their places in a map of ``size``, zero elsewhere."""
    b, h, w, c = x.shape
    cell = jnp.arange(4, dtype=jnp.int32).reshape(1, 1, 2, 1, 2, 1)
    wide = places[:, :, None, :, None].astype(jnp.int32)  # onnxruntime compares no int8
    y = jnp.where(wide == cell, x[:, :, None, :, None], jnp.zeros((), x.dtype))
    return y.reshape(b, 2 * h, 2 * w, c)[:, : size[0], : size[1]]  # from b h 2 w 2 c


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions with bias and ReLU; with ``norm``, VGG-16-BN. Any number of input bands.

    Returns ``conv1`` ... ``conv5``, the maps before each pooling, and ``pool1`` ... ``pool5``.

    14,714,688 parameters at three bands (138.4 M published, of which the classifier, left out, has 123.6 M).
    """

    width: int = 64  # filters of the first stage; every stage scales with it
    padding: int = 1  # of the first convolution; FCN pads the image here
    conv: Callable = nn.Conv
    norm: Callable | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> dict[str, Float[Array, "b _ _ _"]]:
        conv = partial(self.conv, kernel_size=(3, 3), kernel_init=he_normal)
        out = {}
        for stage, i in LAYERS:
            padding = self.padding if (stage, i) == (1, 1) else 1
            x = conv(filters(self.width, stage), padding=padding, name=conv_name(stage, i))(x)
            if self.norm is not None:
                x = self.norm(name=f"norm{stage}_{i}")(x, train)
            x = nn.relu(x)
            if i == STAGES[stage - 1]:
                out[f"conv{stage}"] = x
                x = out[f"pool{stage}"] = max_pool(x)
        return out
